"""Reading a Segmentation back from its bytes: the gate that every result passes before it leaves a worker.

Nothing here looks at what was in memory when the object was built, except the mask it is compared with.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from node.errors import InvalidResult
from node.forms import Recipe
from workers import codes
from workers.case import Case
from workers.seg import present_labels, renumbered
from workers.volume import Volume
from workers.writing import TELL_US, translated

# A result's frames lie on those of its source; decimal strings round far below this, and slices are never so close.
POSITION_TOLERANCE_MM = 0.01


@dataclass(frozen=True)
class Segment:
    """One segment as read back: its number and label, and its recommended colour in sRGB 0..255."""

    number: int
    label: str
    colour: tuple[int, int, int]


def read_segmentation(data: bytes, volume: Volume) -> tuple[NDArray[np.uint8], tuple[Segment, ...]]:
    """Read a BINARY Segmentation back and place it on the grid of `volume` by its geometry alone.

    Returns the mask (frames, rows, columns) uint8 of segment numbers, 0 background, and the segments.

    Raises
    ------
    InvalidResult
        It is no Segmentation, lies in another frame of reference, off the grid, or its segments overlap.
    """
    with translated():
        segmentation = hd.seg.Segmentation.from_dataset(dcmread(io.BytesIO(data)), copy=False)
        frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
        shared = segmentation.SharedFunctionalGroupsSequence[0]
        orientation = [float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
        spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
        places = [_frame_of(group, volume) for group in segmentation.PerFrameFunctionalGroupsSequence]
        numbers = [_segment_number(group, shared) for group in segmentation.PerFrameFunctionalGroupsSequence]
        segments = tuple(_segment(item) for item in segmentation.SegmentSequence)
        reference = str(segmentation.FrameOfReferenceUID)
    directions = volume.affine[:3, :3] / np.array(volume.spacing)
    mask = np.zeros(volume.voxels.shape, np.uint8)
    if (
        reference != volume.frame_of_reference_uid
        or frames.shape != (len(places), *mask.shape[1:])
        or not np.allclose(orientation, [*directions[:, 2], *directions[:, 1]], atol=1e-3)
        or not np.allclose(spacing, volume.spacing[1:], rtol=1e-4)
    ):
        raise InvalidResult("the segmentation does not lie on the grid of its series", TELL_US)
    for plane, number, place in zip(frames, numbers, places, strict=True):
        if mask[place][plane != 0].any():
            raise InvalidResult("two segments overlap", TELL_US)
        mask[place][plane != 0] = number
    return mask, segments


def check_segmentation(data: bytes, case: Case, recipe: Recipe) -> None:
    """Read the written bytes of a recipe back and compare them with the mask of the case that they were made of.

    Raises
    ------
    InvalidResult
        Voxels, labels, geometry, patient or references differ from the source and the mask. Nothing that fails here may
        leave the worker: without a reference per frame viewers draw overlays on wrong slices.
    """
    volume, mask = case.volume, case.mask
    read, segments = read_segmentation(data, volume)
    found = present_labels(mask, case.manifest)
    if [s.label for s in segments] != [codes.meaning_of(label).words for label in found]:
        raise InvalidResult("the written segments are not the labels of the mask", TELL_US)
    if not np.array_equal(read, renumbered(mask, found)):
        raise InvalidResult("the written segmentation differs from the mask", TELL_US)
    with translated():
        dataset = dcmread(io.BytesIO(data), stop_before_pixels=True)
        source = volume.sources[0]
        same = [
            str(dataset.get(k, "")) == str(source.get(k, "")) for k in ("PatientID", "PatientName", "StudyInstanceUID")
        ]
        series = dataset.ReferencedSeriesSequence[0]
        complete = {str(item.ReferencedSOPInstanceUID) for item in series.ReferencedInstanceSequence} == {
            str(s.SOPInstanceUID) for s in volume.sources
        } and str(series.SeriesInstanceUID) == volume.series_uid
        derived = all(_derives_from_its_slice(group, volume) for group in dataset.PerFrameFunctionalGroupsSequence)
    if not all(same):
        raise InvalidResult("the written segmentation names another patient or study than its series", TELL_US)
    if not complete:
        raise InvalidResult("the written segmentation does not refer to all images of its series", TELL_US)
    if not derived:
        raise InvalidResult("a frame of the segmentation does not refer to the image it lies on", TELL_US)


def _frame_of(group: Dataset, volume: Volume) -> int:
    """Return the frame of `volume` whose position a frame of the Segmentation has, by its functional groups."""
    position = np.array([float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient])
    distances = np.linalg.norm(volume.positions - position, axis=1)
    frame = int(distances.argmin())
    if distances[frame] > POSITION_TOLERANCE_MM:
        raise InvalidResult("a frame of the segmentation lies on no slice of its series", TELL_US)
    return frame


def _segment_number(group: Dataset, shared: Dataset) -> int:
    holder = group if "SegmentIdentificationSequence" in group else shared
    return int(holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def _segment(item: Dataset) -> Segment:
    red, green, blue = hd.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue).to_rgb()
    return Segment(int(item.SegmentNumber), str(item.SegmentLabel), (int(red), int(green), int(blue)))


def _derives_from_its_slice(group: Dataset, volume: Volume) -> bool:
    """Tell whether a frame names the source image, and the frame in it, that lies at its position."""
    frame = _frame_of(group, volume)
    named = group.DerivationImageSequence[0].SourceImageSequence[0]
    if volume.frame_numbers:
        source, number = volume.sources[0], volume.frame_numbers[frame]
        return bool(named.ReferencedSOPInstanceUID == source.SOPInstanceUID and named.ReferencedFrameNumber == number)
    return bool(named.ReferencedSOPInstanceUID == volume.sources[frame].SOPInstanceUID)
