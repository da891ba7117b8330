"""A float32 ONNX model as one that calculates in float16 and still takes and gives float32.

Strongly typed TensorRT calculates in the types that the graph says, so that precision is decided here. Weights are
rounded to the nearest float16, never clipped; what is not known to stay right in float16 is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from trt.engine import EngineError

KNOWN = frozenset({"Concat", "Conv", "ConvTranspose", "MaxPool", "Relu"})
"""Ops whose floating inputs and outputs all have one type, and which need no more than float16 holds."""


class HalfError(EngineError):
    """The model cannot be put into float16; the message names the op or the tensor and what to choose instead."""


def halve(data: bytes) -> bytes:
    """The bytes of an ONNX file, its weights within, as those of one in float16; see `to_half`."""
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise HalfError(f"the model is no valid ONNX: {error}") from error
    return bytes(to_half(model).SerializeToString())


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` that calculates in float16: float32 inputs and outputs stay, a Cast at each border.

    Names of nodes stay too, so that what is said of the copy can be looked up in the original.

    Raises `HalfError` for an op that is not in KNOWN, for weights that are not float32 or too large for float16, and
    for what is no valid ONNX.
    """
    for node in model.graph.node:
        if node.op_type not in KNOWN or node.domain not in ("", "ai.onnx"):
            raise HalfError(
                f"layer {node.name or node.output[0]!r}: op {_op(node)} is not known to work in float16 "
                f"(known: {', '.join(sorted(KNOWN))}); choose precision f32"
            )
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    del graph.value_info[:]  # they speak of float32
    for tensor in graph.initializer:
        tensor.CopyFrom(_round(tensor))
    weights = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in weights and _is_float(value):  # older models list their weights among the inputs
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    inputs = [value for value in graph.input if value.name not in weights]
    taken = _names(graph)
    renamed = {value.name: _free(f"{value.name}_half", taken) for value in (*inputs, *graph.output) if _is_float(value)}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    enter = [_cast(value.name, renamed[value.name], TensorProto.FLOAT16) for value in inputs if _is_float(value)]
    leave = [_cast(renamed[value.name], value.name, TensorProto.FLOAT) for value in graph.output if _is_float(value)]
    inner = list(graph.node)
    del graph.node[:]
    graph.node.extend([*enter, *inner, *leave])
    try:
        onnx.checker.check_model(half, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise HalfError(f"the model is no valid ONNX: {error}") from error
    return half


def _op(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT)


def _round(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != TensorProto.FLOAT:
        name = TensorProto.DataType.Name(tensor.data_type)
        raise HalfError(f"weights {tensor.name!r} are {name}, not FLOAT; export the model in float32")
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise HalfError(
            f"weights {tensor.name!r} reach {np.abs(values).max():.3g}, more than float16 holds; choose precision f32"
        )
    return numpy_helper.from_array(rounded, tensor.name)


def _names(graph: onnx.GraphProto) -> set[str]:
    values: Iterable[onnx.ValueInfoProto | onnx.TensorProto] = (*graph.input, *graph.output, *graph.initializer)
    return {value.name for value in values} | {name for node in graph.node for name in (*node.input, *node.output)}


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind)
