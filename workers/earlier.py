"""An earlier result of the same patient, to compare with: which of its lesions are those of now, and how they grew.

An earlier Segmentation of this node, in the frame of reference of the series, is placed by its geometry, whatever its
grid. A lesion of now is one of then where they share enough of the smaller of the two; it keeps that one's identity,
so that a PACS that goes by tracking UIDs shows one lesion over time. Within one frame of reference a patient is taken
not to have moved: nothing is registered.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from node.errors import InvalidInstance, Unsuitable
from node.forms import SEGMENTATIONS, SOP_CLASSES
from node.records import is_uid
from workers.codes import meaning_of
from workers.frames import readable
from workers.lesions import depths
from workers.values import date_of, time_of

if TYPE_CHECKING:
    from workers.lesions import Lesion
    from workers.volume import Volume

log = logging.getLogger(__name__)

SHARED = 0.25  # of the smaller one's volume, at least: growth and another slice position leave much more
_ABNORMAL = "49755003"  # SCT, Morphologically Abnormal Structure
_SEGMENTATIONS = frozenset(SOP_CLASSES[form] for form in SEGMENTATIONS)
_SEVERAL = re.compile(r", \d+ smaller")  # the smallest lesions together are nobody's earlier self
_HALF = 0.55  # of the distance between slices: these may be uneven by 5 %


@dataclass(frozen=True, eq=False)
class Before:
    """One lesion of an earlier result: its identity and volume then, and where it was.

    `code` is its coded type (value, scheme). `pixels` (frames, rows, columns) bool lie at `positions` (frames, 3) mm,
    rising along the normal; `steps` (3, 3) are, row by row, mm from one slice, row and column to the next.
    """

    number: int
    tracking_id: str
    tracking_uid: str
    code: tuple[str, str]
    volume_ml: float
    pixels: NDArray[np.bool_]
    positions: NDArray[np.float64]
    steps: NDArray[np.float64]

    def holds(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which of `points` (n, 3) in mm lie in it: each takes the value of the nearest voxel."""
        gap = float(np.linalg.norm(self.steps[0]))
        normal = self.steps[0] / gap
        heights, planes = points @ normal, self.positions @ normal
        frames = np.searchsorted((planes[1:] + planes[:-1]) / 2, heights)  # the nearest
        offsets = points - self.positions[frames]
        rows, columns = (
            np.rint(offsets @ step / (step @ step)).astype(np.intp) for step in (self.steps[1], self.steps[2])
        )
        inside = (
            (np.abs(heights - planes[frames]) <= _HALF * gap)
            & (rows >= 0) & (rows < self.pixels.shape[1]) & (columns >= 0) & (columns < self.pixels.shape[2])
        )  # fmt: skip
        inside[inside] = self.pixels[frames[inside], rows[inside], columns[inside]]
        return np.asarray(inside)


@dataclass(frozen=True, eq=False)
class Earlier:
    """An earlier Segmentation: its identity, the date (DA, or empty) of the series it was made of, and its lesions."""

    sop_class_uid: str
    sop_uid: str
    series_uid: str
    study_uid: str
    date: str
    lesions: tuple[Before, ...]


def read_earlier(path: Path, volume: Volume) -> Earlier | None:
    """Read an earlier result to compare the series of `volume` with; None, and why in the log, where it is of no use.

    What is not from this patient, by Patient ID and its issuer, or lies in another frame of reference, is of no use.
    """
    try:
        with readable("the earlier result", "cannot be read"):
            dataset = dcmread(path)
            reason = _unlike(dataset, volume.sources[0])
            if not reason:
                return _read(dataset)
    except (InvalidInstance, Unsuitable) as error:
        reason = error.reason
    log.warning("series=%s no comparison with an earlier result: %s", volume.series_uid, reason)
    return None


def _unlike(dataset: Dataset, source: Dataset) -> str:
    """Return why a data set cannot be compared with a series; empty if it can. No value of a header is in the text."""
    if dataset.get("SOPClassUID") not in _SEGMENTATIONS:
        return "it is no segmentation"
    if str(dataset.get("Manufacturer", "")) != "pennode":
        return "it was not made here"
    whose = [str(source.get(keyword) or "").strip() for keyword in ("PatientID", "IssuerOfPatientID")]
    if not whose[0] or whose != [
        str(dataset.get(keyword) or "").strip() for keyword in ("PatientID", "IssuerOfPatientID")
    ]:
        return "it is of another patient, or of nobody in particular"
    if str(dataset.get("FrameOfReferenceUID", "")) != str(source.get("FrameOfReferenceUID", "")):
        return "it has another frame of reference"
    then, now = _when(dataset), _when(source)
    if not then or not now or then > now:
        return "it is not known to be of an earlier series"
    return ""


def _when(dataset: Dataset) -> str:
    """Return date and time of a series as one word that sorts, empty where there is no date."""
    for kind in ("Series", "Acquisition", "Content", "Study"):
        if date := date_of(dataset.get(f"{kind}Date")):
            return date + time_of(dataset.get(f"{kind}Time"))
    return ""


def _read(dataset: Dataset) -> Earlier:
    frames = dataset.pixel_array.reshape(-1, int(dataset.Rows), int(dataset.Columns))
    label_map = str(dataset.SegmentationType) == "LABELMAP"
    least = 1  # of a voxel that is in; in a fraction, that half of it or more is in
    if str(dataset.SegmentationType) == "FRACTIONAL":
        least = (int(dataset.MaximumFractionalValue) + 1) // 2
    shared = dataset.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]
    rows, columns = (float(value) for value in measures.PixelSpacing)
    along = np.array([float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient])
    gap = float(measures.get("SpacingBetweenSlices") or measures.SliceThickness)
    steps = np.stack([np.cross(along[:3], along[3:]) * gap, along[3:] * rows, along[:3] * columns])
    numbers, positions = [], []
    for group in dataset.PerFrameFunctionalGroupsSequence:
        holder = group if "SegmentIdentificationSequence" in group else shared
        numbers.append(0 if label_map else int(holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber))
        positions.append([float(value) for value in group.PlanePositionSequence[0].ImagePositionPatient])
    # Frames of all segments tell where slices lie: a lesion's own leave out those beside it.
    heights = np.array(positions) @ steps[0] / gap
    slices, places_of = np.unique(np.round(heights, 3), return_inverse=True)
    voxel_ml = depths(slices, gap)[places_of] * rows * columns / 1000
    lesions = []
    for segment in dataset.SegmentSequence:
        number, words, uid = int(segment.SegmentNumber), str(segment.get("TrackingID")), str(segment.get("TrackingUID"))
        abnormal = segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == _ABNORMAL
        if not abnormal or _SEVERAL.search(words) or not is_uid(uid):
            continue
        if label_map:
            own = np.flatnonzero((frames == number).any(axis=(1, 2)))
        else:
            own = np.flatnonzero(np.array(numbers) == number)
        own = own[np.argsort(heights[own], kind="stable")]
        code = segment.SegmentedPropertyTypeCodeSequence[0]
        pixels = frames[own] == number if label_map else frames[own] >= least
        if not pixels.any():
            continue
        lesions.append(
            Before(
                number=number,
                tracking_id=words[:64],
                tracking_uid=uid,
                code=(str(code.CodeValue), str(code.CodingSchemeDesignator)),
                volume_ml=float(np.count_nonzero(pixels, axis=(1, 2)) @ voxel_ml[own]),
                pixels=pixels,
                positions=np.array(positions)[own],
                steps=steps,
            )
        )
    return Earlier(
        sop_class_uid=str(dataset.SOPClassUID),
        sop_uid=str(dataset.SOPInstanceUID),
        series_uid=str(dataset.SeriesInstanceUID),
        study_uid=str(dataset.StudyInstanceUID),
        date=date_of(dataset.get("SeriesDate")),
        lesions=tuple(lesions),
    )


def followed(lesions: Sequence[Lesion], earlier: Earlier, volume: Volume) -> tuple[Lesion, ...]:
    """Return the lesions of now, those that were there earlier with the identity that they had then.

    The pair that shares the most volume is joined first; no lesion is joined twice. A new lesion is numbered beyond
    those of then, so that no two have one name.
    """
    pairs = []
    for index, lesion in enumerate(lesions):
        if lesion.parts > 1:
            continue
        voxels = np.argwhere(lesion.inside) + [part.start for part in lesion.box]
        points = volume.positions[voxels[:, 0]] + voxels[:, 1:] @ volume.affine[:3, 1:3].T
        for other, before in enumerate(earlier.lesions):
            if before.code == meaning_of(lesion.label).type[:2]:
                shared = float(before.holds(points).mean()) * lesion.volume_ml
                if shared >= SHARED * min(lesion.volume_ml, before.volume_ml):
                    pairs.append((-shared, index, other))
    joined: dict[int, Before] = {}
    for _, index, other in sorted(pairs):
        before = earlier.lesions[other]
        if index not in joined and before not in joined.values():
            joined[index] = before
    taken = {before.tracking_id for before in earlier.lesions}
    result = []
    for index, lesion in enumerate(lesions):
        if index in joined:
            before = joined[index]
            lesion = replace(lesion, tracking_id=before.tracking_id, tracking_uid=before.tracking_uid, before=before)
        elif lesion.parts == 1:
            words = lesion.tracking_id.rpartition(" ")[0]
            number = next(n for n in range(1, len(taken) + 2) if f"{words} {n}" not in taken)
            lesion = replace(lesion, tracking_id=f"{words} {number}")
            taken.add(lesion.tracking_id)
        result.append(lesion)
    return tuple(result)
