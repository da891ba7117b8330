"""Result objects as bytes, and what pydicom and highdicom raise on the way as errors of ours."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr, write_data_element
from pydicom.uid import UID

from node.errors import InvalidResult
from workers.frames import copied
from workers.lenience import lenient

TELL_US = "keep the series and report it: this is a fault of the program"

_SEQUENCE = Struct("<HH2sxxI")
_ITEM = Struct("<HHI")
_MANY = 16  # values in one element
_FEW = 8  # items of all sequences, which pydicom writes as fast

# What highdicom and pydicom raise for values they do not take and bytes they cannot read.
_REFUSED = (
    InvalidDicomError, BytesLengthException, ValueError, TypeError, KeyError, IndexError, AttributeError,
    OverflowError, RuntimeError, EOFError, struct.error,
)  # fmt: skip


def write(dataset: Dataset) -> bytes:
    """Return the object as a DICOM file (PS3.10) in the transfer syntax that its file meta information names.

    Raises
    ------
    InvalidResult
        An attribute cannot be encoded.
    """
    buffer = io.BytesIO()
    with translated():
        _encoded(dataset).save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _encoded(dataset: Dataset) -> Dataset:
    """Return the object with its sequences encoded: pydicom's way takes most of the time that a result takes.

    In Explicit VR Little Endian, and what is compressed in it, sequences and items are put together here, with lengths
    (PS3.5 7.5); the values in them, most of which occur again and again, pydicom encodes once each.
    """
    sequences = [element for element in dataset.elements() if element.VR == "SQ"]
    if UID(dataset.file_meta.TransferSyntaxUID).is_implicit_VR or sum(len(e.value) for e in sequences) < _FEW:
        return dataset
    characters = dataset.get("SpecificCharacterSet") or default_encoding
    if characters != default_encoding:
        characters = convert_encodings(characters)
    known: dict[tuple[int, str, str], bytes] = {}

    def encoded(element: DataElement) -> bytes:
        tag, vr = element.tag, element.VR
        if vr == "SQ":
            return b"%b%b" % (_SEQUENCE.pack(tag.group, tag.element, b"SQ", len(value := items(element))), value)
        if element.VM > _MANY:  # points of an outline, of which there is no second
            return alone(element)
        key = tag, vr, str(element.value)
        if key not in known:
            known[key] = alone(element)
        return known[key]

    def alone(element: DataElement) -> bytes:
        buffer = DicomBytesIO()
        buffer.is_implicit_VR, buffer.is_little_endian = False, True
        write_data_element(buffer, element, characters)
        return buffer.getvalue()

    def items(sequence: DataElement) -> bytes:
        parts = []
        for item in sequence.value:
            value = b"".join(map(encoded, item.elements()))
            parts += [_ITEM.pack(0xFFFE, 0xE000, len(value)), value]
        return b"".join(parts)

    whole = copied(dataset, lambda tag: dataset.get_item(tag).VR != "SQ")
    whole.file_meta = dataset.file_meta
    correct_ambiguous_vr(whole, True)
    # What is raw is written as it is, in a data set that is said to be encoded as the file will be.
    whole.set_original_encoding(False, True, characters)
    for element in sequences:
        value = items(element)
        whole[element.tag] = RawDataElement(element.tag, "SQ", len(value), value, 0, False, True)
    return whole


@contextmanager
def translated(what: str = "segmentation") -> Iterator[None]:
    """Raise `InvalidResult` for what highdicom and pydicom raise; its text is dropped, it can quote the header."""
    try:
        with lenient():  # a source's values stay as they are
            yield
    except _REFUSED as error:
        raise InvalidResult(f"no valid {what} object can be written ({type(error).__name__})", TELL_US) from None
