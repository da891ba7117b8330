"""How a network under training does on patients it is not trained on: whole slices, in torch, fast.

For curves, early stopping and comparisons between runs. What a model is said to reach is measured by `trt.evaluate`,
patch by patch, on the file that serves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from trt.dataset import Case, Mask
from trt.geometry import slice_step
from trt.metrics import dice, spread
from trt.penn import Penn

SLICES = 8  # at once


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is not followed by the type checker
def segment_slices(network: Penn, case: Case, neighbour_mm: float | None = None, *, bf16: bool = True) -> Mask:
    """Label values (Z, Y, X) uint8 of a case whose image is normalised; the network in evaluation mode.

    `neighbour_mm` lies between two channels; see `trt.geometry.slice_step`.
    """
    stride, channels = network.config.stride, network.config.channels
    offsets = (torch.arange(channels) - channels // 2) * slice_step(neighbour_mm, case.spacing[0])
    depth, height, width = case.image.shape
    lacking = (0, -width % stride, 0, -height % stride)
    parameter = next(network.parameters())
    image = functional.pad(torch.from_numpy(case.image)[None], lacking, mode="replicate")[0].to(parameter.device)
    mask = np.empty(case.image.shape, np.uint8)
    for first in range(0, depth, SLICES):
        centres = torch.arange(first, min(first + SLICES, depth))
        neighbours = centres[:, None] + offsets[None]  # (N, C)
        patches = image[neighbours.clamp(0, depth - 1)].contiguous(memory_format=torch.channels_last)
        with torch.autocast(parameter.device.type, torch.bfloat16, enabled=bf16):
            labels = network(patches).argmax(1)  # (N, Y, X)
        mask[first : first + SLICES] = labels[:, :height, :width].cpu().numpy()
    return mask


def dice_per_label(found: Mask, truth: Mask, labels: int) -> list[float]:
    """Dice 0..1 of labels 1..labels; NaN where neither mask holds one."""
    return [dice(found, truth, label) for label in range(1, labels + 1)]


def score(network: Penn, cases: Sequence[Case], neighbour_mm: float | None = None, *, bf16: bool = True) -> list[float]:
    """Mean Dice of labels 1.. over the cases that hold them; NaN where none does."""
    labels = network.config.classes - 1
    found = [segment_slices(network, case, neighbour_mm, bf16=bf16) for case in cases]
    rows = [dice_per_label(mask, case.mask, labels) for mask, case in zip(found, cases, strict=True)]
    return [spread(column).mean for column in zip(*rows, strict=True)]
