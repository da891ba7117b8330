"""What an encoded data set says of itself, read up to its pixel data, and whether it is whole."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.uid import UID

from node.errors import InvalidInstance
from node.records import Header, is_uid

# A peer's slightly invalid values are kept as they are; they must not cost a warning per image.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

# A deflated data set may not grow beyond this: a small message must not fill the memory.
_MAX_INFLATED = 1 << 30
# What pydicom raises over bytes that are no data set; OSError is its word for an end within a tag.
UNREADABLE = (
    InvalidDicomError, OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, IndexError,
    OverflowError, NotImplementedError, struct.error, RecursionError, zlib.error,
)  # fmt: skip
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_SEQUENCE_DELIMITER = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
_TAGS: list[Any] = [
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "Modality", "ImageType", "SeriesDescription", "ProtocolName", "StudyDescription",
    "BodyPartExamined", "ContrastBolusAgent", "ContrastBolusAgentSequence", "SequenceName", "Manufacturer",
    "InstanceNumber", "AcquisitionNumber", "ImagesInAcquisition", "TemporalPositionIdentifier", "NumberOfFrames",
    "Rows", "Columns", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """Which object a data set says it is, and its header."""

    sop_class_uid: str
    sop_uid: str
    series_uid: str
    study_uid: str
    header: Header


def read_identity(data: bytes, transfer_syntax_uid: str) -> Identity:
    """Read the identity and the header of one encoded data set (no preamble, no file meta information).

    Raises
    ------
    InvalidInstance
        The bytes are no data set in this transfer syntax, end before the pixel data does, or lack a valid UID.
    """
    syntax = UID(transfer_syntax_uid)
    try:
        stream = _Stream(_inflate(data) if syntax.is_deflated else data)
        found = read_dataset(
            stream,
            is_implicit_VR=syntax.is_implicit_VR,
            is_little_endian=syntax.is_little_endian,
            stop_when=lambda tag, _vr, _length: tag in _PIXELS,
            specific_tags=[pydicom.tag.Tag(t) for t in _TAGS],
        )
        _check_pixel_data(stream, syntax)
        identity = _identity(found)
    except InvalidInstance:
        raise
    except UNREADABLE as error:
        raise InvalidInstance(
            f"the data set cannot be read ({type(error).__name__})", "send the image again from its source"
        ) from error
    for name, uid in (
        ("SOPInstanceUID", identity.sop_uid),
        ("SeriesInstanceUID", identity.series_uid),
        ("StudyInstanceUID", identity.study_uid),
    ):
        if not is_uid(uid):
            raise InvalidInstance(f"{name} is missing or no UID (PS3.5 9.1)", "the sending system must mend it")
    return identity


class _Stream(BytesIO):
    """Raises where the data ends within an element: pydicom would take half a value for a whole one."""

    _at_end = False

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if size and len(data) < size:
            # Only where the next tag would begin, once, may nothing be left.
            if data or self._at_end:
                raise EOFError
            self._at_end = True
        return data


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    whole = inflater.decompress(data, _MAX_INFLATED)
    if not inflater.eof:
        raise InvalidInstance("the deflated data set ends early, or is too large", "send the image again")
    return whole


def _check_pixel_data(stream: BytesIO, syntax: UID) -> None:
    """The stream stands before the pixel data element, or at its end. A shorter rest means a truncated object."""
    start = stream.tell()
    buffer = stream.getbuffer()
    rest = len(buffer) - start
    if rest == 0:
        return
    if rest < 8:
        raise InvalidInstance("the data set ends within an element", "send the image again: it was cut short")
    if syntax.is_implicit_VR:
        offset, length = 8, struct.unpack_from("<L", buffer, start + 4)[0]
    else:
        if rest < 12:
            raise InvalidInstance("the data set ends within its pixel data", "send the image again: it was cut short")
        offset, length = 12, struct.unpack_from("<L" if syntax.is_little_endian else ">L", buffer, start + 8)[0]
    fits = length <= rest - offset
    if length == 0xFFFFFFFF:  # encapsulated: fragments up to a sequence delimiter (PS3.5 A.4)
        fits = bytes(buffer[start:]).rfind(_SEQUENCE_DELIMITER) >= 0
    if not fits:
        raise InvalidInstance("the pixel data ends early", "send the image again: it was cut short")


def _text(ds: Dataset, name: str) -> str:
    value = ds.get(name)
    return "" if value is None else _clean(str(value))


def _clean(text: str) -> str:
    """Return a peer's text without what a database, a log line or a terminal would stumble over."""
    return "".join(c if c.isprintable() else " " for c in text[:128]).strip()


def _whole(ds: Dataset, name: str) -> int | None:
    try:
        value = ds.get(name)
        return None if value in (None, "") else int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _numbers(ds: Dataset, name: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(v) for v in ds.get(name) or ())
    except (TypeError, ValueError):
        return ()
    return values if len(values) == count and all(map(math.isfinite, values)) else ()


def _functional_group(ds: Dataset, macro: str) -> Dataset:
    """Return the macro's first item, from the shared groups or else the first frame (PS3.3 C.7.6.16)."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in (ds.get(groups) or ())[:1]:
            for item in (group.get(macro) or ())[:1]:
                return item
    return Dataset()


def _identity(ds: Dataset) -> Identity:
    image_type = ds.get("ImageType") or ()
    agents = [_text(item, "CodeMeaning") for item in ds.get("ContrastBolusAgentSequence") or ()]
    orientation = _numbers(ds, "ImageOrientationPatient", 6) or _numbers(
        _functional_group(ds, "PlaneOrientationSequence"), "ImageOrientationPatient", 6
    )
    spacing = _numbers(ds, "PixelSpacing", 2) or _numbers(
        _functional_group(ds, "PixelMeasuresSequence"), "PixelSpacing", 2
    )
    header = Header(
        modality=_text(ds, "Modality"),
        image_type=tuple(_clean(str(v)) for v in ([image_type] if isinstance(image_type, str) else image_type)[:16]),
        series_description=_text(ds, "SeriesDescription"),
        protocol_name=_text(ds, "ProtocolName"),
        study_description=_text(ds, "StudyDescription"),
        body_part=_text(ds, "BodyPartExamined"),
        contrast_agent=_text(ds, "ContrastBolusAgent") or ", ".join(filter(None, agents)),
        sequence_name=_text(ds, "SequenceName"),
        manufacturer=_text(ds, "Manufacturer"),
        frame_of_reference_uid=_text(ds, "FrameOfReferenceUID"),
        instance_number=_whole(ds, "InstanceNumber"),
        acquisition_number=_whole(ds, "AcquisitionNumber"),
        images_in_acquisition=_whole(ds, "ImagesInAcquisition"),
        temporal_position=_whole(ds, "TemporalPositionIdentifier"),
        number_of_frames=max(1, _whole(ds, "NumberOfFrames") or 1),
        rows=_whole(ds, "Rows") or 0,
        columns=_whole(ds, "Columns") or 0,
        orientation=orientation,
        position=_numbers(ds, "ImagePositionPatient", 3),
        pixel_spacing=spacing,
    )
    return Identity(
        sop_class_uid=_text(ds, "SOPClassUID"),
        sop_uid=_text(ds, "SOPInstanceUID"),
        series_uid=_text(ds, "SeriesInstanceUID"),
        study_uid=_text(ds, "StudyInstanceUID"),
        header=header,
    )
