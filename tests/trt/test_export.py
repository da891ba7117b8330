from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from trt import export as exporting
from trt.dataset import Case, Split, write_split
from trt.export import gather_facts
from trt.manifest import OPTIONAL, ManifestError, load, models_dir
from trt.penn import Penn, PennConfig
from trt.renditions import Mixture
from trt.trainer import Run, TrainConfig

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
    app.callback()(lambda: None)
    app.command("export")(exporting.main)
    return app


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    case = Case("a", np.zeros((1, 8, 8), np.float32), np.ones((1, 8, 8), np.uint8))
    network = PennConfig(classes=4, width=2, levels=2)
    config = TrainConfig(network, patch=8, batch=1, steps=5, epoch=5, pretrain=0, mixture=Mixture(0, 0, 0))
    run = Run([case], config)
    run.train()
    run.save(tmp_path / "checkpoint.pt")
    write_split(Split(("a",), ("b",), 0), tmp_path / "split.json")
    return tmp_path / "checkpoint.pt"


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
    assert set(manifest) - set(facts) - OPTIONAL == exporting.MEASURED


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
