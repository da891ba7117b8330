"""Which part of a volume the model runs on: all of it, all but air, or the band that the spine lies in.

Air is skipped by a bound on the pixels themselves. The spine is found by a small network on a coarse grid (a model's
`finder`, trained by `trt.finder`); what it finds is only ever made larger: all slices share one band, gaps in it are
bridged, it runs on to the top and the bottom of the field of view, and has a margin all round. Where it finds what
can be no spine, or the field of view is lower than any it learnt from, everything runs, and the selection says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from trt.manifest import Finder, Label, Manifest
from trt.patches import Array, Predict, Region, predict_slices

Extraction = Literal["all", "tissue", "spine"]

AIR_CEILING = 0.02  # of the normalised range: nothing brighter is ever taken for air
AIR_BLOCK = 16  # pixels; the darkest squares of this side tell how bright air is
AIR_PERCENTILE = 2
MIN_AREA_CM2 = 25.0  # of a sagittal spine; three lumbar vertebrae have more
MIN_HEIGHT_MM = 80.0
MIN_FIELD_MM = 150.0  # high; finders learn from whole lumbar fields, and of a part they may miss what is cut off
MAX_DEPTH_MM = 170.0  # from front to back of what is seen in a row; a spine has 130 at most, processes included
FINDER_OVERLAP = 0.25
WIDENING = 1.0  # pixels per row and side, where the band runs on beyond what was found: a sacrum leans by 45 degrees


@dataclass(frozen=True, eq=False)
class Selection:
    """Where to run. `region` is (Z, Y, X) bool on the model's grid, None for everything.

    `extraction` is what was done in the end, `reason` says why that is less than was asked, or is empty.
    """

    region: Region | None
    extraction: Extraction
    reason: str = ""


def select(
    volume: Array, manifest: Manifest, extraction: Extraction, finder: Predict | None = None, *, batch: int = 8
) -> Selection:
    """Where to run the model on a normalised volume (Z, Y, X) float32.

    `finder` runs the network of `finder_model`; "spine" is "tissue" for a model without one.
    """
    if extraction == "spine" and manifest.finder is not None and finder is not None:
        region, reason = find_spine(volume, finder, manifest.finder, manifest.spacing_mm, batch=batch)
        return Selection(region, "all" if region is None else "spine", reason)
    if extraction == "all":
        return Selection(None, "all")
    region = find_tissue(volume, manifest.channels)
    return Selection(region, "all" if region is None else "tissue", "" if region is not None else "no tissue was seen")


def find_tissue(volume: Array, channels: int) -> Region | None:
    """All but the air about the patient, (Z, Y, X) bool; None where there is nothing else.

    Outside it, every pixel and its neighbours among the channels are no brighter than `air_level`, and so is all that
    lies between it and one end of its row: dark bone and vessels within the patient stay.
    """
    bright = volume > air_level(volume)  # (Z, Y, X)
    bright = maximum_filter1d(bright, channels, axis=0, mode="nearest")
    if not bright.any():
        return None
    from_left = np.logical_or.accumulate(bright, axis=2)
    from_right = np.logical_or.accumulate(bright[:, :, ::-1], axis=2)[:, :, ::-1]
    return np.asarray(from_left & from_right)


def air_level(volume: Array) -> float:
    """How bright air is in a normalised volume (Z, Y, X), at most AIR_CEILING; lower where its darkest parts are."""
    depth, height, width = volume.shape
    side = min(AIR_BLOCK, height, width)
    rows, columns = height // side, width // side
    blocks = volume[:, : rows * side, : columns * side].reshape(depth, rows, side, columns, side)
    return min(AIR_CEILING, float(np.percentile(blocks.max(axis=(2, 4)), AIR_PERCENTILE)))


def finder_model(manifest: Manifest) -> Manifest:
    """The finder of a model as a model of its own, for `trt.engine.open_engine`. Raises `ValueError` without one."""
    finder = manifest.finder
    if finder is None:
        raise ValueError(f"{manifest.name} has no finder")
    return replace(
        manifest,
        name=f"{manifest.name}-finder",
        path=finder.path,
        digest=finder.digest,
        labels=(Label(1, "spine"),),
        patch=finder.patch,
        channels=finder.channels,
        finder=None,
        quantised=None,
        stride=None,
    )


def find_spine(
    volume: Array, predict: Predict, finder: Finder, spacing_mm: tuple[float, float], *, batch: int = 8
) -> tuple[Region | None, str]:
    """The band of a normalised volume (Z, Y, X) float32 that the spine lies in, (Z, Y, X) bool, the same in all slices.

    None, and the reason, where the field of view is too low or what is found can be no spine. `spacing_mm` is (y, x) of
    the volume.
    """

    def see() -> NDArray[np.bool_]:
        coarse = shrink(volume, finder.factor)  # (Z, y, x)
        seen = np.zeros(coarse.shape[1:], np.bool_)
        slices = predict_slices(
            coarse, predict, patch=finder.patch, channels=finder.channels, overlap=FINDER_OVERLAP, batch=batch
        )
        for _, logits in slices:
            seen |= logits[1] - logits[0] > bar_of(finder)
        return seen

    return outline(see, volume.shape, finder, spacing_mm)


def bar_of(finder: Finder) -> float:
    """By how much the logit of spine must surpass that of all else."""
    return math.log(finder.threshold / (1 - finder.threshold))


def outline(
    see: Callable[[], NDArray[np.bool_]], shape: tuple[int, ...], finder: Finder, spacing_mm: tuple[float, float]
) -> tuple[Region | None, str]:
    """The band of `find_spine` in a volume of `shape` (Z, Y, X), about what the finder sees.

    `see` runs it and tells where it saw a spine in any slice, lateral ones showing little of it: (y, x) bool on its
    coarse grid. It is not called where the field of view is too low.
    """
    field = shape[1] * spacing_mm[0]
    if field < MIN_FIELD_MM:
        return None, f"the field of view is {field:.1f} mm high: too low for the finder, which needs {MIN_FIELD_MM:.0f}"
    seen = see()
    pixel = spacing_mm[0] * finder.factor, spacing_mm[1] * finder.factor  # mm
    reason = _doubt(seen, pixel)
    if reason:
        return None, reason
    margin = math.ceil(finder.margin_mm / pixel[0]), math.ceil(finder.margin_mm / pixel[1])
    fine = band(seen, margin).repeat(finder.factor, axis=0).repeat(finder.factor, axis=1)
    return np.broadcast_to(fine[: shape[1], : shape[2]], shape), ""


def _doubt(seen: NDArray[np.bool_], pixel: tuple[float, float]) -> str:
    """Why what is `seen` (Y, X), of pixels in mm, is no spine to go by; empty where it may be one."""
    rows = np.flatnonzero(seen.any(axis=1))
    area, height = seen.sum() * pixel[0] * pixel[1] / 100, (np.ptp(rows) + 1) * pixel[0] if len(rows) else 0.0
    if area < MIN_AREA_CM2 or height < MIN_HEIGHT_MM:
        return f"the finder saw {area:.0f} cm2 of spine, {height:.0f} mm high: too little to go by"
    first, last = seen[rows].argmax(axis=1), seen.shape[1] - 1 - seen[rows, ::-1].argmax(axis=1)
    depth = float((last - first + 1).max()) * pixel[1]
    if depth > MAX_DEPTH_MM:
        return f"the finder saw a spine of {depth:.0f} mm from front to back: too much to be one"
    return ""


def band(seen: NDArray[np.bool_], margin: tuple[int, int]) -> NDArray[np.bool_]:
    """One band (Y, X) bool about all that is `seen` (Y, X), of which there must be something, from top to bottom.

    A row is filled from its first to its last pixel. Rows in between that show nothing, as a vertebra that a tumour
    has taken may, are bridged; above and below the band runs straight on and widens. `margin` is in pixels (y, x).
    """
    rows = np.flatnonzero(seen.any(axis=1))
    every = np.arange(len(seen))
    first = np.interp(every, rows, seen[rows].argmax(axis=1))
    last = np.interp(every, rows, seen.shape[1] - 1 - seen[rows, ::-1].argmax(axis=1))
    beyond = np.maximum(rows[0] - every, 0) + np.maximum(every - rows[-1], 0)
    reach = margin[1] + WIDENING * beyond
    left = minimum_filter1d(np.floor(first - reach), 2 * margin[0] + 1, mode="nearest")[:, None]
    right = maximum_filter1d(np.ceil(last + reach), 2 * margin[0] + 1, mode="nearest")[:, None]
    columns = np.arange(seen.shape[1])
    return np.asarray((columns >= left) & (columns <= right))


def shrink(volume: Array, factor: int) -> Array:
    """Means of squares of `factor` pixels in every slice, (Z, Y, X) to (Z, ceil(Y / factor), ceil(X / factor)).

    Squares that reach over the slice repeat its edge.
    """
    depth, height, width = volume.shape
    rows, columns = -(-height // factor), -(-width // factor)
    lacking = rows * factor - height, columns * factor - width
    if any(lacking):
        volume = np.pad(volume, ((0, 0), (0, lacking[0]), (0, lacking[1])), mode="edge")
    squares = volume.reshape(depth, rows, factor, columns, factor)
    return np.asarray(squares.mean(axis=(2, 4), dtype=np.float32))
