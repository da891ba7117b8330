"""What an encoded data set says of itself, read up to its pixel data, and whether it is whole."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_sequence_item

from node.errors import InvalidInstance
from node.headerstream import HEAD, HeaderStream, OverBudget, ReadAt
from node.identity import Identity, clean, finite
from node.pixeldata import check_pixel_data, syntax_of
from node.records import Header, is_uid
from node.scan import read_plain

# A peer's slightly invalid values are kept as they are; they must not cost a warning per image.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

# A deflated data set may not grow beyond the first; its header must end within the second.
_MAX_INFLATED = 1 << 32
_INFLATED_HEAD = 16 << 20
# Bytes that a first and a second reading may take, the second without the groups of each frame.
_BUDGETS = (16 << 20, 64 << 20)
# Pieces of the items that are looked into: a group has some hundred elements.
_MOST_ITEM_READS = 20_000
# Contrast agents that are named, and bytes of a value; the longest in explicit VR (PS3.5 section 7.1.2).
_MOST_AGENTS = 16
_LONGEST_VALUE = 65534
# What pydicom raises over bytes that are no data set; OSError is its word for an end within a tag.
UNREADABLE = (
    InvalidDicomError, BytesLengthException, OSError, EOFError, ValueError, TypeError, KeyError, AttributeError,
    IndexError, OverflowError, NotImplementedError, struct.error, RecursionError, zlib.error,
)  # fmt: skip
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_SEQUENCES = frozenset({0x00180012, 0x52009229, 0x52009230})
_TAGS: list[Any] = [
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "Modality", "ImageType", "SeriesDescription", "ProtocolName", "StudyDescription",
    "BodyPartExamined", "ContrastBolusAgent", "ContrastBolusAgentSequence", "SequenceName", "Manufacturer",
    "InstanceNumber", "AcquisitionNumber", "ImagesInAcquisition", "TemporalPositionIdentifier", "NumberOfFrames",
    "NumberOfTemporalPositions", "InConcatenationTotalNumber", "Rows", "Columns", "ImageOrientationPatient",
    "ImagePositionPatient", "PixelSpacing",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


def read_identity(data: bytes, transfer_syntax_uid: str) -> Identity:
    """Read the identity and the header of one encoded data set (no preamble, no file meta information).

    Raises
    ------
    InvalidInstance
        The bytes are no data set in this transfer syntax, end before the pixel data does, or lack a valid UID.
    """
    return identify(lambda count, at: data[at : at + count], len(data), transfer_syntax_uid)


def identify(read_at: ReadAt, size: int, transfer_syntax_uid: str) -> Identity:
    """Do what `read_identity` does for a data set that stays where it is, reading little more than its header.

    Parameters
    ----------
    read_at
        Returns up to `count` bytes from position `at` of the data set.
    size
        Length of the data set in bytes.
    """
    syntax = syntax_of(transfer_syntax_uid)
    try:
        if syntax.is_deflated:
            read_at, size = _inflate(read_at, size)
        head = read_at(HEAD, 0)
        plain = read_plain(head, size, implicit=syntax.is_implicit) if syntax.is_little_endian else None
        if plain is None:
            plain = _read_thoroughly(read_at, size, head, transfer_syntax_uid)
        identity, pixels_at = plain
        check_pixel_data(read_at, size, pixels_at, syntax)
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


def _read_thoroughly(read_at: ReadAt, size: int, head: bytes, transfer_syntax_uid: str) -> tuple[Identity, int]:
    syntax = syntax_of(transfer_syntax_uid)
    # The groups of all frames may be long; then those shared by them must do.
    for tags, budget in zip((_TAGS, _TAGS[:-1]), _BUDGETS, strict=True):
        with HeaderStream(read_at, size, head, budget) as stream:
            try:
                found = read_dataset(
                    stream,  # type: ignore[arg-type, unused-ignore]  # it reads as files do
                    is_implicit_VR=syntax.is_implicit,
                    is_little_endian=syntax.is_little_endian,
                    stop_when=lambda tag, _vr, _length: tag in _PIXELS,
                    specific_tags=[pydicom.tag.Tag(t) for t in tags],
                )
            except (OverBudget, *UNREADABLE):  # at an item's header pydicom says OSError for what the stream raised
                if not stream.is_over_budget:
                    raise
                if stream.has_too_many_pieces:
                    break
            else:
                _check_lengths(found)
                return _identity(found), stream.tell()
    raise _too_long()


def _too_long() -> InvalidInstance:
    return InvalidInstance("the header is too long", "the sending system must mend it")


def _check_lengths(ds: Dataset) -> None:
    """Refuse a value, not of a sequence, that pydicom would take apart into a million numbers."""
    for element in ds.values():
        if isinstance(element, RawDataElement) and element.tag not in _SEQUENCES and element.length > _LONGEST_VALUE:
            raise _too_long()


def _inflate(read_at: ReadAt, size: int) -> tuple[ReadAt, int]:
    """Inflate the head of a deflated data set (PS3.5 A.5), and count the rest."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    kept, length, position, pending = bytearray(), 0, 0, b""
    while not inflater.eof:
        if not pending:
            pending = read_at(HEAD, position)
            position += len(pending)
        piece = inflater.decompress(pending, 1 << 20)
        pending = inflater.unconsumed_tail
        length += len(piece)
        kept += piece[: max(0, _INFLATED_HEAD - len(kept))]
        if length > _MAX_INFLATED or (not piece and not pending and position >= size):
            break
    if not inflater.eof:
        raise InvalidInstance("the deflated data set ends early, or is too large", "send the image again")
    return lambda count, at: bytes(kept[at : at + count]), length


def _text(ds: Dataset, name: str) -> str:
    value = ds.get(name)
    return "" if value is None else clean(str(value))


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
    return finite(values, count)


def _functional_group(ds: Dataset, macro: str) -> Dataset:
    """Return the macro's first item, from the shared groups or else the first frame (PS3.3 C.7.6.16)."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in _first_items(ds, groups, 1):
            for item in _first_items(group, macro, 1):
                _check_lengths(item)
                return item
    return Dataset()


def _first_items(ds: Dataset, name: str, most: int) -> Sequence[Dataset]:
    """Return the first items of a sequence, without building those after them.

    Raises
    ------
    InvalidInstance
        They hold too much.
    """
    raw = ds.get_item(name) if name in ds else None
    if not isinstance(raw, RawDataElement) or raw.VR not in (None, "SQ", "UN"):
        return list((ds.get(name) or ())[:most])
    value = raw.value or b""
    found: list[Dataset] = []
    stream = HeaderStream(lambda count, at: value[at : at + count], len(value), value, 2 * len(value), _MOST_ITEM_READS)
    characters = ds.original_character_set or "iso8859"
    while len(found) < most and stream.tell() < len(value):
        try:
            item = read_sequence_item(
                stream,  # type: ignore[arg-type, unused-ignore]  # it reads as files do
                raw.is_implicit_VR, raw.is_little_endian, characters,
            )  # fmt: skip
        except (OverBudget, *UNREADABLE):
            if stream.is_over_budget:
                raise _too_long() from None
            raise
        if stream.is_over_budget:
            raise _too_long()
        if item is None:
            break
        found.append(item)
    return found


def _identity(ds: Dataset) -> Identity:
    image_type = ds.get("ImageType") or ()
    agents = [_text(item, "CodeMeaning") for item in _first_items(ds, "ContrastBolusAgentSequence", _MOST_AGENTS)]
    orientation = _numbers(ds, "ImageOrientationPatient", 6) or _numbers(
        _functional_group(ds, "PlaneOrientationSequence"), "ImageOrientationPatient", 6
    )
    spacing = _numbers(ds, "PixelSpacing", 2) or _numbers(
        _functional_group(ds, "PixelMeasuresSequence"), "PixelSpacing", 2
    )
    header = Header(
        modality=_text(ds, "Modality"),
        image_type=tuple(clean(str(v)) for v in ([image_type] if isinstance(image_type, str) else image_type)[:16]),
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
        temporal_positions=_whole(ds, "NumberOfTemporalPositions"),
        concatenation_total=_whole(ds, "InConcatenationTotalNumber"),
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
