"""The head of a DICOM file: preamble, prefix and file meta information (PS3.10 section 7.1)."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from pydicom import uid

from node.errors import InvalidInstance

# Who wrote the file. pydicom's, as long as pennode has no root of its own.
_IMPLEMENTATION_UID = str(uid.PYDICOM_IMPLEMENTATION_UID)
_IMPLEMENTATION_VERSION = "PENNODE"
# File Meta Information Group Length comes first, and what it counts begins behind its value.
_PREFIX = bytes(128) + b"DICM"
_START = _PREFIX + struct.pack("<HH2sH", 2, 0, b"UL", 4)
_META_AT = len(_START) + 4
_GROUP = b"\2\0"
# What a head may measure with all private information in it.
MAX_HEAD = 65536
_LONG_VR = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_NEEDED = {
    0x0002: "Media Storage SOP Class UID",
    0x0003: "Media Storage SOP Instance UID",
    0x0010: "Transfer Syntax UID",
}
_RESEND = "send DICOM files (PS3.10 section 7.1), each whole"


@dataclass(frozen=True)
class Head:
    """What the head of a file says, unchecked, and its length in bytes: there the data set begins."""

    sop_class_uid: str
    sop_uid: str
    transfer_syntax_uid: str
    length: int


def file_head(sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str, calling_ae: str = "") -> bytes:
    """Return what comes before the data set of this object in a file. The UIDs have been checked."""
    before, after = _around(sop_class_uid, transfer_syntax_uid, calling_ae)
    meta = before + _element(0x0003, b"UI", sop_uid) + after
    return b"%s%s%s" % (_START, len(meta).to_bytes(4, "little"), meta)


def skip_head(file: BinaryIO) -> None:
    """Put a file that begins with `file_head` where its data set begins."""
    start = file.read(_META_AT)
    file.seek(int.from_bytes(start[-4:], "little"), 1)


@lru_cache(maxsize=256)
def _around(sop_class_uid: str, transfer_syntax_uid: str, calling_ae: str) -> tuple[bytes, bytes]:
    """Return the elements before and after the SOP Instance UID: the same for all images of a series."""
    before = struct.pack("<HH2sxxL", 2, 0x0001, b"OB", 2) + b"\x00\x01" + _element(0x0002, b"UI", sop_class_uid)
    after = [
        _element(0x0010, b"UI", transfer_syntax_uid),
        _element(0x0012, b"UI", _IMPLEMENTATION_UID),
        _element(0x0013, b"SH", _IMPLEMENTATION_VERSION),
    ]
    if calling_ae:
        after.append(_element(0x0016, b"AE", calling_ae))
    return before, b"".join(after)


def data_set_length(path: Path) -> int:
    """Return how many bytes of a file belong to its data set; -1 when it does not begin as a DICOM file does.

    Raises
    ------
    OSError
        It is not there, or cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        start = file.read(_META_AT)
        whole = os.fstat(file.fileno()).st_size
    if len(start) < _META_AT or start[128:-4] != _START[128:]:
        return -1
    return max(-1, whole - _META_AT - int.from_bytes(start[-4:], "little"))


def _element(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", errors="replace")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


def read_head(data: bytes) -> Head | None:
    """Read the head of a file of which `data` is the beginning; None: more of it is needed, up to `MAX_HEAD` bytes.

    Raises
    ------
    InvalidInstance
        There is no preamble with its prefix, or the file meta information is malformed, too long, or lacks a UID.
    """
    if data[128 : len(_PREFIX)] != b"DICM"[: max(0, len(data) - 128)]:
        raise InvalidInstance("it does not begin as a DICOM file does", _RESEND)
    values, position, end = dict[int, bytes](), len(_PREFIX), 0
    while position != end:
        # The group length, where it is given, has the word: a deflated data set may begin with anything.
        if not end and data[position : position + 2] not in (b"", b"\2", _GROUP):
            break
        found = _read_element(data, position)
        if found is None:
            if len(data) >= MAX_HEAD:
                raise InvalidInstance("its file meta information is too long", _RESEND)
            return None
        element, value, position = found
        if element == 0 and not values:
            end = position + int.from_bytes(value, "little")
        if end and not position <= end <= MAX_HEAD:
            raise InvalidInstance("its file meta information has not the length that it says, or is too long", _RESEND)
        values[element] = value
    texts = {e: values.get(e, b"").decode("ascii", "replace").rstrip("\0 ") for e in _NEEDED}
    for element, text in texts.items():
        if not text:
            raise InvalidInstance(f"its file meta information lacks {_NEEDED[element]}", _RESEND)
    return Head(texts[0x0002], texts[0x0003], texts[0x0010], position)


def _read_element(data: bytes, position: int) -> tuple[int, bytes, int] | None:
    """Return number, value and end of the element of group 2 that begins at `position`; None: it is not all there."""
    header = data[position : position + 12]
    if header[:2] != _GROUP[: len(header)] or not (len(header) < 6 or header[4:6].isupper()):
        raise InvalidInstance("its file meta information is malformed", _RESEND)
    size = 12 if header[4:6] in _LONG_VR else 8
    if len(header) < size:
        return None
    start = position + size
    end = start + int.from_bytes(header[8:12] if size == 12 else header[6:8], "little")
    return (int.from_bytes(header[2:4], "little"), data[start:end], end) if end <= len(data) else None
