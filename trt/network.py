"""A model's network in torch, rebuilt from the ONNX file that serves, whatever its size.

It serves where TensorRT does not (`trt.torch_engine`), and stands in comparisons.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper
from torch import Tensor, nn


class TorchNetwork(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Patches (N, C, H, W) to logits (N, K, H, W), of the dtype that the module was moved to.

    Raises `ValueError` for a file that is no ONNX model, and for an operator, or a setting of one, that PENN's exports
    do not hold.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            graph = onnx.load(path).graph
        except DecodeError as error:
            raise ValueError(f"{path}: no ONNX model: {error}") from error
        self.layers = nn.ModuleList()
        self.steps: list[tuple[list[str], str]] = []  # names of what goes in, and of what comes out
        weights = {item.name: torch.tensor(numpy_helper.to_array(item)) for item in graph.initializer}
        for node in graph.node:
            given = [name for name in node.input if name not in weights]
            stored = [weights[name] for name in node.input if name in weights]
            settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            if node.op_type not in LAYERS:
                raise ValueError(f"{path}: {node.op_type} {node.name} is not known here; add it to {__name__}.LAYERS")
            self.layers.append(LAYERS[node.op_type](stored, settings))
            self.steps.append((given, node.output[0]))
        self.given, self.answer = graph.input[0].name, graph.output[0].name
        self.eval().requires_grad_(False)

    def forward(self, patches: Tensor) -> Tensor:
        """Logits of a batch of patches."""
        known = {self.given: patches}
        for layer, (given, found) in zip(self.layers, self.steps, strict=True):
            known[found] = layer(*(known[name] for name in given))
        return known[self.answer]


class Concat(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Feature maps one after another."""

    def forward(self, *maps: Tensor) -> Tensor:
        """The maps (N, C, H, W) as one, along their channels."""
        return torch.cat(maps, dim=1)


def convolution(kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], stored: list[Tensor], settings: Any) -> nn.Module:
    """A convolution with its weights, and its bias where it has one; those of a transposed one are (in, out, ...)."""
    weight, *bias = stored
    outputs, inputs = weight.shape[:2] if kind is nn.Conv2d else weight.shape[1::-1]
    known = {"group": 1, "dilations": [1, 1], "output_padding": [0, 0], "auto_pad": b"NOTSET"}
    _require("a convolution", settings, known, {"kernel_shape", "strides", "pads"})
    top, left, *ends = settings.get("pads", [0] * 4)
    if ends != [top, left]:
        raise ValueError(f"a convolution of {settings} is not known here")
    strides = tuple(settings.get("strides", [1, 1]))
    layer = kind(inputs, outputs, tuple(weight.shape[2:]), stride=strides, padding=(top, left), bias=bool(bias))
    layer.weight = nn.Parameter(weight)
    if bias:
        layer.bias = nn.Parameter(bias[0])
    return layer


def pooling(settings: Any) -> nn.Module:
    """The largest of each window."""
    known = {"pads": [0] * 4, "dilations": [1, 1], "ceil_mode": 0, "storage_order": 0, "auto_pad": b"NOTSET"}
    _require("pooling", settings, known, {"kernel_shape", "strides"})
    return nn.MaxPool2d(tuple(settings["kernel_shape"]), tuple(settings.get("strides", [1, 1])))


def concatenation(settings: Any) -> nn.Module:
    """Feature maps one after another, along their channels."""
    _require("concatenation", settings, {"axis": 1}, set())
    return Concat()


def _require(what: str, settings: Any, known: dict[str, Any], free: set[str]) -> None:
    """Raise `ValueError` for settings that are neither `free` nor as `known`."""
    if {name: value for name, value in settings.items() if name not in free and known.get(name) != value}:
        raise ValueError(f"{what} of {settings} is not known here")


LAYERS: dict[str, Callable[[list[Tensor], Any], nn.Module]] = {
    "Conv": lambda stored, settings: convolution(nn.Conv2d, stored, settings),
    "ConvTranspose": lambda stored, settings: convolution(nn.ConvTranspose2d, stored, settings),
    "Relu": lambda _, __: nn.ReLU(inplace=True),
    "MaxPool": lambda _, settings: pooling(settings),
    "Concat": lambda _, settings: concatenation(settings),
}
