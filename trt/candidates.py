"""Models made ready to be tried: what segments a series of `trt.trials`, by the road that serves."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trt.decision import decide
from trt.extraction import Extraction, select
from trt.fitting import fit
from trt.manifest import Manifest
from trt.patches import Array, Predict, normalise
from trt.trials import Trial

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Candidate:
    """A model made ready to be tried; `predict` may be any callable. `overlap` as the manifest has it if None.

    `flexible` tells whether `predict` takes patches of any multiple of the manifest's stride; see `trt.fitting`.
    """

    manifest: Manifest
    predict: Predict
    overlap: float | None = None
    extraction: Extraction = "all"
    finder: Predict | None = None
    flexible: bool = False

    def segment(self, trial: Trial) -> tuple[Mask, float]:
        """The mask of a trial, and the seconds it took."""
        began = time.perf_counter()
        found = segment(
            trial.image,
            self.manifest,
            self.predict,
            overlap=self.overlap,
            extraction=self.extraction,
            finder=self.finder,
            flexible=self.flexible,
            spacing=trial.spacing,
        )
        return found, time.perf_counter() - began


def segment(
    image: NDArray[np.generic],
    manifest: Manifest,
    predict: Predict,
    *,
    overlap: float | None = None,
    batch: int = 8,
    extraction: Extraction = "all",
    finder: Predict | None = None,
    flexible: bool = False,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Mask:
    """Label values (Z, Y, X) uint8 of an image (Z, Y, X) on the model's grid, any real dtype and unit.

    `spacing` (z, y, x) in mm tells what is too small a part of a label that has a least volume.
    `extraction` tells where the model runs, by `finder` where it asks for one; see `trt.extraction.select`. Patches
    are fitted to that where `predict` is `flexible`; see `trt.fitting.fit`.
    """
    volume = normalise(image, manifest.normalisation)
    region = select(volume, manifest, extraction, finder, batch=batch).region
    fitted = fit(volume.shape, region, manifest, flexible=flexible, overlap=overlap, batch=batch)
    slices = fitted.slices(volume, predict, manifest, region)
    return decide(slices, volume.shape, manifest.labels, math.prod(spacing))


def mirrored(predict: Predict) -> Predict:
    """The average of the logits of patches and of their mirror images across the patient, at twice the price.

    Left and right of a sagittal series are its channels in order and in reverse. Nothing else is mirrored: a spine is
    neither up and down nor front and back the same.
    """

    def both(patches: Array) -> Array:
        logits = predict(patches) + predict(np.ascontiguousarray(patches[:, ::-1]))
        logits *= np.float32(0.5)
        return logits

    return both
