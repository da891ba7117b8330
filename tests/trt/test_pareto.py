"""What a choice of patches costs: counted rightly where the answer is known, and printed as the card shows it."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from typer import Typer
from typer.testing import CliRunner

from trt import pareto
from trt.candidates import Candidate
from trt.card import pareto_table
from trt.dataset import Case
from trt.manifest import load
from trt.pareto import OVERLAPS, attempt, summarise
from trt.patches import Array, count_patches
from trt.phantom import spine_phantom


def perfect(patches: Array) -> Array:
    """The labels that the centre slice was painted with."""
    return np.eye(5, dtype=np.float32)[np.rint(patches[:, 1] * 3).astype(int)].transpose(0, 3, 1, 2).copy()


def test_a_choice_is_counted_and_judged() -> None:
    phantom = spine_phantom((3, 150, 140), (2.0, 2.0, 2.0), seed=2)
    case = Case("a", phantom.mask.astype(np.float32) * 85, phantom.mask)  # normalised to thirds by the percentiles
    candidate = Candidate(load(), perfect)
    trials = [attempt(case, candidate, ("all", overlap, False, "f32")) for overlap in (0.0, 0.5)]
    for trial in trials:
        assert trial.patches == count_patches(phantom.mask.shape, load().patch, trial.overlap)
        assert trial.pixels == trial.patches * math.prod(load().patch)
        assert (trial.kept, trial.cpu_s > trial.select_s >= 0) == (1, True)
        assert {name: value for name, value in trial.dice.items() if not math.isnan(value)} == {
            label.name: 1.0 for label in load().labels[:3]
        }
    rows = summarise([*trials, *trials])
    assert [row.overlap for row in rows] == [0.0, 0.5]
    assert [row.patches for row in rows] == [trial.patches for trial in trials]
    assert rows[0].mean == 1
    table = pareto_table({"series": 1, "rows": [asdict(row) for row in rows]})
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_the_command_measures_every_choice_and_records_them(tmp_path: Path) -> None:
    folder, source = tmp_path / "model", load().path.parent
    folder.mkdir()
    for path in (*source.glob("*.onnx"), source / "manifest.json"):
        shutil.copy(path, folder)
    (folder / "split.json").write_text(json.dumps({"train": ["p9"], "validation": ["p0"], "seed": 0}))
    phantom = spine_phantom((2, 200, 160), (3.0, 0.9375, 0.9375), 0)
    np.savez(tmp_path / "p0.npz", image=phantom.image, mask=phantom.mask)
    app = Typer()
    app.command()(pareto.main)
    words = ["--data", str(tmp_path), "--model", str(folder), "--threads", "1", "--record"]
    run = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert run.exit_code == 0, run.output
    told = json.loads((folder / "pareto.json").read_text())
    assert told["series"] == 1
    assert [row["precision"] for row in told["rows"]].count("f32") == 3 * (len(OVERLAPS) + 1)
    assert {"f32", "int8"} <= {row["precision"] for row in told["rows"] if row["fitted"]}
    assert pareto_table(told) in run.output
    assert pareto_table(told) in (folder / "MODEL_CARD.md").read_text()
