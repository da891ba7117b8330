"""The patch pipeline of `trt.patches` on a torch device, a slab of slices at a time.

The host sends places and hears nothing until the next slab is queued: while one is calculated, the pixels of the next
go up (`trt.copies`). Every patch takes its part in a pixel in the order and by the arithmetic of `trt.patches`, so that
the identity law holds bit for bit here too.

Tested on torch's CPU device, which runs the very same code; not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trt.copies import Falling, Rising, copies
from trt.patches import BACKGROUND, Array, NonFiniteOutput, Progress, Region, WrongOutput, bell, grids_of, lacking
from trt.stages import Stages, unwatched

Network: TypeAlias = Callable[[Tensor], Tensor]
"""Patches (N, C, H, W) float32 to logits (N, K, H, W) float32, both on the device; N is the batch at each call.

The answer may be overwritten by the next call.
"""

Run: TypeAlias = tuple[int, int, int, int, int]
"""Patches of one place in neighbouring slices: first slice, last + 1, y, x, and the first one's number in its batch."""


@dataclass(frozen=True)
class Cut:
    """How a volume is cut: sides of a patch (y, x), channels, classes of the network, overlap, patches at once."""

    patch: tuple[int, int]
    channels: int
    classes: int
    overlap: float
    batch: int


def slabs(
    volume: Array | Tensor,
    network: Network,
    device: torch.device,
    cut: Cut,
    *,
    depth: int,
    region: Region | None = None,
    progress: Progress | None = None,
    stages: Stages | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first slice, blended logits (S, K, Y, X) float32 on the device) of `depth` slices at a time, in order.

    What is yielded is the caller's until the next is asked for, and is then overwritten by work queued on the current
    stream. Otherwise as `trt.patches.predict_slices`, but that `NonFiniteOutput` of a slab is raised in place of the
    next but one, or of the end: whoever takes all hears of it. `stages` are told gather, network and blend.
    """
    if volume.ndim != 3 or 0 in volume.shape or volume.dtype not in (np.float32, torch.float32):
        raise ValueError(f"volume must be (Z, Y, X) float32 and not empty, not {tuple(volume.shape)} {volume.dtype}")
    shape = int(volume.shape[0]), int(volume.shape[1]), int(volume.shape[2])
    if region is not None and (region.shape != shape or region.dtype != np.bool_):
        raise ValueError(f"region must be {shape} bool as the volume, not {region.shape} {region.dtype}")
    grids = grids_of(np.broadcast_to(np.True_, shape) if region is None else region, cut.patch, cut.overlap)
    if not any(grids):
        grids[0] = [(0, 0)]  # as in trt.patches
    (top, bottom), (left, right) = lacking(shape[1:], cut.patch)
    rows, columns = top + shape[1] + bottom, left + shape[2] + right
    reach, depth = cut.channels // 2, min(depth, shape[0])
    stage = unwatched if stages is None else stages
    weight = up(np.multiply.outer(*(bell(side) for side in cut.patch)).astype(np.float32), device)  # (H, W)
    means = torch.empty((depth, cut.classes, rows, columns), device=device)
    totals = torch.empty((depth, rows, columns), device=device)
    done, count = 0, sum(map(len, grids))
    bounds = [(first, min(first + depth, shape[0])) for first in range(0, shape[0], depth)]
    near = [(max(first - reach, 0), min(last + reach, shape[0])) for first, last in bounds]  # with their channels
    coming, doubtful = _sent(volume, near[0], device), None
    for (first, last), (low, _), after in zip(bounds, near, [*near[1:], None], strict=True):
        pixels = padded(coming if isinstance(coming, Tensor) else coming.there(), (top, bottom), (left, right))
        if after is not None:
            coming = _sent(volume, after, device)
        windows = pixels.unfold(1, cut.patch[0], 1).unfold(2, cut.patch[1], 1)  # (Z, rows, columns, H, W)
        means.zero_()
        totals.zero_()
        chosen = _in_order(grids, first, last)
        where = _where(chosen, cut, low, shape[0], device)  # (batches, N, C + 2)
        for number, start in enumerate(range(0, len(chosen), cut.batch)):
            now = chosen[start : start + cut.batch]
            at = where[number]
            slices, y, x = at[:, :-2], at[:, -2:-1], at[:, -1:]  # (N, C), (N, 1), (N, 1)
            with stage("gather"):
                patches = windows[slices, y, x]  # (N, C, H, W)
            with stage("network"):
                logits = network(patches)  # (N, K, H, W)
            _check(logits, cut)
            with stage("blend"):
                for begin, end, y0, x0, position in _runs(now):
                    window = slice(y0, y0 + cut.patch[0]), slice(x0, x0 + cut.patch[1])
                    mean, total = (
                        means[begin - first : end - first, :, *window],
                        totals[begin - first : end - first, *window],
                    )
                    share = weight / total.add_(weight)  # (R, H, W); exactly 1 for the first patch of a pixel
                    mean += logits[position : position + end - begin].sub(mean).mul_(share[:, None])
            done += len(now)
            if progress is not None:
                progress(done, count)
        del pixels, windows
        found = means[: last - first]
        finite = copies(device).down(torch.stack(torch.aminmax(found)).isfinite())
        if doubtful is not None:
            _require_finite(doubtful)  # the host waits for the slab before, this one being queued
        doubtful = finite
        found = found[:, :, top : top + shape[1], left : left + shape[2]]
        if region is not None:
            outside = ~_plane(region, first, last, device)  # (S or 1, Y, X)
            found[:, 0].masked_fill_(outside, BACKGROUND)
            found[:, 1:].masked_fill_(outside[:, None], 0)
        yield first, found
    if doubtful is not None:
        _require_finite(doubtful)


def _require_finite(finite: Falling) -> None:
    if not finite.here().all():
        raise NonFiniteOutput(
            "the network returned NaN or infinity, or logits too far apart for float32; try precision f32, then "
            "another model"
        )


def _in_order(grids: list[list[tuple[int, int]]], first: int, last: int) -> list[tuple[int, int, int]]:
    """Patches (z, y, x) of slices first to last - 1: of each slice in order, and neighbouring slices' together."""
    most = max((len(grid) for grid in grids[first:last]), default=0)
    return [(z, *grids[z][n]) for n in range(most) for z in range(first, last) if n < len(grids[z])]


def _runs(chosen: Sequence[tuple[int, int, int]]) -> Iterator[Run]:
    """Patches (z, y, x) that can be blended at once: one after another, at one place, in one slice after another."""
    start = 0
    for stop in range(1, len(chosen) + 1):
        z, y, x = chosen[stop - 1]
        if stop == len(chosen) or chosen[stop] != (z + 1, y, x):
            yield chosen[start][0], z + 1, y, x, start
            start = stop


def _where(chosen: list[tuple[int, int, int]], cut: Cut, low: int, depth: int, device: torch.device) -> Tensor:
    """Slices of the channels, counted from `low`, and y and x of each patch: (batches, N, C + 2), repeats last."""
    if not chosen:
        return torch.empty((0, cut.batch, cut.channels + 2), dtype=torch.int64, device=device)
    repeats = -len(chosen) % cut.batch
    places = np.array(chosen + chosen[-1:] * repeats, dtype=np.int64)  # (P, 3)
    slices = np.clip(places[:, :1] + np.arange(cut.channels) - cut.channels // 2, 0, depth - 1) - low
    return up(np.concatenate((slices, places[:, 1:]), axis=1).reshape(-1, cut.batch, cut.channels + 2), device)


def _sent(volume: Array | Tensor, part: tuple[int, int], device: torch.device) -> Tensor | Rising:
    """Slices from the first up to the last of `part`: those that are there, or on their way."""
    slices = slice(*part)
    return volume[slices] if isinstance(volume, Tensor) else copies(device).up(volume[slices])


def padded(pixels: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Slices (Z, Y, X) with their edge pixels repeated, as `numpy.pad` with mode edge does."""
    for axis, (before, after) in ((1, rows), (2, columns)):
        if before or after:
            side = pixels.shape[axis]
            index = torch.arange(-before, side + after, device=pixels.device).clamp_(0, side - 1)
            pixels = pixels.index_select(axis, index)
    return pixels


def _plane(region: Region, first: int, last: int, device: torch.device) -> Tensor:
    """Slices of a region; one for all where it is the same in all."""
    return up(region[:1] if region.strides[0] == 0 else region[first:last], device)


def _check(logits: Tensor, cut: Cut) -> None:
    if logits.shape != (cut.batch, cut.classes, *cut.patch) or logits.dtype != torch.float32:
        raise WrongOutput(
            f"the network returned {tuple(logits.shape)} {logits.dtype} for {cut.batch} patches of {cut.patch}; wanted "
            f"{cut.classes} classes in float32"
        )


def up(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device; by way of pinned memory where there is a way, so that nobody waits for it."""
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def down(tensor: Tensor) -> NDArray[Any]:
    """A tensor on the host, by way of pinned memory; waits for all that was queued before it."""
    if tensor.device.type != "cuda":
        return np.asarray(tensor.numpy())
    landing = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    landing.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return np.asarray(landing.numpy())
