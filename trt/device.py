"""From a normalised volume to its mask on a torch device: `trt.slabs`, resampling, and the choice of labels.

Series that fit the budget are one slab, so their pixels go up once and their mask comes down once; larger ones go slab
by slab, with the same result: while one is calculated, the next goes up and the mask of the last comes down. Crumbs
(`trt.decision`) are found on the host, in masks.

Tested on torch's CPU device, which runs the very same code; not run on a GPU yet.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trt.copies import Falling, copies
from trt.decision import settle
from trt.engine import OutOfMemory
from trt.geometry import Resampling
from trt.labels import Label
from trt.patches import Array, Progress, Region
from trt.slabs import Cut, Network, slabs, up
from trt.stages import Stages, unwatched

log = logging.getLogger(__name__)

BUDGET_MB = 512
"""Device memory that a series may take beside its network, by default."""


def predict_mask(
    volume: Array | Tensor,
    network: Network,
    device: torch.device,
    cut: Cut,
    *,
    labels: Sequence[Label],
    voxel_mm3: float,
    weights: Resampling | None = None,
    region: Region | None = None,
    progress: Progress | None = None,
    budget_mb: float = BUDGET_MB,
    stream: torch.cuda.Stream | None = None,
    stages: Stages | None = None,
) -> NDArray[np.uint8]:
    """The mask (Z, Y, X) uint8 of a normalised volume (Z, Y, X) float32, on the grid that `weights` lead back to.

    As `trt.decision.decide` of `trt.patches.predict_slices`, whose arguments these are. `volume` lies on the host, or
    whole on the device. What is on the device beside the network, that volume included, stays within `budget_mb`, or
    takes one slice at a time. All work is queued on `stream`, by default the device's current one. `stages` are told
    gather, network, blend and label.

    Where the device has no memory left, everything is done once more with half the batch in half the budget.

    Raises
    ------
    OutOfMemory
        Half the batch is too much as well.
    NonFiniteOutput
        Logits are NaN or infinite, or too far apart to be blended.
    ValueError
        Arguments do not fit each other.
    """
    budget = budget_mb - (volume.nbytes / 2**20 if isinstance(volume, Tensor) else 0)
    for share in (1, 2):
        tried = replace(cut, batch=max(cut.batch // share, 1))
        try:
            with torch.no_grad(), on_stream(stream):
                masks = _masks(
                    volume, network, device, tried, labels, weights, region, progress, budget / share, stages
                )
        except torch.OutOfMemoryError as error:
            reason = (str(error).splitlines() or [""])[0]
        else:
            next_best = {label.value: found for label, found in zip(_doubted(labels), masks[1:], strict=True)}
            return settle(masks[0], next_best, labels, voxel_mm3)
        # Past the handler: what the error's frames held is free by now.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if share == 1:
            log.warning(
                "no device memory left at a batch of %d: once more with %d: %s",
                tried.batch, max(cut.batch // 2, 1), reason,
            )  # fmt: skip
    raise OutOfMemory(
        f"no device memory left, not even at a batch of {tried.batch}: {reason}; set worker.batch or worker.slab_mb "
        "lower, or free the GPU"
    )


def on_stream(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    """Queue on a stream what the block does; nothing changes for None."""
    return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


def slices_within(budget_mb: float, cut: Cut, plane: tuple[int, int], native: tuple[int, int], volumes: int) -> int:
    """How many slices of `plane` (Y, X) make a slab that stays within a budget, at least one.

    `volumes` masks come down for each slab, on a grid of `native` (Y, X).
    """
    height, width = (max(side, length) for side, length in zip(cut.patch, plane, strict=True))
    area, result = height * width, native[0] * native[1]
    # float32: pixels, with those of the slabs before and after, once more where they are padded; means; total. Bytes:
    # the region and its inverse; masks, with those of two slabs before. The host is up to one slab ahead of the device.
    per_slice = 4 * area * (3 + (plane != (height, width)) + cut.classes + 1) + 2 * area + 3 * volumes * result
    neighbours = 2 * (cut.channels // 2) * 16 * area
    # float32: gathered, answered, and two parts of the blending; then one slice on its way back, and its choices.
    batch = 4 * cut.batch * cut.patch[0] * cut.patch[1] * (cut.channels + 3 * cut.classes + 2)
    back = (
        4 * cut.classes * (native[0] * width + 2 * result) + 24 * result + 4 * (native[0] * height + native[1] * width)
    )
    return max(1, int((budget_mb * 2**20 - neighbours - batch - back) // per_slice))


def _masks(
    volume: Array | Tensor,
    network: Network,
    device: torch.device,
    cut: Cut,
    labels: Sequence[Label],
    weights: Resampling | None,
    region: Region | None,
    progress: Progress | None,
    budget_mb: float,
    stages: Stages | None,
) -> NDArray[np.uint8]:
    """The likeliest class (Z, Y, X), and for each doubted label the next one where it is that label's: (1 + V, ...)."""
    plane = int(volume.shape[1]), int(volume.shape[2])
    native, back = plane, None
    if weights is not None and not weights.identity:
        back = [up(matrix.toarray(), device) for matrix in weights.to_native]  # (Yn, Y), (Xn, X)
        native = int(back[0].shape[0]), int(back[1].shape[0])
    values = [label.value for label in _doubted(labels)]
    depth = slices_within(budget_mb, cut, plane, native, 1 + len(values))
    masks = np.empty((1 + len(values), volume.shape[0], *native), np.uint8)
    landing: tuple[slice, Falling] | None = None
    stage = unwatched if stages is None else stages
    options: dict[str, Any] = {"depth": depth, "region": region, "progress": progress, "stages": stages}
    for first, slab in slabs(volume, network, device, cut, **options):
        found = torch.empty((1 + len(values), len(slab), *native), dtype=torch.uint8, device=device)
        with stage("label"):
            for number, logits in enumerate(slab):  # (K, Y, X)
                if back is not None:
                    logits = torch.matmul(torch.matmul(back[0], logits), back[1].T)
                _choose(logits, values, found[:, number])
        falling = slice(first, first + len(slab)), copies(device).down(found)
        if landing is not None:  # the slab before, this one being queued
            masks[:, landing[0]] = landing[1].here()
        landing = falling
    if landing is not None:
        masks[:, landing[0]] = landing[1].here()
    return masks


def _choose(logits: Tensor, values: Sequence[int], found: Tensor) -> None:
    """Into `found` (1 + V, Y, X) uint8: the likeliest class of logits (K, Y, X), which change, and the next of each."""
    chosen = logits.argmax(0)  # the first of equals, as on the host
    found[0].copy_(chosen)
    for value, others in zip(values, found[1:], strict=True):
        kept = logits[value].clone()
        logits[value].fill_(-torch.inf)
        others.copy_(torch.where(chosen == value, logits.argmax(0), 0))
        logits[value].copy_(kept)


def _doubted(labels: Sequence[Label]) -> list[Label]:
    return [label for label in labels if label.least_mm3]
