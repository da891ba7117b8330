"""The grid that models see, from whatever grid an image is stored on: turned to the model's axes, resampled in-plane.

The model's axes are Z from the patient's right to left, Y from superior to inferior, X from anterior to posterior: a
sagittal slice with the head at the top and the face to the left. Serving and training both come through here, so that a
network is trained on the very pixels that it will be given.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

# Z, Y, X of the model in the patient's LPS system.
MODEL_AXES = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
# Pixels this close to the model's size are taken as they are: over 400 pixels that is a fifth of a pixel at the border.
SAME_SPACING = 1e-3


@dataclass(frozen=True, eq=False)
class Resampling:
    """Weights to and from the model's pixels, as sparse matrices (model, native) and (native, model) for Y and X."""

    to_model: tuple[csr_array, csr_array]
    to_native: tuple[csr_array, csr_array]
    identity: bool

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice with the model's pixels."""
        return int(self.to_model[0].shape[0]), int(self.to_model[1].shape[0])


def nearest_axes(affine: NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Return which array axis becomes Z, Y and X, and which of these are then reversed.

    `affine` (4, 4) or (3, 3) maps array indices to mm in LPS. Of an oblique array each axis goes to the nearest one.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.round(MODEL_AXES @ directions, 6)  # (model axis, array axis); rounding must not decide a tie
    axes = max(itertools.permutations(range(3)), key=lambda order: sum(abs(cosines[i, a]) for i, a in enumerate(order)))
    return (axes[0], axes[1], axes[2]), tuple(i for i, axis in enumerate(axes) if cosines[i, axis] < 0)


def turn(array: NDArray[Any], axes: tuple[int, ...], flips: tuple[int, ...]) -> NDArray[Any]:
    """Turn voxels or a mask from their own axes to the model's (Z, Y, X), as a contiguous array; nothing is blurred."""
    return np.ascontiguousarray(np.flip(array.transpose(axes), flips))


def in_plane(size: tuple[int, int], spacing: tuple[float, float], wanted: tuple[float, float]) -> Resampling:
    """Return the weights between slices of `size` (Y, X) pixels of `spacing` mm (y, x) and pixels of `wanted` mm."""
    ratios = [native / pixel for native, pixel in zip(spacing, wanted, strict=True)]
    ratios = [ratio if abs(ratio - 1) > SAME_SPACING else 1.0 for ratio in ratios]
    sizes = [max(1, round(native * ratio)) for native, ratio in zip(size, ratios, strict=True)]
    return Resampling(
        to_model=(_weights(size[0], sizes[0], 1 / ratios[0]), _weights(size[1], sizes[1], 1 / ratios[1])),
        to_native=(_weights(sizes[0], size[0], ratios[0]), _weights(sizes[1], size[1], ratios[1])),
        identity=ratios == [1.0, 1.0],
    )


def to_model(voxels: NDArray[np.float32], weights: Resampling) -> NDArray[np.float32]:
    """Resample slices (Z, Y, X) float32 to the model's pixels, slice by slice; units stay."""
    if weights.identity:
        return voxels
    resampled = np.empty((voxels.shape[0], *weights.size), np.float32)
    for z, plane in enumerate(voxels):
        resampled[z] = _apply(*weights.to_model, plane)
    return resampled


def mask_to_model(mask: NDArray[np.uint8], weights: Resampling) -> NDArray[np.uint8]:
    """Resample label values (Z, Y, X) uint8 to the model's pixels: each goes to the label with the largest share."""
    if weights.identity:
        return mask
    values = np.unique(mask)
    resampled = np.zeros((mask.shape[0], *weights.size), np.uint8)
    for z, plane in enumerate(mask):
        if plane.any():
            shares = [_apply(*weights.to_model, (plane == value).astype(np.float32)) for value in values]
            resampled[z] = values[np.argmax(shares, axis=0)]
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
