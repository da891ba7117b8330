"""Models made ready to be tried: what segments a series of `trt.trials`, by the road that serves.

`open_candidate` opens one with its finder beside it, `open_precisions` one in all that it can calculate in here.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trt.cases import Mask, Tell
from trt.decision import decide
from trt.engine import PRECISIONS, Engine, EngineError, Precision, finder_precision, open_engine
from trt.extraction import Extraction, finder_model, select
from trt.fitting import fit
from trt.manifest import Manifest
from trt.patches import Array, Predict, normalise
from trt.trials import Trial


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


def open_candidate(
    stack: ExitStack,
    manifest: Manifest,
    backend: str = "openvino",
    *,
    precision: Precision = "f32",
    threads: int | None = None,
    batch: int = 8,
    overlap: float | None = None,
    extraction: Extraction = "spine",
) -> tuple[Candidate, Engine]:
    """A model as it serves, its finder beside it where `extraction` asks for one, and the engine that runs it.

    Both are closed with `stack`. "spine" is "tissue" for a model without a finder. Raises as `open_engine`.
    """
    engine = stack.enter_context(open_engine(manifest, backend, threads=threads, batch=batch, precision=precision))
    finder = None
    if extraction == "spine" and manifest.finder is not None:
        fits = finder_precision(precision)
        finder = stack.enter_context(
            open_engine(finder_model(manifest), backend, threads=threads, batch=batch, precision=fits)
        )
    runs_on: Extraction = "tissue" if extraction == "spine" and finder is None else extraction
    return Candidate(manifest, engine, overlap, runs_on, finder, engine.flexible), engine


def open_precisions(
    stack: ExitStack, manifest: Manifest, threads: int | None = None, tell: Tell = lambda _: None
) -> dict[Precision, Candidate]:
    """The model in float32 and in every other precision that this CPU and the model's files offer.

    `tell` hears what is left out, by a CPU without bf16 or a model without eight bits. Raises as `open_engine` for
    float32.
    """
    found: dict[Precision, Candidate] = {}
    for precision in PRECISIONS["openvino"]:
        try:
            found[precision], _ = open_candidate(stack, manifest, precision=precision, threads=threads)
        except EngineError as error:
            if precision == "f32":
                raise
            tell(f"no row of {precision}: {error}")
    return found


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
