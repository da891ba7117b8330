from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer import Typer
from typer.testing import CliRunner

from trt import export as exporting
from trt import train as training
from trt.checkpoint import lineage, load_checkpoint
from trt.dataset import IGNORED, Case, DatasetError, Split, read_split, write_split
from trt.engine import open_engine
from trt.export import gather_facts, write_model
from trt.losses import SPOILT, dice_and_cross_entropy, restored, spoil, supervised
from trt.manifest import load
from trt.penn import Penn, PennConfig
from trt.phantom import spine_phantom
from trt.recipes import LABELS, PLAIN_UNET, TrainConfig
from trt.renditions import Mixture
from trt.trainer import Run, prepare, train
from trt.validation import score, segment_slices
from trt.watch import Watch

TINY = TrainConfig(
    network=PennConfig(classes=5, width=8, levels=3, side_heads=1),
    patch=32,
    batch=6,
    steps=60,
    epoch=20,
    pretrain=0.0,
    average=0.8,
    warm_up=5,
    mixture=Mixture(0.2, 0.2, 0.3),
    seed=3,
    bf16=False,
)

SITE = {
    "name": "site-spine",
    "version": "2.0.1",
    "training_data": "120 series of our own",
    "licence": "ours",
}


@pytest.fixture
def app() -> Typer:
    app = Typer()
    app.command("train")(training.main)
    app.command("export")(exporting.main)
    return app


@pytest.fixture(scope="module")
def cases() -> tuple[Case, ...]:
    phantoms = [spine_phantom((5, 110, 100), (2.0, 1.2, 1.2), seed) for seed in range(2)]
    return prepare([Case(f"p{n}", p.image.astype(np.float32), p.mask) for n, p in enumerate(phantoms)])


def test_a_run_learns_and_what_it_exports_serves(cases: tuple[Case, ...], tmp_path: Path) -> None:
    wanted = replace(TINY, steps=150, epoch=50, mixture=Mixture(0, 0, 0))
    run, losses = Run(cases, wanted), []
    while run.epoch < run.epochs:
        run.train(lambda at: losses.append(at.loss))
    assert len(losses) == wanted.steps
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])

    run.save(tmp_path / "checkpoint.pt")
    read, config, steps = load_checkpoint(tmp_path / "checkpoint.pt")
    assert (config, steps) == (wanted, wanted.steps)
    write_split(Split(("p0",), ("p1",), 3), tmp_path / "split.json")
    facts = gather_facts(None, SITE, TINY.labels)
    manifest = write_model(read, TINY, TINY.steps, tmp_path / "split.json", tmp_path / "model", facts)
    assert manifest.patch == (32, 32)
    assert b"site-packages" not in manifest.path.read_bytes()
    patches = cases[0].image[None, 1:4, 20:52, 20:52]
    with open_engine(manifest, batch=2) as engine, torch.no_grad():
        np.testing.assert_allclose(engine(patches), run.average(torch.from_numpy(patches)).numpy(), atol=1e-3)


def test_equal_seeds_train_equal_networks_and_others_others(cases: tuple[Case, ...]) -> None:
    config = replace(TINY, steps=4, epoch=2)
    first, second, other = (train(cases, replace(config, seed=seed)).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_run_goes_on_where_its_checkpoint_left_it(cases: tuple[Case, ...], tmp_path: Path, optimiser: str) -> None:
    """With pre-training, so that both sides of its end are met."""
    config = replace(TINY, steps=10, epoch=2, pretrain=0.4, optimiser=optimiser, learning_rate=1e-2)
    whole = train(cases, config).state_dict()
    for _ in range(5):  # every epoch in a run of its own
        run = Run(cases, config)
        if (tmp_path / "checkpoint.pt").exists():
            run.restore(tmp_path / "checkpoint.pt")
        run.train()
        run.save(tmp_path / "checkpoint.pt")
    assert run.epoch == run.epochs == 5
    assert all(torch.equal(whole[name], run.average.state_dict()[name]) for name in whole)


def test_a_checkpoint_of_another_run_is_refused(cases: tuple[Case, ...], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    Run(cases, TINY).save(path)
    with pytest.raises(DatasetError, match="other settings"):
        Run(cases, replace(TINY, seed=4)).restore(path)
    with pytest.raises(DatasetError, match="other data"):
        Run(cases[:1], TINY).restore(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DatasetError, match="cannot be read as a checkpoint"):
        Run(cases, TINY).restore(path)


def test_the_schedule_warms_up_decays_and_starts_anew_after_pre_training(cases: tuple[Case, ...]) -> None:
    rates: list[tuple[bool, float]] = []
    run = Run(cases[:1], replace(TINY, steps=40, epoch=10, pretrain=0.5, warm_up=4, batch=1))
    while run.epoch < run.epochs:
        run.train(lambda at: rates.append((at.pretraining, at.learning_rate)))
    assert [pretraining for pretraining, _ in rates] == [True] * 20 + [False] * 20
    for part in (rates[:20], rates[20:]):
        values = [rate for _, rate in part]
        top = values.index(max(values))
        assert top == 3
        assert values[:4] == sorted(values[:4])
        assert values[3:] == sorted(values[3:], reverse=True)
        assert values[-1] < 0.1 * TINY.learning_rate


def test_a_run_begins_with_the_weights_of_another_and_says_so(app: Typer, tmp_path: Path) -> None:
    write_phantoms(tmp_path)
    base = ["train", "--data", str(tmp_path), "--held-back", "1", "--steps", "2", "--epoch", "1", "--batch", "2"]
    base += ["--device", "cpu", "--pretrain", "0"]
    first, second = tmp_path / "first" / "checkpoint.pt", tmp_path / "second" / "checkpoint.pt"
    for words in (
        ["--out", str(first.parent), "--width", "2", "--seed", "7"],
        ["--out", str(second.parent), "--width", "2", "--start", str(first), "--learning-rate", "1e-6"],
        ["--out", str(second.parent), "--width", "2", "--start", str(first), "--learning-rate", "1e-6"],  # goes on
    ):
        run = CliRunner().invoke(app, [*base, *words], catch_exceptions=False)
        assert run.exit_code == 0, run.output
    assert "2 of them done" in run.output
    before, after = (load_checkpoint(path)[0].state_dict() for path in (first, second))
    drawn = Penn(PennConfig(classes=5, width=2, side_heads=2)).state_dict()
    for name, value in before.items():
        if name.endswith("weight") and value.ndim == 4:
            assert torch.allclose(value, after[name], atol=1e-4)
            assert not torch.allclose(value, drawn[name], atol=1e-4)
    config = load_checkpoint(second)[1]
    assert config.start.startswith("2 steps of 2 patches with seed 7,")
    assert exporting.describe(config, 2)["before"] == config.start
    third = replace(config, steps=1)
    assert lineage(third, 1, second).startswith(f"{config.start}; then 1 steps of 2 patches with seed 0,")
    run = CliRunner().invoke(app, [*base, "--out", str(tmp_path / "x"), "--width", "4", "--start", str(first)])
    assert run.exit_code == 2
    assert "the weights to start with are of" in " ".join(run.output.replace("│", " ").split())
    run = CliRunner().invoke(app, [*base, "--out", str(tmp_path / "x"), "--start", str(tmp_path / "p0.npz")])
    assert run.exit_code == 2
    assert "cannot be read as a checkpoint" in " ".join(run.output.replace("│", " ").split())


def write_phantoms(folder: Path, count: int = 4) -> None:
    for n in range(count):
        phantom = spine_phantom((2, 140, 130), (4.0, 2.0, 2.0), n)
        np.savez(folder / f"p{n}.npz", image=phantom.image, mask=phantom.mask, spacing=phantom.spacing)


def test_killed_and_started_again_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    write_phantoms(tmp_path)
    words = [sys.executable, "-m", "trt.train", "--data", tmp_path, "--held-back", "1", "--steps", "24", "--epoch", "2"]
    words += ["--batch", "2", "--width", "2", "--pretrain", "0.25", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    settings = {"cwd": Path(__file__).parents[2], "env": environment, "stdout": subprocess.PIPE, "text": True}
    subprocess.run([*words, "--out", tmp_path / "whole"], check=True, timeout=120, **settings)
    random, checkpoint, kills = np.random.default_rng(0), tmp_path / "broken" / "checkpoint.pt", 0
    while True:
        process = subprocess.Popen([*words, "--out", tmp_path / "broken"], **settings)
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        for line in lines:
            if line.startswith("step "):
                break
        else:
            break  # nothing was left to train
        time.sleep(float(random.uniform(0.0, 0.3)))
        process.send_signal(signal.SIGKILL)
        kills += process.wait(timeout=60) == -signal.SIGKILL
        process.stdout.close()
    assert process.wait(timeout=60) == 0
    process.stdout.close()
    assert kills >= 2
    whole, broken = (torch.load(p, weights_only=True) for p in (tmp_path / "whole" / "checkpoint.pt", checkpoint))
    assert whole["epoch"] == broken["epoch"] == 12
    assert all(torch.equal(whole["weights"][name], broken["weights"][name]) for name in whole["weights"])


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    write_phantoms(tmp_path)
    words = ["--data", tmp_path, "--out", tmp_path / "out", "--held-back", "1", "--steps", "4", "--epoch", "2"]
    words += ["--batch", "2", "--width", "2", "--pretrain", "0", "--device", "cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*torchrun, "-m", "trt.train", *words],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 patients to train on") == 1
    network, _, steps = load_checkpoint(tmp_path / "out" / "checkpoint.pt")
    assert steps == 4
    assert all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())


def test_the_command_line_trains_and_exports(app: Typer, tmp_path: Path) -> None:
    write_phantoms(tmp_path, 8)
    words = ["train", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--width", "4", "--device", "cpu"]
    words += [
        "--steps",
        "20",
        "--epoch",
        "5",
        "--watch",
        "1",
        "--watch-every",
        "1",
        "--batch",
        "2",
        "--pixels",
        "2.0",
        "2.5",
        "--pretrain",
        "0.5",
    ]
    run = CliRunner().invoke(app, words, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    assert "1 patient to train on" in run.output
    people = read_split(tmp_path / "out" / "split.json")
    assert len(people.validation) == 6
    curves = EventAccumulator(str(tmp_path / "out" / "curves")).Reload()
    assert {"loss/restoring", "loss/labels", "learning rate", "Dice/vertebra"} <= set(curves.Tags()["scalars"])
    checkpoint, model = tmp_path / "out" / "best.pt", tmp_path / "model"
    options = [word for key, text in SITE.items() for word in (f"--{key.replace('_', '-')}", text)]
    words = ["export", "--checkpoint", str(checkpoint), "--out", str(model), *options]
    run = CliRunner().invoke(app, words, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    assert {path.name for path in model.iterdir()} == {"model.onnx", "manifest.json", "split.json", "training.json"}
    steps = load_checkpoint(checkpoint)[2]
    assert steps in (5, 10, 15, 20), "those of the epoch that was best"
    assert f"{steps} of 2 patches" in (model / "training.json").read_text()
    manifest = load(model)
    assert (manifest.name, manifest.version, manifest.spacing_mm) == ("site-spine", "2.0.1", (2.0, 2.5))
    assert (manifest.training_data, manifest.licence) == ("120 series of our own", "ours")
    assert tuple(label.name for label in manifest.labels) == LABELS
    assert "research" in manifest.intended_use
    text = (model / "manifest.json").read_text()
    assert not any(word in text for word in ("SPIDER", "penn-spine", "zenodo", "CC BY", "SPACE"))


def test_the_plain_unet_is_trained_by_the_same_command(app: Typer, tmp_path: Path) -> None:
    write_phantoms(tmp_path)
    words = ["train", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--held-back", "1", "--plain-unet"]
    words += ["--steps", "2", "--epoch", "2", "--batch", "2", "--width", "2", "--seed", "5", "--channels", "7"]
    run = CliRunner().invoke(app, [*words, "--device", "cpu"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    network, config, _ = load_checkpoint(tmp_path / "out" / "checkpoint.pt")
    wanted = replace(PLAIN_UNET, network=replace(PLAIN_UNET.network, width=2), steps=2, epoch=2, batch=2, seed=5)
    assert config == wanted
    assert network.config.channels == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--label", "femur", "--lesions", "0.5"], "give --lesions 0"),
        (["--label", "femur", "--lesions", "0"], "else give --no-contrasts"),
        (["--patience", "3"], "give --watch too"),
        (["--watch", "9"], "at least one must be left"),
        (["--held-back", "4"], "cannot hold back"),
        (["--device", "cuda"], "no CUDA device"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(
    app: Typer, tmp_path: Path, words: list[str], says: str
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    write_phantoms(tmp_path)
    base = ["train", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--steps", "1", "--held-back", "1"]
    run = CliRunner().invoke(app, [*base, *words])
    assert run.exit_code == 2
    assert says in " ".join(run.output.replace("│", " ").split())
    assert "cuda" in words or not (tmp_path / "out").exists()
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_a_run_ends_early_when_those_watched_become_no_better(cases: tuple[Case, ...]) -> None:
    watch = Watch(cases[1:], LABELS, every=2, patience=2)
    run = Run(cases[:1], replace(TINY, steps=6, epoch=1, batch=1))
    due = []
    while run.epoch < run.epochs:
        run.train()
        due.append(watch.due(run))
    assert due == [False, True] * 3
    values = watch.look(run)
    assert list(values) == ["vertebra", "spinal canal", "intervertebral disc"]  # no lesion is there to be found
    assert run.scores == [pytest.approx(sum(values.values()) / 3)]
    assert not watch.exhausted([])
    assert not watch.exhausted([0.5, 0.6, 0.5])
    assert watch.exhausted([0.5, 0.6, 0.5, 0.6])
    assert not replace(watch, patience=0).exhausted([0.5, 0.4, 0.3, 0.2])


def test_slices_of_any_size_are_scored(cases: tuple[Case, ...]) -> None:
    """A network that copies its centre slice's brightness finds exactly what is bright."""
    network = Penn(PennConfig(channels=3, classes=2, width=1, levels=1)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for name, parameter in network.named_parameters():
            if name.endswith("0.weight") and parameter.ndim == 4:
                parameter[0, 1, 1, 1] = 1.0
            elif name.endswith("3.weight"):
                parameter[0, 0, 1, 1] = 1.0
            elif name.endswith(("1.weight", "4.weight")):
                parameter.fill_(1.0)
        network.head.weight[1, 0, 0, 0] = 1.0
        network.head.bias[1] = -0.5
    image = np.random.default_rng(0).random((5, 13, 11), dtype=np.float32)
    mask = (image > 0.5).astype(np.uint8)
    found = segment_slices(network, Case("a", image, mask), bf16=False)
    assert np.mean(found == mask) > 0.99  # but for batch normalisation's epsilon
    assert score(network, [Case("a", image, mask)], bf16=False)[0] > 0.99
    assert math.isnan(score(network, [Case("a", np.zeros_like(image), np.zeros_like(mask))], bf16=False)[0])


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("levels", [1, 3])
def test_the_network_restores_the_size_of_its_input(skips: bool, levels: int) -> None:
    config = PennConfig(channels=1, classes=2, width=2, levels=levels, skips=skips)
    assert config.stride == 2 ** (levels - 1)
    logits = Penn(config).eval()(torch.zeros(2, 1, 4 * config.stride, 3 * config.stride))
    assert logits.shape == (2, 2, 4 * config.stride, 3 * config.stride)


@pytest.mark.parametrize("wrong", [{"channels": 2}, {"classes": 1}, {"width": 0}, {"levels": 0}])
def test_a_network_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PennConfig(**wrong)


def test_the_loss_leaves_out_what_is_ignored() -> None:
    target = torch.randint(0, 4, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    target[:, 4:] = IGNORED
    changed = logits.clone()
    changed[:, :, 4:] = 50.0
    assert torch.equal(dice_and_cross_entropy(logits, target), dice_and_cross_entropy(changed, target))
    perfect = 30.0 * torch.nn.functional.one_hot(target.clamp(max=3), 4).permute(0, 3, 1, 2).float()
    assert float(dice_and_cross_entropy(perfect, target)) < 0.01


def test_coarser_levels_are_supervised_with_less_weight() -> None:
    target = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    fine = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    coarse = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    alone, below = dice_and_cross_entropy(fine, target), dice_and_cross_entropy(coarse, target[:, ::2, ::2])
    assert float(supervised([fine], target)) == pytest.approx(float(alone))
    assert float(supervised([fine, coarse], target)) == pytest.approx(float((alone + below / 2) / 1.5))


def test_pre_training_spoils_blocks_of_all_channels_alike() -> None:
    clean = torch.full((4, 3, 64, 50), 0.5)
    spoilt = spoil(clean, torch.Generator().manual_seed(0))
    blank = (spoilt == 0).all(1)  # (N, H, W)
    assert 0.1 < float(blank.float().mean()) < 0.4
    blocks = blank[:, :64, :48].reshape(4, 64 // SPOILT, SPOILT, 48 // SPOILT, SPOILT).float().mean((2, 4))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}
    assert float(restored(clean, clean)) == 0
    assert float(restored(spoilt, clean)) > 0.1


def test_side_heads_are_for_training_only() -> None:
    network = Penn(PennConfig(channels=1, classes=2, width=2, levels=3, side_heads=1)).eval()
    patches = torch.rand(1, 1, 8, 12)
    pyramid = network.pyramid(patches)
    assert [tuple(logits.shape) for logits in pyramid] == [(1, 2, 8, 12), (1, 2, 4, 6)]
    assert torch.equal(network(patches), pyramid[0])
    with pytest.raises(ValueError, match="side_heads"):
        PennConfig(levels=3, side_heads=2)
