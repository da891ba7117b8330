"""How large patches are for one series: so that as few pixels run as cover what is to run.

A network of convolutions takes patches of any size, and where its runtime does so too, one patch about the whole spine
takes about half the pixels of overlapping patches of the size that it was trained on, with more context and no seams.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from trt.manifest import Manifest
from trt.patches import Array, Predict, Progress, Region, count_patches, predict_slices

MOST_PIXELS = 8 * 128 * 128
"""Of one patch. It bounds memory, and is the same for everybody: a mask must not depend on how its host is set up."""


ABREAST = 2
"""So many patches at a time, however large, unless less is asked for: engines run parts of a batch side by side."""


@dataclass(frozen=True)
class Fit:
    """Patches of `patch` (y, x) pixels that share `overlap` of their sides, `batch` of them at a time.

    `patches` of them cover what is to run.
    """

    patch: tuple[int, int]
    overlap: float
    batch: int
    patches: int

    def slices(
        self,
        volume: Array,
        predict: Predict,
        manifest: Manifest,
        region: Region | None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Array]]:
        """What `trt.patches.predict_slices` yields of these patches, for the `region` that they were fitted to."""
        return predict_slices(
            volume,
            predict,
            patch=self.patch,
            channels=manifest.channels,
            overlap=self.overlap,
            batch=self.batch,
            region=region,
            progress=progress,
        )

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
    pixels as `overlap` (by default the manifest's) of the model's own patch. No patch has more than MOST_PIXELS, and no
    call of more than ABREAST patches more than `batch` patches of the model's own size; how a volume is cut does not
    depend on that. Without a stride, and for an engine that is not `flexible`, they are the model's own.
    """
    own, share = manifest.patch, manifest.overlap if overlap is None else overlap
    fixed = Fit(own, share, batch, count_patches(shape, own, share, region))
    if manifest.stride is None or not flexible:
        return fixed
    plane = np.asarray(np.ones(shape[1:], np.bool_) if region is None else region.any(axis=0))  # of any slice
    heights, widths = (
        _sides(np.asarray(plane.any(axis=1 - axis)), own[axis], share * own[axis], manifest.stride) for axis in (0, 1)
    )
    found = []
    for patch in product(heights, widths):
        area = patch[0] * patch[1]
        if area <= MOST_PIXELS and patch != own:
            # A hair less than the share: rounding must not ask for one patch more.
            shared = max(max(share * own[axis] / patch[axis] - 1e-9, 0.0) for axis in (0, 1))
            found.append((area * count_patches((1, *shape[1:]), patch, shared, plane[None]), -area, patch, shared))
    if not found:
        return fixed
    *_, patch, shared = min(found)  # by one plane for all slices: to count each slice's for each size takes long
    area, most = patch[0] * patch[1], batch * own[0] * own[1]
    fitted = Fit(patch, shared, max(most // area, min(ABREAST, batch)), count_patches(shape, patch, shared, region))
    return min(fitted, fixed, key=lambda each: (each.pixels, each.patches))


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
