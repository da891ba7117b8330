from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from trt import evaluate as evaluating
from trt.dataset import Case, read_folder, read_split
from trt.engine import open_engine
from trt.evaluate import Score, dice, evaluate, summary
from trt.manifest import Label, load
from trt.phantom import spine_phantom

BOUNDS = {"vertebra": 0.85, "spinal canal": 0.85, "intervertebral disc": 0.75}


def spine_data() -> Path:
    root = Path(os.environ.get("SPINE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    folder = root / "spider_t2space"
    if not folder.is_dir():
        pytest.skip(f"no spine data in {folder} (SPINE_DATA)")
    return folder


def test_the_folder_of_spine_data_is_the_root_for_all_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spider_t2space").mkdir()
    monkeypatch.setenv("SPINE_DATA", str(tmp_path))
    assert spine_data() == tmp_path / "spider_t2space"


def test_the_data_to_judge_a_model_on_are_named_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPINE_DATA", str(tmp_path))
    app = Typer()
    app.command()(evaluating.main)
    run = CliRunner().invoke(app, [])
    assert run.exit_code == 2
    assert "--data" in run.output


@pytest.mark.slow
def test_the_committed_model_on_patients_held_back() -> None:
    folder, manifest = spine_data(), load()
    split = read_split(manifest.path.with_name("split.json"))
    cases = read_folder(folder, len(manifest.labels), split.validation)
    with open_engine(manifest) as engine:
        scores = evaluate(cases, manifest, engine, overlap=0.25)
    figures = summary(scores, manifest.labels)
    assert {case.patient for case in cases} == set(split.validation)
    for name, bound in BOUNDS.items():
        assert figures[name]["mean"] >= bound, figures
        assert figures[name]["worst"] >= bound - 0.15, figures


def test_dice_by_hand() -> None:
    truth = np.array([[[0, 1, 1, 2]]], np.uint8)
    found = np.array([[[1, 1, 1, 0]]], np.uint8)
    assert dice(found, truth, 1) == pytest.approx(2 * 2 / (3 + 2))
    assert dice(found, truth, 2) == 0
    assert math.isnan(dice(found, truth, 3))


def test_the_summary_leaves_out_what_is_not_there() -> None:
    scores = (Score("a", {1: 0.5, 2: float("nan")}, 1.0), Score("b", {1: 0.9, 2: 0.8}, 1.0))
    figures = summary(scores, (Label(1, "bone"), Label(2, "disc")))
    assert figures["bone"] == {"mean": 0.7, "sd": 0.2828, "worst": 0.5}
    assert figures["disc"] == {"mean": 0.8, "sd": None, "worst": 0.8}
    assert figures["mean"]["worst"] == 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "penn-spline"],
        ["--backend", "cuda"],
        ["--precision", "f64"],
        ["--data", "/nowhere"],
        ["--overlap", "0.8"],
    ],
)
def test_what_the_command_line_cannot_do_it_says(model: Path, arguments: list[str]) -> None:
    app = Typer()
    app.command()(evaluating.main)
    run = CliRunner().invoke(app, ["--data", str(model.parent), "--model", str(model), *arguments])
    assert run.exit_code == 2
    assert "Error" in run.output


def test_a_perfect_network_scores_one() -> None:
    manifest = load()
    phantom = spine_phantom((3, 130, 140), (2.0, 2.0, 2.0), seed=2)
    case = Case("a", phantom.mask.astype(np.float32) * 85, phantom.mask)  # normalised to thirds by the percentiles

    def predict(patches: np.ndarray) -> np.ndarray:
        centre = np.rint(patches[:, 1] * 3).astype(int)
        return np.eye(4, dtype=np.float32)[centre].transpose(0, 3, 1, 2).copy()

    (score,) = evaluate([case], manifest, predict)
    assert set(score.dice.values()) == {1.0}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The committed model, its split naming two phantoms."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.onnx", "manifest.json"):
        (folder / name).write_bytes(load().path.with_name(name).read_bytes())
    (folder / "split.json").write_text(json.dumps({"train": ["p9"], "validation": ["p0", "p1"], "seed": 0}))
    for n in range(2):
        phantom = spine_phantom((3, 200, 200), (3.0, 0.9375, 0.9375), n)
        np.savez(tmp_path / f"p{n}.npz", image=phantom.image, mask=phantom.mask)
    return folder


def test_the_command_line_prints_and_records(model: Path) -> None:
    app = Typer()
    app.command()(evaluating.main)
    arguments = ["--data", str(model.parent), "--model", str(model)]
    run = CliRunner().invoke(app, [*arguments, "--json", "--record"], catch_exceptions=False)
    report = json.loads(run.output)
    assert set(report["patients"]) == {"p0", "p1"}
    assert report["dice"]["spinal canal"]["mean"] > 0.5
    assert load(model).validation["dice"] == report["dice"]
    run = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert run.exit_code == 0
    assert "spinal" in run.output
    assert "worst" in run.output
