"""Several models as one: the mean of their logits, of models that belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from typer import Typer
from typer.testing import CliRunner, Result

from tests.models import convolution, graph, small, weights
from trt import ensemble
from trt.engine import open_engine
from trt.ensemble import check, join, write_ensemble
from trt.export import ExportError, gather_facts
from trt.half import KNOWN
from trt.manifest import Manifest, ManifestError, load, models_dir, sha256

FACTS = models_dir() / "penn-spine" / "facts.json"
SHAPE = (2, 3, 16, 16)
WORDS = ("--name", "two", "--version", "1.2.3", "--training-data", "phantoms", "--licence", "none")


def with_bias(seed: int) -> onnx.ModelProto:
    """The small model with weights of its own, and a bias to its last layer."""
    model = small()
    random = np.random.default_rng(seed)
    for item in model.graph.initializer:
        shape = numpy_helper.to_array(item).shape
        item.CopyFrom(numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), item.name))
    model.graph.initializer.append(numpy_helper.from_array(random.random(5, np.float32), "bias"))
    model.graph.node[-1].input.append("bias")
    return model


def put(model: onnx.ModelProto, folder: Path, **fields: Any) -> Manifest:
    """The model in a folder with all that a model has beside it, but for a finder."""
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    told = json.loads((models_dir() / "penn-spine" / "manifest.json").read_text())
    told |= {"sha256": sha256(folder / "model.onnx"), "patch": [16, 16], "stride": 2} | fields
    for gone in ("finder", "int8"):
        told.pop(gone, None)
    (folder / "manifest.json").write_text(json.dumps(told))
    (folder / "split.json").write_text((models_dir() / "penn-spine" / "split.json").read_text())
    (folder / "training.json").write_text(json.dumps({"seed": folder.name, "steps": "8"}))
    return load(folder)


@pytest.fixture
def members(tmp_path: Path) -> list[Manifest]:
    return [put(with_bias(seed), tmp_path / str(seed)) for seed in range(3)]


def facts() -> dict[str, Any]:
    return gather_facts(FACTS, {"name": "three", "version": "1.0.0"}, [label.name for label in load().labels])


def test_the_joined_model_gives_the_mean_of_their_logits(members: list[Manifest], tmp_path: Path) -> None:
    made = write_ensemble(members, tmp_path / "made", facts(), None)
    assert (made.name, made.version, made.validation) == ("three", "1.0.0", {})
    patches = np.random.default_rng(1).random(SHAPE, np.float32)
    each = [ReferenceEvaluator(onnx.load(m.path)).run(None, {"patches": patches})[0] for m in members]
    with open_engine(made, threads=1, batch=2) as engine:
        np.testing.assert_allclose(engine(patches), np.mean(each, axis=0), atol=1e-4)
    assert {node.op_type for node in onnx.load(made.path).graph.node} <= KNOWN
    assert json.loads((tmp_path / "made" / "training.json").read_text()) == {
        "networks": "3 side by side, the mean of their logits",
        "seed": "0 and 1 and 2",
        "steps": "8",
    }


def test_what_is_off_the_mean_is_refused(members: list[Manifest]) -> None:
    made = join([members[0].path, members[1].path])
    assert check(made, [members[0].path, members[1].path], SHAPE) < 1e-4
    with pytest.raises(ExportError, match="off the mean"):
        check(made, [members[0].path, members[2].path], SHAPE)


def test_models_of_other_pixels_or_labels_do_not_belong_together(members: list[Manifest], tmp_path: Path) -> None:
    other = put(with_bias(5), tmp_path / "other", spacing_mm=[0.5, 0.5])
    with pytest.raises(ManifestError, match="spacing_mm is not that of"):
        write_ensemble([members[0], other], tmp_path / "made", facts(), None)
    assert not (tmp_path / "made").exists()


def test_models_that_were_trained_on_one_anothers_patients_are_refused(members: list[Manifest], tmp_path: Path) -> None:
    path = tmp_path / "1" / "split.json"
    fields = json.loads(path.read_text())
    fields["train"][0], fields["validation"][0] = fields["validation"][0], fields["train"][0]
    path.write_text(json.dumps(fields))
    result = command("--model", tmp_path / "0", "--model", tmp_path / "1", "--out", tmp_path / "made", *WORDS)
    assert result.exit_code == 2
    assert "nothing would be held back" in result.output
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("last", "stored", "message"),
    [
        (helper.make_node("Relu", ["b"], ["logits"], name="relu"), [], "ends in Relu"),
        (convolution("b", "w2", "logits"), [weights("w2", 5, 4, 3, 3)], "with weights and bias"),
        (
            helper.make_node("Conv", ["b", "w2", "bias"], ["logits"], name="head", pads=[1] * 4),
            [weights("w2", 5, 4, 3, 3), weights("bias", 5)],
            r"not 1x1",
        ),
    ],
)
def test_a_model_with_another_end_is_named(
    members: list[Manifest], tmp_path: Path, last: onnx.NodeProto, stored: list[onnx.TensorProto], message: str
) -> None:
    model = graph([convolution("patches", "w1", "b"), last], [weights("w1", 4, 3, 3, 3), *stored])
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ExportError, match=message):
        join([members[0].path, tmp_path / "odd.onnx"])


def test_a_model_of_another_opset_is_named(members: list[Manifest], tmp_path: Path) -> None:
    model = onnx.load(members[0].path)
    model.opset_import[0].version = 17
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(ExportError, match=r"old\.onnx: another opset"):
        join([members[0].path, tmp_path / "old.onnx"])


def command(*arguments: object) -> Result:
    app = Typer()
    app.command()(ensemble.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})


def test_the_command_joins_models_and_brings_a_finder_along(members: list[Manifest], tmp_path: Path) -> None:
    folders = [item for n in (0, 1) for item in ("--model", tmp_path / str(n))]
    result = command(*folders, "--out", tmp_path / "made", *WORDS, "--finder", models_dir() / "penn-spine")
    assert result.exit_code == 0, result.output
    made = load(tmp_path / "made")
    assert made.name == "two"
    assert made.finder is not None
    assert made.finder.path.parent == tmp_path / "made"
    assert made.quantised is None


def test_one_model_alone_is_refused(members: list[Manifest], tmp_path: Path) -> None:
    result = command("--model", tmp_path / "0", "--out", tmp_path / "made")
    assert result.exit_code == 2
    assert "twice or more" in result.output
