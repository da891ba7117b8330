"""The model in eight bits: made alike each time, from patients trained on, refused where it is not this model's."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from tests.models import small, write
from trt import quantise as quantising
from trt.cases import Case
from trt.engine import EngineError, finder_precision, open_engine
from trt.extraction import finder_model
from trt.gate import judge
from trt.manifest import INT8_FILE, Manifest, ManifestError, load
from trt.phantom import spine_phantom
from trt.quantise import QuantiseError, calibration_patches, quantise, quantise_onnx

SPACING = (4.0, 0.9375, 0.9375)


def case(name: str, seed: int) -> Case:
    phantom = spine_phantom((5, 320, 256), SPACING, seed=seed)
    return Case(name, phantom.image.astype(np.float32), phantom.mask, SPACING)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [case(f"p{seed}", seed) for seed in range(2)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The committed model without its version in eight bits."""
    folder = tmp_path / "model"
    folder.mkdir()
    source = load().path.parent
    for name in ("model.onnx", "finder.onnx", "manifest.json", "split.json"):
        shutil.copy(source / name, folder)
    fields = json.loads((folder / "manifest.json").read_text())
    fields.pop("int8", None)
    (folder / "manifest.json").write_text(json.dumps(fields))
    return folder


def change(model: Path, **fields: Any) -> None:
    path = model / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_calibration_sees_every_rendition_and_is_drawn_by_its_seed(cases: list[Case]) -> None:
    manifest = load()
    first = calibration_patches(cases, manifest, 20, seed=1)
    assert first.shape == (20, 3, 128, 128)
    assert first.dtype == np.float32
    assert 0 <= first.min() < first.max() <= 1
    np.testing.assert_array_equal(first, calibration_patches(cases, manifest, 20, seed=1))
    assert (first != calibration_patches(cases, manifest, 20, seed=2)).any()
    few = calibration_patches(cases, manifest, 3, seed=1)
    assert len(np.unique(few.reshape(3, -1), axis=0)) == 3


def test_series_smaller_than_a_patch_are_calibrated_with() -> None:
    phantom = spine_phantom((2, 90, 80), SPACING, seed=1)
    tiny = Case("tiny", phantom.image.astype(np.float32), np.zeros_like(phantom.mask), SPACING)
    assert calibration_patches([tiny], dataclasses.replace(load(), labels=load().labels[:3]), 6, seed=0).shape[0] == 6


def test_no_series_and_no_patches_are_refused(cases: list[Case]) -> None:
    for some, count in (([], 4), (cases, 0)):
        with pytest.raises(ValueError, match="at least one"):
            calibration_patches(some, load(), count, seed=1)


def test_eight_bits_are_made_alike_judged_and_run(model: Path, cases: list[Case]) -> None:
    patches = calibration_patches(cases, load(model), 16, seed=1)
    made, gate = quantise(load(model), patches)
    assert gate.passed
    assert gate.agreement < 1  # it is another network than the one it is compared with
    first = (model / INT8_FILE).read_bytes()
    assert len(first) < 5_000_000
    again, _ = quantise(made, patches)
    assert (model / INT8_FILE).read_bytes() == first
    assert again == made == load(model)
    assert sorted(path.name for path in model.iterdir()) == sorted(
        [INT8_FILE, "finder.onnx", "manifest.json", "model.onnx", "split.json"]
    )
    with open_engine(made, threads=1, batch=2, precision="int8") as engine:
        assert engine.describe()["precision"] == "int8"
        assert judge(engine, made, "int8").agreement == gate.agreement
        np.testing.assert_array_equal(engine(patches[:3]), engine(patches[:3]))


def test_all_convolutions_but_the_last_are_in_eight_bits(tmp_path: Path) -> None:
    manifest = write(small(), tmp_path)
    patches = np.random.default_rng(0).random((8, manifest.channels, *manifest.patch), np.float32)
    quantise_onnx(manifest.path, patches, tmp_path / "made.onnx")
    graph = onnx.load(tmp_path / "made.onnx").graph
    stored = {item.name: item.data_type for item in graph.initializer}
    weights = [node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"]
    eight = [name for name in weights if stored.get(name) == onnx.TensorProto.INT8]
    convolutions = sum(node.op_type in ("Conv", "ConvTranspose") for node in graph.node)
    assert len(eight) == convolutions - 1
    values = [onnx.numpy_helper.to_array(item) for item in graph.initializer if item.name in eight]
    assert max(int(np.abs(each.astype(int)).max()) for each in values) == 64  # seven bits, and all of them


def test_eight_bits_that_differ_too_much_are_refused_and_leave_nothing(model: Path) -> None:
    before = (model / "manifest.json").read_bytes()
    dark = np.zeros((8, 3, 128, 128), np.float32)  # ranges that no series has
    with pytest.raises(QuantiseError, match="in eight bits agrees with float32"):
        quantise(load(model), dark)
    assert not (model / INT8_FILE).exists()
    assert (model / "manifest.json").read_bytes() == before
    assert not list(model.glob(".*"))


def test_a_model_without_eight_bits_does_not_run_in_them(model: Path) -> None:
    with pytest.raises(EngineError, match=r"trt\.quantise"):
        open_engine(load(model), precision="int8")


def test_a_finder_never_runs_in_eight_bits() -> None:
    assert finder_precision("int8") == "f32"
    assert finder_precision("bf16") == "bf16"
    assert finder_model(load()).quantised is None


# --- the shipped one ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Manifest:
    manifest = load()
    assert manifest.quantised is not None
    return manifest


def test_the_shipped_model_has_eight_bits_of_its_own_weights(shipped: Manifest) -> None:
    assert shipped.quantised is not None
    assert shipped.quantised.model_digest == shipped.digest
    assert shipped.quantised.path.stat().st_size < 5_000_000


JUDGE = """
from trt.engine import open_engine
from trt.gate import judge
from trt.manifest import load
with open_engine(load(), threads=1, batch=4, precision="int8") as engine:
    gate = judge(engine, load(), "int8")
print(gate.passed, f"{gate.agreement:.4f}", f"{gate.largest_difference:.2f}")
"""


def test_a_processor_without_vnni_finds_the_same() -> None:
    """There, eight bits of both weights and feature maps would overflow; it shows nothing elsewhere than on x86."""
    told = [
        subprocess.run(
            [sys.executable, "-c", JUDGE], env=os.environ | more, stdout=subprocess.PIPE, text=True, check=True
        ).stdout.split()
        for more in ({}, {"ONEDNN_MAX_CPU_ISA": "AVX2"})
    ]
    assert told[0][0] == "True"
    assert told[0] == told[1]


def test_a_file_that_was_changed_is_refused(shipped: Manifest, model: Path) -> None:
    assert shipped.quantised is not None
    shutil.copy(shipped.quantised.path, model)
    change(model, int8=json.loads((shipped.path.parent / "manifest.json").read_text())["int8"])
    assert load(model).quantised is not None
    with (model / INT8_FILE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ManifestError, match=r"int8\.onnx: sha256 is"):
        load(model)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_sha256", "0" * 64, "another model.onnx"),
        ("sha256", "A", "int8 must be"),
        ("file", "../int8.onnx", "int8 must be"),
        ("patches", 0, "int8 must be"),
        ("patches", True, "int8 must be"),
        ("more", 1, "int8 must be"),
    ],
)
def test_a_wrong_entry_is_named(shipped: Manifest, model: Path, field: str, value: Any, message: str) -> None:
    told = json.loads((shipped.path.parent / "manifest.json").read_text())["int8"]
    change(model, int8=told | {field: value})
    with pytest.raises(ManifestError, match=message):
        load(model)


# --- the command ----------------------------------------------------------------------------------------------------


def command(*arguments: object) -> Result:
    app = Typer()
    app.command()(quantising.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})


def test_the_command_takes_patients_trained_on_and_no_others(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def read(_: Path, __: int, patients: Any, **___: Any) -> tuple[Case, ...]:
        told.append(patients)
        return (case("one", 1),)

    monkeypatch.setattr(quantising, "read_folder", read)
    result = command("--data", tmp_path, "--model", model)
    assert result.exit_code == 2
    assert "1 series to calibrate with, at least 4" in result.output
    assert told == [tuple(json.loads((model / "split.json").read_text())["train"])]


def test_what_is_missing_is_named_before_anything_is_done(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert command("--data", tmp_path / "empty", "--model", model).exit_code == 2
    (model / "split.json").unlink()
    result = command("--data", tmp_path, "--model", model)
    assert result.exit_code == 2
    assert "split.json" in result.output
    assert not (model / INT8_FILE).exists()


def test_eight_bits_of_another_model_are_made_anew_by_the_command_that_says_so(
    shipped: Manifest, model: Path, tmp_path: Path
) -> None:
    told = json.loads((shipped.path.parent / "manifest.json").read_text())["int8"]
    change(model, int8=told | {"model_sha256": "0" * 64})
    with pytest.raises(ManifestError, match=r"python -m trt\.quantise"):
        load(model)
    assert load(model, int8=False).quantised is None
    one = case("p0", 0)
    np.savez(tmp_path / "p0.npz", image=one.image, mask=one.mask)
    (model / "split.json").write_text(json.dumps({"train": ["p0"], "validation": ["p1"], "seed": 0}))
    result = command("--data", tmp_path, "--model", model)
    assert result.exit_code == 2
    assert "1 series to calibrate with, at least 4" in result.output  # so the manifest was taken


def test_a_missing_library_is_told_before_series_are_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    result = command("--data", tmp_path / "nowhere", "--model", model)
    assert result.exit_code == 2
    assert "pip install 'pennode[train]'" in result.output
    assert "nowhere" not in result.output
