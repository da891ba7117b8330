"""The finder's training: it learns, the same way each time, from training patients alone, and goes along on export."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner, Result

from trt import dataset, pareto
from trt import finder as finding
from trt.dataset import DatasetError, Split, write_split
from trt.engine import open_engine
from trt.export import gather_facts, read_finder, write_model
from trt.extraction import Selection, finder_model
from trt.finder import FinderConfig, coarse_slices, recolour, train, write_finder
from trt.manifest import ManifestError, load, models_dir
from trt.patches import Array
from trt.penn import Penn, PennConfig
from trt.phantom import spine_phantom
from trt.recipes import LABELS, TrainConfig

MODEL = models_dir() / "penn-spine"
TINY = FinderConfig(network=PennConfig(channels=1, classes=2, width=4, levels=3), side=48, batch=8, steps=40)


@pytest.fixture(scope="module")
def slices() -> list[tuple[torch.Tensor, torch.Tensor]]:
    phantoms = [spine_phantom((2, 160, 128), (8.0, 1.9, 1.9), seed) for seed in range(2)]
    volumes = [(p.image.astype(np.float32) / p.image.max(), (p.mask > 0).astype(np.float32)) for p in phantoms]
    return coarse_slices(volumes, 4)


def test_slices_are_shrunk_and_any_label_is_spine(slices: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    assert len(slices) == 4
    for image, spine in slices:
        assert image.shape == spine.shape == (40, 32)
        assert set(spine.unique().tolist()) == {0.0, 1.0}


def test_it_learns_and_equal_seeds_train_equal_networks(slices: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    runs: list[list[float]] = [[], []]
    networks = [train(slices, TINY, lambda _, loss, run=run: run.append(loss)) for run in runs]  # type: ignore[misc]
    assert runs[0] == runs[1]
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert np.mean(runs[0][-10:]) < 0.9 * np.mean(runs[0][:10])


def test_contrast_is_redrawn_within_its_range() -> None:
    images = torch.linspace(0, 1, 64 * 32 * 32).view(64, 1, 32, 32)
    drawn = recolour(images, torch.Generator().manual_seed(0))
    assert drawn.shape == images.shape
    assert drawn.isfinite().all()
    assert 0 <= drawn.min() <= drawn.max() <= 1
    assert torch.equal(drawn, recolour(images, torch.Generator().manual_seed(0)))


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Result]:
    """The command with some words more, on two phantoms, "a" to train on and "b" to judge by."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "b"):
        phantom = spine_phantom((2, 320, 256), (6.0, 0.9375, 0.9375), ord(name))
        np.savez(data / f"{name}.npz", image=phantom.image, mask=phantom.mask)
    write_split(Split(("a",), ("b",), 0), tmp_path / "split.json")
    app = Typer()
    app.command()(finding.main)
    options = ["--data", str(data), "--split", str(tmp_path / "split.json"), "--steps", "1"]
    return lambda *words: CliRunner().invoke(app, [*options, *map(str, words)], catch_exceptions=False)


def test_the_command_trains_on_the_training_patients_and_its_finder_goes_along(
    command: Callable[..., Result], tmp_path: Path
) -> None:
    model = shutil.copytree(MODEL, tmp_path / "model")
    for out in (tmp_path / "finder", model):
        run = command("--least-kept", 0, "--out", out)
        assert run.exit_code == 0, run.output
        for name in ("b: ", "b inverted: ", "b T1-like: "):
            assert name in run.output
        assert "a: " not in run.output
    alone, in_model = read_finder(tmp_path / "finder"), load(model).finder
    assert in_model is not None
    assert (alone.digest, alone.kept) == (in_model.digest, in_model.kept)
    assert not (model / "finder.json").exists()


@pytest.mark.parametrize("dark", [False, True])
def test_a_finder_that_loses_spine_is_not_written(
    dark: bool, command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether in the contrast as acquired or in another."""
    original = finding.select

    def lossy(volume: Array, *rest: Any) -> Selection:
        if bool(np.median(volume) > 0.5) != dark:
            return original(volume, *rest)
        region = np.ones(volume.shape, np.bool_)
        region[:, 150:170] = False
        return Selection(region, "spine")

    monkeypatch.setattr(finding, "select", lossy)
    model = shutil.copytree(MODEL, tmp_path / "model")
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    run = command("--out", model)
    assert run.exit_code == 2
    text = " ".join(run.output.replace("│", " ").split())
    assert re.search(r"keeps only 0\.9\d+ of patient b \(b( inverted)?\)", text), text
    assert ("(b inverted)" in text) is dark
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


def test_other_labels_are_judged_as_acquired_and_inverted(command: Callable[..., Result], tmp_path: Path) -> None:
    names = [word for number in range(3) for word in ("--label", f"tissue {number}")]
    run = command("--least-kept", 0, "--out", tmp_path / "finder", *names)
    assert run.exit_code == 0, run.output
    assert "b inverted: " in run.output
    assert "T1-like" not in run.output


def test_series_are_read_by_the_labels_names_and_onto_the_models_grid(
    command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(MODEL, tmp_path / "model")
    fields = json.loads((model / "manifest.json").read_text()) | {"spacing_mm": [0.8, 0.7]}
    (model / "manifest.json").write_text(json.dumps(fields))
    told: list[Any] = []

    def read(folder: Path, labels: int, patients: Any, **options: Any) -> None:
        told.append((labels, list(options["names"]), tuple(options["pixels"])))
        raise DatasetError("enough")

    app = Typer()
    app.command()(pareto.main)
    for module in (finding, dataset):
        monkeypatch.setattr(module, "read_folder", read)
    assert command("--out", tmp_path / "finder", "--model", model).exit_code == 2
    assert CliRunner().invoke(app, ["--data", str(tmp_path), "--model", str(model)]).exit_code == 2
    assert told == [(len(LABELS), list(LABELS), (0.8, 0.7))] * 2


def test_export_keeps_and_copies_a_finder(tmp_path: Path) -> None:
    split, facts = MODEL / "split.json", gather_facts(MODEL / "facts.json", {}, LABELS)
    config = TrainConfig(PennConfig(width=2, levels=2), patch=16)
    network = Penn(config.network)
    finder = read_finder(MODEL)
    for given in (finder.path, MODEL / "manifest.json"):
        assert read_finder(given) == finder
    first = write_model(network, config, 1, split, tmp_path / "m", facts, finder)
    assert first.finder == replace(finder, path=tmp_path / "m" / "finder.onnx")
    again = write_model(network, config, 1, split, tmp_path / "m", facts, read_finder(tmp_path / "m"))
    assert again == first
    assert write_model(network, config, 1, split, tmp_path / "n", facts).finder is None
    with open_engine(finder_model(first), threads=1, batch=2) as engine:
        assert engine(np.zeros((2, 1, *finder.patch), np.float32)).shape == (2, 2, *finder.patch)
        assert engine.describe()["model"].startswith(f"{first.name}-finder ")


def test_what_is_no_finder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no finder"):
        read_finder(tmp_path)
    write_finder(Penn(TINY.network), TINY, tmp_path)
    fields = json.loads((MODEL / "manifest.json").read_text())["finder"]
    (tmp_path / "finder.json").write_text(json.dumps(fields))
    with pytest.raises(ManifestError, match="not the file"):
        read_finder(tmp_path)
    (tmp_path / "finder.json").write_text("{")
    with pytest.raises(ManifestError, match="JSON"):
        read_finder(tmp_path)
