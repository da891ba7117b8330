"""What each frame of a Segmentation says of itself, as part of the gate in `workers.inspection`.

A multi-frame object says where it lies by functional groups (PS3.3 C.7.6.16): those shared by all frames, and those of
each. There are hundreds of the latter, so that attributes are looked up by tag, which takes half as long.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from pydicom import Dataset
from pydicom.tag import Tag

from node.forms import Form, Recipe
from workers.case import Case
from workers.heading import refuse_unless
from workers.readback import Reading
from workers.volume import Volume

_DERIVATION, _SOURCE_IMAGE = Tag("DerivationImageSequence"), Tag("SourceImageSequence")
_REFERENCE = tuple(
    Tag(keyword)
    for keyword in (
        "ReferencedSOPClassUID", "ReferencedSOPInstanceUID", "ReferencedFrameNumber", "SpatialLocationsPreserved",
    )
)  # fmt: skip
_CONTENT, _INDEX = Tag("FrameContentSequence"), Tag("DimensionIndexValues")
# What frames are indexed by: the attribute, and the functional group that holds it (PS3.3 C.7.6.17).
_BY_PLACE = (Tag("ImagePositionPatient"), Tag("PlanePositionSequence"))
_BY_SEGMENT = (Tag("ReferencedSegmentNumber"), Tag("SegmentIdentificationSequence"))
_NOTHING = Dataset()
_ROUNDING = 1e-6  # a decimal string has 16 characters


def check_frames(reading: Reading, case: Case, recipe: Recipe) -> None:
    """Check the functional groups of all frames, and the dimensions by which they are indexed.

    Raises
    ------
    InvalidResult
        Measures are not those of the volume, a frame contradicts what all share, is not said to be derived from the
        image it lies on (PS3.3 C.7.6.16.2.6), or has indices that do not tell its segment and place (C.7.6.17).
    """
    _check_measures(reading.dataset, case)
    _check_groups(reading, case.volume)
    _check_dimensions(reading, case, recipe)


def _check_measures(dataset: Dataset, case: Case) -> None:
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    source = case.sources[0]
    if case.volume.frame_numbers:
        source = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    for keyword, value in (
        ("SpacingBetweenSlices", case.volume.spacing[0]),
        ("SliceThickness", float(source.SliceThickness)),
    ):
        found = float(measures.get(keyword) or 0)
        refuse_unless(
            found > 0 and math.isclose(found, value, rel_tol=_ROUNDING),
            f"the written segmentation has another {keyword}",
        )


def _check_groups(reading: Reading, volume: Volume) -> None:
    shared = reading.dataset.SharedFunctionalGroupsSequence[0].keys()
    expected = _expected(volume)
    right: set[tuple[object, int]] = set()  # segments on one slice refer to its image by the same bytes
    for group, place in zip(reading.dataset.PerFrameFunctionalGroupsSequence, reading.places, strict=True):
        refuse_unless(
            shared.isdisjoint(group.keys()), "a frame of the segmentation says otherwise what all its frames share"
        )
        raw = group.get_item(_DERIVATION).value if _DERIVATION in group else b""
        raw = raw if isinstance(raw, bytes) else id(raw)  # of undefined length, and parsed already
        if (raw, place) in right:
            continue
        image = _only(_only(group, _DERIVATION), _SOURCE_IMAGE)
        refuse_unless(
            [_value(image, tag) for tag in _REFERENCE] == expected[place],
            "a frame of the segmentation does not refer to the image it lies on, or to others",
        )
        right.add((raw, place))


def _expected(volume: Volume) -> list[list[object]]:
    """Return what a frame's reference says, by frame of the volume, in the order of `_REFERENCE`."""
    if volume.frame_numbers:
        source = volume.sources[0]
        return [[source.SOPClassUID, source.SOPInstanceUID, number, "YES"] for number in volume.frame_numbers]
    return [[source.SOPClassUID, source.SOPInstanceUID, None, "YES"] for source in volume.sources]


def _check_dimensions(reading: Reading, case: Case, recipe: Recipe) -> None:
    """Check that indices count from 1, tell each frame from all others, and say which segment and place it is of."""
    dataset = reading.dataset
    pointers, meant = [_BY_PLACE], [tuple(reading.places)]
    if recipe.form is not Form.LABELMAP:
        pointers, meant = [_BY_SEGMENT, _BY_PLACE], [reading.numbers, *meant]
    uid = case.uid("SEG dimensions", recipe)
    described = [
        (item.DimensionOrganizationUID, (item.DimensionIndexPointer, item.FunctionalGroupPointer))
        for item in dataset.get("DimensionIndexSequence") or ()
    ]
    organizations = [item.DimensionOrganizationUID for item in dataset.get("DimensionOrganizationSequence") or ()]
    refuse_unless(
        organizations == [uid] and described == [(uid, pointer) for pointer in pointers],
        "the written segmentation does not describe its dimensions",
    )
    values = [_indices(group) for group in dataset.PerFrameFunctionalGroupsSequence]
    refuse_unless(
        {len(value) for value in values} == {len(meant)}
        and len(set(values)) == len(values)
        and all(map(_corresponds, zip(*values, strict=True), meant)),
        "the indices of a frame do not tell its segment and place",
    )


def _corresponds(values: tuple[int, ...], meant: tuple[int, ...]) -> bool:
    """Tell whether each value stands for one thing, and each thing has one value."""
    return min(values) >= 1 and len(set(values)) == len(set(meant)) == len(set(zip(values, meant, strict=True)))


def _indices(group: Dataset) -> tuple[int, ...]:
    content = _only(group, _CONTENT)
    raw = content.get_item(_INDEX).value if _INDEX in content else b""
    return struct.unpack(f"<{len(raw) // 4}I", raw)


def _only(holder: Dataset, tag: Any) -> Dataset:
    """Return the only item of a sequence; an empty one where it is absent, or has none or several."""
    items = _value(holder, tag)
    return items[0] if items is not None and len(items) == 1 else _NOTHING


def _value(holder: Dataset, tag: Any) -> Any:
    return holder[tag].value if tag in holder else None
