"""Which object a data set says it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from node.records import Header


@dataclass(frozen=True)
class Identity:
    """Which object a data set says it is, and its header."""

    sop_class_uid: str
    sop_uid: str
    series_uid: str
    study_uid: str
    header: Header


def clean(text: str) -> str:
    """Return a peer's text without what a database, a log line or a terminal would stumble over."""
    text = text[:128]
    return (text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)).strip()


def finite(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    """Return `values` if they are `count` finite numbers, else none."""
    return values if len(values) == count and all(map(math.isfinite, values)) else ()
