"""One object on its way in: from the first byte of its data set to the status that answers for it.

Both ways of the listener end here. Success means: the file and its name are on disk, and the ledger row is committed.
Objects that arrive together share one flush of their folders and one transaction.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from node import statuses
from node.commit import GroupCommit
from node.errors import InvalidInstance, LedgerUnavailable, NotFound, OutOfDisk, PennodeError
from node.header import identify
from node.incoming import Incoming, Origin
from node.ledger import Ledger, Receipt, Recorded
from node.logs import printable
from node.records import Instance, is_uid
from node.returns import Returns
from node.settings import Listener
from node.spool import Spool

log = logging.getLogger(__name__)

# How often the free disk is looked at: while an object grows, and while many small ones come.
_LOOK_EVERY = 16 << 20
_LOOK_EVERY_S = 0.1
_MOST_TRIES = 3


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
    returns
        Takes objects of ours that a PACS sends back because we asked it to; unset: none is expected.
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
        returns: Returns | None = None,
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._settings = settings
        self._joined = joined
        self._nothing_new = nothing_new
        self._changed = changed
        self._now = now
        self._returns = returns or Returns()
        self._group: GroupCommit[Instance, Recorded | PennodeError] = GroupCommit(self._commit)
        self._idle = threading.Condition()
        self._doubtful: deque[str] = deque()
        self._busy = 0
        self._look_again = 0.0
        self._stopping = False

    def close(self, timeout_s: float) -> None:
        """Refuse everything from here on, and let what is being committed be finished."""
        with self._idle:
            self._stopping = True
            self._idle.wait_for(lambda: self._busy == 0, timeout_s)
        self._spool.unnamed.close_spares()

    def rest(self) -> None:
        """Close what lies ready: nobody is there who could need it."""
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
        if self._returns.take(incoming):
            return statuses.SUCCESS
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
        status = self._record(instance)
        if self._doubtful:
            self._sweep()
        return status

    def _record(self, instance: Instance) -> int:
        for _ in range(_MOST_TRIES):
            with self._in_doubt(instance.path):
                answer = self._group.submit(instance)
            if isinstance(answer, Recorded) and answer.receipt is Receipt.NEW:
                return statuses.SUCCESS
            self._nothing_new(instance.association, instance.series_uid)
            if isinstance(answer, PennodeError):  # the file has gone already
                raise answer
            if answer.receipt is Receipt.TOO_MANY:
                self._drop(instance.path)
                raise OutOfDisk(
                    f"series {instance.series_uid} has listener.max_series_instances images",
                    "raise it if this is no fault",
                )
            with self._in_doubt(instance.path):
                status = self._again(instance, answer)
            if status is not None:
                return status
            # Retention took the other one meanwhile.
            self._joined(instance.association, instance.series_uid)
        self._drop(instance.path)
        raise LedgerUnavailable("an object under the same UID comes and goes", "send it again")

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
                self._drop(one.path)
        named = [one for one in batch if one.series_uid not in failed]
        answers = iter(self._ledger.record_all(named, self._settings.max_series_instances))
        outcomes: list[Recorded | PennodeError] = [failed.get(one.series_uid) or next(answers) for one in batch]
        if any(isinstance(outcome, Recorded) and outcome.receipt is Receipt.NEW for outcome in outcomes):
            self._changed()
        return outcomes

    def _again(self, instance: Instance, held: Recorded) -> int | None:
        """Keep or remove a file whose UID the ledger holds, and return the status for it; None: record it anew."""
        # Where our name was free, the file was lost, or the ledger took ours before and could not say so.
        there = held.path != instance.path
        try:
            if there and self._spool.same(instance.path, held.path):
                if held.path not in self._ledger.known_paths({held.path}):
                    return None
                self._spool.remove(instance.path)
                return statuses.SUCCESS
            # What lies there may have been damaged since, and ours is what came first.
            intact = there and held.sha256 in ("", self._spool.sha256(held.path))
        except NotFound:
            there = intact = False
        if not intact and held.sha256 in ("", self._spool.sha256(instance.path)):
            if not self._ledger.replace_file(instance, held):
                return None
            log.warning("image %s was lost or damaged in the spool, and came again", instance.sop_uid)
            if there:
                self._drop(held.path)
            return statuses.SUCCESS
        self._ledger.note_conflict(instance, held.series_uid)
        log.warning("another object came under SOP Instance UID %s: the first is kept", instance.sop_uid)
        self._spool.remove(instance.path)
        return statuses.DUPLICATE_SOP_INSTANCE

    @contextlib.contextmanager
    def _in_doubt(self, path: str) -> Iterator[None]:
        """Have `_sweep` look after a file where an error leaves it open whether the ledger has it.

        It keeps its name until then. What we removed ourselves must never come here: another receipt of the same UID
        may have that name by then.
        """
        certain = False
        try:
            yield
            certain = True
        finally:
            if not certain:
                self._doubtful.append(path)

    def _drop(self, path: str) -> None:
        """Remove a file that does not count, now or when the disk allows it."""
        with contextlib.suppress(OutOfDisk), self._in_doubt(path):
            self._spool.remove(path)

    def _sweep(self) -> None:
        """Remove files whose way into the ledger ended in doubt, now that it answers, where they are not in it."""
        doubtful = set()
        with contextlib.suppress(IndexError):
            while True:
                doubtful.add(self._doubtful.popleft())
        try:
            unknown = doubtful - self._ledger.known_paths(doubtful)
        except LedgerUnavailable:
            self._doubtful.extend(doubtful)
        else:
            for path in unknown:
                self._drop(path)
