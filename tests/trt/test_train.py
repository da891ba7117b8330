from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from trt import export as exporting
from trt import train as training
from trt.augment import augment, margin
from trt.dataset import IGNORED, Case, Split, write_split
from trt.engine import open_engine
from trt.export import gather_facts, write_model
from trt.manifest import ManifestError, load, models_dir
from trt.penn import Penn, PennConfig
from trt.phantom import spine_phantom
from trt.train import TrainConfig, dice_and_cross_entropy, load_checkpoint, prepare, save, train

TINY = TrainConfig(
    network=PennConfig(width=8, levels=3),
    patch=32,
    batch=6,
    steps=60,
    minutes=2,
    seed=3,
    decay=0.8,
    warm_up=5,
    learning_rate=1e-2,
    bf16=False,
)


FACTS = models_dir() / "penn-spine" / "facts.json"
GIVEN = {
    "--name": "site-spine",
    "--version": "2.0.1",
    "--spacing": "0.5 0.6",
    "--training-data": "120 series of our own",
    "--licence": "ours",
}
LABELS = ["--label", "vertebra", "--label", "spinal canal", "--label", "intervertebral disc"]


def options(without: str = "") -> list[str]:
    texts = {"--spacing": GIVEN["--spacing"].split()}
    return [word for key, text in GIVEN.items() if key != without for word in (key, *texts.get(key, [text]))]


@pytest.fixture
def app() -> Typer:
    app = Typer()
    app.command("train")(training.main)
    app.command("export")(exporting.main)
    return app


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = TrainConfig(**{**vars(TINY), "network": PennConfig(width=2, levels=2), "patch": 8})
    save(Penn(config.network), config, 5, tmp_path / "checkpoint.pt")
    write_split(Split(("a",), ("b",), 0), tmp_path / "split.json")
    return tmp_path / "checkpoint.pt"


@pytest.fixture(scope="module")
def cases() -> tuple[Case, ...]:
    phantoms = [spine_phantom((5, 110, 100), (2.0, 1.2, 1.2), seed) for seed in range(2)]
    return prepare([Case(f"p{n}", p.image.astype(np.float32), p.mask) for n, p in enumerate(phantoms)])


def test_a_run_learns_and_what_it_exports_serves(cases: tuple[Case, ...], tmp_path: Path) -> None:
    losses: list[float] = []
    network, steps = train(cases, TINY, lambda at: losses.append(at.loss))
    assert len(losses) == steps == TINY.steps
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])

    save(network, TINY, len(losses), tmp_path / "checkpoint.pt")
    read, config, steps = load_checkpoint(tmp_path / "checkpoint.pt")
    assert (config, steps) == (TINY, TINY.steps)
    write_split(Split(("p0",), ("p1",), 3), tmp_path / "split.json")
    manifest = write_model(read, TINY.patch, tmp_path / "split.json", tmp_path / "model", gather_facts(FACTS, {}))
    assert manifest.patch == (32, 32)
    assert b"site-packages" not in manifest.path.read_bytes()
    patches = cases[0].image[None, 1:4, 20:52, 20:52]
    with open_engine(manifest, batch=2) as engine, torch.no_grad():
        np.testing.assert_allclose(engine(patches), network(torch.from_numpy(patches)).numpy(), atol=1e-3)


def test_equal_seeds_train_equal_networks(cases: tuple[Case, ...]) -> None:
    config = TrainConfig(**{**vars(TINY), "steps": 4})
    first, second = (train(cases, config)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_clock_ends_a_run(cases: tuple[Case, ...]) -> None:
    seen: list[training.Step] = []
    train(cases, TrainConfig(**{**vars(TINY), "steps": None, "minutes": 0.02}), seen.append)
    assert seen[-1].fraction == 1.0
    assert seen[-1].seconds < 10


def test_the_command_line_trains_and_exports(app: Typer, tmp_path: Path) -> None:
    for n in range(8):
        phantom = spine_phantom((2, 140, 130), (4.0, 2.0, 2.0), n)
        np.savez(tmp_path / f"p{n}.npz", image=phantom.image, mask=phantom.mask)
    run = CliRunner().invoke(
        app, ["train", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--steps", "1"], catch_exceptions=False
    )
    assert run.exit_code == 0, run.output
    assert "2 patients to train on" in run.output
    checkpoint, model = tmp_path / "out" / "checkpoint.pt", tmp_path / "model"
    run = CliRunner().invoke(
        app,
        ["export", "--checkpoint", str(checkpoint), "--out", str(model), *options(), *LABELS],
        catch_exceptions=False,
    )
    assert run.exit_code == 0, run.output
    assert {path.name for path in model.iterdir()} == {"model.onnx", "manifest.json", "split.json"}
    manifest = load(model)
    assert (manifest.name, manifest.version, manifest.spacing_mm) == ("site-spine", "2.0.1", (0.5, 0.6))
    assert (manifest.training_data, manifest.licence) == ("120 series of our own", "ours")
    assert [label.name for label in manifest.labels] == LABELS[1::2]
    assert "research" in manifest.intended_use
    text = (model / "manifest.json").read_text()
    assert not any(word in text for word in ("SPIDER", "penn-spine", "zenodo", "CC BY", "SPACE"))


@pytest.mark.parametrize("without", [*GIVEN, "--label", "--out"])
def test_a_model_is_not_exported_without_its_facts(without: str, app: Typer, checkpoint: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (models_dir() / "penn-spine").iterdir()}
    out = [] if without == "--out" else ["--out", str(tmp_path / "model")]
    labels = [] if without == "--label" else LABELS
    run = CliRunner().invoke(app, ["export", "--checkpoint", str(checkpoint), *out, *options(without), *labels])
    assert run.exit_code == 2
    assert without.removeprefix("--").split("-")[0] in run.output
    assert not (tmp_path / "model").exists()
    assert {path: path.read_bytes() for path in before} == before


def test_facts_that_are_wrong_leave_nothing_behind(app: Typer, checkpoint: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "model")]
    for wrong in (["--version", "new"], ["--label", "vertebra"], ["--facts", str(tmp_path / "none.json")]):
        labels = [] if "--label" in wrong else LABELS
        run = CliRunner().invoke(app, ["export", "--checkpoint", str(checkpoint), *out, *options(), *labels, *wrong])
        assert run.exit_code == 2, wrong
        assert not (tmp_path / "model").exists()


def test_options_win_over_the_file_of_facts(tmp_path: Path) -> None:
    facts = gather_facts(FACTS, {"name": "other", "version": None})
    assert (facts["name"], facts["version"]) == ("other", "0.1.0")
    for wrong in ({"sha256": "0" * 64}, {"validation": {}}, {"colour": "red"}):
        (tmp_path / "facts.json").write_text(json.dumps(json.loads(FACTS.read_text()) | wrong))
        with pytest.raises(ManifestError, match=next(iter(wrong))):
            gather_facts(tmp_path / "facts.json", {})


def test_the_committed_manifest_says_what_its_facts_say() -> None:
    manifest: dict[str, Any] = json.loads((models_dir() / "penn-spine" / "manifest.json").read_text())
    facts = gather_facts(FACTS, {})
    assert {field: manifest[field] for field in facts} == facts
    assert set(manifest) - set(facts) == exporting.MEASURED


def test_an_export_says_one_line(checkpoint: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "trt.export",
        "--checkpoint",
        checkpoint,
        "--out",
        tmp_path / "m",
        "--facts",
        FACTS,
    ]
    run = subprocess.run(
        command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True, timeout=120
    )
    assert run.stderr == ""
    assert run.stdout == f"penn-spine 0.1.0, 5 steps, sha256 {load(tmp_path / 'm').digest}\n"


def test_an_export_that_calculates_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(exporting.ExportError, match="differ from torch"):
        exporting.export_onnx(Penn(PennConfig(width=2, levels=2)), 8, tmp_path / "model.onnx")


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


def test_augmentation_moves_image_and_mask_together() -> None:
    size = margin(32)
    masks = torch.zeros(16, size, size, dtype=torch.uint8)
    masks[:, size // 2 - 6 : size // 2 + 6, size // 2 - 3 : size // 2 + 3] = 1
    images = masks[:, None].float().repeat(1, 3, 1, 1) * 0.8 + 0.1
    patches, target = augment(images, masks, 32, torch.Generator().manual_seed(0))
    assert patches.shape == (16, 3, 32, 32)
    assert target.shape == (16, 32, 32)
    assert float(patches.min()) >= 0
    assert float(patches.max()) <= 1
    for patch, mask in zip(patches[:, 1], target, strict=True):
        assert patch[mask == 1].mean() > patch[mask == 0].mean() + 0.1
    again, _ = augment(images, masks, 32, torch.Generator().manual_seed(0))
    assert torch.equal(patches, again)
