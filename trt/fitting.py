"""How large patches are for one series: so that as few pixels run as cover what is to run.

A network of convolutions takes patches of any size, and where its runtime does so too, one patch about the whole spine
takes about half the pixels of overlapping patches of the size that it was trained on, with more context and no seams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from trt.manifest import Manifest
from trt.patches import Region, count_patches


@dataclass(frozen=True)
class Fit:
    """Patches of `patch` (y, x) pixels that share `overlap` of their sides, `batch` of them at a time.

    `patches` of them cover what is to run.
    """

    patch: tuple[int, int]
    overlap: float
    batch: int
    patches: int

    @property
    def pixels(self) -> int:
        """Pixels that the network runs on, those of overlaps counted twice."""
        return self.patches * self.patch[0] * self.patch[1]


def fit(
    shape: tuple[int, int, int],
    region: Region | None,
    manifest: Manifest,
    *,
    flexible: bool = True,
    overlap: float | None = None,
    batch: int = 8,
) -> Fit:
    """The patches of a volume of `shape` (Z, Y, X), or of its `region`, that take the fewest pixels.

    Their sides are multiples of the manifest's stride, no shorter than the model's own, and their overlap is as many
    pixels as `overlap` (by default the manifest's) of the model's own patch. No call holds more pixels than `batch` of
    those. Without a stride, and for an engine that is not `flexible`, they are the model's own.
    """
    own, share = manifest.patch, manifest.overlap if overlap is None else overlap
    fixed = Fit(own, share, batch, count_patches(shape, own, share, region))
    if manifest.stride is None or not flexible:
        return fixed
    plane = np.asarray(np.ones(shape[1:], np.bool_) if region is None else region.any(axis=0))  # of any slice
    heights, widths = (
        _sides(np.asarray(plane.any(axis=1 - axis)), own[axis], share * own[axis], manifest.stride) for axis in (0, 1)
    )
    most = batch * own[0] * own[1]
    fits = [fixed]
    for patch in product(heights, widths):
        area = patch[0] * patch[1]
        if area <= most and patch != own:
            # A hair less than the share: rounding must not ask for one patch more.
            shared = max(max(share * own[axis] / patch[axis] - 1e-9, 0.0) for axis in (0, 1))
            count = count_patches(shape, patch, shared, region)
            fits.append(Fit(patch, shared, most // area, count))
    return min(fits, key=lambda each: (each.pixels, each.patches))


def _sides(wanted: NDArray[np.bool_], own: int, overlap: float, stride: int) -> list[int]:
    """Sides of which one, two, three … cover evenly what is `wanted` of an axis, the longest first, `own` at least."""
    found = np.flatnonzero(wanted)
    length = int(np.ptp(found)) + 1 if len(found) else 0
    sides = []
    for count in range(1, len(wanted) + 1):
        side = math.ceil((length + (count - 1) * overlap) / count / stride) * stride
        sides.append(max(side, own))
        if side <= own:
            break
    return sides
