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
from dataclasses import dataclass, replace

from node import statuses
from node.commit import GroupCommit
from node.errors import InvalidInstance, LedgerUnavailable, OutOfDisk, PennodeError
from node.header import identify
from node.incoming import Incoming, Origin
from node.ledger import Ledger, Receipt, Recorded
from node.logs import printable
from node.records import Instance, is_uid
from node.settings import Listener
from node.spool import Spool

log = logging.getLogger(__name__)

# How often an object that grows is held against the free disk.
_LOOK_EVERY = 16 << 20


@dataclass
class _Arrival:
    """An object that is on disk, and what the ledger should know of it."""

    incoming: Incoming
    instance: Instance
    outcome: int | PennodeError = statuses.OUT_OF_RESOURCES
    is_new: bool = False


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
        self._group: GroupCommit[_Arrival, int | PennodeError] = GroupCommit(self._commit)
        self._idle = threading.Condition()
        self._busy = 0
        self._stopping = False

    def close(self, timeout_s: float) -> None:
        """Refuse everything from here on, and let what is being committed be finished."""
        with self._idle:
            self._stopping = True
            self._idle.wait_for(lambda: self._busy == 0, timeout_s)

    def is_short_of_disk(self) -> bool:
        """Tell whether less disk is free than ``listener.free_floor_mb``."""
        try:
            return self._spool.free_bytes() < self._settings.free_floor_mb * 1_000_000
        except OutOfDisk:
            return True

    def begin(self, origin: Origin, sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str) -> Incoming:
        """Begin with an object as its C-STORE-RQ announces it; the UIDs are the peer's, unchecked."""
        incoming = Incoming(origin, sop_class_uid, sop_uid, transfer_syntax_uid)
        for uid in (sop_uid, sop_class_uid):
            if not is_uid(uid):
                incoming.refuse(statuses.INVALID_SOP_INSTANCE, f"{printable(uid)!r} is no UID")
                return incoming
        if self._stopping:
            incoming.refuse(statuses.OUT_OF_RESOURCES, "the node stops")
        elif self.is_short_of_disk():
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
        elif before // _LOOK_EVERY != incoming.size // _LOOK_EVERY and self.is_short_of_disk():
            incoming.refuse(statuses.OUT_OF_RESOURCES, "less disk is free than listener.free_floor_mb")
        else:
            try:
                incoming.append(pieces)
            except OutOfDisk as error:
                incoming.refuse(statuses.OUT_OF_RESOURCES, str(error))

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
            incoming.drop()
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

    def _finish(self, incoming: Incoming) -> int:
        if incoming.refusal is not None:
            return incoming.refusal[0]
        identity = identify(incoming.read_at, incoming.size, incoming.transfer_syntax_uid)
        if identity.sop_uid != incoming.sop_uid or identity.sop_class_uid != incoming.sop_class_uid:
            incoming.refuse(statuses.DATA_SET_DOES_NOT_MATCH, "the data set is another object than announced")
            return statuses.DATA_SET_DOES_NOT_MATCH
        # From here on the series waits for this association's end, should its seal be near.
        self._joined(incoming.origin.number, identity.series_uid)
        # Each association's own thread flushes its own file: the file system joins what is flushed at the same time.
        self._spool.flush(incoming.handle)
        instance = Instance(
            sop_uid=incoming.sop_uid,
            sop_class_uid=incoming.sop_class_uid,
            series_uid=identity.series_uid,
            study_uid=identity.study_uid,
            transfer_syntax_uid=incoming.transfer_syntax_uid,
            sha256=incoming.sha256(),
            size=incoming.size,
            path="",
            calling_ae=incoming.origin.calling_ae,
            called_ae=incoming.origin.called_ae,
            peer=incoming.origin.address,
            received_at=self._now(),
            header=identity.header,
            association=incoming.origin.number,
        )
        arrival = _Arrival(incoming, instance)
        outcome = self._group.submit(arrival)
        if not arrival.is_new:
            self._nothing_new(incoming.origin.number, identity.series_uid)
        if isinstance(outcome, PennodeError):
            raise outcome
        return outcome

    def _commit(self, batch: Sequence[_Arrival]) -> list[int | PennodeError]:
        """Give names, flush each folder once, record all in one transaction, and only then say success."""
        folders: dict[str, list[_Arrival]] = {}
        for arrival in batch:
            one = arrival.instance
            try:
                path = self._spool.give_name(arrival.incoming.temporary, one.series_uid, one.sop_uid, one.sha256)
            except OutOfDisk as error:
                arrival.outcome = error
            else:
                arrival.instance = replace(one, path=path)
                folders.setdefault(one.series_uid, []).append(arrival)
        named: list[_Arrival] = []
        for arrivals in folders.values():
            try:
                self._spool.flush_folder(arrivals[0].instance.path)
            except OutOfDisk as error:
                for arrival in arrivals:
                    arrival.outcome = error
                    with contextlib.suppress(OutOfDisk):  # the others of this batch lie in healthy folders
                        self._spool.remove(arrival.instance.path)
            else:
                named += arrivals
        answers = self._ledger.record_all([a.instance for a in named], self._settings.max_series_instances)
        for arrival, answer in zip(named, answers, strict=True):
            arrival.outcome, arrival.is_new = self._settle(arrival.instance, answer), answer.receipt is Receipt.NEW
        if any(answer.receipt is Receipt.NEW for answer in answers):
            self._changed()
        return [arrival.outcome for arrival in batch]

    def _settle(self, instance: Instance, answer: Recorded) -> int | PennodeError:
        """Keep or remove the file, as the ledger answered."""
        if answer.receipt is Receipt.NEW:
            return statuses.SUCCESS
        try:
            if answer.receipt is Receipt.DUPLICATE:
                if answer.held_path == instance.path:  # the file was lost, and this one has its name
                    return statuses.SUCCESS
                if not self._spool.holds(answer.held_path):
                    self._ledger.replace_path(instance.sop_uid, instance.path)
                    return statuses.SUCCESS
            self._spool.remove(instance.path)
        except (OutOfDisk, LedgerUnavailable) as error:
            return error
        if answer.receipt is Receipt.CONFLICT:
            log.warning("another object came under SOP Instance UID %s: the first is kept", instance.sop_uid)
            return statuses.DUPLICATE_SOP_INSTANCE
        if answer.receipt is Receipt.TOO_MANY:
            return OutOfDisk(
                f"series {instance.series_uid} has listener.max_series_instances images", "raise it if this is no fault"
            )
        return statuses.SUCCESS
