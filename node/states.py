"""The states of series, jobs and deliveries, as tables: which there are, and which moves between them."""

from __future__ import annotations

from enum import StrEnum


class SeriesState(StrEnum):
    """A series is open for instances, or sealed. An instance after the seal opens the next revision."""

    RECEIVING = "RECEIVING"
    SEALED = "SEALED"


class JobState(StrEnum):
    """Where one series revision stands on its way to the PACS."""

    READY = "READY"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SEGMENTED = "SEGMENTED"
    DELIVERED = "DELIVERED"
    SKIPPED = "SKIPPED"
    REJECTED = "REJECTED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SUPERSEDED = "SUPERSEDED"
    STORED = "STORED"


class DeliveryState(StrEnum):
    """Where one result object stands on its way to one destination."""

    PENDING = "PENDING"
    SENDING = "SENDING"
    SENT = "SENT"
    COMMITTED = "COMMITTED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REPLACED = "REPLACED"


class Proof(StrEnum):
    """How it is known that a destination holds an object; NONE: it offers nothing to know it by, or is not asked."""

    COMMITMENT = "storage commitment"
    FIND = "C-FIND"
    QIDO = "QIDO-RS"
    READ_BACK = "reading it back"
    NONE = "none"


class Wanted(StrEnum):
    """What an operator asks of objects that were sent."""

    PROOF = "proof"
    READ_BACK = "read-back"


_J = JobState

# Every move that is allowed; anything else is a bug and raises. SKIPPED, REJECTED, FAILED and CANCELLED return to READY
# only by an operator's word, FAILED also to SEGMENTED when just the delivery had failed. DELIVERED is left where a
# destination does not hold what it took: SEGMENTED to send it again, FAILED when that does not help. A
# shadow's result is STORED.
JOB_MOVES: dict[JobState, frozenset[JobState]] = {
    _J.READY: frozenset({_J.QUEUED, _J.RUNNING, _J.FAILED, _J.CANCELLED, _J.SUPERSEDED}),
    _J.QUEUED: frozenset({_J.READY, _J.RUNNING, _J.FAILED, _J.CANCELLED, _J.SUPERSEDED}),
    _J.RUNNING: frozenset({_J.READY, _J.SEGMENTED, _J.REJECTED, _J.FAILED, _J.CANCELLED, _J.SUPERSEDED}),
    _J.SEGMENTED: frozenset({_J.DELIVERED, _J.STORED, _J.FAILED, _J.CANCELLED, _J.SUPERSEDED}),
    _J.FAILED: frozenset({_J.READY, _J.SEGMENTED, _J.SUPERSEDED}),
    _J.REJECTED: frozenset({_J.READY, _J.SUPERSEDED}),
    _J.SKIPPED: frozenset({_J.READY, _J.SUPERSEDED}),
    _J.CANCELLED: frozenset({_J.READY, _J.SUPERSEDED}),
    _J.STORED: frozenset({_J.SUPERSEDED}),
    _J.DELIVERED: frozenset({_J.SEGMENTED, _J.FAILED}),
    _J.SUPERSEDED: frozenset(),
}

WAITING = frozenset({_J.READY, _J.QUEUED})
UNFINISHED = frozenset({_J.READY, _J.QUEUED, _J.RUNNING, _J.SEGMENTED})
FINISHED = frozenset(_J) - UNFINISHED
