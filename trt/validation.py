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
from trt.metrics import dice, spread
from trt.penn import Penn

SLICES = 8  # at once


@torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is not followed by the type checker
def segment_slices(network: Penn, case: Case, *, bf16: bool = True) -> Mask:
    """Label values (Z, Y, X) uint8 of a case whose image is normalised; the network in evaluation mode."""
    stride, half = network.config.stride, network.config.channels // 2
    depth, height, width = case.image.shape
    lacking = (0, -width % stride, 0, -height % stride)
    parameter = next(network.parameters())
    image = functional.pad(torch.from_numpy(case.image)[None], lacking, mode="replicate")[0].to(parameter.device)
    mask = np.empty(case.image.shape, np.uint8)
    for first in range(0, depth, SLICES):
        centres = torch.arange(first, min(first + SLICES, depth))
        neighbours = centres[:, None] + torch.arange(-half, half + 1)[None]  # (N, C)
        patches = image[neighbours.clamp(0, depth - 1)].contiguous(memory_format=torch.channels_last)
        with torch.autocast(parameter.device.type, torch.bfloat16, enabled=bf16):
            labels = network(patches).argmax(1)  # (N, Y, X)
        mask[first : first + SLICES] = labels[:, :height, :width].cpu().numpy()
    return mask


def dice_per_label(found: Mask, truth: Mask, labels: int) -> list[float]:
    """Dice 0..1 of labels 1..labels; NaN where neither mask holds one."""
    return [dice(found, truth, label) for label in range(1, labels + 1)]


def score(network: Penn, cases: Sequence[Case], *, bf16: bool = True) -> list[float]:
    """Mean Dice of labels 1.. over the cases that hold them; NaN where none does."""
    labels = network.config.classes - 1
    rows = [dice_per_label(segment_slices(network, case, bf16=bf16), case.mask, labels) for case in cases]
    return [spread(column).mean for column in zip(*rows, strict=True)]
