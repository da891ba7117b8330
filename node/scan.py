"""A quick look into the first kilobytes of a data set, for the plain cases; `node.header` reads all others.

What is unusual (a wanted sequence, an unknown VR or character set, elements out of order, a header longer than what is
at hand) gives None, never an error: pydicom then has the word, so that nothing is known in two ways.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from node.identity import Identity, clean, finite
from node.records import Header

_TAG_LENGTH = struct.Struct("<HHL")
_SHORT_HEADER = struct.Struct("<HH2sH").unpack_from
_LONGEST_HEADER = 12
_LONG_VR = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VR = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
     b"ST", b"TM", b"UI", b"UL", b"US"}
)  # fmt: skip
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_DEEPEST = 16


# What is read here, with the VR that is expected; and the sequences that are left to pydicom.
_IMAGE_TYPE = 0x00080008
_PLAIN: dict[int, bytes] = {
    0x00080005: b"CS", _IMAGE_TYPE: b"CS", 0x00080016: b"UI", 0x00080018: b"UI", 0x00080060: b"CS", 0x00080070: b"LO",
    0x00081030: b"LO", 0x0008103E: b"LO", 0x00180010: b"LO", 0x00180015: b"CS", 0x00180024: b"SH", 0x00181030: b"LO",
    0x0020000D: b"UI", 0x0020000E: b"UI", 0x00200012: b"IS", 0x00200013: b"IS", 0x00200032: b"DS", 0x00200037: b"DS",
    0x00200052: b"UI", 0x00200100: b"IS", 0x00200105: b"IS", 0x00201002: b"IS", 0x00209163: b"US", 0x00280008: b"IS",
    0x00280010: b"US", 0x00280011: b"US", 0x00280030: b"DS",
}  # fmt: skip
_NESTED = frozenset({0x00180012, 0x52009229, 0x52009230})
_STOP = _PIXELS | _NESTED
# Numbers as PS3.5 section 6.2 has them. int() and float() take more, "1_0" for one, and of that pydicom takes a part.
_DECIMAL = rb" *[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})? *"
_FORMS = {
    b"IS": re.compile(rb" *[+-]?[0-9]{1,12} *|[ \0]*"),
    b"DS": re.compile(rb"(?:%(one)b(?:\\%(one)b)*)?\0?| *" % {b"one": _DECIMAL}),
}
_CODECS = {b"": "latin-1", b"ISO_IR 6": "latin-1", b"ISO_IR 100": "latin-1", b"ISO_IR 192": "utf-8"}


@dataclass(frozen=True)
class _Scan:
    """The raw values that were wanted, and where the pixel data element begins (or the data set ends)."""

    values: dict[int, bytes]
    pixels_at: int


class _Unusual(Exception):
    """Raised where pydicom must look."""


def read_plain(head: bytes, size: int, *, implicit: bool) -> tuple[Identity, int] | None:
    """Read a little endian data set of `size` bytes that begins with `head`, if it is a plain one.

    Returns who it is, and where its pixel data element begins (or the data set ends).
    """
    seen = _scan(head, size, implicit) if size else None
    identity = None if seen is None else _plain_identity(seen.values)
    return None if seen is None or identity is None else (identity, seen.pixels_at)


def _scan(head: bytes, size: int, implicit: bool) -> _Scan | None:
    values: dict[int, bytes] = {}
    position, before = 0, -1
    last = len(head) - _LONGEST_HEADER
    end = min(size, len(head))
    try:
        while position != size:
            # `_element` in line: this loop goes over every element of every image.
            if position > last:
                return None
            group, element, vr, length = _SHORT_HEADER(head, position)
            tag = group << 16 | element
            start = position + 8
            if implicit or vr not in _SHORT_VR:
                tag, vr, start, length = _element(head, position, implicit)
            if tag <= before or tag in _STOP:
                return _Scan(values, position) if tag in _PIXELS and tag > before else None
            before = tag
            position = start + length if length != _UNDEFINED else _after_sequence(head, start, implicit, 0)
            if position > end:
                return None
            if tag in _PLAIN:
                if length == _UNDEFINED or not (implicit or vr == _PLAIN[tag]):
                    return None
                values[tag] = head[start:position]
    except _Unusual:
        return None
    return _Scan(values, size)


def _element(head: bytes, position: int, implicit: bool) -> tuple[int, bytes, int, int]:
    """Return tag, VR, where the value begins, and its length."""
    if position + 12 > len(head):
        raise _Unusual
    group, element, length = _TAG_LENGTH.unpack_from(head, position)
    tag = group << 16 | element
    if implicit or group == 0xFFFE:
        return tag, b"", position + 8, length
    vr = head[position + 4 : position + 6]
    if vr in _SHORT_VR:
        return tag, vr, position + 8, length >> 16
    if vr in _LONG_VR:
        return tag, vr, position + 12, int.from_bytes(head[position + 8 : position + 12], "little")
    raise _Unusual


def _after_sequence(head: bytes, position: int, implicit: bool, depth: int) -> int:
    """Return where a sequence of undefined length ends (PS3.5 section 7.5)."""
    if depth > _DEEPEST:
        raise _Unusual
    while True:
        if position + 8 > len(head):
            raise _Unusual
        group, element, length = _TAG_LENGTH.unpack_from(head, position)
        tag, position = group << 16 | element, position + 8
        if tag == _SEQUENCE_END:
            return position
        if tag != _ITEM:
            raise _Unusual
        position = _after_item(head, position, implicit, depth) if length == _UNDEFINED else position + length


def _after_item(head: bytes, position: int, implicit: bool, depth: int) -> int:
    while True:
        if position + 8 <= len(head) and head[position : position + 4] == b"\xfe\xff\x0d\xe0":
            return position + 8
        _, vr, start, length = _element(head, position, implicit)
        if length == _UNDEFINED:
            # A UN of undefined length is implicit within (PS3.5 section 6.2.2, note 2).
            if vr == b"UN":
                raise _Unusual
            position = _after_sequence(head, start, implicit, depth + 1)
        else:
            position = start + length


def _plain_identity(raw: dict[int, bytes]) -> Identity | None:
    """Return what pydicom would have read, or None where it should."""
    codec = _CODECS.get(raw.get(0x00080005, b"").strip(b" \0"))
    if codec is None:
        return None
    try:
        known: dict[int, Any] = {tag: _decoded(tag, value, codec) for tag, value in raw.items()}
    except (ValueError, struct.error):
        return None
    get = known.get
    header = Header(
        modality=get(0x00080060, ""),
        image_type=get(_IMAGE_TYPE, ()),
        series_description=get(0x0008103E, ""),
        protocol_name=get(0x00181030, ""),
        study_description=get(0x00081030, ""),
        body_part=get(0x00180015, ""),
        contrast_agent=get(0x00180010, ""),
        sequence_name=get(0x00180024, ""),
        manufacturer=get(0x00080070, ""),
        frame_of_reference_uid=get(0x00200052, ""),
        instance_number=get(0x00200013),
        acquisition_number=get(0x00200012),
        images_in_acquisition=get(0x00201002),
        temporal_position=get(0x00200100),
        temporal_positions=get(0x00200105),
        concatenation_total=get(0x00209163),
        number_of_frames=max(1, get(0x00280008) or 1),
        rows=get(0x00280010) or 0,
        columns=get(0x00280011) or 0,
        orientation=finite(get(0x00200037, ()), 6),
        position=finite(get(0x00200032, ()), 3),
        pixel_spacing=finite(get(0x00280030, ()), 2),
    )
    return Identity(get(0x00080016, ""), get(0x00080018, ""), get(0x0020000E, ""), get(0x0020000D, ""), header)


@lru_cache(maxsize=4096)
def _decoded(tag: int, raw: bytes, codec: str) -> Any:
    """Return the value of one element, as a number, a word or a tuple; most are the same for all images of a series.

    Raises
    ------
    ValueError, struct.error
        pydicom should read it.
    """
    vr = _PLAIN[tag]
    if vr == b"US":
        return struct.unpack("<H", raw)[0] if raw else None
    if vr in _FORMS and not _FORMS[vr].fullmatch(raw):
        raise ValueError("a number in an odd form")
    text = raw.decode(codec)
    if vr == b"DS":
        return tuple(float(part) for part in text.split("\\")) if text.strip(" \0") else ()
    text = text.rstrip(" \0")
    if tag == _IMAGE_TYPE:
        return tuple(clean(part.rstrip(" \0")) for part in text.split("\\")[:16]) if clean(text) else ()
    if "\\" in text:
        raise ValueError("several values")
    word = clean(text)
    return word if vr != b"IS" else int(word) if word else None
