"""What a model is tried on: series of patients as acquired, in other contrasts, and with simulated lesions.

All that is random is drawn from the name of the series and a number, so that every model meets the same trials, today
and next year, as long as `trt.lesions` and `trt.contrast` draw alike. Simulated lesions come from the simulator that
also makes lesions for training (with other seeds, in other patients): figures on them tell less than one real tumour.

T1-like series, and so simulated T1 after gadolinium, take their intensities from the truth, as lesions do: true borders
become edges of the image, and figures on them flatter. Inverted series are calculated without the truth.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from trt.contrast import invert, t1_like
from trt.dataset import Case, Mask, Volume
from trt.lesions import TUMOUR, Weighting, insert_lesions
from trt.manifest import Normalisation
from trt.patches import normalise

UNIT = Normalisation(low=0.5, high=99.5, clip=(0.0, 1.0))  # the trials' own, whatever a model's manifest says
MOST_LESIONS = 3  # in one series
NOISE = 0.01  # sd, of 0..1
GAMMA = 0.2  # sd of its logarithm


class Rendering(StrEnum):
    """How the series of a patient is shown."""

    ACQUIRED = "as acquired"
    INVERTED = "inverted"
    T1_LIKE = "T1-like"  # by way of the true mask
    SIMULATED = "simulated"  # T1-like or T2, about half with lesions drawn into them


FROM_TRUTH = (
    "T1-like series, and simulated ones of T1 after gadolinium, are calculated with the help of the true mask, and so "
    "are simulated lesions: **true borders become edges of the image, and figures on them flatter.** Of what is "
    "calculated, only 'inverted' is free of this."
)
"""What stands wherever figures of such series do."""


@dataclass(frozen=True)
class Trial:
    """One series to segment: `image` (Z, Y, X) float32, `mask` the truth, uint8; `spacing` (z, y, x) in mm.

    `group` is the rendering, and for simulated series the weighting too.
    """

    name: str
    patient: str
    rendering: Rendering
    group: str
    image: Volume
    mask: Mask
    spacing: tuple[float, float, float]

    @property
    def tumour(self) -> bool:
        """Whether the truth holds a tumour."""
        return bool((self.mask == TUMOUR).any())


@dataclass(frozen=True)
class Plan:
    """A trial that is not yet made; simulated ones carry a weighting and a number, even numbers have lesions."""

    case: Case
    rendering: Rendering
    weighting: Weighting | None = None
    number: int = 0

    @property
    def name(self) -> str:
        """The name of the trial: as acquired, that of the series itself."""
        if self.rendering is Rendering.ACQUIRED:
            return self.case.name
        return f"{self.case.name} {self.group}" + (f" {self.number}" if self.weighting else "")

    @property
    def group(self) -> str:
        """The rendering, and for simulated series the weighting too."""
        return f"{self.rendering}, {self.weighting}" if self.weighting else str(self.rendering)

    def build(self) -> Trial:
        """Make the trial; equal plans make equal trials. Raises what `insert_lesions` raises."""
        image, mask = self.case.image, self.case.mask
        if self.rendering is not Rendering.ACQUIRED:
            image = normalise(image, UNIT)
        if self.rendering is Rendering.INVERTED:
            image = invert(image)
        elif self.rendering is Rendering.T1_LIKE:
            image = t1_like(image, mask)
        elif self.weighting is not None:
            image, mask = self._simulate(image, self.weighting)
        return Trial(self.name, self.case.patient, self.rendering, self.group, image, mask, self.case.spacing)

    def _simulate(self, image: Volume, weighting: Weighting) -> tuple[Volume, Mask]:
        """With lesions or without, the same things happen to the image, so that none of them tells the two apart."""
        random = np.random.default_rng([zlib.crc32(self.name.encode()), self.number])
        count = int(random.integers(1, MOST_LESIONS + 1)) if self.number % 2 == 0 else 0
        if weighting is Weighting.T1_GADOLINIUM:
            image = t1_like(image, self.case.mask, random)
        drawn = insert_lesions(image, self.case.mask, self.case.spacing, random, count=count, weighting=weighting)
        gamma = np.float32(np.exp(random.normal(0, GAMMA)))
        image, mask = np.clip(drawn.image, 0, None) ** gamma, drawn.mask
        image += random.normal(0, NOISE, image.shape).astype(np.float32)
        if random.random() < 0.5:  # left and right are one to the lesions and to the models
            image, mask = image[::-1].copy(), mask[::-1].copy()
        return image, mask


def plan(cases: Sequence[Case], each: int = 0, weightings: Sequence[Weighting] = ()) -> tuple[Plan, ...]:
    """Trials of every case: as acquired, inverted, T1-like, then `each` with lesions and `each` without per weighting.

    A series whose mask holds a real tumour is tried as acquired only: nothing is drawn beside a real one.
    """
    plans = []
    for case in cases:
        plans.append(Plan(case, Rendering.ACQUIRED))
        if (case.mask == TUMOUR).any():
            continue
        plans += [Plan(case, Rendering.INVERTED), Plan(case, Rendering.T1_LIKE)]
        plans += [Plan(case, Rendering.SIMULATED, kind, number) for kind in weightings for number in range(2 * each)]
    return tuple(plans)


@dataclass(frozen=True)
class Window:
    """A patch within a volume: its slice, rows and columns; `pixel` (z, y, x) is the one that it was put about."""

    z: int
    rows: slice
    columns: slice
    pixel: tuple[int, int, int]

    @property
    def place(self) -> tuple[int, slice, slice]:
        """What to index a volume with."""
        return self.z, self.rows, self.columns


def balanced_patches(foreground: NDArray[np.bool_], side: tuple[int, int], count: int, seed: int) -> list[Window]:
    """Windows of `count` patches in a mask (Z, Y, X): half about a voxel of the foreground, half about one outside.

    Random under-sampling of the larger class, as patch-based spine networks are trained and were judged (Qadri et al.,
    Int J Intell Syst 2023, doi 10.1155/2023/2345835). Patches of `side` (y, x) pixels are moved to lie within the
    slice, and cut where the slice is smaller. None where either class is empty. Equal seeds draw equal patches.
    """
    random = np.random.default_rng(seed)
    windows = []
    for inside, number in ((True, (count + 1) // 2), (False, count // 2)):
        voxels = np.flatnonzero(foreground.ravel() == inside)
        if not voxels.size:
            return []
        drawn = random.choice(voxels, number, replace=voxels.size < number)
        for z, y, x in zip(*(each.tolist() for each in np.unravel_index(drawn, foreground.shape)), strict=True):
            rows, columns = (
                _along(at, pixels, length)
                for at, pixels, length in zip((y, x), side, foreground.shape[1:], strict=True)
            )
            windows.append(Window(z, rows, columns, (z, y, x)))
    return windows


def _along(centre: int, pixels: int, length: int) -> slice:
    first = min(max(centre - pixels // 2, 0), max(length - pixels, 0))
    return slice(first, min(first + pixels, length))
