from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trt.manifest import DEFAULT_MODEL, Label, ManifestError, available, load, models_dir


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(models_dir() / DEFAULT_MODEL, folder)
    return folder


def change(folder: Path, **fields: Any) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not ...}))


def test_the_committed_model_loads() -> None:
    manifest = load()
    assert DEFAULT_MODEL in available()
    assert manifest.name == DEFAULT_MODEL
    assert manifest.labels == (Label(1, "vertebra"), Label(2, "spinal canal"), Label(3, "intervertebral disc"))
    assert manifest.classes == 4
    assert manifest.path.is_file()
    assert "not for diagnosis" in manifest.intended_use
    assert "SPIDER" in manifest.training_data
    assert manifest.validation["dice"]["vertebra"]["mean"] > 0.85


def test_a_model_loads_by_folder_and_by_file(model: Path) -> None:
    assert load(model) == load(model / "manifest.json")
    assert load(str(model)).digest == load().digest


def test_a_model_that_does_not_fit_its_sha256_is_refused(model: Path) -> None:
    with (model / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ManifestError, match="sha256 is"):
        load(model)


def test_a_missing_model_file_is_refused(model: Path) -> None:
    (model / "model.onnx").unlink()
    with pytest.raises(ManifestError, match="missing"):
        load(model)


def test_an_unknown_name_names_what_there_is() -> None:
    with pytest.raises(ManifestError, match=f"one of: .*{DEFAULT_MODEL}"):
        load("penn-spline")


@pytest.mark.parametrize("name", ["../penn-spine", "", "/etc/passwd", "a\0b"])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ManifestError):
        load(name)


def test_what_is_not_json_is_refused(model: Path) -> None:
    (model / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match="JSON"):
        load(model)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ...),
        ("extra", 1),
        ("name", "a/b"),
        ("version", "1"),
        ("sha256", "ABC"),
        ("labels", []),
        ("labels", [{"value": 2, "name": "vertebra"}]),
        ("labels", [{"value": 1, "name": " "}]),
        ("labels", [{"value": 1, "name": "a"}, {"value": 2, "name": "a"}]),
        ("labels", [{"value": 1}]),
        ("patch", [128]),
        ("patch", [128, 0]),
        ("patch", [128, 1.5]),
        ("channels", 2),
        ("channels", True),
        ("spacing_mm", [1, -1]),
        ("spacing_mm", [1, "1"]),
        ("normalisation", {"low": 1, "high": 99}),
        ("normalisation", {"low": 99, "high": 1, "clip": [0, 1]}),
        ("normalisation", {"low": 1, "high": 99, "clip": [1, 0]}),
        ("overlap", 0.76),
        ("overlap", "half"),
        ("licence", ""),
        ("training_data", None),
        ("validation", []),
    ],
)
def test_a_wrong_field_is_named(model: Path, field: str, value: Any) -> None:
    change(model, **{field: value})
    with pytest.raises(ManifestError, match=field):
        load(model)
