"""The head of a DICOM file: preamble, prefix and file meta information (PS3.10 section 7.1)."""

from __future__ import annotations

import struct

from pydicom import uid

# Who wrote the file. pydicom's, as long as pennode has no root of its own.
_IMPLEMENTATION_UID = str(uid.PYDICOM_IMPLEMENTATION_UID)
_IMPLEMENTATION_VERSION = "PENNODE"


def file_head(sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str, calling_ae: str = "") -> bytes:
    """Return what comes before the data set of this object in a file. The UIDs have been checked."""
    elements = [
        struct.pack("<HH2sxxL", 2, 0x0001, b"OB", 2) + b"\x00\x01",
        _element(0x0002, b"UI", sop_class_uid),
        _element(0x0003, b"UI", sop_uid),
        _element(0x0010, b"UI", transfer_syntax_uid),
        _element(0x0012, b"UI", _IMPLEMENTATION_UID),
        _element(0x0013, b"SH", _IMPLEMENTATION_VERSION),
    ]
    if calling_ae:
        elements.append(_element(0x0016, b"AE", calling_ae))
    meta = b"".join(elements)
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta


def _element(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", errors="replace")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value
