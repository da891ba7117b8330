"""Where training patches come from: the patch extraction (PE) of training.

A label is drawn first, then one of its voxels, about which the patch is put: every label is met as often as any
other, however few voxels it has (random under-sampling of the majority, as Qadri et al., Int J Intell Syst 2023, do on
CT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trt.dataset import Case, DatasetError, Mask, Volume

NEIGHBOUR_DISTANCES = (0, 1, 2, 3, 4)
"""Slices between a patch's channels in training; 0 repeats the centre slice. At 0.9 mm that is 0 to 3.6 mm."""


@dataclass(frozen=True)
class Place:
    """One patch to be cut: `slices` (C, Y, X) float32 of its channels, `mask` (Y, X) uint8 of the centre slice.

    `y` and `x` are the pixel that the middle of the patch is put on.
    """

    slices: Volume
    mask: Mask
    y: int
    x: int


class Sampler:
    """Draws places for patches of side `patch` in `cases`, whose images are already normalised.

    `balanced` draws a label among those the case holds and the background (a voxel anywhere), else a voxel anywhere.
    The middle is moved by up to a quarter of a patch, and the patch stays within the slice where that is large enough.
    """

    def __init__(self, cases: Sequence[Case], labels: int, channels: int, patch: int, *, balanced: bool = True) -> None:
        if not cases:
            raise DatasetError("no series to train on")
        self._cases = list(cases)
        self._labels, self._channels, self._patch, self._balanced = labels, channels, patch, balanced
        self._voxels = [self._index(case) for case in cases]

    def _index(self, case: Case) -> list[NDArray[np.int32]]:
        if not self._balanced:
            return []
        flat = case.mask.reshape(-1)
        found = (np.flatnonzero(flat == label).astype(np.int32) for label in range(1, self._labels + 1))
        return [voxels for voxels in found if voxels.size]

    def replace(self, number: int, case: Case) -> None:
        """Put another rendition of the series in the place of case `number`."""
        self._cases[number], self._voxels[number] = case, self._index(case)

    def draw(self, random: np.random.Generator) -> Place:
        """One place; equal generators draw equal places."""
        number = int(random.integers(len(self._cases)))
        case, voxels = self._cases[number], self._voxels[number]
        label = int(random.integers(len(voxels) + 1))
        flat = voxels[label - 1][random.integers(voxels[label - 1].size)] if label else random.integers(case.mask.size)
        z, y, x = (int(i) for i in np.unravel_index(flat, case.mask.shape))
        distance = int(random.choice(NEIGHBOUR_DISTANCES))
        offsets = (np.arange(self._channels) - self._channels // 2) * distance
        slices = case.image[np.clip(z + offsets, 0, len(case.image) - 1)]
        return Place(
            slices, case.mask[z], self._move(y, slices.shape[1], random), self._move(x, slices.shape[2], random)
        )

    def _move(self, centre: int, length: int, random: np.random.Generator) -> int:
        centre += int(random.integers(-self._patch // 4, self._patch // 4 + 1))
        half = self._patch // 2
        return min(max(centre, half), length - half) if length > self._patch else length // 2
