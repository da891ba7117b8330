"""The labels of a model: what each value of its mask stands for, in words, in coded terms and in colour."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

# ASCII, as sources have all character sets, without a backslash; segments add up to 17 characters to it, as in
# ", level not known", and hold 64 (LO, PS3.5 6.2).
_NAME = r"[!-\[\]-~][ -\[\]-~]{0,46}"


@dataclass(frozen=True)
class Code:
    """A coded concept: its value in a coding scheme, such as SCT, and its meaning in words."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Label:
    """One class of the mask. `value` is its number in the mask and its channel in the logits; 0 is background.

    `code` says what it is, `category` what kind of thing, `region` where it lies; `colour` is sRGB 0..255. A label has
    code, category and colour, or none of them. Connected parts smaller than `least_mm3` are not given this label.
    """

    value: int
    name: str
    code: Code | None = None
    category: Code | None = None
    colour: tuple[int, int, int] | None = None
    region: Code | None = None
    least_mm3: float = 0.0


def parse_labels(value: object, error: ValueError) -> tuple[Label, ...]:
    """The labels of a manifest's field, values 1, 2, … in order; raises `error` for what is wrong with them."""
    if not isinstance(value, list) or not value:
        raise error
    labels = []
    for number, item in enumerate(value, start=1):
        item = as_object(item, error)
        coded = set(item) - {"value", "name", "least_mm3"}
        if item.get("value") != number or not matches(_NAME, item.get("name")):
            raise error
        if coded and coded - {"region"} != {"code", "category", "colour"}:
            raise error
        colour = item.get("colour", [])
        if coded and (not isinstance(colour, list) or [type(n) is int and 0 <= n <= 255 for n in colour] != [True] * 3):
            raise error
        least = item.get("least_mm3", 0.0)
        if not is_number(least) or least < 0:
            raise error
        codes = {field: _code(item[field], error) for field in ("code", "category", "region") if field in item}
        shown = tuple(colour) if coded else None
        labels.append(Label(number, item["name"], colour=shown, least_mm3=float(least), **codes))
    if len({label.name for label in labels}) != len(labels):
        raise error
    return tuple(labels)


def _code(value: object, error: ValueError) -> Code:
    item = as_object(value, error)
    # What DICOM takes: SH for value and scheme, LO for the meaning (PS3.5 6.2).
    if set(item) != {"value", "scheme", "meaning"} or not all(
        matches(rf"[^\\\s]([^\\\r\n\t]{{0,{length - 1}}})", item[field])
        for field, length in (("value", 16), ("scheme", 16), ("meaning", 64))
    ):
        raise error
    return Code(**item)


def as_object(value: object, error: ValueError) -> dict[str, Any]:
    """`value` if it is a JSON object; raises `error` otherwise."""
    if not isinstance(value, dict):
        raise error
    return value


def matches(pattern: str, value: object) -> bool:
    """Whether `value` is a text that fits the whole pattern."""
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def is_number(value: object) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
