"""Values of headers, which hold whatever a writer took for one: each as its VR has it, or empty (PS3.5 6.2)."""

from __future__ import annotations

import re
from datetime import datetime

_DATE = re.compile(r"([0-9]{4})(\.?)([0-9]{2})\2([0-9]{2})")  # with dots by ACR-NEMA
_TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?")


def date_of(value: object) -> str:
    """Return a date in the form of DA, empty where it is none of the calendar."""
    match = _DATE.fullmatch(_text(value))
    digits = "".join(match.group(1, 3, 4)) if match else ""
    try:
        datetime.strptime(digits, "%Y%m%d")
    except ValueError:
        return ""
    return digits


def time_of(value: object) -> str:
    """Return a time of the form of TM as it is, empty where it is none."""
    text = _text(value)
    return text if _TIME.fullmatch(text) else ""


def sex_of(value: object) -> str:
    """Return a Patient's Sex, empty where it is none of the defined ones (PS3.3 C.7.1.1)."""
    text = _text(value)
    return text if text in ("M", "F", "O") else ""


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
