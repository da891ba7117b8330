"""One object while it comes in: a temporary file on the spool's file system, and what its beginning says."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from node.part10 import file_head
from node.spool import Spool
from node.unnamed import disk_errors

# More pieces than this are joined before they are written: a peer may send one byte at a time.
_MANY_PIECES = 64
# So much of the data set stays at hand for whoever reads its header.
_BEGINNING = 32768
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Origin:
    """Which association brings something: our number for it, the AE titles fit for a log line, the address.

    `study_uid` is the study that all of it must belong to; empty: any.
    """

    number: int
    calling_ae: str
    called_ae: str
    address: str
    study_uid: str = ""


class Incoming:
    """One object that is being received into a temporary file. Ends by `Reception.tidy` or by `drop`."""

    def __init__(self, origin: Origin, sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str) -> None:
        self.origin = origin
        self.sop_class_uid = sop_class_uid
        self.sop_uid = sop_uid
        self.transfer_syntax_uid = transfer_syntax_uid
        self.size = 0
        self.refusal: tuple[int, str] | None = None
        self.handle = -1
        self.path = ""
        self._head = b""
        self._beginning = b""
        self._unwritten = b""
        self._begun = 0

    def open(self, spool: Spool) -> None:
        """Make the temporary file; the file meta information goes in front of the first piece."""
        self.handle, self.path = spool.unnamed.open()
        self._head = self._unwritten = file_head(
            self.sop_class_uid, self.sop_uid, self.transfer_syntax_uid, self.origin.calling_ae
        )

    def append(self, pieces: Sequence[memoryview]) -> None:
        """Write the next pieces of the data set."""
        if len(self._beginning) < _BEGINNING:
            for piece in pieces:
                self._beginning += piece[: _BEGINNING - len(self._beginning)]
        if self._unwritten:
            pieces = [memoryview(self._unwritten), *pieces]
            self._unwritten = b""
        with disk_errors():
            _write_all(self.handle, pieces)

    def begin_flush(self, spool: Spool) -> None:
        """Have the disk begin with what came since this was last called."""
        end = len(self._head) + self.size
        spool.begin_flush(self.handle, self._begun, end - self._begun)
        self._begun = end

    def read_at(self, count: int, at: int) -> bytes:
        """Return up to `count` bytes of the data set."""
        if at + count <= len(self._beginning):
            return self._beginning[at : at + count]
        with disk_errors():
            return os.pread(self.handle, count, len(self._head) + at)

    def content(self) -> bytes:
        """Return the whole file: file meta information and data set."""
        end = len(self._head) + self.size
        with disk_errors():
            return b"".join(os.pread(self.handle, _CHUNK, at) for at in range(0, end, _CHUNK))

    def refuse(self, status: int, reason: str) -> None:
        """Keep nothing of it; what still comes is thrown away."""
        if self.refusal is None:
            self.refusal = (status, reason)
        self.drop()

    def drop(self) -> None:
        """Close and remove the temporary file; a name that was given stays."""
        handle, path, self.handle, self.path = self.handle, self.path, -1, ""
        # A disk that fails here failed before, and that was told; what is left lying is swept at the next start.
        if handle >= 0:
            with contextlib.suppress(OSError):
                os.close(handle)
        if path:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - once per image: a Path would cost as much as the call


def _write_all(handle: int, pieces: Sequence[memoryview]) -> None:
    if len(pieces) > _MANY_PIECES:
        pieces = [memoryview(b"".join(pieces))]
    total = sum(map(len, pieces))
    written = os.writev(handle, pieces) if total else 0
    if written < total:
        rest = memoryview(b"".join(pieces))[written:]
        while rest:
            rest = rest[os.write(handle, rest) :]


class Receiver(Protocol):
    """What takes the objects that associations bring; `node.reception.Reception` is the one that stores them."""

    def is_short_of_disk(self) -> bool:
        """Tell whether new objects would be refused."""

    def begin(self, origin: Origin, sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str) -> Incoming:
        """Begin with an object as its C-STORE-RQ announces it; the UIDs are the peer's, unchecked."""

    def append(self, incoming: Incoming, pieces: Sequence[memoryview]) -> None:
        """Take the next pieces of its data set, which are the caller's again afterwards."""

    def finish(self, incoming: Incoming) -> int:
        """Take the object as whole; return the status to answer (PS3.4 B.2.3)."""

    def tidy(self, incoming: Incoming) -> None:
        """Close what was finished, and make ready for the next one: once the answer is sent."""

    def close(self, timeout_s: float) -> None:
        """Refuse everything from here on, and let what is being committed be finished."""
