"""What a precision costs: counted rightly where the answer is known, and recorded for the model that was measured."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from trt import precisions
from trt.candidates import Candidate
from trt.card import CardError, precision_table, render
from trt.dataset import Case
from trt.engine import Precision
from trt.lesions import Weighting
from trt.manifest import load
from trt.phantom import spine_phantom
from trt.precisions import agreement, rows, try_all
from trt.trials import plan

NAMES = ("vertebra", "spinal canal", "intervertebral disc", "neoplasm")


def test_agreement_is_of_all_voxels_and_of_those_that_either_marks() -> None:
    wanted = np.array([[[0, 0, 0, 0, 1, 1, 2, 3]]], np.uint8)
    found = np.array([[[0, 0, 0, 4, 1, 2, 2, 0]]], np.uint8)
    assert agreement(found, wanted) == (5 / 8, 2 / 5)
    assert agreement(wanted, wanted) == (1, 1)
    nothing = np.zeros((1, 2, 2), np.uint8)
    assert agreement(nothing, nothing)[0] == 1
    assert math.isnan(agreement(nothing, nothing)[1])


def perfect(patches: np.ndarray) -> np.ndarray:
    """The labels that the centre slice was painted with."""
    labels = np.rint(patches[:, 1] * 3).astype(int)
    return np.eye(len(NAMES) + 1, dtype=np.float32)[labels].transpose(0, 3, 1, 2).copy()


def blind(patches: np.ndarray) -> np.ndarray:
    """The same, but discs are taken for vertebrae."""
    logits = perfect(patches)
    logits[:, 1] += logits[:, 3]
    logits[:, 3] = 0
    return logits


@pytest.fixture(scope="module")
def painted() -> list[dict[str, Any]]:
    """The rows of a perfect network called float32 and of a blind one called bf16, on a phantom of its own mask."""
    phantom = spine_phantom((3, 130, 140), (2.0, 2.0, 2.0), seed=2)
    case = Case("a", phantom.mask.astype(np.float32) * 85, phantom.mask)  # normalised to thirds by the percentiles
    manifest = load()
    candidates: dict[Precision, Candidate] = {
        "f32": Candidate(manifest, perfect),
        "bf16": Candidate(manifest, blind),
    }
    found = rows(try_all(plan([case])[:2], candidates), manifest)  # as acquired and inverted
    disc, spine = (phantom.mask == 3).sum(), (phantom.mask > 0).sum()
    assert found[1]["marked_alike"] == pytest.approx(1 - disc / spine, abs=1e-5)
    assert found[1]["alike"] == pytest.approx(1 - disc / phantom.mask.size, abs=1e-5)
    return found


def test_a_loss_is_what_float32_has_more(painted: list[dict[str, Any]]) -> None:
    full, lossy = painted
    assert (full["precision"], lossy["precision"]) == ("f32", "bf16")
    assert full["dice"] == dict.fromkeys(NAMES[:3], 1.0)
    assert (full["mean"], full["lost"], full["worst_lost"], full["alike"], full["marked_alike"]) == (1, 0, 0, 1, 1)
    assert lossy["dice"]["intervertebral disc"] == 0
    assert lossy["dice"]["vertebra"] < 1
    assert lossy["lost"] == lossy["worst_lost"] == pytest.approx(1 - lossy["mean"], abs=1e-4)
    assert lossy["least_marked_alike"] <= lossy["marked_alike"]
    assert full["cpu_s"] > 0


def test_renderings_and_tumours_have_figures_of_their_own(painted: list[dict[str, Any]]) -> None:
    full, _ = painted
    assert set(full["renderings"]) == {"inverted"}  # not among them: as acquired
    assert full["renderings"]["inverted"] < 1  # what was painted is no longer to be read off
    assert full["tumours"] == {}
    assert full["false_per_real_series"] == 0


def row(precision: str, **figures: Any) -> dict[str, Any]:
    known = {
        "precision": precision,
        "dice": {"vertebra": 0.94, "spinal canal": 0.927},
        "mean": 0.92,
        "lost": 0.0,
        "worst_lost": 0.0,
        "renderings": {"inverted": 0.891},
        "tumours": {"simulated, T1": {"dice": 0.7, "found": 9, "lesions": 12}},
        "false_per_real_series": 0.5,
        "alike": 1.0,
        "marked_alike": 1.0,
        "least_marked_alike": 1.0,
        "cpu_s": 2.512,
    }
    return known | figures


REPORT = {
    "patients": ["p0", "p1"],
    "threads": 1,
    "rows": [
        row("f32"),
        row("int8", lost=-0.00012, worst_lost=0.0011, alike=0.9987, marked_alike=0.9912, cpu_s=0.97, mean=None),
    ],
}


def test_the_table_calls_simulated_what_is_and_shows_losses() -> None:
    text = precision_table(REPORT)
    lines = text.splitlines()
    assert "| f32 | 2.51 | 94.00 | 92.70 | 92.00 | 0.00 | 0.00 | 89.10 | 70.00 (9 of 12 found) | 0.50 |" in lines[-2]
    assert "| int8 | 0.97 | 94.00 | 92.70 | - | -0.01 | 0.11 |" in lines[-1]
    assert lines[-1].endswith("| 99.87 | 99.12 | 100.00 |")
    assert "| tumour, **simulated**, T1 |" in text
    assert "2 patients held back" in text
    assert "flatter" in text
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The committed model without its tables, its split naming one phantom, which lies beside the folder."""
    folder, source = tmp_path / "model", load().path.parent
    folder.mkdir()
    for path in (*source.glob("*.onnx"), source / "manifest.json"):
        shutil.copy(path, folder)
    (folder / "split.json").write_text(json.dumps({"train": ["p9"], "validation": ["p0"], "seed": 0}))
    phantom = spine_phantom((3, 200, 200), (3.0, 0.9375, 0.9375), 0)
    np.savez(tmp_path / "p0.npz", image=phantom.image, mask=phantom.mask)
    return folder


def command(*arguments: object) -> Result:
    app = Typer()
    app.command()(precisions.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})


def test_the_command_measures_and_records(model: Path) -> None:
    run = command("--data", model.parent, "--model", model, "--simulated", 1, "--threads", 1, "--record")
    assert run.exit_code == 0, run.output
    told = json.loads((model / "precisions.json").read_text())
    found = {each["precision"]: each for each in told["rows"]}
    assert {"f32", "int8"} <= set(found)
    assert told["patients"] == ["p0"]
    assert 0.9 < found["int8"]["marked_alike"] < 1 == found["f32"]["marked_alike"]
    assert found["int8"]["lost"] <= 0.02
    (group,) = found["int8"]["tumours"]
    assert Weighting.T1_GADOLINIUM in group
    assert found["int8"]["tumours"][group]["lesions"] > 0
    table = precision_table(told)
    assert table in run.output
    assert table in (model / "MODEL_CARD.md").read_text()


def test_a_model_without_eight_bits_has_no_row_of_them(model: Path) -> None:
    fields = json.loads((model / "manifest.json").read_text())
    del fields["int8"]
    (model / "manifest.json").write_text(json.dumps(fields))
    run = command("--data", model.parent, "--model", model, "--simulated", 0, "--threads", 1, "--json")
    assert run.exit_code == 0, run.output
    assert "no row of int8" in run.stderr
    told = json.loads(run.stdout)
    assert "int8" not in [each["precision"] for each in told["rows"]]
    assert told["int8_sha256"] is None
    assert not (model / "precisions.json").exists()


def test_figures_of_other_weights_are_refused(model: Path) -> None:
    manifest = load(model)
    assert manifest.quantised is not None
    fitting = REPORT | {"sha256": manifest.digest, "int8_sha256": manifest.quantised.digest}
    path = model / "precisions.json"
    path.write_text(json.dumps(fitting))
    assert "What each precision costs" in render(manifest)
    for field in ("sha256", "int8_sha256"):
        path.write_text(json.dumps(fitting | {field: "0" * 64}))
        with pytest.raises(CardError, match=r"precisions\.json: figures of other weights"):
            render(manifest)


@pytest.mark.parametrize("arguments", [["--model", "penn-spline"], ["--data", "/nowhere"], ["--threads", "0"]])
def test_what_the_command_line_cannot_do_it_says(model: Path, arguments: list[str]) -> None:
    run = command("--data", model.parent, "--model", model, *arguments)
    assert run.exit_code == 2
    assert "Error" in run.output


def test_the_shipped_eight_bits_lose_no_more_than_is_allowed() -> None:
    manifest = load()
    told = json.loads(manifest.path.with_name("precisions.json").read_text())
    assert manifest.quantised is not None
    assert (told["sha256"], told["int8_sha256"]) == (manifest.digest, manifest.quantised.digest)
    (eight,) = (each for each in told["rows"] if each["precision"] == "int8")
    assert eight["lost"] <= 0.003
