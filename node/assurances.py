"""Storage commitment reports that a PACS brings us (PS3.4 J.3.3): we had asked whether it holds our results.

They come on the association of the request or on a later one, which the PACS opens to our listener and on which it is
the SCP. What a report says is in the ledger before it is answered.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from node import statuses
from node.commitment import SOP_INSTANCE_UID
from node.ledger import Ledger
from node.operation import Operation, Outcome, Refusal, items, text, uid
from node.settings import Delivery as Rules

log = logging.getLogger(__name__)

# Event Types (PS3.4 J.3.3.1.1).
_ALL_SAFE, _FAILURES_EXIST = 1, 2
# We never ask about more at once (`Ledger.due_proofs`); a peer may send an old transaction's report again.
_MOST_ITEMS = 1024


class Assurances:
    """Takes reports for the ledger."""

    def __init__(self, ledger: Ledger, rules: Rules, now: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._rules = rules
        self._now = now

    def take(self, operation: Operation) -> Outcome:
        """Answer an N-EVENT-REPORT (PS3.7 section 10.1.1.1.8 has the statuses).

        The Transaction UID, which nobody can guess, tells that it was asked of who reports.

        Raises
        ------
        Refusal, LedgerUnavailable
        """
        if operation.sop_uid != SOP_INSTANCE_UID:
            raise Refusal(statuses.NO_SUCH_SOP_INSTANCE, "it is not the well-known SOP Instance")
        if operation.event_type not in (_ALL_SAFE, _FAILURES_EXIST):
            raise Refusal(statuses.NO_SUCH_EVENT_TYPE, "Event Type ID must be 1 or 2")
        ds = operation.data_set(_MOST_ITEMS)
        transaction_uid = uid(ds, "TransactionUID", statuses.INVALID_ARGUMENT_VALUE)
        invalid = statuses.INVALID_ARGUMENT_VALUE
        safe = {uid(item, "ReferencedSOPInstanceUID", invalid) for item in items(ds, "ReferencedSOPSequence")}
        failed = {
            uid(item, "ReferencedSOPInstanceUID", invalid): _number(text(item, "FailureReason"))
            for item in items(ds, "FailedSOPSequence")
        }
        known = self._ledger.reported(transaction_uid, safe, failed, self._rules, self._now())
        if known is None:
            raise Refusal(statuses.PROCESSING_FAILURE, "no such transaction")
        log.info(
            "storage commitment reported by %s: %d held, %d not", operation.origin.calling_ae, len(safe), len(failed)
        )
        return Outcome(statuses.SUCCESS)


def _number(said: str) -> int:
    """Return a Failure Reason; one that is missing counts as a processing failure."""
    return int(said) if said.isascii() and said.isdecimal() and len(said) < 6 else statuses.PROCESSING_FAILURE
