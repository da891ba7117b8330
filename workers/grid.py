"""From the scanner's grid to the model's and back.

The model's axes are Z from the patient's right to left, Y from superior to inferior, X from anterior to posterior: a
sagittal slice with the head at the top and the face to the left. Turning is exact (axes exchanged and reversed, nothing
interpolated), so one anatomy gives one mask, however it was stored. In-plane pixels are resampled, slices never.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from node.errors import Unsuitable
from workers.suitability import MAX_VOXELS
from workers.volume import Volume

# Z, Y, X of the model in the patient's LPS system.
MODEL_AXES = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
# Pixels this close to the model's size are taken as they are: over 400 pixels that is a fifth of a pixel at the border.
SAME_SPACING = 1e-3


@dataclass(frozen=True, eq=False)
class Canonical:
    """A volume turned to the model's axes: `voxels` (Z, Y, X) float32 in source units, `spacing` mm along them.

    `axes` names the source axis (0 frames, 1 rows, 2 columns) that became Z, Y and X; `flips` those then reversed.
    """

    voxels: NDArray[np.float32]
    spacing: tuple[float, float, float]
    axes: tuple[int, int, int]
    flips: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Resampling:
    """Weights to and from the model's pixels, as sparse matrices (model, native) and (native, model) for Y and X."""

    to_model: tuple[csr_array, csr_array]
    to_native: tuple[csr_array, csr_array]
    identity: bool


def to_canonical(volume: Volume) -> Canonical:
    """Turn a volume to the model's axes; of an oblique volume each axis goes to the nearest one."""
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    cosines = np.round(MODEL_AXES @ directions, 6)  # (model axis, source axis); rounding must not decide a tie
    axes = max(itertools.permutations(range(3)), key=lambda order: sum(abs(cosines[i, a]) for i, a in enumerate(order)))
    flips = tuple(i for i, axis in enumerate(axes) if cosines[i, axis] < 0)
    return Canonical(
        voxels=turn(volume.voxels, axes, flips),
        spacing=(volume.spacing[axes[0]], volume.spacing[axes[1]], volume.spacing[axes[2]]),
        axes=(axes[0], axes[1], axes[2]),
        flips=flips,
    )


def turn(array: NDArray[Any], axes: tuple[int, ...], flips: tuple[int, ...]) -> NDArray[Any]:
    """Turn voxels or a mask (frames, rows, columns) to the model's axes (Z, Y, X), as a contiguous array."""
    return np.ascontiguousarray(np.flip(array.transpose(axes), flips))


def from_canonical(mask: NDArray[np.uint8], axes: tuple[int, ...], flips: tuple[int, ...]) -> NDArray[np.uint8]:
    """Turn a mask (Z, Y, X) uint8 back to the source's axes (frames, rows, columns); the inverse of `turn`."""
    return np.ascontiguousarray(np.flip(mask, flips).transpose(np.argsort(axes)))


def resampling(canonical: Canonical, spacing_mm: tuple[float, float]) -> Resampling:
    """Return the weights between the slices of `canonical` and pixels of `spacing_mm` (y, x).

    Raises
    ------
    Unsuitable
        The slices would grow beyond what a worker takes.
    """
    native, sizes = canonical.voxels.shape[1:], []
    ratios = [have / want for have, want in zip(canonical.spacing[1:], spacing_mm, strict=True)]
    for size, ratio in zip(native, ratios, strict=True):
        sizes.append(max(1, round(size * ratio)) if abs(ratio - 1) > SAME_SPACING else size)
    if canonical.voxels.shape[0] * sizes[0] * sizes[1] > MAX_VOXELS:
        raise Unsuitable(
            f"at the model's pixel size the series would have {sizes[0]} x {sizes[1]} pixels per slice, too many",
            "send a smaller field of view",
        )
    ratios = [ratio if abs(ratio - 1) > SAME_SPACING else 1.0 for ratio in ratios]
    return Resampling(
        to_model=(_weights(native[0], sizes[0], 1 / ratios[0]), _weights(native[1], sizes[1], 1 / ratios[1])),
        to_native=(_weights(sizes[0], native[0], ratios[0]), _weights(sizes[1], native[1], ratios[1])),
        identity=tuple(sizes) == tuple(native) and ratios == [1.0, 1.0],
    )


def to_model(voxels: NDArray[np.float32], weights: Resampling) -> NDArray[np.float32]:
    """Resample slices (Z, Y, X) float32 to the model's pixels, slice by slice; units stay."""
    if weights.identity:
        return voxels
    rows, columns = weights.to_model
    resampled = np.empty((voxels.shape[0], rows.shape[0], columns.shape[0]), np.float32)
    for z, plane in enumerate(voxels):
        resampled[z] = _apply(rows, columns, plane)
    return resampled


def to_native(logits: NDArray[np.float32], weights: Resampling) -> NDArray[np.float32]:
    """Resample the logits (K, Y, X) float32 of one slice from the model's pixels to the canonical native ones."""
    if weights.identity:
        return logits
    return np.stack([_apply(*weights.to_native, plane) for plane in logits])


def _apply(rows: csr_array, columns: csr_array, plane: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = (columns @ (rows @ plane).T).T
    return result


def _weights(size_in: int, size_out: int, step: float) -> csr_array:
    """Return the (size_out, size_in) float32 matrix of one axis; pixel centres are `step` input pixels apart.

    Both grids share their centre. The kernel is a tent as wide as the coarser pixel: linear interpolation when pixels
    get smaller, and anti-aliased when they get larger. Weights sum to one, at the border as well.
    """
    centres = (np.arange(size_out) - (size_out - 1) / 2) * step + (size_in - 1) / 2
    width = max(step, 1.0)
    taps = np.floor(centres - width).astype(int)[:, None] + np.arange(int(np.ceil(2 * width)) + 2)
    weights = np.maximum(0.0, 1 - np.abs(taps - centres[:, None]) / width)
    inside = (taps >= 0) & (taps < size_in)
    clamped = np.clip(taps, 0, size_in - 1)  # beyond the border the last pixel goes on
    weights = np.where(inside | (weights > 0), weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    lines = np.repeat(np.arange(size_out), taps.shape[1])
    return csr_array((weights.ravel().astype(np.float32), (lines, clamped.ravel())), shape=(size_out, size_in))
