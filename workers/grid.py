"""From the scanner's grid to the model's and back.

Turning is exact (axes exchanged and reversed, nothing interpolated), so one anatomy gives one mask, however it was
stored. In-plane pixels are resampled, slices never. What is the same in training is in `trt.geometry`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.errors import Unsuitable
from trt.geometry import MODEL_AXES, Resampling, in_plane, nearest_axes, to_model, to_native, turn
from workers.suitability import MAX_VOXELS
from workers.volume import Volume

__all__ = ["MODEL_AXES", "Canonical", "from_canonical", "resampling", "to_canonical", "to_model", "to_native", "turn"]


@dataclass(frozen=True, eq=False)
class Canonical:
    """A volume turned to the model's axes: `voxels` (Z, Y, X) float32 in source units, `spacing` mm along them.

    `axes` names the source axis (0 frames, 1 rows, 2 columns) that became Z, Y and X; `flips` those then reversed.
    """

    voxels: NDArray[np.float32]
    spacing: tuple[float, float, float]
    axes: tuple[int, int, int]
    flips: tuple[int, ...]


def to_canonical(volume: Volume) -> Canonical:
    """Turn a volume to the model's axes; of an oblique volume each axis goes to the nearest one."""
    axes, flips = nearest_axes(volume.affine)
    return Canonical(
        voxels=turn(volume.voxels, axes, flips),
        spacing=(volume.spacing[axes[0]], volume.spacing[axes[1]], volume.spacing[axes[2]]),
        axes=axes,
        flips=flips,
    )


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
    slices, rows, columns = canonical.voxels.shape
    weights = in_plane((rows, columns), (canonical.spacing[1], canonical.spacing[2]), spacing_mm)
    if slices * weights.size[0] * weights.size[1] > MAX_VOXELS:
        raise Unsuitable(
            f"at the model's pixel size the series would have {weights.size[0]} x {weights.size[1]} pixels per slice, "
            "too many",
            "send a smaller field of view",
        )
    return weights
