from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trt.manifest import (
    DEFAULT_MODEL,
    Code,
    Label,
    ManifestError,
    available,
    finder_fields,
    load,
    models_dir,
    parse_finder,
)


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
    names = [label.name for label in manifest.labels]
    assert names[:3] == ["vertebra", "spinal canal", "intervertebral disc"]
    assert [label.value for label in manifest.labels] == list(range(1, len(names) + 1))
    assert manifest.labels[0] == Label(
        1, "vertebra", Code("51282000", "SCT", "Vertebra"), Code("91723000", "SCT", "Anatomical Structure"),
        (240, 200, 80),
    )  # fmt: skip
    assert manifest.classes == len(names) + 1
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


def test_the_committed_finder_keeps_the_spine_and_is_small() -> None:
    finder = load().finder
    assert finder is not None
    assert finder.kept >= 0.999
    assert finder.path.stat().st_size < 1_000_000
    assert parse_finder(finder_fields(finder), finder.path) == finder


def test_a_finder_is_checked_as_the_model_is(model: Path) -> None:
    with (model / "finder.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ManifestError, match=r"finder\.onnx: sha256 is"):
        load(model)
    (model / "finder.onnx").unlink()
    with pytest.raises(ManifestError, match=r"finder\.onnx: missing"):
        load(model)


@pytest.mark.parametrize("stride", [0, -16, 16.0, True, "16", 24, None])
def test_a_stride_is_a_whole_number_that_the_patch_is_a_multiple_of(model: Path, stride: Any) -> None:
    change(model, stride=stride)
    if stride is None:  # as where a manifest says nothing
        assert load(model).stride is None
        return
    with pytest.raises(ManifestError, match="stride must be"):
        load(model)


def test_a_model_needs_no_finder(model: Path) -> None:
    change(model, finder=...)
    assert load(model).finder is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("file", "../finder.onnx"),
        ("file", None),
        ("sha256", "A"),
        ("factor", 0),
        ("factor", 2.5),
        ("patch", [96]),
        ("patch", [96, 0]),
        ("channels", 2),
        ("threshold", 0),
        ("threshold", 1),
        ("margin_mm", -1),
        ("kept", 1.1),
        ("kept", ...),
        ("extra", 1),
    ],
)
def test_a_wrong_finder_is_named(model: Path, field: str, value: Any) -> None:
    fields = json.loads((model / "manifest.json").read_text())["finder"] | {field: value}
    change(model, finder={name: item for name, item in fields.items() if item is not ...})
    with pytest.raises(ManifestError, match="finder must be"):
        load(model)


TUMOUR: dict[str, Any] = {
    "value": 1,
    "name": "neoplasm",
    "code": {"value": "108369006", "scheme": "SCT", "meaning": "Neoplasm"},
    "category": {"value": "49755003", "scheme": "SCT", "meaning": "Morphologically Abnormal Structure"},
    "colour": [230, 40, 40],
    "region": {"value": "421060004", "scheme": "SCT", "meaning": "Spine"},
}


def test_labels_carry_codes_or_names_alone(model: Path) -> None:
    change(model, labels=[TUMOUR, {"value": 2, "name": "sacrum"}])
    tumour, sacrum = load(model).labels
    assert tumour.region == Code("421060004", "SCT", "Spine")
    assert tumour.colour == (230, 40, 40)
    assert sacrum == Label(2, "sacrum")


@pytest.mark.parametrize(
    "wrong",
    [
        {"code": ...},
        {"category": ...},
        {"colour": ...},
        {"colour": [1, 2]},
        {"colour": [1, 2, 256]},
        {"colour": [1, 2, True]},
        {"colour": "red"},
        {"code": "108369006"},
        {"code": {"value": "108369006", "scheme": "SCT"}},
        {"code": {"value": "1" * 17, "scheme": "SCT", "meaning": "Neoplasm"}},
        {"region": {"value": "", "scheme": "SCT", "meaning": "Spine"}},
        {"region": {"value": "1", "scheme": "SCT", "meaning": "a\\b"}},
        {"shape": "round"},
    ],
)
def test_a_wrong_label_is_refused(model: Path, wrong: dict[str, Any]) -> None:
    label = {name: value for name, value in (TUMOUR | wrong).items() if value is not ...}
    change(model, labels=[label])
    with pytest.raises(ManifestError, match="labels must be"):
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
        ("labels", [{"value": 1, "name": "n" * 48}]),  # no LO has room for it with what a segment adds
        ("labels", [{"value": 1, "name": "disc\\nerve"}]),
        ("labels", [{"value": 1, "name": "disc\nnerve"}]),
        ("labels", [{"value": 1, "name": "opuchoľ"}]),
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
