"""Whether the pixel data of an encoded data set is all there (PS3.5 sections 7.1 and A.4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from pydicom.uid import UID

from node.errors import InvalidInstance
from node.headerstream import HEAD, ReadAt

_UNDEFINED = 0xFFFFFFFF
_SEQUENCE_DELIMITER = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


@dataclass(frozen=True)
class Syntax:
    """What a transfer syntax says of how a data set is encoded."""

    is_deflated: bool
    is_implicit: bool
    is_little_endian: bool


@lru_cache(maxsize=64)
def syntax_of(transfer_syntax_uid: str) -> Syntax:
    """Return what a transfer syntax says."""
    uid = UID(transfer_syntax_uid)
    return Syntax(uid.is_deflated, uid.is_implicit_VR, uid.is_little_endian)


def check_pixel_data(read_at: ReadAt, size: int, start: int, syntax: Syntax) -> None:
    """Check that a data set is whole: its pixel data element begins at `start`, or it ends there.

    Raises
    ------
    InvalidInstance
        Less is there than the element says, or no end of its fragments.
    """
    rest = size - start
    if rest == 0:
        return
    if rest < 8:
        raise InvalidInstance("the data set ends within an element", "send the image again: it was cut short")
    if syntax.is_implicit:
        offset, length = 8, struct.unpack("<L", read_at(4, start + 4))[0]
    else:
        if rest < 12:
            raise InvalidInstance("the data set ends within its pixel data", "send the image again: it was cut short")
        offset, length = 12, struct.unpack("<L" if syntax.is_little_endian else ">L", read_at(4, start + 8))[0]
    fits = length <= rest - offset
    if length == _UNDEFINED:  # encapsulated: fragments up to a sequence delimiter (PS3.5 A.4)
        fits = _has_delimiter(read_at, start, size)
    if not fits:
        raise InvalidInstance("the pixel data ends early", "send the image again: it was cut short")


def _has_delimiter(read_at: ReadAt, start: int, size: int) -> bool:
    """Look for a sequence delimiter, from the end backwards: it lies there, or nowhere."""
    position = size
    while position > start:
        before, position = position, max(start, position - HEAD)
        if _SEQUENCE_DELIMITER in read_at(before - position + len(_SEQUENCE_DELIMITER) - 1, position):
            return True
    return False
