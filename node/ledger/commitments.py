"""Storage commitment: what peers asked about, and how far the report of it has come."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import delete, func, insert, select, update

from node.ledger.database import Database
from node.ledger.schema import commitment, instance

_CHUNK = 500


class CommitmentState(StrEnum):
    """Where the report of one transaction stands."""

    PENDING = "PENDING"
    REPORTED = "REPORTED"
    FAILED = "FAILED"  # given up: the peer was not to be told


class Reference(NamedTuple):
    """One SOP instance as a peer names it; both are UIDs, checked."""

    sop_class_uid: str
    sop_uid: str


@dataclass(frozen=True)
class Commitment:
    """One storage commitment transaction (PS3.4 J.3.2). Times in seconds since 1970.

    `references` are kept until the report is delivered or given up; `requested` counts them for ever, `failed` those
    that were reported as not safe.
    """

    transaction_uid: str
    calling_ae: str
    peer: str  # the address it came from
    asked_at: float
    not_before: float
    references: tuple[Reference, ...] = ()
    number: int = 0
    state: CommitmentState = CommitmentState.PENDING
    requested: int = 0
    failed: int = 0
    attempts: int = 0
    reason: str = ""
    next_step: str = ""
    updated_at: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`, without the references."""
        return {name: value for name, value in asdict(self).items() if name != "references"}


@dataclass(frozen=True)
class Asked:
    """What became of a request: its number, or None with `reused` (an old Transaction UID for other references) or not
    (too many transactions of this peer are open)."""

    number: int | None
    reused: bool = False


@dataclass(frozen=True)
class Held:
    """What the ledger holds under one SOP Instance UID: its class, its file in the spool, its data set's size."""

    sop_class_uid: str
    path: str
    size: int


class Commitments:
    """The part of the ledger that storage commitment moves."""

    _db: Database

    def ask_commitment(self, asked: Commitment, most_open: int) -> Asked:
        """Record a request durably; it may be answered with success once this returns a number.

        The same transaction of the same peer again is the same row, and due again if its report was delivered already.
        """
        digest = hashlib.sha256(repr(sorted(asked.references)).encode()).hexdigest()
        values = {
            "state": CommitmentState.PENDING.value, "references": [list(r) for r in asked.references], "reason": "",
            "next_step": "", "asked_at": asked.asked_at, "not_before": asked.not_before, "updated_at": asked.asked_at,
        }  # fmt: skip
        known = (commitment.c.transaction_uid == asked.transaction_uid) & (commitment.c.calling_ae == asked.calling_ae)
        still_open = (commitment.c.calling_ae == asked.calling_ae) & _PENDING
        with self._db.write() as connection:
            row = connection.execute(select(commitment.c.number, commitment.c.digest).where(known)).first()
            if row is not None and row.digest != digest:
                return Asked(None, reused=True)
            if row is not None:
                connection.execute(update(commitment).where(commitment.c.number == row.number).values(**values))
                return Asked(int(row.number))
            if connection.execute(select(func.count()).where(still_open)).scalar_one() >= most_open:
                return Asked(None)
            number = connection.execute(
                insert(commitment).values(
                    transaction_uid=asked.transaction_uid, calling_ae=asked.calling_ae, peer=asked.peer, digest=digest,
                    requested=len(asked.references), failed=0, attempts=0, **values,
                ).returning(commitment.c.number)
            ).scalar_one()  # fmt: skip
        return Asked(int(number))

    def due_commitments(self, now: float, limit: int = 64) -> list[Commitment]:
        """Return transactions whose report is due, oldest first and without their references."""
        query = select(*_SHORT).where(_PENDING & (commitment.c.not_before <= now))
        with self._db.read() as connection:
            rows = connection.execute(query.order_by(commitment.c.not_before, commitment.c.number).limit(limit))
            return [_as_commitment(row) for row in rows]

    def pending_commitment(self, number: int) -> Commitment | None:
        """Return one transaction with its references; None when its report is delivered or given up."""
        query = select(*_SHORT, commitment.c.references).where(_PENDING & (commitment.c.number == number))
        with self._db.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else _as_commitment(row)

    def held(self, sop_uids: Collection[str]) -> dict[str, Held]:
        """Return what the ledger holds of these instances, by SOP Instance UID."""
        ordered = sorted(sop_uids)
        columns = (instance.c.sop_uid, instance.c.sop_class_uid, instance.c.path, instance.c.size)
        found: dict[str, Held] = {}
        with self._db.read() as connection:
            for start in range(0, len(ordered), _CHUNK):
                chunk = instance.c.sop_uid.in_(ordered[start : start + _CHUNK])
                for sop_uid, *rest in connection.execute(select(*columns).where(chunk)):
                    found[sop_uid] = Held(*rest)
        return found

    def commitment_reported(self, number: int, failed: int, note: str, now: float) -> None:
        """Note that the peer has taken the report, in which `failed` images were not safe."""
        self._close_commitment(number, CommitmentState.REPORTED, note, "", now, failed=failed)

    def give_up_commitment(self, number: int, reason: str, next_step: str, now: float) -> None:
        """Note that the peer is not to be told any more."""
        self._close_commitment(number, CommitmentState.FAILED, reason, next_step, now)

    def _close_commitment(
        self, number: int, state: CommitmentState, reason: str, next_step: str, now: float, **values: int
    ) -> None:
        with self._db.write() as connection:
            connection.execute(
                update(commitment)
                .where(_PENDING & (commitment.c.number == number))
                .values(
                    state=state.value,
                    references=[],
                    reason=reason,
                    next_step=next_step,
                    updated_at=now,
                    attempts=commitment.c.attempts + 1,
                    **values,
                )
            )

    def postpone_commitment(self, number: int, reason: str, next_step: str, not_before: float, now: float) -> None:
        """Try again later, and say why."""
        with self._db.write() as connection:
            connection.execute(
                update(commitment)
                .where(_PENDING & (commitment.c.number == number))
                .values(
                    attempts=commitment.c.attempts + 1, reason=reason, next_step=next_step, not_before=not_before,
                    updated_at=now,
                )
            )  # fmt: skip

    def commitments(self, limit: int = 200) -> list[Commitment]:
        """Return transactions without their references, newest first."""
        query = select(*_SHORT).order_by(commitment.c.number.desc()).limit(limit)
        with self._db.read() as connection:
            return [_as_commitment(row) for row in connection.execute(query)]

    def forget_commitments(self, before: float) -> int:
        """Drop transactions that were closed before this time; return how many."""
        aged = (commitment.c.state != CommitmentState.PENDING.value) & (commitment.c.updated_at < before)
        with self._db.write() as connection:
            return connection.execute(delete(commitment).where(aged)).rowcount


_PENDING = commitment.c.state == CommitmentState.PENDING.value
_SHORT = [commitment.c[name] for name in Commitment.__dataclass_fields__ if name != "references"]


def _as_commitment(row: Any) -> Commitment:
    values = dict(row._mapping)
    references: Sequence[Sequence[str]] = values.get("references", ())
    values["references"] = tuple(Reference(*reference) for reference in references)
    return Commitment(**{**values, "state": CommitmentState(values["state"])})
