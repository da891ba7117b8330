"""Whose an object is: patient and study are those of the images as they were read, not of a copy made on the way.

What writes an object takes both from a header that was completed first; a fault there must not pass its own gate.
"""

from __future__ import annotations

from collections.abc import Callable

from pydicom import Dataset

from workers.values import date_of, sex_of, time_of

# Archives file an object by these (PS3.3 C.7.1.1, C.7.2.1); they are the source's own, whatever they are.
_IDENTIFIERS = ("PatientID", "PatientName", "IssuerOfPatientID", "StudyInstanceUID", "AccessionNumber", "StudyID")


def belongs(dataset: Dataset, source: Dataset) -> bool:
    """Tell whether an object is of the patient and study of `source`, the header of an image as it was read.

    Of birth date, sex, and date and time of the study a value that its VR does not allow may have been left out, and a
    date may have been brought into the form of DA; all else is the same.
    """
    return (
        all(_text(dataset, keyword) == _text(source, keyword) for keyword in _IDENTIFIERS)
        and _is_kept(dataset, source, "PatientBirthDate", date_of)
        and _is_kept(dataset, source, "StudyDate", date_of)
        and _is_kept(dataset, source, "StudyTime", time_of)
        and _is_kept(dataset, source, "PatientSex", sex_of)
    )


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value)


def _is_kept(dataset: Dataset, source: Dataset, keyword: str, valid: Callable[[str], str]) -> bool:
    """Tell whether a value is the source's, or what `valid` makes of it; where that is empty, it may be left out."""
    found, given = _text(dataset, keyword).strip(), _text(source, keyword).strip()
    return found in (given, valid(given)) or (not found and valid(given) != given)
