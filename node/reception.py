"""One object on its way in: from the first byte of its data set to the status that answers for it.

Both ways of the listener end here. Success means: the file and its name are on disk, and the ledger row is committed.
Objects that arrive together share one flush of their folders and one transaction.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

from node import statuses
from node.commit import GroupCommit
from node.errors import InvalidInstance, LedgerUnavailable, NotFound, OutOfDisk, PennodeError
from node.header import identify
from node.incoming import Incoming, Origin
from node.ledger import Ledger, Receipt, Recorded
from node.logs import printable
from node.records import Instance, is_uid
from node.settings import Listener
from node.spool import Spool

log = logging.getLogger(__name__)

# How often the free disk is looked at: while an object grows, and while many small ones come.
_LOOK_EVERY = 16 << 20
_LOOK_EVERY_S = 0.1


class Reception:
    """Stores what associations bring.

    Parameters
    ----------
    joined
        Called with an association's number and a Series Instance UID before an image of that series is committed.
    nothing_new
        Called with the same after the commit, when the image was here already or was not kept.
    changed
        Called when a new image was committed.
    """

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        settings: Listener,
        joined: Callable[[int, str], None],
        nothing_new: Callable[[int, str], None],
        changed: Callable[[], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._settings = settings
        self._joined = joined
        self._nothing_new = nothing_new
        self._changed = changed
        self._now = now
        self._group: GroupCommit[Instance, Recorded | PennodeError] = GroupCommit(self._commit)
        self._idle = threading.Condition()
        self._busy = 0
        self._look_again = 0.0
        self._stopping = False

    def close(self, timeout_s: float) -> None:
        """Refuse everything from here on, and let what is being committed be finished."""
        with self._idle:
            self._stopping = True
            self._idle.wait_for(lambda: self._busy == 0, timeout_s)
        self._spool.unnamed.close_spares()

    def is_short_of_disk(self) -> bool:
        """Tell whether less disk is free than ``listener.free_floor_mb``."""
        try:
            short = self._spool.free_bytes() < self._settings.free_floor_mb * 1_000_000
        except OutOfDisk:
            short = True
        self._look_again = 0.0 if short else time.monotonic() + _LOOK_EVERY_S
        return short

    def begin(self, origin: Origin, sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str) -> Incoming:
        """Begin with an object as its C-STORE-RQ announces it; the UIDs are the peer's, unchecked."""
        incoming = Incoming(origin, sop_class_uid, sop_uid, transfer_syntax_uid)
        for uid in (sop_uid, sop_class_uid):
            if not is_uid(uid):
                incoming.refuse(statuses.INVALID_SOP_INSTANCE, f"{printable(uid)!r} is no UID")
                return incoming
        if self._stopping:
            incoming.refuse(statuses.OUT_OF_RESOURCES, "the node stops")
        elif time.monotonic() >= self._look_again and self.is_short_of_disk():
            incoming.refuse(statuses.OUT_OF_RESOURCES, "less disk is free than listener.free_floor_mb")
        else:
            try:
                incoming.open(self._spool)
            except OutOfDisk as error:
                incoming.refuse(statuses.OUT_OF_RESOURCES, str(error))
        return incoming

    def append(self, incoming: Incoming, pieces: Sequence[memoryview]) -> None:
        """Take the next pieces of its data set."""
        before = incoming.size
        incoming.size += sum(map(len, pieces))
        if incoming.refusal is not None:
            return
        if incoming.size > self._settings.max_object_mb * 1_000_000:
            incoming.refuse(statuses.OUT_OF_RESOURCES, "it is larger than listener.max_object_mb")
            return
        grown = before // _LOOK_EVERY != incoming.size // _LOOK_EVERY
        if grown and self.is_short_of_disk():
            incoming.refuse(statuses.OUT_OF_RESOURCES, "less disk is free than listener.free_floor_mb")
            return
        try:
            incoming.append(pieces)
        except OutOfDisk as error:
            incoming.refuse(statuses.OUT_OF_RESOURCES, str(error))
        else:
            if grown:
                incoming.begin_flush(self._spool)

    def finish(self, incoming: Incoming) -> int:
        """Commit an object that has come whole; return the status to answer (PS3.4 B.2.3)."""
        with self._idle:
            if self._stopping:
                incoming.refuse(statuses.OUT_OF_RESOURCES, "the node stops")
            self._busy += 1
        try:
            status = self._finish(incoming)
        except InvalidInstance as error:
            incoming.refuse(statuses.CANNOT_UNDERSTAND, str(error))
        except (OutOfDisk, LedgerUnavailable) as error:
            incoming.refuse(statuses.OUT_OF_RESOURCES, str(error))
        finally:
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()
        if incoming.refusal is None:
            return status
        status, reason = incoming.refusal
        level = logging.ERROR if status == statuses.OUT_OF_RESOURCES else logging.WARNING
        log.log(
            level, "refused an image from %s at %s: %s", incoming.origin.calling_ae, incoming.origin.address, reason
        )
        return status

    def tidy(self, incoming: Incoming) -> None:
        """Close what was finished, and make ready for the next one: once the answer is sent."""
        incoming.drop()
        self._spool.unnamed.open_spare()

    def _finish(self, incoming: Incoming) -> int:
        if incoming.refusal is not None:
            return incoming.refusal[0]
        incoming.begin_flush(self._spool)
        identity = identify(incoming.read_at, incoming.size, incoming.transfer_syntax_uid)
        if identity.sop_uid != incoming.sop_uid or identity.sop_class_uid != incoming.sop_class_uid:
            incoming.refuse(statuses.DATA_SET_DOES_NOT_MATCH, "the data set is another object than announced")
            return statuses.DATA_SET_DOES_NOT_MATCH
        if incoming.origin.study_uid not in ("", identity.study_uid):
            incoming.refuse(statuses.DATA_SET_DOES_NOT_MATCH, "the data set is of another study than announced")
            return statuses.DATA_SET_DOES_NOT_MATCH
        # From here on the series waits for this association's end, should its seal be near.
        self._joined(incoming.origin.number, identity.series_uid)
        # Each association's own thread flushes its own file: the file system joins what is flushed at the same time.
        path = self._spool.give_name(incoming.handle, incoming.path, identity.series_uid, incoming.sop_uid)
        instance = Instance(
            sop_uid=incoming.sop_uid,
            sop_class_uid=incoming.sop_class_uid,
            series_uid=identity.series_uid,
            study_uid=identity.study_uid,
            transfer_syntax_uid=incoming.transfer_syntax_uid,
            sha256="",  # assembly's to find, before it seals the series: nobody needs to wait for it here
            size=incoming.size,
            path=path,
            calling_ae=incoming.origin.calling_ae,
            called_ae=incoming.origin.called_ae,
            peer=incoming.origin.address,
            received_at=self._now(),
            header=identity.header,
            association=incoming.origin.number,
        )
        answer = self._group.submit(instance)
        if isinstance(answer, PennodeError) or answer.receipt is not Receipt.NEW:
            self._nothing_new(incoming.origin.number, identity.series_uid)
        if isinstance(answer, PennodeError):
            raise answer
        return statuses.SUCCESS if answer.receipt is Receipt.NEW else self._again(instance, answer)

    def _commit(self, batch: Sequence[Instance]) -> list[Recorded | PennodeError]:
        """Flush each folder once, and record all in one transaction."""
        failed: dict[str, OutOfDisk] = {}
        for series_uid, path in {one.series_uid: one.path for one in batch}.items():
            try:
                self._spool.flush_folder(path)
            except OutOfDisk as error:
                failed[series_uid] = error
        for one in batch:
            if one.series_uid in failed:
                with contextlib.suppress(OutOfDisk):
                    self._spool.remove(one.path)
        named = [one for one in batch if one.series_uid not in failed]
        answers = iter(self._ledger.record_all(named, self._settings.max_series_instances))
        outcomes: list[Recorded | PennodeError] = [failed.get(one.series_uid) or next(answers) for one in batch]
        if any(isinstance(outcome, Recorded) and outcome.receipt is Receipt.NEW for outcome in outcomes):
            self._changed()
        return outcomes

    def _again(self, instance: Instance, held: Recorded) -> int:
        """Keep or remove a file that the ledger did not take, and return the status for it."""
        if held.path == instance.path:  # taken after all, when the ledger could not say so
            return statuses.SUCCESS
        if held.receipt is Receipt.TOO_MANY:
            self._spool.remove(instance.path)
            raise OutOfDisk(
                f"series {instance.series_uid} has listener.max_series_instances images", "raise it if this is no fault"
            )
        try:
            same = self._spool.same(instance.path, held.path)
        except NotFound:  # the file was lost: this one takes its place, if it is not known to be another
            if not held.sha256 or held.sha256 == self._spool.sha256(instance.path):
                self._ledger.replace_path(instance.sop_uid, instance.path)
                return statuses.SUCCESS
            same = False
        self._spool.remove(instance.path)
        if same:
            return statuses.SUCCESS
        self._ledger.note_conflict(instance, held.series_uid)
        log.warning("another object came under SOP Instance UID %s: the first is kept", instance.sop_uid)
        return statuses.DUPLICATE_SOP_INSTANCE
