"""The head of a DICOM file: preamble, prefix and file meta information (PS3.10 section 7.1)."""

from __future__ import annotations

import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from pydicom import uid

# Who wrote the file. pydicom's, as long as pennode has no root of its own.
_IMPLEMENTATION_UID = str(uid.PYDICOM_IMPLEMENTATION_UID)
_IMPLEMENTATION_VERSION = "PENNODE"
# File Meta Information Group Length comes first, and what it counts begins behind its value.
_START = bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 0, b"UL", 4)
_META_AT = len(_START) + 4


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
