"""The Specific Character Set of a result (PS3.3 C.12.1.1.2): its source's where that holds all words, else UTF-8."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydicom.charset import convert_encodings, decode_bytes, encode_string

# Of the defined terms those that highdicom takes; see the test.
_ALONE = (13, 100, 101, 109, 110, 126, 127, 138, 144, 148, 166, 203)
CHARACTER_SETS = frozenset(
    {"GB18030", "GBK", "ISO_IR 192", *(f"ISO_IR {n}" for n in _ALONE)}
    | {f"ISO 2022 IR {n}" for n in (*_ALONE, 6, 58, 87, 159)}
)
UTF8 = "ISO_IR 192"
_EXTENDED = "ISO 2022 IR "
# Of two bytes: only an escape sequence brings them.
_NOT_FIRST = frozenset({f"{_EXTENDED}{n}" for n in (87, 159)})
_SIMPLIFIED_CHINESE = f"{_EXTENDED}58"  # beside others highdicom builds nothing with it


def character_sets(given: Sequence[str], ours: str, theirs: Iterable[str]) -> Sequence[str]:
    """Return the terms that a result is written in: `given`, those of its source, or UTF-8; none is ASCII.

    They stay if they are terms of the standard that may stand together, `ours`, words of our own, are in ASCII, and
    `theirs`, texts of the source, can be written and read in them.
    """
    encodings = convert_encodings(list(given)) if _agree(given) else []
    if ours.isascii() and encodings and all(_survives(text, encodings) for text in theirs):
        return given
    return [UTF8]


def _agree(given: Sequence[str]) -> bool:
    if not set(given) <= CHARACTER_SETS:
        return False
    extended = [term.startswith(_EXTENDED) for term in given]
    if len(given) < 2:
        return not any(extended)
    return all(extended) and given[0] not in _NOT_FIRST and _SIMPLIFIED_CHINESE not in given


def _survives(text: str, encodings: Sequence[str]) -> bool:
    if text.isascii():
        return True
    try:
        return "\ufffd" not in text and decode_bytes(encode_string(text, encodings), encodings, set()) == text
    except (ValueError, LookupError):
        return False
