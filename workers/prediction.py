"""From a volume to its mask: turn, resample, select what to run, predict, turn back. No DICOM is read or written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from node.errors import DeviceLost, EngineFailure
from trt.decision import decide
from trt.engine import DeviceEngine
from trt.extraction import Extraction, select
from trt.fitting import fit
from trt.geometry import Resampling
from trt.manifest import Manifest
from trt.patches import Array, NonFiniteOutput, Predict, Progress, WrongOutput, normalise
from workers.grid import Canonical, from_canonical, resampling, to_canonical, to_model, to_native
from workers.volume import Volume

if TYPE_CHECKING:
    from trt.copies import Rising


@dataclass(frozen=True, eq=False)
class Prediction:
    """A mask (frames, rows, columns) uint8 of label values on the grid of its volume, and what it took.

    `extraction` is what was done in the end; `reason` says why that is less than was asked, or is empty. `patches` of
    `patch` (y, x) pixels were run, `share` of the pixels that run where nothing is left out; `saved_s` estimates the
    seconds that the others would have taken, less those of the selection.
    """

    mask: NDArray[np.uint8]
    extraction: Extraction
    reason: str
    patches: int
    patch: tuple[int, int]
    share: float
    saved_s: float


@dataclass(frozen=True, eq=False)
class Arrival:
    """A volume turned to the model's axes, and the weights to and from the model's pixels.

    `rising` are its voxels on their way to the device of an engine that has one, if they were sent ahead.
    """

    canonical: Canonical
    weights: Resampling
    rising: Rising | None = None


def arrive(volume: Volume, predict: Predict, manifest: Manifest, *, ahead_mb: float = 0) -> Arrival:
    """What comes before `predict` is needed, and may be done while it is at another series.

    Voxels of at most `ahead_mb` go up to its device. Raises `Unsuitable` as `workers.grid.resampling`, and otherwise as
    `predict_mask`.
    """
    canonical = to_canonical(volume)
    weights = resampling(canonical, manifest.spacing_mm)
    if not ahead_mb or not isinstance(predict, DeviceEngine):
        return Arrival(canonical, weights)
    from trt import preparation  # and with it torch

    with _translated(on_device=True):
        return Arrival(canonical, weights, preparation.send(canonical.voxels, predict, ahead_mb))


def predict_mask(
    volume: Volume | Arrival,
    predict: Predict,
    manifest: Manifest,
    *,
    overlap: float,
    batch: int,
    extraction: Extraction = "spine",
    finder: Predict | None = None,
    flexible: bool = False,
    progress: Progress | None = None,
    timings: dict[str, float] | None = None,
    slab_mb: float = 512,
) -> Prediction:
    """Predict the mask of `volume`; `finder` runs the manifest's finder, without which "spine" is "tissue".

    A volume arrives first; see `arrive`. Patches are fitted to what is to run where `predict` is `flexible`; see
    `trt.fitting.fit`. One slice of logits at a time is on the native grid. `timings` gets the seconds of each stage.

    Where `predict` is an engine that takes what is on its device, everything from the voxels to the mask stays there,
    in `slab_mb` of its memory; see `trt.preparation` and `trt.device`.

    Raises
    ------
    EngineFailure
        A network raises, or returns NaN, infinity or another shape than it must.
    DeviceLost
        The GPU failed, and nothing can be calculated on it by this process any more.
    """
    timings = {} if timings is None else timings
    there = predict if isinstance(predict, DeviceEngine) else None
    with _translated(on_device=there is not None):
        with timed(timings, "prepare"):
            arrival = arrive(volume, predict, manifest) if isinstance(volume, Volume) else volume
            canonical, weights = arrival.canonical, arrival.weights
            pixels = None  # on the device, if anywhere: a torch.Tensor
            if there is not None:
                from trt import preparation  # and with it torch

                pixels = preparation.prepare(
                    canonical.voxels, weights, manifest.normalisation, there, slab_mb, rising=arrival.rising
                )
            on_host = pixels is None
            if pixels is None:
                pixels = normalise(to_model(canonical.voxels, weights), manifest.normalisation)
            shape, voxel_mm3 = canonical.voxels.shape, math.prod(canonical.spacing)
            axes, flips = canonical.axes, canonical.flips
            del volume, arrival, canonical  # as large as the series
        with timed(timings, "select"):
            if there is None or on_host:
                selection = select(pixels, manifest, extraction, finder, batch=batch)
            else:
                selection = preparation.select(pixels, manifest, extraction, finder, there, batch=batch)
            region = selection.region
            everything, fitted = (
                fit(tuple(pixels.shape), part, manifest, flexible=flexible, overlap=overlap, batch=batch)
                for part in (None, region)
            )
        with timed(timings, "predict"):
            if there is not None:
                from trt import device, slabs

                mask = device.predict_mask(
                    pixels,
                    there.on_device,
                    there.device,
                    slabs.Cut(fitted.patch, manifest.channels, manifest.classes, fitted.overlap, fitted.batch),
                    labels=manifest.labels,
                    voxel_mm3=voxel_mm3,
                    weights=weights,
                    region=region,
                    progress=progress,
                    budget_mb=slab_mb,
                    stream=there.stream,
                )
            else:
                slices = fitted.slices(pixels, predict, manifest, region, progress)
                native = ((z, to_native(logits, weights)) for z, logits in _of_classes(slices, manifest.classes))
                mask = decide(native, shape, manifest.labels, voxel_mm3)
    return Prediction(
        mask=from_canonical(mask, axes, flips),
        extraction=selection.extraction,
        reason=selection.reason,
        patches=fitted.patches,
        patch=fitted.patch,
        share=fitted.pixels / everything.pixels,
        saved_s=timings["predict"] * (everything.pixels / max(fitted.pixels, 1) - 1) - timings["select"],
    )


def _of_classes(slices: Iterator[tuple[int, Array]], classes: int) -> Iterator[tuple[int, Array]]:
    """Pass slices of logits (K, Y, X) on; raise `WrongOutput` where K is not the model's number of classes."""
    for z, logits in slices:
        if len(logits) != classes:
            raise WrongOutput(f"the network returned {len(logits)} classes, and its manifest has {classes}")
        yield z, logits


@contextmanager
def _translated(*, on_device: bool) -> Iterator[None]:
    try:
        yield
    except NonFiniteOutput as error:
        raise EngineFailure(str(error), "set worker.precision to f32, or use another model") from error
    except WrongOutput as error:
        raise EngineFailure(str(error), "export the model again, so that it is as its manifest says") from error
    except RuntimeError as error:  # EngineError, and what a backend itself raises
        if on_device and "CUDA error" in str(error):
            raise DeviceLost(
                f"the GPU failed: {str(error).splitlines()[0]}", "see nvidia-smi; the worker starts anew by itself"
            ) from error
        raise EngineFailure(str(error), "see worker.backend and worker.precision") from error


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Note the seconds that the block takes under the name of a stage, beside what the stage took so far."""
    started = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - started
