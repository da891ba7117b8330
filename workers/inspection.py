"""The gate that every Segmentation passes, from its bytes, before it leaves a worker.

Its voxels are those of the mask, and it says all that viewers and archives need to show it right: without a reference
per frame they draw overlays on wrong slices, without one to the series they do not open it, and say nothing.
"""

from __future__ import annotations

import numpy as np
from pydicom import Dataset

from node.errors import InvalidResult
from node.forms import SOP_CLASSES, Form, Recipe
from node.records import RESEARCH_NOTICE
from workers import segments
from workers.case import Case
from workers.ownership import belongs
from workers.readback import Reading, Segment, described, read_back, shown
from workers.seg import FULL, SYNTAXES, TYPES
from workers.volume import Volume
from workers.writing import TELL_US, translated

_NEEDED = (
    "SeriesInstanceUID", "SeriesNumber", "SeriesDate", "SeriesDescription", "ReferencedSeriesSequence",
    "SegmentSequence", "SoftwareVersions", "DeviceSerialNumber", "DimensionIndexSequence",
)  # fmt: skip
_NEEDED_OF_SEGMENT = (
    "SegmentLabel", "SegmentAlgorithmName", "SegmentedPropertyCategoryCodeSequence",
    "SegmentedPropertyTypeCodeSequence", "RecommendedDisplayCIELabValue", "TrackingID", "TrackingUID",
    "SegmentationAlgorithmIdentificationSequence",
)  # fmt: skip
_COLOUR_TOLERANCE = 1  # of 255: CIELab is written in 16 bits, and read back rounds


def check_segmentation(data: bytes, case: Case, recipe: Recipe) -> None:
    """Read the written bytes of a recipe back and hold them against the case that they were made of.

    Raises
    ------
    InvalidResult
        Voxels, segments, geometry, patient, references, type or identity differ from what they must be, or something
        is missing that viewers need. Nothing that fails here may leave the worker.
    """
    reading = read_back(data, case.volume)
    with translated():
        _check_voxels(reading, case, recipe)
        _check_identity(reading.dataset, case, recipe)
        _require(
            belongs(reading.dataset, case.volume.sources[0]),
            "the written segmentation names another patient or study than its series",
        )
        _check_references(reading, case.volume)
        _check_segments(reading.dataset, case)


def _require(right: object, reason: str) -> None:
    if not right:
        raise InvalidResult(reason, TELL_US)


def _check_voxels(reading: Reading, case: Case, recipe: Recipe) -> None:
    """Hold what was read against the model's own mask as well: segments may have been made of it wrongly."""
    box, listed = case.segments.box, case.segments.listed
    inside = reading.mask[box]
    values = np.zeros(256, np.uint8)  # by segment number
    values[[segment.number for segment in listed]] = [segment.label.value for segment in listed]
    within = np.count_nonzero(inside)
    _require(
        np.array_equal(inside, case.segments.mask[box])
        and np.array_equal(values[inside], case.mask[box])
        and within == int(reading.filled.sum()) == np.count_nonzero(case.mask),  # so that nothing lies outside the box
        "the written segmentation differs from the mask",
    )
    each = 1 if recipe.form is Form.LABELMAP else len(case.segments.listed)
    right = len(reading.places) == each * len(reading.mask) if recipe.all_frames else reading.filled.all()
    _require(right, "the written segmentation has too many frames, or too few")


def _check_identity(dataset: Dataset, case: Case, recipe: Recipe) -> None:
    for keyword in _NEEDED:
        _require(dataset.get(keyword) not in (None, "", []), f"the written segmentation has no {keyword}")
    meta = dataset.file_meta
    found = (
        *(str(dataset[k].value) for k in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SegmentationType")),
        *(str(meta[k].value) for k in ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")),
    )
    sop_class, sop_uid = SOP_CLASSES[recipe.form], case.uid("SEG instance", recipe)
    expected = (
        sop_class, sop_uid, case.uid("SEG series", recipe), TYPES[recipe.form],
        sop_class, sop_uid, str(SYNTAXES[recipe.compression]),
    )  # fmt: skip
    _require(found == expected, "the written segmentation is of another type, syntax or identity than was asked")
    if recipe.form is Form.FRACTIONAL:
        fractional = (str(dataset.SegmentationFractionalType), int(dataset.MaximumFractionalValue))
        _require(fractional == ("OCCUPANCY", FULL), "the written segmentation means something else by its fractions")
    _require(dataset.get("Modality") == "SEG", "the written segmentation is of another modality")
    _require(
        dataset.get("ContentDescription") == RESEARCH_NOTICE, "the written segmentation does not say: for research only"
    )


def _check_references(reading: Reading, volume: Volume) -> None:
    series = reading.dataset.ReferencedSeriesSequence[0]
    named = {
        (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
        for item in series.ReferencedInstanceSequence
    }
    _require(
        str(series.SeriesInstanceUID) == volume.series_uid
        and named == {(str(source.SOPClassUID), str(source.SOPInstanceUID)) for source in volume.sources},
        "the written segmentation does not refer to all images of its series",
    )
    for group, place in zip(reading.dataset.PerFrameFunctionalGroupsSequence, reading.places, strict=True):
        derived = group.get("DerivationImageSequence") or [Dataset()]
        images = derived[0].get("SourceImageSequence") or [Dataset()]
        found = str(images[0].get("ReferencedSOPInstanceUID", "")), images[0].get("ReferencedFrameNumber")
        if volume.frame_numbers:
            expected = str(volume.sources[0].SOPInstanceUID), volume.frame_numbers[place]
        else:
            expected = str(volume.sources[place].SOPInstanceUID), None
        _require(found == expected, "a frame of the segmentation does not refer to the image it lies on")


def _check_segments(dataset: Dataset, case: Case) -> None:
    items = described(dataset)
    for item in items:
        for keyword in _NEEDED_OF_SEGMENT:
            _require(item.get(keyword) not in (None, "", []), f"a segment has no {keyword}")
    _require(
        [(int(item.SegmentNumber), item.SegmentLabel) for item in items]
        == [(segment.number, segment.words) for segment in case.segments.listed],
        "the written segments are not the labels of the mask",
    )
    told = ",".join(f"{name}={value}" for name, value in case.told.items())
    for item, segment in zip(items, case.segments.listed, strict=True):
        _require(_meaning(item) == _meant(segment), f"segment {segment.number} has other codes or another identity")
        _require(_close(shown(item), segment), f"segment {segment.number} has another colour")
        algorithm = item.SegmentationAlgorithmIdentificationSequence[0]
        _require(
            (item.SegmentAlgorithmType, item.SegmentAlgorithmName) == ("AUTOMATIC", case.manifest.name)
            and (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (case.manifest.name, case.manifest.version)
            and algorithm.AlgorithmParameters == told,
            f"segment {segment.number} names another algorithm",
        )


def _meaning(item: Dataset) -> tuple[object, ...]:
    regions = item.get("AnatomicRegionSequence") or ()
    return (
        item.TrackingID, item.TrackingUID,
        *(_triple(item[f"SegmentedProperty{word}CodeSequence"].value[0]) for word in ("Category", "Type")),
        _triple(regions[0]) if regions else None,
    )  # fmt: skip


def _meant(segment: segments.Segment) -> tuple[object, ...]:
    meaning = segment.meaning
    return segment.words, segment.tracking_uid, meaning.category, meaning.type, meaning.region


def _triple(code: Dataset) -> tuple[str, str, str]:
    return str(code.CodeValue), str(code.CodingSchemeDesignator), str(code.CodeMeaning)


def _close(found: Segment, segment: segments.Segment) -> bool:
    differences = (abs(one - other) for one, other in zip(found.colour, segment.meaning.colour, strict=True))
    return max(differences) <= _COLOUR_TOLERANCE
