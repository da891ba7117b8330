"""The gate that every Segmentation passes, from its bytes, before it leaves a worker.

Its voxels are those of the mask, and it says all that viewers and archives need to show it right: without a reference
per frame they draw overlays on wrong slices, without one to the series they do not open it, and say nothing.
"""

from __future__ import annotations

import numpy as np
from pydicom import Dataset

from node.forms import SOP_CLASSES, Form, Recipe
from node.records import RESEARCH_NOTICE
from workers import segments
from workers.case import Case
from workers.framecheck import check_frames
from workers.heading import equipment, refuse_unless
from workers.ownership import belongs
from workers.readback import Reading, Segment, described, read_back, shown
from workers.seg import FULL, SYNTAXES, TYPES
from workers.volume import Volume
from workers.writing import translated

_NEEDED = ("SeriesInstanceUID", "ReferencedSeriesSequence", "SegmentSequence", "ContentLabel")
# Bits Allocated, Bits Stored and High Bit (PS3.3 C.8.20.2.1).
_BITS = {Form.SEG: (1, 1, 0), Form.LABELMAP: (8, 8, 7), Form.FRACTIONAL: (8, 8, 7)}
_NEEDED_OF_SEGMENT = (
    "SegmentLabel", "SegmentAlgorithmName", "SegmentedPropertyCategoryCodeSequence",
    "SegmentedPropertyTypeCodeSequence", "RecommendedDisplayCIELabValue", "TrackingID", "TrackingUID",
    "SegmentationAlgorithmIdentificationSequence",
)  # fmt: skip
_FAMILY = ("123110", "DCM", "Artificial Intelligence")
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
        refuse_unless(
            belongs(reading.dataset, case.volume.sources[0]),
            "the written segmentation names another patient or study than its series",
        )
        _check_references(reading.dataset, case.volume)
        _check_segments(reading.dataset, case)
        check_frames(reading, case, recipe)


def _check_voxels(reading: Reading, case: Case, recipe: Recipe) -> None:
    """Hold what was read against the model's own mask as well: segments may have been made of it wrongly."""
    box, listed = case.segments.box, case.segments.listed
    inside = reading.mask[box]
    values = bytearray(256)  # of labels, by segment number
    for segment in listed:
        values[segment.number] = segment.label.value
    within = np.count_nonzero(inside)
    refuse_unless(
        np.array_equal(inside, case.segments.mask[box])
        and inside.tobytes().translate(values) == case.mask[box].tobytes()  # numpy's look-up takes far longer
        and within == int(reading.filled.sum()) == np.count_nonzero(case.mask),  # so that nothing lies outside the box
        "the written segmentation differs from the mask",
    )
    each = 1 if recipe.form is Form.LABELMAP else len(case.segments.listed)
    right = len(reading.places) == each * len(reading.mask) if recipe.all_frames else reading.filled.all()
    refuse_unless(right, "the written segmentation has too many frames, or too few")


def _check_identity(dataset: Dataset, case: Case, recipe: Recipe) -> None:
    for keyword in _NEEDED:
        refuse_unless(dataset.get(keyword) not in (None, "", []), f"the written segmentation has no {keyword}")
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
    refuse_unless(found == expected, "the written segmentation is of another type, syntax or identity than was asked")
    if recipe.form is Form.FRACTIONAL:
        fractional = (str(dataset.SegmentationFractionalType), int(dataset.MaximumFractionalValue))
        refuse_unless(
            fractional == ("OCCUPANCY", FULL), "the written segmentation means something else by its fractions"
        )
    refuse_unless(
        dataset.get("ContentDescription") == RESEARCH_NOTICE, "the written segmentation does not say: for research only"
    )
    for keyword, value in _said(case, recipe).items():
        refuse_unless(
            dataset.get(keyword) == value, f"the written segmentation has no {keyword}, or another than it must"
        )


def _said(case: Case, recipe: Recipe) -> dict[str, object]:
    """Return what an object says of its series, equipment and pixels, by keyword (PS3.3 C.8.20.1, C.8.20.2)."""
    allocated, stored, high = _BITS[recipe.form]
    date, time = case.when
    return {
        "Modality": "SEG",
        "SeriesNumber": case.series_number(recipe.form),
        "SeriesDescription": case.series_description(recipe),
        "SeriesDate": date,
        "SeriesTime": time,
        "InstanceNumber": 1,
        "ContentDate": date,
        "ContentTime": time,
        "ImageType": ["DERIVED", "PRIMARY"],
        "LossyImageCompression": "01" if case.sources[0].get("LossyImageCompression") == "01" else "00",
        "SegmentsOverlap": "NO",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": allocated,
        "BitsStored": stored,
        "HighBit": high,
        "PixelRepresentation": 0,
        **equipment(case),
    }


def _check_references(dataset: Dataset, volume: Volume) -> None:
    """Check the Common Instance Reference Module (PS3.3 C.12.2): the source series, and each of its images once."""
    (series, *others) = dataset.ReferencedSeriesSequence
    named = [
        (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
        for item in series.ReferencedInstanceSequence
    ]
    expected = [(str(source.SOPClassUID), str(source.SOPInstanceUID)) for source in volume.sources]
    refuse_unless(
        not others and str(series.SeriesInstanceUID) == volume.series_uid and sorted(named) == sorted(expected),
        "the written segmentation does not refer to all images of its series, or to others",
    )


def _check_segments(dataset: Dataset, case: Case) -> None:
    items = described(dataset)
    for item in items:
        for keyword in _NEEDED_OF_SEGMENT:
            refuse_unless(item.get(keyword) not in (None, "", []), f"a segment has no {keyword}")
    refuse_unless(
        [(int(item.SegmentNumber), item.SegmentLabel) for item in items]
        == [(segment.number, segment.words) for segment in case.segments.listed],
        "the written segments are not the labels of the mask",
    )
    told = ",".join(f"{name}={value}" for name, value in case.told.items())
    for item, segment in zip(items, case.segments.listed, strict=True):
        refuse_unless(
            _meaning(item) == _meant(segment), f"segment {segment.number} has other codes or another identity"
        )
        refuse_unless(_close(shown(item), segment), f"segment {segment.number} has another colour")
        algorithm = item.SegmentationAlgorithmIdentificationSequence[0]
        refuse_unless(
            (item.SegmentAlgorithmType, item.SegmentAlgorithmName) == ("AUTOMATIC", case.manifest.name)
            and (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (case.manifest.name, case.manifest.version)
            and algorithm.AlgorithmParameters == told
            and _triple(algorithm.AlgorithmFamilyCodeSequence[0]) == _FAMILY,
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
