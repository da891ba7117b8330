"""From a volume to patches and back: grid, gather, blend. numpy only; the network is a callable.

The law that holds it together: where the callable returns the centre channel of its patches, the result equals the
volume bit for bit, whatever the shape, the overlap or the batch. Sums run in float64, so that their rounding stays far
below half a unit in the last place of the float32 that comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from trt.manifest import Normalisation

Array: TypeAlias = NDArray[np.float32]

Predict: TypeAlias = Callable[[Array], Array]
"""Patches (N, C, H, W) float32, channels the neighbouring slices, to logits (N, K, H, W) float32."""

Progress: TypeAlias = Callable[[int, int], None]
"""Told after each batch: patches done, patches in all."""


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


def count_patches(shape: tuple[int, int, int], patch: tuple[int, int], overlap: float) -> int:
    """How many patches a volume of `shape` (Z, Y, X) is cut into."""
    return shape[0] * math.prod(len(starts(shape[axis + 1], patch[axis], overlap)) for axis in (0, 1))


def predict_slices(
    volume: Array,
    predict: Predict,
    *,
    patch: tuple[int, int],
    channels: int,
    overlap: float = 0.5,
    batch: int = 8,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Array]]:
    """Yield (z, blended logits (K, Y, X) float32) for every slice in order; only the slices under way are held.

    `volume` is (Z, Y, X) float32, already normalised. A patch's channels are its neighbouring slices, the outermost
    slice repeated beyond the ends. `predict` sees `batch` patches at each call, the last call filled up with repeats;
    it may keep or return its argument. Slices smaller than a patch are padded with their edge pixels, and the padding
    is cut off again.

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
    return _slices(volume, predict, patch, channels, overlap, batch, progress)


def predict_volume(
    volume: Array,
    predict: Predict,
    *,
    patch: tuple[int, int],
    channels: int,
    overlap: float = 0.5,
    batch: int = 8,
    progress: Progress | None = None,
) -> Array:
    """Blended logits of the whole volume, (K, Z, Y, X) float32; as `predict_slices`, which needs less memory."""
    slices = predict_slices(
        volume, predict, patch=patch, channels=channels, overlap=overlap, batch=batch, progress=progress
    )
    return np.stack([logits for _, logits in slices], axis=1)


def _slices(
    volume: Array,
    predict: Predict,
    patch: tuple[int, int],
    channels: int,
    overlap: float,
    batch: int,
    progress: Progress | None,
) -> Iterator[tuple[int, Array]]:
    depth, height, width = volume.shape
    padded, (top, left) = _pad(volume, patch)
    grid = list(product(*(starts(padded.shape[axis + 1], patch[axis], overlap) for axis in (0, 1))))
    places = np.array([(z, y, x) for z in range(depth) for y, x in grid], dtype=np.intp)  # (patches, 3), slice by slice
    windows = sliding_window_view(padded, patch, axis=(1, 2))  # (Z, rows, columns, H, W)
    offsets = np.arange(channels) - channels // 2
    weight = np.multiply.outer(bell(patch[0]), bell(patch[1]))  # (H, W)
    total = np.zeros(padded.shape[1:])  # (Y, X), the same for every slice
    for y, x in grid:
        total[y : y + patch[0], x : x + patch[1]] += weight

    underway: dict[int, NDArray[np.float64]] = {}
    weighted = np.empty(0)
    for first in range(0, len(places), batch):
        real = min(batch, len(places) - first)
        chosen = places[np.minimum(np.arange(first, first + batch), len(places) - 1)]  # (N, 3)
        slices = np.clip(chosen[:, :1] + offsets, 0, depth - 1)  # (N, C)
        logits = predict(windows[slices, chosen[:, 1:2], chosen[:, 2:]])  # (N, K, H, W)
        _check(logits, batch, patch, underway)
        if weighted.shape != logits.shape[1:]:
            weighted = np.empty(logits.shape[1:])  # (K, H, W), written over for every patch
        for (z, y, x), patch_logits in zip(chosen[:real].tolist(), logits[:real], strict=True):
            if z not in underway:
                underway[z] = np.zeros((len(patch_logits), *total.shape))  # (K, Y, X)
            np.multiply(patch_logits, weight, out=weighted)
            underway[z][:, y : y + patch[0], x : x + patch[1]] += weighted
        done = first + real
        if progress is not None:
            progress(done, len(places))
        while underway and (z := min(underway)) < done // len(grid):
            blended = underway.pop(z)
            blended /= total
            yield z, blended[:, top : top + height, left : left + width].astype(np.float32)


def _pad(volume: Array, patch: tuple[int, int]) -> tuple[Array, tuple[int, int]]:
    """Repeat edge pixels on both sides until a patch fits; also the rows and columns added before."""
    lacking = [max(side - length, 0) for side, length in zip(patch, volume.shape[1:], strict=True)]
    if not any(lacking):
        return volume, (0, 0)
    before = [count // 2 for count in lacking]
    sides = [(b, count - b) for b, count in zip(before, lacking, strict=True)]
    return np.pad(volume, [(0, 0), *sides], mode="edge"), (before[0], before[1])


def _check(logits: Array, batch: int, patch: tuple[int, int], underway: dict[int, NDArray[np.float64]]) -> None:
    if logits.ndim != 4 or logits.shape[0] != batch or logits.shape[2:] != patch:
        raise ValueError(f"the network returned {logits.shape} for {batch} patches of {patch}; wanted (N, K, H, W)")
    if any(len(held) != logits.shape[1] for held in underway.values()):
        raise ValueError(f"the network changed its number of classes to {logits.shape[1]} between two batches")
    if not np.isfinite(logits).all():
        raise NonFiniteOutput("the network returned NaN or infinity; try precision f32, then another model")
