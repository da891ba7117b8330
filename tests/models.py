"""Small models for the tests of engines, and the library that builds them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from node.forms import Form, Recipe
from trt.build import Library
from trt.manifest import DEFAULT_MODEL, Manifest, load, models_dir, sha256

SIDE = 16
CLASSES = 5


def library() -> Library:
    """TensorRT-RTX, or skip (in CI: fail) where it is not installed: it builds without a GPU, so CI has no excuse."""
    try:
        import tensorrt_rtx
    except ImportError:
        reason = "tensorrt_rtx is not installed: `pip install tensorrt-rtx`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return Library("tensorrt_rtx", tensorrt_rtx.__version__, tensorrt_rtx)


def weights(name: str, *shape: int, scale: float = 0.3) -> onnx.TensorProto:
    """Weights that depend on their name alone."""
    random = np.random.default_rng(list(name.encode()))
    return numpy_helper.from_array(random.normal(0, scale, shape).astype(np.float32), name)


def graph(
    nodes: Sequence[onnx.NodeProto], initializers: Sequence[onnx.TensorProto] = (), classes: int = CLASSES
) -> onnx.ModelProto:
    """A model of `nodes` from `patches` (N, 3, 16, 16) to `logits` (N, K, 16, 16), both float32."""
    patches = helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes, SIDE, SIDE])
    inner = helper.make_graph(list(nodes), "small", [patches], [logits], list(initializers))
    return helper.make_model(inner, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def convolution(source: str, kernel: str, target: str, **attributes: object) -> onnx.NodeProto:
    """A 3x3 convolution that keeps the size."""
    return helper.make_node("Conv", [source, kernel], [target], name=f"conv_{target}", pads=[1] * 4, **attributes)


def small() -> onnx.ModelProto:
    """One of each op that PENN has: down, up again, and a skip connection."""
    return graph(
        [
            convolution("patches", "w1", "a"),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node("MaxPool", ["b"], ["c"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
            convolution("c", "w2", "d"),
            helper.make_node("ConvTranspose", ["d", "w3"], ["e"], name="up", strides=[2, 2]),
            helper.make_node("Concat", ["b", "e"], ["f"], name="skip", axis=1),
            helper.make_node("Conv", ["f", "w4"], ["logits"], name="head"),
        ],
        [weights("w1", 4, 3, 3, 3), weights("w2", 8, 4, 3, 3), weights("w3", 8, 4, 2, 2), weights("w4", 5, 8, 1, 1)],
    )


def write(model: onnx.ModelProto, folder: Path) -> Manifest:
    """The model in a folder, with the shipped model's manifest made to fit."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    return dataclasses.replace(
        load(), name="small", path=path, digest=sha256(path), patch=(SIDE, SIDE), finder=None, quantised=None
    )


SEG = (Recipe(Form.SEG),)


def save(folder: Path, *, name: str = "small", version: str = "1.0.0", seed: str = "") -> Path:
    """Write a small model that a worker can open, manifest and all; `seed` chooses its weights, so what it finds."""
    folder.mkdir(parents=True, exist_ok=True)
    model = graph(
        [
            convolution("patches", "w1", "a"),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node("Conv", ["b", "w2"], ["logits"], name="head"),
        ],
        [
            numpy_helper.from_array(numpy_helper.to_array(weights(f"{name}{seed}", *shape)), name)
            for name, shape in (("w1", (6, 3, 3, 3)), ("w2", (CLASSES, 6, 1, 1)))
        ],
    )
    onnx.save(model, folder / "model.onnx")
    fields = json.loads((models_dir() / DEFAULT_MODEL / "manifest.json").read_text())
    for key in ("finder", "int8", "stride"):
        fields.pop(key, None)
    for label in fields["labels"]:
        label.pop("least_mm3", None)
    digest = sha256(folder / "model.onnx")
    fields |= {"name": name, "version": version, "sha256": digest, "patch": [SIDE, SIDE], "spacing_mm": [1.0, 1.0]}
    (folder / "manifest.json").write_text(json.dumps(fields))
    load(folder)
    return folder
