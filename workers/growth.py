"""What a report says of lesions that an earlier result held: their volume then, and by how much it has changed.

The standard has no code for a change of volume since another study, so these two are of a scheme of our own, which the
object names (PS3.3 C.12.1.1.1); the same stands in words beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.coding import Code

from workers.earlier import Before, Earlier
from workers.heading import item
from workers.lesions import Lesion

SCHEME = "99PENNODE"
VOLUME_THEN = Code("VOLUME_EARLIER", SCHEME, "Volume in earlier result")
CHANGE = Code("VOLUME_CHANGE", SCHEME, "Change of volume since earlier result")
CHANGE_PERCENT = Code("VOLUME_CHANGE_P", SCHEME, "Change of volume since earlier result, percent")
_ML, _PERCENT = Code("cm3", "UCUM", "cubic centimeter"), Code("%", "UCUM", "Percent")
_SUMMED = Code("126030", "DCM", "Sum of segmented voxel method for volume")


def figure(value: float) -> float:
    """Return a figure with no more digits than it is worth; DS holds 16 characters (PS3.5 6.2)."""
    return float(f"{value:.4g}")


def scheme() -> hd.coding_schemes.CodingSchemeIdentificationItem:
    """Return the description of our own coding scheme."""
    return hd.coding_schemes.CodingSchemeIdentificationItem(
        SCHEME, name="pennode", responsible_organization="the makers of pennode"
    )


def measured(lesion: Lesion, before: Before, earlier: Earlier) -> list[sr.Measurement]:
    """Return the volume of a lesion in an earlier result, and its change in ml and percent."""
    change = lesion.volume_ml - before.volume_ml
    source = sr.SourceImageForMeasurement(earlier.sop_class_uid, earlier.sop_uid)
    return [
        sr.Measurement(VOLUME_THEN, figure(before.volume_ml), _ML, method=_SUMMED, referenced_images=[source]),
        sr.Measurement(CHANGE, figure(change), _ML),
        sr.Measurement(CHANGE_PERCENT, figure(100 * change / before.volume_ml), _PERCENT),
    ]


def in_words(lesion: Lesion, earlier: Earlier) -> str:
    """Return what became of a lesion since an earlier result."""
    before = lesion.before
    if before is None:
        return (
            f"No lesion of the earlier result{_of(earlier)} was matched with it: that may not cover this place, "
            "or it was part of another."
        )
    change = lesion.volume_ml - before.volume_ml
    return (
        f"In the earlier result{_of(earlier)}: {before.volume_ml:.2f} ml. "
        f"Change: {change:+.2f} ml, {100 * change / before.volume_ml:+.0f} %."
    )


def gone(lesions: Sequence[Lesion], earlier: Earlier) -> list[str]:
    """Return what to say of lesions of an earlier result that no lesion of now was matched with."""
    found = {lesion.before.number for lesion in lesions if lesion.before is not None}
    return [
        f"{before.tracking_id} of the earlier result{_of(earlier)} ({before.volume_ml:.2f} ml) was matched with none "
        "here: this series may not cover it, or it is part of another."
        for before in earlier.lesions
        if before.number not in found
    ]


def cited(earlier: Earlier) -> Dataset:
    """Return what a report needs of an earlier result to name it as evidence."""
    return item(
        SOPClassUID=earlier.sop_class_uid,
        SOPInstanceUID=earlier.sop_uid,
        SeriesInstanceUID=earlier.series_uid,
        StudyInstanceUID=earlier.study_uid,
    )


def _of(earlier: Earlier) -> str:
    date = earlier.date
    return f" of {date[:4]}-{date[4:6]}-{date[6:]}" if date else ""
