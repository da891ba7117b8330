"""Storage commitment (PS3.4 annex J): a peer asks whether images are safe here, and is told what the ledger knows.

The request is in the ledger before it is answered. What is reported is looked up when it is reported: an image is safe
when the ledger holds it under the SOP class asked for and its file lies whole in the spool. One that retention has
removed meanwhile is not safe any more, and is reported so. `EventReports` brings reports to the association of the
request, `node.reporter` to one of our own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID

from node import statuses
from node.ledger import Commitment, Held, Ledger, Reference
from node.operation import Operation, Outcome, Refusal, items, uid
from node.part10 import data_set_length
from node.settings import Commitment as Rules
from node.spool import Spool

log = logging.getLogger(__name__)

SOP_CLASS_UID = "1.2.840.10008.1.20.1"
SOP_INSTANCE_UID = "1.2.840.10008.1.20.1.1"  # the one, well-known instance (PS3.4 J.3.5)
_REFERENCE = ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")
_REQUEST = 1  # the only Action Type (J.3.2.1.1)
# Items beside the references that a request may hold, as of Referenced Performed Procedure Step Sequence.
_OTHER_ITEMS = 16
# Event Types (J.3.3.1.1).
_ALL_SAFE, _FAILURES_EXIST = 1, 2


@dataclass(frozen=True)
class Report:
    """What a peer is told of one transaction (PS3.4 J.3.3): which images are safe, and which are not and why."""

    transaction_uid: str
    safe: Sequence[Reference]
    failed: Sequence[tuple[Reference, int]]

    @property
    def event_type(self) -> int:
        """The Event Type ID (0000,1002)."""
        return _FAILURES_EXIST if self.failed else _ALL_SAFE

    def data_set(self) -> Dataset:
        """Return the Event Information."""
        ds = Dataset()
        ds.TransactionUID = self.transaction_uid
        if self.safe:
            ds.ReferencedSOPSequence = [_item(reference) for reference in self.safe]
        if self.failed:
            ds.FailedSOPSequence = [_item(reference, reason) for reference, reason in self.failed]
        return ds

    def encoded(self, transfer_syntax_uid: str) -> bytes:
        """Return the Event Information encoded in a little endian syntax."""
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, UID(transfer_syntax_uid).is_implicit_VR
        write_dataset(buffer, self.data_set())
        return bytes(buffer.getvalue())


class StorageCommitment:
    """Takes requests, and says what is to be reported.

    A request that is `held` waits for the end of its association, which has the first try at the report.

    Parameters
    ----------
    released
        Called when a report is left to `node.reporter`.
    """

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        rules: Rules,
        released: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.rules = rules
        self._ledger = ledger
        self._spool = spool
        self._released = released
        self._now = now
        self._lock = threading.Lock()
        self._held: dict[int, int] = {}  # commitment to association, by their numbers

    def request(self, operation: Operation) -> Outcome:
        """Answer an N-ACTION (PS3.4 J.3.2).

        Raises
        ------
        Refusal, LedgerUnavailable
        """
        if operation.sop_uid != SOP_INSTANCE_UID:
            raise Refusal(statuses.NO_SUCH_SOP_INSTANCE, "it is not the well-known SOP Instance")
        if operation.action_type != _REQUEST:
            raise Refusal(statuses.NO_SUCH_ACTION, "Action Type ID must be 1")
        ds = operation.data_set(self.rules.max_references + _OTHER_ITEMS)
        transaction_uid = uid(ds, "TransactionUID", statuses.INVALID_ARGUMENT_VALUE)
        asked = items(ds, "ReferencedSOPSequence")
        if not asked:
            raise Refusal(statuses.INVALID_ARGUMENT_VALUE, "ReferencedSOPSequence is missing or empty")
        if len(asked) > self.rules.max_references:
            raise Refusal(statuses.RESOURCE_LIMITATION, f"more than {self.rules.max_references} references at once")
        references = [
            Reference(*(uid(item, keyword, statuses.INVALID_ARGUMENT_VALUE) for keyword in _REFERENCE))
            for item in asked
        ]
        return self._record(operation, transaction_uid, list(dict.fromkeys(references)))

    def _record(self, operation: Operation, transaction_uid: str, references: Sequence[Reference]) -> Outcome:
        origin, rules, now = operation.origin, self.rules, self._now()
        asked = Commitment(
            transaction_uid=transaction_uid, calling_ae=origin.calling_ae, peer=origin.address, asked_at=now,
            not_before=now + rules.pause_s, references=tuple(references),
        )  # fmt: skip
        with self._lock:  # until it is held, nobody else may find it
            answer = self._ledger.ask_commitment(asked, rules.max_open_per_peer)
            number = answer.number
            if number is not None and rules.same_association:
                self._held[number] = origin.number
        if number is None:
            if answer.reused:
                raise Refusal(statuses.INVALID_ARGUMENT_VALUE, "Transaction UID was used for other references")
            raise Refusal(statuses.RESOURCE_LIMITATION, f"{rules.max_open_per_peer} transactions are open already")
        log.info("commitment=%d from=%s asks for %d image(s)", number, origin.calling_ae, len(references))
        return Outcome(statuses.SUCCESS, owed=number if rules.same_association else None)

    def due(self, now: float) -> list[Commitment]:
        """Return transactions whose report is due and not left to an association, oldest first."""
        with self._lock:
            held = set(self._held)
            return [found for found in self._ledger.due_commitments(now, 64 + len(held)) if found.number not in held]

    def report(self, number: int) -> Report | None:
        """Look up what is to be reported of one transaction; None when that is over.

        Raises
        ------
        LedgerUnavailable, OutOfDisk
        """
        pending = self._ledger.pending_commitment(number)
        if pending is None:
            return None
        held = self._ledger.held({reference.sop_uid for reference in pending.references})
        safe, failed = [], []
        for reference in pending.references:
            reason = self._reason_against(reference, held.get(reference.sop_uid))
            if reason is None:
                safe.append(reference)
            else:
                failed.append((reference, reason))
        return Report(pending.transaction_uid, safe, failed)

    def _reason_against(self, reference: Reference, held: Held | None) -> int | None:
        """Return the Failure Reason (0008,1197; PS3.3 C.14.1.1) of an instance, None for one that is safe."""
        if held is None:
            return statuses.NO_SUCH_SOP_INSTANCE
        if held.sop_class_uid != reference.sop_class_uid:
            return statuses.CLASS_INSTANCE_CONFLICT
        try:
            length = data_set_length(self._spool.path(held.path))
        except FileNotFoundError:
            return statuses.NO_SUCH_SOP_INSTANCE
        except OSError as error:
            log.error("an image in the spool cannot be read (%s)", error.strerror)
            return statuses.PROCESSING_FAILURE
        return None if length == held.size else statuses.PROCESSING_FAILURE

    def settle(self, number: int, report: Report, status: int, way: str) -> None:
        """Note how the peer answered the N-EVENT-REPORT; what it refused is tried again.

        Raises
        ------
        LedgerUnavailable
        """
        if status == statuses.SUCCESS:
            note = f"reported {way}: {len(report.safe)} safe, {len(report.failed)} not"
            self._ledger.commitment_reported(number, len(report.failed), note, self._now())
            log.info("commitment=%d %s", number, note)
        else:
            self.postpone(number, f"the peer answered 0x{status:04X} to the report {way}", "look into the peer's log")

    def postpone(self, number: int, reason: str, next_step: str) -> None:
        """Try again later, with the reason; after `give_up_after_s` give up.

        Raises
        ------
        LedgerUnavailable
        """
        now, pending = self._now(), self._ledger.pending_commitment(number)
        if pending is None:
            return
        log.warning("commitment=%d of %s is not reported: %s", number, pending.calling_ae, reason)
        if now - pending.asked_at >= self.rules.give_up_after_s:
            self._ledger.give_up_commitment(number, f"given up: {reason}", next_step, now)
        else:
            self._ledger.postpone_commitment(number, reason, next_step, now + self._wait_s(pending.attempts), now)

    def _wait_s(self, attempts: int) -> float:
        rules = self.rules
        return float(min(rules.backoff_max_s, rules.backoff_first_s * 2 ** min(attempts, 30)))

    def release(self, association: int, numbers: Sequence[int]) -> None:
        """End the hold of an association on these; what it has not delivered is left to `node.reporter`."""
        with self._lock:
            for number in numbers:
                if self._held.get(number) == association:
                    del self._held[number]
        if numbers:
            self._released()


def _item(reference: Reference, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference
    if reason is not None:
        item.FailureReason = reason
    return item
