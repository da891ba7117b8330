"""A quick look into the first kilobytes of a data set, for the plain cases; `node.header` reads all others.

What is unusual (a wanted sequence, an unknown VR or character set, elements out of order, a header longer than what is
at hand) gives None, never an error: pydicom then has the word, so that nothing is known in two ways.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from node.identity import Identity, clean, finite
from node.records import Header

_TAG_LENGTH = struct.Struct("<HHL")
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
    seen = _scan(head, size, implicit)
    identity = None if seen is None else _plain_identity(seen.values)
    return None if seen is None or identity is None else (identity, seen.pixels_at)


def _scan(head: bytes, size: int, implicit: bool) -> _Scan | None:
    values: dict[int, bytes] = {}
    position, before = 0, -1
    try:
        while position != size:
            tag, vr, start, length = _element(head, position, implicit)
            if tag in _PIXELS:
                return _Scan(values, position)
            if tag <= before or tag in _NESTED:
                return None
            before = tag
            position = _after_sequence(head, start, implicit, 0) if length == _UNDEFINED else start + length
            if position > min(size, len(head)):
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
        text = {tag: value.decode(codec) for tag, value in raw.items() if _PLAIN[tag] != b"US"}
        if any("\\" in value for tag, value in text.items() if _PLAIN[tag] != b"DS" and tag != _IMAGE_TYPE):
            return None
        words = {tag: clean(value.rstrip(" \0")) for tag, value in text.items()}
        whole = {tag: int(words[tag]) for tag, vr in _PLAIN.items() if vr == b"IS" and words.get(tag)}
        short = {tag: struct.unpack("<H", raw[tag])[0] for tag, vr in _PLAIN.items() if vr == b"US" and raw.get(tag)}
        number = {
            tag: tuple(float(part) for part in text[tag].split("\\"))
            for tag, vr in _PLAIN.items()
            if vr == b"DS" and text.get(tag, "").strip(" \0")
        }
    except (ValueError, struct.error):
        return None
    image_type = words.get(_IMAGE_TYPE) and text[_IMAGE_TYPE].rstrip(" \0").split("\\")
    header = Header(
        modality=words.get(0x00080060, ""),
        image_type=tuple(clean(part.rstrip(" \0")) for part in (image_type or ())[:16]),
        series_description=words.get(0x0008103E, ""),
        protocol_name=words.get(0x00181030, ""),
        study_description=words.get(0x00081030, ""),
        body_part=words.get(0x00180015, ""),
        contrast_agent=words.get(0x00180010, ""),
        sequence_name=words.get(0x00180024, ""),
        manufacturer=words.get(0x00080070, ""),
        frame_of_reference_uid=words.get(0x00200052, ""),
        instance_number=whole.get(0x00200013),
        acquisition_number=whole.get(0x00200012),
        images_in_acquisition=whole.get(0x00201002),
        temporal_position=whole.get(0x00200100),
        temporal_positions=whole.get(0x00200105),
        concatenation_total=short.get(0x00209163),
        number_of_frames=max(1, whole.get(0x00280008) or 1),
        rows=short.get(0x00280010, 0),
        columns=short.get(0x00280011, 0),
        orientation=finite(number.get(0x00200037, ()), 6),
        position=finite(number.get(0x00200032, ()), 3),
        pixel_spacing=finite(number.get(0x00280030, ()), 2),
    )
    return Identity(
        sop_class_uid=words.get(0x00080016, ""),
        sop_uid=words.get(0x00080018, ""),
        series_uid=words.get(0x0020000E, ""),
        study_uid=words.get(0x0020000D, ""),
        header=header,
    )
