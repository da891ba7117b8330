"""One object while it comes in: a temporary file on the spool's file system, its size and its digest."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from node.errors import OutOfDisk
from node.part10 import file_head
from node.spool import Spool, disk_errors

# More pieces than this are joined before they are written: a peer may send one byte at a time.
_MANY_PIECES = 64


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
    """One object that is being received into a temporary file. Ends by `Reception.finish` or by `drop`."""

    def __init__(self, origin: Origin, sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str) -> None:
        self.origin = origin
        self.sop_class_uid = sop_class_uid
        self.sop_uid = sop_uid
        self.transfer_syntax_uid = transfer_syntax_uid
        self.size = 0
        self.refusal: tuple[int, str] | None = None
        self.handle = -1
        self.path: Path | None = None
        self.head_length = 0
        self._digest = hashlib.sha256()

    def open(self, spool: Spool) -> None:
        """Make the temporary file and write the file meta information."""
        self.handle, self.path = spool.open_temporary()
        head = file_head(self.sop_class_uid, self.sop_uid, self.transfer_syntax_uid, self.origin.calling_ae)
        self.head_length = len(head)
        with disk_errors():
            _write_all(self.handle, [memoryview(head)])

    def append(self, pieces: Sequence[memoryview]) -> None:
        """Write the next pieces of the data set."""
        for piece in pieces:
            self._digest.update(piece)
        with disk_errors():
            _write_all(self.handle, pieces)

    @property
    def temporary(self) -> Path:
        """Where the file lies until it has a name."""
        if self.path is None:
            raise OutOfDisk("the file of an object is gone", "nobody but the node may write in the state folder")
        return self.path

    def sha256(self) -> str:
        """Return the digest of the data set so far."""
        return self._digest.hexdigest()

    def read_at(self, count: int, at: int) -> bytes:
        """Return up to `count` bytes of the data set."""
        with disk_errors():
            return os.pread(self.handle, count, self.head_length + at)

    def refuse(self, status: int, reason: str) -> None:
        """Keep nothing of it; what still comes is thrown away."""
        if self.refusal is None:
            self.refusal = (status, reason)
        self.drop()

    def drop(self) -> None:
        """Close and remove the temporary file; a name that was given stays."""
        handle, path, self.handle, self.path = self.handle, self.path, -1, None
        # A disk that fails here failed before, and that was told; what is left lying is swept at the next start.
        if handle >= 0:
            with contextlib.suppress(OSError):
                os.close(handle)
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


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

    def close(self, timeout_s: float) -> None:
        """Refuse everything from here on, and let what is being committed be finished."""
