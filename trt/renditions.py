"""What training shows of a case: as it was acquired, in another contrast, with simulated lesions or without."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trt.contrast import synthesise, t1_like
from trt.dataset import Case
from trt.lesions import TUMOUR, Weighting, insert_lesions
from trt.manifest import Normalisation
from trt.patches import normalise

MOST_LESIONS = 4  # in one series


@dataclass(frozen=True)
class Mixture:
    """Shares of all renditions, 0..1; what is neither in T1-like nor in synthetic contrast stays as it was acquired."""

    t1_like: float = 0.25
    synthetic: float = 0.25
    lesions: float = 0.5  # with simulated lesions, whatever the contrast

    def __post_init__(self) -> None:
        if min(self.t1_like, self.synthetic, self.lesions) < 0 or self.t1_like + self.synthetic > 1 or self.lesions > 1:
            raise ValueError(f"shares must be in 0..1 and both contrasts together at most 1, not {self}")


def rendition(case: Case, mixture: Mixture, normalisation: Normalisation, random: np.random.Generator) -> Case:
    """The case in one rendition, normalised; its own image must be normalised. Equal generators give equal renditions.

    Real tumours are never painted over: a case whose mask holds any gets no simulated ones.
    """
    contrast, lesions = random.random(2)
    if contrast < mixture.t1_like:
        image, weighting = t1_like(case.image, case.mask, random), Weighting.T1_GADOLINIUM
    elif contrast < mixture.t1_like + mixture.synthetic:
        image, weighting = synthesise(case.image, case.mask, random), Weighting.ANY
    else:
        image, weighting = case.image, Weighting.T2
    mask = case.mask
    if lesions < mixture.lesions and not (mask == TUMOUR).any():
        count = int(random.integers(1, MOST_LESIONS + 1))
        drawn = insert_lesions(image, mask, case.spacing, random, count=count, weighting=weighting)
        image, mask = drawn.image, drawn.mask
    if image is case.image:
        return case
    return replace(case, image=normalise(image, normalisation), mask=mask)
