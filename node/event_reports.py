"""Storage commitment reports on the association that asked for them, sent by its own thread while the peer is at rest.

Many modalities release as soon as they have the N-ACTION-RSP, and one that sends its next image may take a request in
place of its answer for an error. Hence a report waits until nothing has been said for a moment, and one at a time is
under way. What this association cannot deliver is left to `node.reporter`.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from node.answers import event_report
from node.commitment import SOP_CLASS_UID, SOP_INSTANCE_UID, Report, StorageCommitment
from node.errors import Retryable
from node.pdata import N_EVENT_REPORT_RQ, RESPONSE, Command
from node.statuses import SUCCESS

log = logging.getLogger(__name__)

_WAY = "on its own association"


@dataclass(frozen=True)
class _Sent:
    number: int
    report: Report
    message_id: int
    give_up: float


class EventReports:
    """What one association owes its peer. For the association's own thread alone."""

    def __init__(
        self, commitment: StorageCommitment | None, association: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._commitment = commitment
        self._association = association
        self._clock = clock
        self._owed: deque[tuple[int, int, str]] = deque()  # commitment, presentation context, transfer syntax
        self._sent: _Sent | None = None
        self._messages = 0
        self._rest_since = 0.0

    def owe(self, number: int, context_id: int, transfer_syntax_uid: str) -> None:
        """Report of this commitment, in the presentation context in which it was asked for."""
        self._owed.append((number, context_id, transfer_syntax_uid))

    def rest(self) -> None:
        """Say that the peer was just answered."""
        self._rest_since = self._clock()

    def due(self) -> float:
        """Return when to call `next`, by the clock; infinite while there is nothing to do."""
        if self._sent is not None:
            return self._sent.give_up
        if self._owed and self._commitment is not None:
            return self._rest_since + self._commitment.rules.pause_s
        return math.inf

    def next(self, maximum: int) -> bytes:
        """Return the next N-EVENT-REPORT-RQ in PDUs of at most `maximum` bytes; empty when there is none to send.

        One that was not answered in time is left to others, and so is all the rest: this peer does not answer here.
        """
        assert self._commitment is not None
        if self._sent is not None:
            self._leave("the peer did not answer the report on its own association")
            return b""
        number, context_id, transfer_syntax_uid = self._owed.popleft()
        try:
            report = self._commitment.report(number)
        except Retryable as error:
            log.warning("commitment=%d is not reported: %s", number, error)
            report = None
        if report is None:
            self._commitment.release(self._association, [number])
            return b""
        self._messages = self._messages % 0xFFFF + 1
        give_up = self._clock() + self._commitment.rules.timeout_s
        self._sent = _Sent(number, report, self._messages, give_up)
        data = report.encoded(transfer_syntax_uid)
        return event_report(
            context_id, self._messages, SOP_CLASS_UID, SOP_INSTANCE_UID, report.event_type, data, maximum
        )

    def awaits(self, response: Command) -> bool:
        """Tell whether a response is the answer to a report that this association has sent."""
        is_report = response.field == N_EVENT_REPORT_RQ | RESPONSE
        return is_report and response.responded_id is not None and 0 < response.responded_id <= self._messages

    def answered(self, response: Command) -> None:
        """Take a response that `awaits` said yes to; one that comes too late changes nothing."""
        sent = self._sent
        if sent is None or self._commitment is None or response.responded_id != sent.message_id:
            return
        self._sent = None
        self._rest_since = self._clock()
        try:
            self._commitment.settle(
                sent.number, sent.report, SUCCESS if response.status is None else response.status, _WAY
            )
        except Retryable as error:  # it is reported once more, which does no harm
            log.warning("commitment=%d: %s", sent.number, error)
        self._commitment.release(self._association, [sent.number])

    def close(self) -> None:
        """Leave what is owed to others: the association ends."""
        if self._sent is not None:
            self._leave("the peer ended the association without an answer to the report")
        elif self._owed:
            self._leave("")

    def _leave(self, reason: str) -> None:
        assert self._commitment is not None
        numbers = [number for number, _, _ in self._owed]
        if self._sent is not None:
            numbers.append(self._sent.number)
            try:
                self._commitment.postpone(self._sent.number, reason, "look into the peer's log")
            except Retryable as error:
                log.warning("commitment=%d: %s", self._sent.number, error)
        self._sent = None
        self._owed.clear()
        self._commitment.release(self._association, numbers)
