"""How many items and elements an encoded data set nests, told from their headers alone."""

from __future__ import annotations

import struct

from pydicom.datadict import dictionary_VR
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

# pydicom makes of an element in some 5 µs what this counts in one, and of an item in some 50.
_MOST_ELEMENTS = 200_000
_DEEPEST = 16
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset(str(vr).encode() for vr in EXPLICIT_VR_LENGTH_32)


class TooManyPieces(Exception):
    """Raised when a data set nests more than it may."""


def check_nesting(data: bytes, *, implicit: bool, little_endian: bool, most_items: int) -> None:
    """Refuse a data set whose sequences, of any depth, hold more than `most_items` items, before anybody builds them.

    Raises
    ------
    TooManyPieces
        It holds more, or more than 200 000 elements.
    ValueError
        A length leads out of what encloses it, a sequence holds something else than items (PS3.5 section 7.5), or
        sequences are nested more than 16 deep.
    """
    _Walk(data, little_endian, most_items).elements(0, len(data), implicit, 0)


class _Walk:
    def __init__(self, data: bytes, little_endian: bool, most_items: int) -> None:
        self._data = data
        order = "<" if little_endian else ">"
        self._header = struct.Struct(f"{order}HHL").unpack_from
        self._length, self._short = struct.Struct(f"{order}L").unpack_from, struct.Struct(f"{order}H").unpack_from
        self._item = struct.pack(f"{order}HH", 0xFFFE, 0xE000)
        self._sequence_end = struct.pack(f"{order}HHL", 0xFFFE, 0xE0DD, 0)
        self._items_left, self._elements_left = most_items, _MOST_ELEMENTS

    def elements(self, position: int, end: int, implicit: bool, depth: int, *, delimited: bool = False) -> int:
        """Go over elements up to `end`, or up to an item's delimiter; return where they end."""
        while position < end:
            tag, length = self._tag_and_length(position, end)
            if tag == _ITEM_END and delimited:
                return position + 8
            self._elements_left -= 1
            if self._elements_left < 0:
                raise TooManyPieces
            vr, start = b"", position + 8
            if not implicit:
                vr = self._data[position + 4 : position + 6]
                if not _is_vr(vr):
                    raise ValueError("an element without a VR")
                if vr in _LONG_VRS:
                    start += 4
                    if start > end:
                        raise ValueError("an element's header is cut short")
                    length = self._length(self._data, position + 8)[0]
                else:
                    length = self._short(self._data, position + 6)[0]
            if length == _UNDEFINED:
                position = self._undefined(tag, vr, start, end, implicit, depth)
                continue
            position = start + length
            if position > end:
                raise ValueError("an element is cut short")
            if length and _is_sequence(tag, vr):
                self._sequence(start, position, implicit, depth, delimited=False)
        if delimited:
            raise ValueError("an item has no end")
        return position

    def _undefined(self, tag: int, vr: bytes, start: int, end: int, implicit: bool, depth: int) -> int:
        if vr == b"UN" or _is_sequence(tag, vr) or self._data[start : start + 4] == self._item:
            return self._sequence(start, end, implicit, depth, delimited=True)
        found = self._data.find(self._sequence_end, start, end)
        if found < 0:
            raise ValueError("a value has no end")
        return found + 8

    def _sequence(self, position: int, end: int, implicit: bool, depth: int, *, delimited: bool) -> int:
        if depth >= _DEEPEST:
            raise ValueError("sequences are nested too deep")
        while position < end:
            tag, length = self._tag_and_length(position, end)
            position += 8
            if tag == _SEQUENCE_END and delimited:
                return position
            if tag != _ITEM:
                raise ValueError("a sequence holds something else than items")
            self._items_left -= 1
            if self._items_left < 0:
                raise TooManyPieces
            # Some write implicit VR into sequences of an explicit data set; pydicom reads it, item by item.
            within = implicit or not _is_vr(self._data[position + 4 : position + 6])
            if length == _UNDEFINED:
                position = self.elements(position, end, within, depth + 1, delimited=True)
            elif position + length > end:
                raise ValueError("an item is cut short")
            else:
                position = self.elements(position, position + length, within, depth + 1)
        if delimited:
            raise ValueError("a sequence has no end")
        return position

    def _tag_and_length(self, position: int, end: int) -> tuple[int, int]:
        if position + 8 > end:
            raise ValueError("a header is cut short")
        group, element, length = self._header(self._data, position)
        return group << 16 | element, length


def _is_vr(vr: bytes) -> bool:
    return len(vr) == 2 and vr.isalpha() and vr.isupper()


def _is_sequence(tag: int, vr: bytes) -> bool:
    if vr not in (b"", b"UN"):
        return vr == b"SQ"
    try:
        return bool(dictionary_VR(tag) == "SQ")
    except KeyError:
        return False
