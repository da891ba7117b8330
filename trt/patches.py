"""From a volume to patches and back: places, gather, blend. numpy only; the network is a callable.

The law that holds it together: where the callable returns the centre channel of its patches, the result equals the
volume bit for bit, whatever the shape, the overlap or the batch. A pixel holds the weighted mean of the patches seen so
far, and the next one moves it by its share of the weights times the difference. Of equal values that is nothing, so
float32 suffices, and there is nothing left to divide by when a slice is done.

A region tells where to run at all (`trt.extraction` finds it). Patches are put about what it holds and nothing else, so
that the cost follows the anatomy and not the field of view; a region of everything gives the full grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from trt.manifest import Normalisation

Array: TypeAlias = NDArray[np.float32]

Region: TypeAlias = NDArray[np.bool_]
"""Where the network is to run: (Z, Y, X) bool on the grid of its volume."""

BACKGROUND = 10.0
"""Logit of class 0 outside a region, where all others are 0: a share of background above 0.999."""

Predict: TypeAlias = Callable[[Array], Array]
"""Patches (N, C, H, W) float32, channels the neighbouring slices, to logits (N, K, H, W) float32."""

Progress: TypeAlias = Callable[[int, int], None]
"""Told after each batch: patches done, patches in all."""


class WrongOutput(ValueError):
    """The network returned something of another shape than its manifest and its input ask for."""


class NonFiniteOutput(ValueError):
    """The network returned NaN or infinity: a precision too low for it, or a broken model."""


def normalise(volume: NDArray[np.generic], normalisation: Normalisation) -> Array:
    """Intensities of a series (Z, Y, X), any real dtype and unit, to float32 in `normalisation.clip`; the input stays.

    A series of one value becomes the lower bound throughout. Raises `ValueError` for NaN or infinity.
    """
    scaled = volume.astype(np.float32)
    low, high = (np.float32(value) for value in np.percentile(scaled, (normalisation.low, normalisation.high)))
    if not np.isfinite(scaled).all():
        raise ValueError("the volume holds NaN or infinity; mend the pixels before normalising")
    scaled -= low
    if high > low:
        scaled /= high - low
    else:
        scaled[:] = normalisation.clip[0]
    return np.clip(scaled, *normalisation.clip, out=scaled)


def starts(length: int, patch: int, overlap: float) -> list[int]:
    """Where patches begin along an axis: evenly spread, the first at 0, the last ending at `length`.

    nnU-Net's rule: length 110, patch 64, overlap 0.5 asks for steps of at most 32, so three patches, at 0, 23 and 46.
    """
    if length <= patch:
        return [0]
    steps = math.ceil((length - patch) / max(1.0, patch * (1 - overlap)))
    return [round(i * (length - patch) / steps) for i in range(steps + 1)]


def bell(patch: int) -> NDArray[np.float64]:
    """Weights of a patch along one axis, (patch,): a Gaussian about its middle, sigma an eighth of it."""
    return np.asarray(np.exp(-0.5 * ((np.arange(patch) - (patch - 1) / 2) / (patch / 8)) ** 2))


def cover(wanted: NDArray[np.bool_], patch: int, overlap: float) -> list[int]:
    """Where patches begin along an axis, rising, so that those `wanted` (length,) bool, length >= patch, are covered.

    Each run of them is covered as evenly as a whole axis by `starts`, or several together where that takes no more.
    """
    length, found = len(wanted), list[tuple[int, int]]()
    edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False)).reshape(-1, 2)  # runs: first, last + 1
    for first, last in edges.tolist():
        run = first, last
        while found:
            joined = found[-1][0], last
            apart = len(_spread(found[-1], length, patch, overlap)) + len(_spread(run, length, patch, overlap))
            if len(_spread(joined, length, patch, overlap)) > apart:
                break
            run = joined
            found.pop()
        found.append(run)
    return sorted({start for run in found for start in _spread(run, length, patch, overlap)})


def _spread(run: tuple[int, int], length: int, patch: int, overlap: float) -> list[int]:
    """Where patches begin that cover a run (first, last + 1) of an axis evenly; one patch lies about its middle."""
    first, last = run
    if last - first <= patch:
        return [min(max((first + last - patch) // 2, 0), length - patch)]
    return [first + start for start in starts(last - first, patch, overlap)]


def places(region: NDArray[np.bool_], patch: tuple[int, int], overlap: float) -> list[tuple[int, int]]:
    """Where patches begin (y, x) that cover what `region` holds of a slice, (Y, X) bool, no smaller than a patch.

    Patches stand in bands of rows. Rows that two bands share are parted midway, and a band covers the columns that its
    own rows need: a voxel of the region lies half an overlap within one of its patches, or at the region's own edge.
    Bands stand closer than asked where that takes fewer patches: low bands of a slanting region need fewer columns.
    """
    closer = [overlap, *(step / 8 for step in range(2, 7) if step / 8 > overlap)]
    return min((_banded(region, patch, overlap, rows) for rows in closer), key=len)


def _banded(region: NDArray[np.bool_], patch: tuple[int, int], overlap: float, rows: float) -> list[tuple[int, int]]:
    """The places of `places` for bands that overlap by the share `rows` of a patch."""
    tops = cover(np.asarray(region.any(axis=1)), patch[0], rows)
    parted = [lower + (upper + patch[0] - lower) // 2 for upper, lower in pairwise(tops)]
    found = []
    for y, first, last in zip(tops, [0, *parted], [*parted, len(region)], strict=False):  # no bands, no patches
        found += [(y, x) for x in cover(np.asarray(region[first:last].any(axis=0)), patch[1], overlap)]
    return found


def count_patches(
    shape: tuple[int, int, int], patch: tuple[int, int], overlap: float, region: Region | None = None
) -> int:
    """How many patches a volume of `shape` (Z, Y, X) is cut into, or its `region`."""
    if region is None:
        return shape[0] * math.prod(len(starts(shape[axis + 1], patch[axis], overlap)) for axis in (0, 1))
    return sum(len(grid) for grid in grids_of(region, patch, overlap))


def grids_of(region: Region, patch: tuple[int, int], overlap: float) -> list[list[tuple[int, int]]]:
    """The places of every slice, on slices padded to the size of a patch at least."""
    sides = lacking(region.shape[1:], patch)
    alike = region.strides[0] == 0  # one plane for all slices
    grids = [places(np.pad(plane, sides), patch, overlap) for plane in (region[:1] if alike else region)]
    return grids * len(region) if alike else grids


def predict_slices(
    volume: Array,
    predict: Predict,
    *,
    patch: tuple[int, int],
    channels: int,
    overlap: float = 0.5,
    batch: int = 8,
    region: Region | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Array]]:
    """Yield (z, blended logits (K, Y, X) float32) for every slice in order; only the slices under way are held.

    Under way are the slices that the patches of one call come from, each in 4 (K + 1) bytes per pixel. What is held
    beside the volume, but for the places, does not grow with the number of slices. What is yielded is the caller's.

    `volume` is (Z, Y, X) float32, already normalised. A patch's channels are its neighbouring slices, the outermost
    slice repeated beyond the ends. `predict` sees `batch` patches at each call, at the last one the rest; it may keep
    or return its argument. Slices smaller than a patch are padded with their edge pixels, in a copy of the volume, and
    the padding is cut off again.

    With a `region` only the patches that cover it run, and all voxels outside it are background: `BACKGROUND` for class
    0, 0 for the others. One patch runs even where it is empty: the network alone knows its number of classes.

    Raises `ValueError` at once for arguments that do not fit, `NonFiniteOutput` when logits are NaN or infinite.
    """
    if volume.ndim != 3 or volume.size == 0 or volume.dtype != np.float32:
        raise ValueError(f"volume must be (Z, Y, X) float32 and not empty, not {volume.shape} {volume.dtype}")
    if min(patch) < 1 or batch < 1:
        raise ValueError(f"patch and batch must be positive, not {patch} and {batch}")
    if channels < 1 or channels % 2 == 0:
        raise ValueError(f"channels must be odd and positive, not {channels}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in 0..1, 1 excluded, not {overlap}")
    if region is not None and (region.shape != volume.shape or region.dtype != np.bool_):
        raise ValueError(f"region must be {volume.shape} bool as the volume, not {region.shape} {region.dtype}")
    return _slices(volume, predict, patch, channels, overlap, batch, region, progress)


def predict_volume(
    volume: Array,
    predict: Predict,
    *,
    patch: tuple[int, int],
    channels: int,
    overlap: float = 0.5,
    batch: int = 8,
    region: Region | None = None,
    progress: Progress | None = None,
) -> Array:
    """Blended logits of the whole volume, (K, Z, Y, X) float32; as `predict_slices`, which needs less memory."""
    slices = predict_slices(
        volume,
        predict,
        patch=patch,
        channels=channels,
        overlap=overlap,
        batch=batch,
        region=region,
        progress=progress,
    )
    return np.stack([logits for _, logits in slices], axis=1)


def _slices(
    volume: Array,
    predict: Predict,
    patch: tuple[int, int],
    channels: int,
    overlap: float,
    batch: int,
    region: Region | None,
    progress: Progress | None,
) -> Iterator[tuple[int, Array]]:
    depth, height, width = volume.shape
    padded, (top, left) = _pad(volume, patch)
    grids = grids_of(np.broadcast_to(np.True_, volume.shape) if region is None else region, patch, overlap)
    if not any(grids):
        grids[0] = [(0, 0)]
    ends = np.cumsum([len(grid) for grid in grids])  # patches up to and with each slice
    chosen = ((z, y, x) for z, grid in enumerate(grids) for y, x in grid)
    windows = sliding_window_view(padded, patch, axis=(1, 2))  # (Z, rows, columns, H, W)
    offsets = np.arange(channels) - channels // 2
    weight = np.multiply.outer(bell(patch[0]), bell(patch[1])).astype(np.float32)  # (H, W)

    underway: dict[int, tuple[Array, Array]] = {}  # by z: means (K, Y, X) and the weights they are of (Y, X)
    classes, done, ready = 0, 0, 0
    while now := list(islice(chosen, batch)):
        where = np.array(now, dtype=np.intp)  # (N, 3)
        slices = np.clip(where[:, :1] + offsets, 0, depth - 1)  # (N, C)
        logits = predict(windows[slices, where[:, 1:2], where[:, 2:]])  # (N, K, H, W)
        _check(logits, len(now), patch, classes)
        classes = logits.shape[1]
        for z in {z for z, _, _ in now} - underway.keys():
            underway[z] = np.zeros((classes, *padded.shape[1:]), np.float32), np.zeros(padded.shape[1:], np.float32)
        _blend(underway, now, logits, weight)
        done += len(now)
        if progress is not None:
            progress(done, int(ends[-1]))
        while ready < depth and ends[ready] <= done:
            if grids[ready]:
                found = underway.pop(ready)[0][:, top : top + height, left : left + width]
            else:
                found = np.zeros((classes, height, width), np.float32)
            if region is not None:
                np.copyto(found, _background(classes), where=~region[ready])
            yield ready, found
            ready += 1


def _blend(
    slices: dict[int, tuple[Array, Array]], places: list[tuple[int, int, int]], logits: Array, weight: Array
) -> None:
    """Take patches (N, K, H, W) into the means and weights of their `slices` at `places` (z, y, x), one by one.

    The first patch of a pixel has all the weight there is, a share of exactly 1, and is taken as it is. Raises
    `NonFiniteOutput` where two patches are further apart than float32 reaches.
    """
    height, width = weight.shape
    share, moved = np.empty_like(weight), np.empty(logits.shape[1:], np.float32)
    for (z, y, x), patch in zip(places, logits, strict=True):
        mean = slices[z][0][:, y : y + height, x : x + width]
        total = slices[z][1][y : y + height, x : x + width]
        try:
            with np.errstate(over="raise"):
                np.divide(weight, np.add(total, weight, out=total), out=share)
                np.subtract(patch, mean, out=moved)
                np.add(mean, np.multiply(moved, share, out=moved), out=mean)
        except FloatingPointError as error:
            raise NonFiniteOutput("logits too far apart for float32; try precision f32, then another model") from error


def _background(classes: int) -> Array:
    """Logits (K, 1, 1) of what lies outside a region."""
    return np.array([BACKGROUND] + [0] * (classes - 1), np.float32)[:, None, None]


def _pad(volume: Array, patch: tuple[int, int]) -> tuple[Array, tuple[int, int]]:
    """Repeat edge pixels on both sides until a patch fits; also the rows and columns added before."""
    sides = lacking(volume.shape[1:], patch)
    if not np.any(sides):
        return volume, (0, 0)
    return np.pad(volume, [(0, 0), *sides], mode="edge"), (sides[0][0], sides[1][0])


def lacking(shape: tuple[int, ...], patch: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns to be added before and after a slice of `shape` (Y, X) so that a patch fits."""
    missing = [max(side - length, 0) for side, length in zip(patch, shape, strict=True)]
    return [(count // 2, count - count // 2) for count in missing]


def _check(logits: Array, count: int, patch: tuple[int, int], classes: int) -> None:
    if logits.ndim != 4 or logits.shape[0] != count or logits.shape[2:] != patch:
        raise WrongOutput(f"the network returned {logits.shape} for {count} patches of {patch}; wanted (N, K, H, W)")
    if classes and logits.shape[1] != classes:
        raise WrongOutput(f"the network changed its number of classes to {logits.shape[1]} between two batches")
    if not np.isfinite(logits).all():
        raise NonFiniteOutput("the network returned NaN or infinity; try precision f32, then another model")
