"""A model's network in torch, for comparisons: rebuilt from the ONNX file that serves, whatever its size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn


class TorchNetwork(nn.Module):
    """Patches (N, C, H, W) to logits (N, K, H, W), of the dtype that the module was moved to.

    Raises `ValueError` for an operator, or a setting of one, that PENN's exports do not hold.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = onnx.load(path).graph
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


class Concat(nn.Module):
    """Feature maps one after another."""

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat(maps, dim=1)


def convolution(kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], stored: list[Tensor], settings: Any) -> nn.Module:
    """A convolution with its weights; those of a transposed one are (inputs, outputs, ...)."""
    weight, bias = stored
    outputs, inputs = weight.shape[:2] if kind is nn.Conv2d else weight.shape[1::-1]
    top, left, *ends = settings["pads"]
    if settings["group"] != 1 or ends != [top, left] or set(settings["dilations"]) != {1}:
        raise ValueError(f"a convolution of {settings} is not known here")
    layer = kind(inputs, outputs, tuple(weight.shape[2:]), stride=tuple(settings["strides"]), padding=(top, left))
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


LAYERS: dict[str, Callable[[list[Tensor], Any], nn.Module]] = {
    "Conv": lambda stored, settings: convolution(nn.Conv2d, stored, settings),
    "ConvTranspose": lambda stored, settings: convolution(nn.ConvTranspose2d, stored, settings),
    "Relu": lambda _, __: nn.ReLU(inplace=True),
    "MaxPool": lambda _, settings: nn.MaxPool2d(tuple(settings["kernel_shape"]), tuple(settings["strides"])),
    "Concat": lambda _, __: Concat(),
}
