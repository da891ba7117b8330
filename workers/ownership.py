"""Whose an object is: patient and study are those of the images as they were read, not of a copy made on the way.

What writes an object takes both from a header that was completed first; a fault there must not pass its own gate.
"""

from __future__ import annotations

import re
from datetime import datetime

from pydicom import Dataset

# Archives file an object by these (PS3.3 C.7.1.1, C.7.2.1); they are the source's own, whatever they are.
_IDENTIFIERS = ("PatientID", "PatientName", "IssuerOfPatientID", "StudyInstanceUID", "AccessionNumber", "StudyID")
_DATE = re.compile(r"([0-9]{4})(\.?)([0-9]{2})\2([0-9]{2})")  # with dots by ACR-NEMA (PS3.5 6.2)
_TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?")
_SEX = re.compile("[MFO]")


def belongs(dataset: Dataset, source: Dataset) -> bool:
    """Tell whether an object is of the patient and study of `source`, the header of an image as it was read.

    Of birth date, sex, and date and time of the study a value that its VR does not allow may have been left out, and a
    date may have been brought into the form of DA; all else is the same.
    """
    return (
        all(_text(dataset, keyword) == _text(source, keyword) for keyword in _IDENTIFIERS)
        and all(_is_date_of(dataset, source, keyword) for keyword in ("PatientBirthDate", "StudyDate"))
        and _is_kept(dataset, source, "StudyTime", _TIME)
        and _is_kept(dataset, source, "PatientSex", _SEX)
    )


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value)


def _is_kept(dataset: Dataset, source: Dataset, keyword: str, allowed: re.Pattern[str]) -> bool:
    found, given = _text(dataset, keyword).strip(), _text(source, keyword).strip()
    return found == given or (not found and not allowed.fullmatch(given))


def _is_date_of(dataset: Dataset, source: Dataset, keyword: str) -> bool:
    found, given = _text(dataset, keyword).strip(), _text(source, keyword).strip()
    return found in (given, _date(given)) or (not found and _date(given) != given)


def _date(given: str) -> str:
    """Return a date in the form of DA, empty where it is none of the calendar."""
    match = _DATE.fullmatch(given)
    digits = "".join(match.group(1, 3, 4)) if match else ""
    try:
        datetime.strptime(digits, "%Y%m%d")
    except ValueError:
        return ""
    return digits
