"""How a shadow's result stands to that of its series' own model: each segment's Dice and volumes, voxel by voxel.

Both are read back from the spool, so that what is compared is what was, or would have been, sent.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import pixel_array

from node.agreement import Agreement, Comparison
from node.errors import InvalidResult, NotFound
from node.forms import Form, Recipe
from node.header import UNREADABLE
from node.ledger import Ledger
from node.logs import printable
from node.records import Job, Result
from node.spool import Spool

log = logging.getLogger(__name__)

_ROUND_S = 5.0
# In the order in which they are preferred: what tells voxels apart without a threshold comes first.
_FORMS = (Form.SEG, Form.LABELMAP, Form.FRACTIONAL)
_LARGEST = 512 << 20  # bytes of one object: it is read whole, beside a listener that must not run out of memory
# What pydicom, its decoders and numpy raise over bytes that are no Segmentation: to be told, not to stop the node.
_DAMAGED = (*UNREADABLE, LookupError, ArithmeticError, RuntimeError, MemoryError)
_POSITION_MM = 0.01  # two frames nearer than that lie on one slice


class _Key(NamedTuple):
    """What makes two segments the same: coded type and label."""

    code: str
    scheme: str
    label: str


@dataclass(frozen=True, eq=False)
class _Segmentation:
    """One Segmentation (PS3.3 A.51): its grid, the place of each frame, and what its frames hold.

    `positions` is (frames, 3) float64, mm, LPS; `numbers` the segment of each frame, 0 where a frame holds all of them.
    """

    dataset: Dataset
    kind: str
    keys: dict[int, _Key]
    meanings: dict[_Key, str]
    positions: NDArray[np.float64]
    numbers: list[int]
    orientation: tuple[float, ...]
    measures: tuple[float, float, float]  # row spacing, column spacing, distance of slices as told; mm

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.dataset.Rows), int(self.dataset.Columns)

    def masks(self, frame: int) -> Iterator[tuple[_Key, NDArray[np.bool_]]]:
        """Yield each segment of one frame with its mask (rows, columns)."""
        if self.kind == "BINARY":
            yield self.keys[self.numbers[frame]], self._bits(frame)
            return
        values = pixel_array(self.dataset, index=frame)
        if self.kind == "FRACTIONAL":
            yield (
                self.keys[self.numbers[frame]],
                2 * values.astype(np.int64) >= int(self.dataset.MaximumFractionalValue),
            )
            return
        for number in np.unique(values):
            if number in self.keys:
                yield self.keys[int(number)], values == number

    def _bits(self, frame: int) -> NDArray[np.bool_]:
        """Return one frame of packed bits, the first in the lowest (PS3.5 section 8.1.1)."""
        rows, columns = self.shape
        first = frame * rows * columns
        last = first + rows * columns
        packed = np.frombuffer(self.dataset.PixelData, np.uint8, (last + 7) // 8 - first // 8, first // 8)
        bits = np.unpackbits(packed, bitorder="little")[first % 8 :][: rows * columns]
        return bits.reshape(rows, columns).astype(np.bool_)


class Comparer:
    """Compares what shadows gave with what their series' own models gave, as soon as both are here."""

    def __init__(self, ledger: Ledger, spool: Spool) -> None:
        self._ledger = ledger
        self._spool = spool

    def tick(self, now: float) -> float:
        """Do one round; return the seconds until the next."""
        for shadow, own in self._ledger.uncompared():
            segments: tuple[Agreement, ...] = ()
            reason = ""
            try:
                segments = compare(*self._objects(own, shadow))
            except (InvalidResult, NotFound) as error:
                reason = error.reason
            self._ledger.note_comparison(Comparison(shadow.id, shadow.fence, own.id, own.fence, now, segments, reason))
            log.info("compared shadow=%s own=%s segments=%d %s", shadow.id, own.id, len(segments), reason)
        return _ROUND_S

    def _objects(self, own: Job, shadow: Job) -> tuple[Path, Path]:
        """Return the files to compare: of the first form that both have."""
        mine, its = _by_form(self._ledger.results(own.id)), _by_form(self._ledger.results(shadow.id))
        for form in _FORMS:
            if form in mine and form in its:
                return self._spool.path(mine[form].path), self._spool.path(its[form].path)
        raise InvalidResult("the two results have no form of segmentation in common", "")


def compare(own: Path, shadow: Path) -> tuple[Agreement, ...]:
    """Compare two Segmentations of one series, segment by segment, in the order of coded type and label.

    Memory is that of the two files and a few frames.

    Raises
    ------
    InvalidResult
        One is no Segmentation, is damaged or too large, or they lie on different grids.
    """
    with warnings.catch_warnings():
        # They quote values of the header, and what is wrong with it is judged here.
        warnings.simplefilter("ignore", UserWarning)
        first, second = _read(own, "the series' own result"), _read(shadow, "the shadow's result")
        try:
            return _compared(first, second)
        except _DAMAGED as error:
            raise InvalidResult(f"the voxels of a result cannot be read ({type(error).__name__})", "") from error


def _compared(first: _Segmentation, second: _Segmentation) -> tuple[Agreement, ...]:
    slices, gap_mm = _aligned(first, second)
    counts: dict[_Key, list[int]] = {key: [0, 0, 0] for one in (first, second) for key in one.keys.values()}
    for frames in slices:
        seen = [_gathered(one, listed) for one, listed in zip((first, second), frames, strict=True)]
        for which, masks in enumerate(seen):
            for key, mask in masks.items():
                counts[key][which] += int(np.count_nonzero(mask))
        for key in seen[0].keys() & seen[1].keys():
            counts[key][2] += int(np.count_nonzero(seen[0][key] & seen[1][key]))
    voxel_ml = first.measures[0] * first.measures[1] * gap_mm / 1000
    return tuple(
        Agreement(
            label=key.label, code=key.code, scheme=key.scheme, meaning=(first.meanings | second.meanings)[key],
            dice=round(2 * both / (mine + its), 4) if mine + its else 1.0,
            own_ml=round(mine * voxel_ml, 3), shadow_ml=round(its * voxel_ml, 3),
        )
        for key, (mine, its, both) in sorted(counts.items())
    )  # fmt: skip


def _by_form(results: list[Result]) -> dict[Form, Result]:
    return {Recipe.parse(one.form).form: one for one in reversed(results)}


def _gathered(one: _Segmentation, frames: list[int]) -> dict[_Key, NDArray[np.bool_]]:
    """Return the masks of one slice by segment; a segment that has several frames there has all of them."""
    found: dict[_Key, NDArray[np.bool_]] = {}
    for frame in frames:
        for key, mask in one.masks(frame):
            found[key] = found[key] | mask if key in found else mask
    return found


def _aligned(first: _Segmentation, second: _Segmentation) -> tuple[list[tuple[list[int], list[int]]], float]:
    """Return, for each slice, the frames of either that lie on it, and the distance of slices in mm."""
    if (
        first.shape != second.shape
        or first.dataset.get("FrameOfReferenceUID") != second.dataset.get("FrameOfReferenceUID")
        or not np.allclose(first.orientation, second.orientation, atol=1e-3)
        or not np.allclose(first.measures[:2], second.measures[:2], rtol=1e-4)
    ):
        raise InvalidResult("the two results lie on different grids", "")
    positions = np.concatenate([first.positions, second.positions])
    along = positions @ np.cross(first.orientation[:3], first.orientation[3:])
    slices: list[tuple[list[int], list[int]]] = []
    gaps: list[float] = []
    last = -1
    for index in np.argsort(along, kind="stable"):
        gap = float(along[index] - along[last]) if slices else 0.0
        if not slices or gap > _POSITION_MM:
            gaps += [gap] if slices else []
            slices.append(([], []))
        elif np.linalg.norm(positions[index] - positions[last]) > _POSITION_MM:
            raise InvalidResult("the two results lie on different grids", "")
        last = int(index)
        of_second = last >= len(first.positions)
        slices[-1][of_second].append(last - len(first.positions) if of_second else last)
    return slices, min(gaps, default=first.measures[2])


def _read(path: Path, what: str) -> _Segmentation:
    try:
        if path.stat().st_size > _LARGEST:
            raise InvalidResult(f"{what} is too large to be compared here", "")
        ds = pydicom.dcmread(path)
        kind, frames = str(ds.SegmentationType), int(ds.NumberOfFrames)
        shared, groups = ds.SharedFunctionalGroupsSequence[0], ds.PerFrameFunctionalGroupsSequence
        spacing = _part(groups[0], shared, "PixelMeasuresSequence")
        rows, columns = spacing.PixelSpacing
        across = spacing.get("SpacingBetweenSlices") or spacing.get("SliceThickness") or 0
        orientation = _part(groups[0], shared, "PlaneOrientationSequence").ImageOrientationPatient
        keys, meanings = _segments(ds)
        found = _Segmentation(
            dataset=ds, kind=kind, keys=keys, meanings=meanings,
            positions=np.array([_position(group, shared) for group in groups], np.float64).reshape(-1, 3),
            numbers=[0 if kind == "LABELMAP" else _number(group, shared) for group in groups],
            orientation=tuple(float(v) for v in orientation),
            measures=(float(rows), float(columns), float(across)),
        )  # fmt: skip
        bits = found.shape[0] * found.shape[1] * frames
        whole = kind != "BINARY" or len(ds.PixelData) * 8 >= bits
    except _DAMAGED as error:
        raise InvalidResult(f"{what} cannot be read ({type(error).__name__})", "") from error
    fits = len(groups) == frames > 0 and whole and len(found.orientation) == 6 and len(found.measures) == 3
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP") or not fits or not set(found.numbers) <= {0, *keys}:
        raise InvalidResult(f"{what} is not whole: frames, segments and voxels do not fit together", "")
    numbers = (*found.positions.ravel(), *found.orientation, *found.measures)
    if not np.isfinite(numbers).all() or not min(found.measures) > 0 or (kind != "LABELMAP" and 0 in found.numbers):
        raise InvalidResult(f"the geometry of {what.removeprefix('the ')} is not usable", "")
    return found


def _segments(ds: Dataset) -> tuple[dict[int, _Key], dict[_Key, str]]:
    """Return key and meaning of each segment (PS3.3 C.8.20.2); the background that a LABELMAP may list is left out."""
    keys: dict[int, _Key] = {}
    meanings: dict[_Key, str] = {}
    for item in ds.SegmentSequence:
        number = int(item.SegmentNumber)
        if number == 0:
            continue
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        code = str(kind.get("CodeValue") or kind.get("LongCodeValue") or kind.get("URNCodeValue") or "")
        label = printable(str(item.get("SegmentLabel", "")), 64)
        key = _Key(printable(code, 64), printable(str(kind.get("CodingSchemeDesignator", "")), 16), label)
        keys[number], meanings[key] = key, printable(str(kind.get("CodeMeaning", "")), 64)
    return keys, meanings


def _part(group: Dataset, shared: Dataset, name: str) -> Any:
    return (group if name in group else shared)[name].value[0]


def _position(group: Dataset, shared: Dataset) -> list[float]:
    return [float(v) for v in _part(group, shared, "PlanePositionSequence").ImagePositionPatient]


def _number(group: Dataset, shared: Dataset) -> int:
    return int(_part(group, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
