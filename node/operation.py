"""A DIMSE-N operation that a peer invokes (PS3.7 section 10), as either path brings it, and what the peer is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.filereader import data_element_generator
from pydicom.uid import UID

from node import statuses
from node.header import UNREADABLE
from node.incoming import Origin
from node.nesting import TooManyPieces, check_nesting
from node.records import is_uid

# Items in all sequences of one request: a procedure step with 36 000 images fills the largest message of the defaults.
MOST_ITEMS = 40_000
# No value that is asked for here is longer, and a UID of megabytes would be taken apart into thousands.
_LONGEST_TEXT = 1024


@dataclass(frozen=True)
class Outcome:
    """What the peer is told.

    `comment` goes into Error Comment, at most 64 characters, and holds nothing that the peer sent. `made` is the SOP
    Instance UID given to what was created without one. `owed` is the number of a storage commitment that the same
    association is to hear of.
    """

    status: int
    comment: str = ""
    error_id: int | None = None
    made: str = ""
    owed: int | None = None


class Refusal(Exception):
    """Raised when an operation is not performed; `outcome` is what the peer is told."""

    def __init__(self, status: int, comment: str, error_id: int | None = None) -> None:
        super().__init__(comment)
        self.outcome = Outcome(status, comment, error_id)


@dataclass(frozen=True)
class Operation:
    """One request with its whole data set, None where that was too long. UIDs, Affected or Requested, are unchecked.

    `action_type` is of an N-ACTION, `event_type` of an N-EVENT-REPORT.
    """

    origin: Origin
    field: int
    sop_class_uid: str
    sop_uid: str
    action_type: int | None
    transfer_syntax_uid: str
    data: bytes | None
    event_type: int | None = None

    def data_set(self, most_items: int = MOST_ITEMS) -> Dataset:
        """Read the data set, which must be whole: of a UID that is cut short another object would be meant.

        Raises
        ------
        Refusal
            It cannot be read, ends too early, or holds more than `most_items` items in its sequences.
        """
        syntax = UID(self.transfer_syntax_uid)
        data = self.data or b""
        implicit, little_endian = syntax.is_implicit_VR, syntax.is_little_endian
        try:
            check_nesting(data, implicit=implicit, little_endian=little_endian, most_items=most_items)
        except TooManyPieces as error:
            raise Refusal(
                statuses.RESOURCE_LIMITATION, f"more than {most_items} items, or too many elements"
            ) from error
        except ValueError as error:
            raise Refusal(statuses.PROCESSING_FAILURE, "the data set cannot be read") from error
        file, ds, end = BytesIO(data), Dataset(), 0
        try:
            for element in data_element_generator(file, implicit, little_endian):
                if isinstance(element, RawDataElement) and len(element.value or b"") != element.length:
                    raise EOFError
                ds[element.tag] = element
                end = file.tell()
            if end != len(data):
                raise EOFError
        except UNREADABLE as error:
            raise Refusal(statuses.PROCESSING_FAILURE, "the data set cannot be read") from error
        return ds


class Body:
    """The data set of one message that is kept in memory: at most `limit` bytes of it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self.size = 0

    def append(self, pieces: Iterable[memoryview]) -> None:
        """Take the next pieces; what is over the limit is counted and thrown away."""
        for piece in pieces:
            self.size += len(piece)
            if self.size > self._limit:
                self._data.clear()
            else:
                self._data += piece

    @property
    def data(self) -> bytes | None:
        """The whole of it; None when it is over the limit."""
        return bytes(self._data) if self.size <= self._limit else None


def text(ds: Dataset, keyword: str) -> str:
    """Return an attribute's value as text without padding; empty where it is absent, empty or of another kind."""
    raw = ds.get_item(keyword) if keyword in ds else None
    if isinstance(raw, RawDataElement) and raw.length > _LONGEST_TEXT:
        return ""
    try:
        value = ds.get(keyword)
    except UNREADABLE:
        return ""
    return "" if value is None or isinstance(value, bytes) else str(value).strip(" \0")


def items(ds: Dataset, keyword: str) -> Sequence[Dataset]:
    """Return the items of a sequence; none where it is absent.

    Raises
    ------
    Refusal
        It is no sequence.
    """
    try:
        found = ds.get(keyword)
        return [] if found is None else [item for item in found if isinstance(item, Dataset)]
    except UNREADABLE as error:
        raise Refusal(statuses.PROCESSING_FAILURE, f"{keyword} cannot be read") from error


def uid(ds: Dataset, keyword: str, otherwise: int) -> str:
    """Return an attribute's value that must be a UID.

    Raises
    ------
    Refusal
        It is absent or no UID; its status is `otherwise`.
    """
    found = text(ds, keyword)
    if not is_uid(found):
        raise Refusal(otherwise, f"{keyword} is {'no UID' if found else 'missing'}")
    return found
