"""Data sets as bytes in Explicit VR Little Endian (PS3.5 7.1.2, 7.5, A.2): what pydicom writes, in less time.

All sequences and items have a length, those of a source that had none as well.

pydicom encodes every element anew. Results say the same again and again: of each frame where it lies and what it was
derived from, of each picture whose it is. Here pydicom encodes each value once; sequences and items are put together.
"""

from __future__ import annotations

from struct import Struct

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr_element, write_data_element

from workers.frames import UNREADABLE

_ITEM = Struct("<HHI")
_LONG = Struct("<HH2sxxI")  # of SQ, OB and OW (PS3.5 table 7.1-1)
_PIXELS = frozenset({"OB", "OW"})
_MANY = 16  # values: points of an outline, of which there is no second


class Encoder:
    """Encodes data sets, and remembers the elements it has encoded; one serves what is made of one series."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, str, int, str], bytes] = {}

    def encode(self, dataset: Dataset) -> bytes:
        """Return a data set without its file meta information; what pydicom raises for a value is not caught."""
        return self._elements(dataset, [default_encoding])

    def _elements(self, dataset: Dataset, characters: list[str]) -> bytes:
        parts: list[bytes] = []
        if own := dataset.get("SpecificCharacterSet"):  # an item may have its own
            characters = [own] if isinstance(own, str) else list(own)
        for element in dataset.elements():
            if element.tag.element == 0 and element.tag.group > 6:  # retired group length (PS3.5 7.2)
                continue
            try:
                parsed = dataset[element.tag] if element.is_raw else element
            except UNREADABLE:  # in an item that came with the source: of no use to anybody
                continue
            parts += self._element(parsed, dataset, characters)
        return b"".join(parts)

    def _element(self, element: DataElement, dataset: Dataset, characters: list[str]) -> tuple[bytes, ...]:
        vr = element.VR
        if len(vr) != 2:  # "OB or OW"
            vr = correct_ambiguous_vr_element(element, dataset, True).VR
        value: bytes | None = None
        if vr == "SQ":
            value = self._items(element, characters)
        elif vr in _PIXELS and isinstance(element.value, bytes) and len(element.value) % 2 == 0:
            value = element.value  # megabytes, which need not be copied on the way
        if value is not None:
            return _LONG.pack(element.tag.group, element.tag.element, vr.encode(), len(value)), value
        if element.is_empty or element.VM > _MANY:
            return (_alone(element, characters),)
        key = "\\".join(characters), element.tag, vr, element.VM, str(element.value)
        if key not in self._known:
            self._known[key] = _alone(element, characters)
        return (self._known[key],)

    def _items(self, sequence: DataElement, characters: list[str]) -> bytes:
        parts = []
        for item in sequence.value:
            value = self._elements(item, characters)
            parts += [_ITEM.pack(0xFFFE, 0xE000, len(value)), value]
        return b"".join(parts)


def _alone(element: DataElement, characters: list[str]) -> bytes:
    buffer = little_endian()
    write_data_element(buffer, element, convert_encodings(characters))
    encoded: bytes = buffer.getvalue()
    return encoded


def little_endian() -> DicomBytesIO:
    """Return an empty buffer that pydicom writes Explicit VR Little Endian into."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    return buffer
