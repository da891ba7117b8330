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
from trt.checkpoint import load_checkpoint
from trt.dataset import Case, DatasetError, Split, write_split
from trt.export import gather_facts
from trt.manifest import ManifestError, load, models_dir
from trt.penn import Penn, PennConfig
from trt.recipes import LABELS, TrainConfig
from trt.renditions import Mixture
from trt.trainer import Run

FACTS = models_dir() / "penn-spine" / "facts.json"
GIVEN = {
    "--name": "site-spine",
    "--version": "2.0.1",
    "--training-data": "120 series of our own",
    "--licence": "ours",
}


def options(without: str = "") -> list[str]:
    return [word for key, text in GIVEN.items() if key != without for word in (key, text)]


@pytest.fixture
def app() -> Typer:
    app = Typer()
    app.callback()(lambda: None)
    app.command("export")(exporting.main)
    return app


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    case = Case("a", np.zeros((1, 8, 8), np.float32), np.ones((1, 8, 8), np.uint8))
    network = PennConfig(classes=len(LABELS) + 1, width=2, levels=2)
    config = TrainConfig(network, patch=8, batch=1, steps=5, epoch=5, pretrain=0, mixture=Mixture(0, 0, 0))
    run = Run([case], config)
    run.train()
    run.save(tmp_path / "checkpoint.pt")
    write_split(Split(("a",), ("b",), 0), tmp_path / "split.json")
    return tmp_path / "checkpoint.pt"


@pytest.mark.parametrize("without", [*GIVEN, "--out"])
def test_a_model_is_not_exported_without_its_facts(without: str, app: Typer, checkpoint: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (models_dir() / "penn-spine").rglob("*") if path.is_file()}
    out = [] if without == "--out" else ["--out", str(tmp_path / "model")]
    run = CliRunner().invoke(app, ["export", "--checkpoint", str(checkpoint), *out, *options(without)])
    assert run.exit_code == 2
    assert without.removeprefix("--").split("-")[0] in run.output
    assert not (tmp_path / "model").exists()
    assert {path: path.read_bytes() for path in before} == before


def test_facts_that_are_wrong_leave_nothing_behind(app: Typer, checkpoint: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "model")]
    (tmp_path / "labels.json").write_text(json.dumps({"labels": [{"value": 1, "name": "vertebra"}]}))
    for wrong in (
        ["--version", "new"],
        ["--facts", str(tmp_path / "labels.json")],
        ["--facts", str(tmp_path / "none")],
    ):
        run = CliRunner().invoke(app, ["export", "--checkpoint", str(checkpoint), *out, *options(), *wrong])
        assert run.exit_code == 2, wrong
        assert not (tmp_path / "model").exists()


def test_options_win_over_the_file_of_facts(tmp_path: Path) -> None:
    written = json.loads(FACTS.read_text())
    facts = gather_facts(FACTS, {"name": "other", "version": None}, LABELS)
    assert (facts["name"], facts["version"]) == ("other", written["version"])
    for wrong in ({"sha256": "0" * 64}, {"validation": {}}, {"colour": "red"}):
        (tmp_path / "facts.json").write_text(json.dumps(written | wrong))
        with pytest.raises(ManifestError, match=next(iter(wrong))):
            gather_facts(tmp_path / "facts.json", {}, LABELS)


def test_the_committed_manifest_says_what_its_facts_say() -> None:
    manifest: dict[str, Any] = json.loads((models_dir() / "penn-spine" / "manifest.json").read_text())
    facts = gather_facts(FACTS, {}, LABELS)
    assert {field: manifest[field] for field in facts} == facts
    assert set(manifest) - set(facts) - {"finder", "int8"} == exporting.MEASURED


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
    version = json.loads(FACTS.read_text())["version"]
    assert run.stdout == f"penn-spine {version}, 5 steps, sha256 {load(tmp_path / 'm').digest}\n"


def test_an_export_that_calculates_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(exporting.ExportError, match="differ from torch"):
        exporting.export_onnx(Penn(PennConfig(width=2, levels=2)), 8, tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "weights alone", "pre-training alone"])
def test_what_is_no_trained_network_is_not_exported(
    content: bytes | str, app: Typer, checkpoint: Path, tmp_path: Path
) -> None:
    if isinstance(content, bytes):
        checkpoint.write_bytes(content)
    else:
        document = torch.load(checkpoint, weights_only=True)
        torch.save(document["weights"] if content == "weights alone" else document | {"epoch": 0}, checkpoint)
    with pytest.raises(DatasetError, match="checkpoint"):
        load_checkpoint(checkpoint)
    words = ["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "model"), *options()]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 2
    assert not (tmp_path / "model").exists()
