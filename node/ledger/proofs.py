"""How it is known that destinations hold what they took, and what becomes of an object that one does not hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, and_, case, func, or_, select, update

from node import statuses
from node.errors import NotFound, Permanent
from node.ledger.database import Database
from node.ledger.deliveries import as_delivery
from node.ledger.moves import JOB_COLUMNS, as_job, move, write_journal
from node.ledger.schema import delivery, job, series
from node.records import Delivery, Job
from node.settings import Delivery as Rules
from node.states import DeliveryState, JobState, Proof, SeriesState, Wanted

_D = DeliveryState
_TAKEN = delivery.c.state.in_([_D.SENT.value, _D.COMMITTED.value])
_COLUMNS = [delivery.c[name] for name in Delivery.__dataclass_fields__]
# What is kept proved: of a job that was cancelled, superseded or outgrown, or that failed before its delivery, nothing
# is sent again.
_CONCERNED = (
    job.c.state.in_([JobState.SEGMENTED.value, JobState.DELIVERED.value])
    | ((job.c.state == JobState.FAILED.value) & (job.c.stage == "delivery"))
) & ((series.c.state == SeriesState.SEALED.value) & (series.c.revision <= job.c.revision))
_ROW = [*_COLUMNS, delivery.c.rechecked, job.c.series_uid, case((_CONCERNED, 1), else_=0).label("concerned")]
# Failure Reasons (PS3.3 C.14.1.1) that say nothing of the object: the peer does not commit such objects, or cannot now.
_SAYS_NOTHING = frozenset({statuses.SOP_CLASS_NOT_SUPPORTED, statuses.RESOURCE_LIMITATION, 0x0131})
_REASONS = {
    statuses.PROCESSING_FAILURE: "processing failure",
    statuses.NO_SUCH_SOP_INSTANCE: "no such object instance",
    statuses.CLASS_INSTANCE_CONFLICT: "class and instance conflict",
    statuses.SOP_CLASS_NOT_SUPPORTED: "SOP class not supported",
    statuses.RESOURCE_LIMITATION: "resource limitation",
    0x0131: "duplicate transaction UID",
}


class Trouble(NamedTuple):
    """What wants an admin at one destination: objects that are sent again, and objects of which nothing is known."""

    lost: int
    doubtful: int
    doubt: str


def wait_s(tries: int, rules: Rules) -> float:
    """Return the seconds to wait after so many tries: doubling from `backoff_first_s` to `backoff_max_s`."""
    return float(min(rules.backoff_max_s, rules.backoff_first_s * 2 ** min(max(tries - 1, 0), 30)))


class Proofs:
    """The part of the ledger that the proof of deliveries moves."""

    _db: Database

    def due_proofs(self, now: float, destination: str, longest_s: float, limit: int = 64) -> list[Delivery]:
        """Return what one destination took and is to be asked about, oldest first.

        What is due later than `longest_s` from now is so by a clock that was set back. Results of a series that has
        grown since, or is at a newer revision, are left alone: they are not the ones to be kept any more.
        """
        due = (delivery.c.check_at > 0) & or_(delivery.c.check_at <= now, delivery.c.check_at > now + longest_s)
        # A report that is under way answers an operator too.
        wanted = (delivery.c.wanted == Wanted.READ_BACK.value) | (
            (delivery.c.wanted == Wanted.PROOF.value) & (delivery.c.asked_at <= delivery.c.proved_at)
        )
        query = (
            select(*_COLUMNS)
            .join(job, job.c.id == delivery.c.job_id)
            .join(series, series.c.series_uid == job.c.series_uid)
            .where(_TAKEN & (delivery.c.destination == destination) & or_(due, wanted))
            .where(_CONCERNED)
            .order_by(delivery.c.check_at, delivery.c.id)
            .limit(limit)
        )
        with self._db.read() as connection:
            return [as_delivery(row) for row in connection.execute(query)]

    def commitment_asked(self, ids: Sequence[int], transaction_uid: str, rules: Rules, now: float) -> None:
        """Note a transaction before it is asked for, as its report may come at once; an earlier one is forgotten.

        What is not reported within `report_timeout_s`, twice as long each time, is due again.
        """
        patience = rules.report_timeout_s * _power_of_two(delivery.c.unanswered)
        with self._db.write() as connection:
            connection.execute(
                update(delivery)
                .where(delivery.c.id.in_(ids) & _TAKEN)
                .values(transaction_uid=transaction_uid, asked_at=now, check_at=now + patience)
            )

    def reported(
        self, transaction_uid: str, safe: Collection[str], failed: Mapping[str, int], rules: Rules, now: float
    ) -> int | None:
        """Take the report of a transaction (PS3.4 J.3.3), which names instances by SOP Instance UID.

        Returns how many deliveries it was about; None: no such transaction. The same report again changes nothing.
        """
        with self._db.write() as connection:
            rows = _rows(connection, delivery.c.transaction_uid == transaction_uid) if transaction_uid else []
            for row in rows:
                if row.asked_at == 0 or row.state not in (_D.SENT, _D.COMMITTED):
                    continue
                reason = failed.get(row.sop_uid)
                if reason is None and row.sop_uid in safe:
                    _prove(connection, row, Proof.COMMITMENT, rules, now)
                elif reason is None or reason in _SAYS_NOTHING:
                    why = _REASONS.get(reason or 0, "it is not in the report")
                    doubt = f"no answer by storage commitment: {why}"
                    _doubt(connection, [row.id], doubt, rules, now, unanswered=1)
                else:
                    why = _REASONS.get(reason, "no reason known")
                    _lose(connection, row, f"storage commitment failed with 0x{reason:04X}, {why}", rules, now)
        return len(rows) or None

    def proved(self, delivery_id: int, proof: Proof, rules: Rules, now: float) -> None:
        """Note that the destination holds an object: it is COMMITTED."""
        self._each(delivery_id, lambda connection, row: _prove(connection, row, proof, rules, now))

    def not_held(self, delivery_id: int, how: str, rules: Rules, now: float) -> None:
        """The destination does not hold what it took: it is sent again, after `max_losses` times it is FAILED."""
        self._each(delivery_id, lambda connection, row: _lose(connection, row, how, rules, now))

    def no_proof(self, delivery_id: int, words: str, now: float) -> None:
        """Note that it cannot be known whether the destination holds an object; it stays SENT."""

        def close(connection: Connection, row: Row[Any]) -> None:
            values = {} if row.state == _D.COMMITTED else {"proof": Proof.NONE.value}  # it was read back
            _set(connection, row.id, doubt=words, check_at=0.0, asked_at=0.0, wanted="", **values)
            _tell(connection, row, row.state, words, now)

        self._each(delivery_id, close)

    def doubt(self, ids: Sequence[int], doubt: str, rules: Rules, now: float, *, unanswered: int = 0) -> None:
        """Ask again later: the destination cannot be asked, or does not say. `unanswered` counts as so many reports."""
        with self._db.write() as connection:
            _doubt(connection, ids, doubt, rules, now, unanswered=unanswered)

    def report_missing(self, ids: Sequence[int], doubt: str) -> None:
        """Note that a storage commitment was not reported in time; a late report still counts."""
        with self._db.write() as connection:
            connection.execute(
                update(delivery)
                .where(delivery.c.id.in_(ids) & _TAKEN)
                .values(unanswered=delivery.c.unanswered + 1, doubt=doubt)
            )

    def read_back(self, delivery_id: int, words: str, equal: bool | None, rules: Rules, now: float) -> None:
        """Note what reading an object back gave; None: it could not be read back.

        A copy that is not `equal` is FAILED, and so is its job: the destination shows something else than was sent.
        """

        def note(connection: Connection, row: Row[Any]) -> None:
            _set(connection, row.id, read_back=words, read_back_at=now, wanted="")
            if equal:
                _prove(connection, row, Proof.READ_BACK, rules, now)
            elif equal is None:
                # It may be that the destination lost it: then it is asked, where it can be.
                known = row.state == _D.COMMITTED
                _set(connection, row.id, wanted=Wanted.PROOF.value if known else "")
                _tell(connection, row, row.state, words, now)
            else:
                ended: dict[str, Any] = {"state": _D.FAILED.value, "reason": words, "updated_at": now}
                _set(connection, row.id, check_at=0.0, asked_at=0.0, proof="", proved_at=0.0, doubt="", **ended)
                _tell(connection, row, _D.FAILED, words, now)
                move(connection, row.job_id, JobState.FAILED, by="proof", text=f"{row.destination}: {words}", now=now,
                     stage="delivery", reason=f"{row.destination}: {words}",
                     next_step="find out what changes objects there, then retry: it is sent again")  # fmt: skip

        self._each(delivery_id, note)

    def want_proof(self, job_id: str, wanted: Wanted, by: str, now: float) -> Job:
        """Have all objects of a job that were sent proved now, or read back.

        Raises
        ------
        NotFound, Permanent
            There is no such job; nothing of it has been sent, or its files have left the spool.
        """
        with self._db.write() as connection:
            found = connection.execute(select(*JOB_COLUMNS).where(job.c.id == job_id)).first()
            if found is None:
                raise NotFound(f"no job is {job_id[:32]!r}", "pennode jobs list shows them")
            rows = _rows(connection, (delivery.c.job_id == job_id) & _TAKEN)
            if not rows:
                raise Permanent("no destination has taken a result of this job", "it is proved once it is delivered")
            if not all(row.concerned for row in rows):
                raise Permanent(
                    "the job was cancelled or superseded, or failed, or its series has grown", "ask for the newest job"
                )
            for row in rows:
                _set(connection, row.id, wanted=wanted.value)
            verb = "reads back" if wanted is Wanted.READ_BACK else "asks for"
            text = f"the operator {verb} {len(rows)} object(s) at {', '.join(sorted({r.destination for r in rows}))}"
            write_journal(connection, found.series_uid, job_id, "proof", "", "ASKED", by, text, now)
            return as_job(found)

    def proof_trouble(self, destination: str, tries: int = 3) -> Trouble:
        """Return what wants an admin; doubtful is what was asked about at least so many times without an answer."""
        here = delivery.c.destination == destination
        again = here & (delivery.c.lost > 0) & delivery.c.state.in_([_D.PENDING.value, _D.SENDING.value])
        unknown = here & _TAKEN & (delivery.c.doubt != "") & (delivery.c.check_at > 0)
        unknown &= (delivery.c.tries >= tries) | (delivery.c.unanswered >= tries)
        with self._db.read() as connection:
            lost = connection.execute(select(func.count()).select_from(delivery).where(again)).scalar_one()
            row = connection.execute(select(func.count(), func.max(delivery.c.doubt)).where(unknown)).one()
        return Trouble(lost, row[0], row[1] or "")

    def _each(self, delivery_id: int, act: Callable[[Connection, Row[Any]], None]) -> None:
        with self._db.write() as connection:
            for row in _rows(connection, (delivery.c.id == delivery_id) & _TAKEN):
                act(connection, row)


def _power_of_two(column: Any) -> Any:
    """Return 2**column in SQL, at most 256; SQLite may lack the function."""
    return case(*((column == n, 2**n) for n in range(8)), else_=256)


def _rows(connection: Connection, condition: Any) -> Sequence[Row[Any]]:
    query = select(*_ROW).join(job, job.c.id == delivery.c.job_id).join(series, series.c.series_uid == job.c.series_uid)
    query = query.where(and_(condition, job.c.purged_at == 0.0))
    return connection.execute(query.order_by(delivery.c.id).with_for_update(of=delivery)).all()


def _set(connection: Connection, delivery_id: int, **values: Any) -> None:
    connection.execute(update(delivery).where(delivery.c.id == delivery_id).values(**values))


def _tell(connection: Connection, row: Row[Any], after: str, text: str, now: float) -> None:
    write_journal(connection, row.series_uid, row.job_id, "delivery", row.state, str(after), "proof",
                  f"{row.destination}: {text}", now)  # fmt: skip


def _prove(connection: Connection, row: Row[Any], proof: Proof, rules: Rules, now: float) -> None:
    first = row.proved_at == 0
    # What an operator asks for between two looks moves none of them.
    rechecked = 0 if first else row.rechecked + (not row.wanted)
    times = [0.0, *rules.recheck_s]
    check_at = now + times[rechecked + 1] - times[rechecked] if rechecked < len(rules.recheck_s) else 0.0
    values: dict[str, Any] = {"unanswered": 0} if proof is Proof.COMMITMENT else {}
    # A query answers for a commitment that is not reported, which may still be.
    if proof is not Proof.FIND:
        values["asked_at"] = 0.0
    _set(
        connection, row.id, state=_D.COMMITTED.value, proof=proof.value, proved_at=now, rechecked=rechecked,
        check_at=check_at, tries=0, doubt="", wanted="", **values,
    )  # fmt: skip
    if first or row.wanted:
        _tell(connection, row, _D.COMMITTED, f"holds the object, known by {proof.value}", now)


def _lose(connection: Connection, row: Row[Any], how: str, rules: Rules, now: float) -> None:
    if not row.concerned:
        _set(connection, row.id, asked_at=0.0, check_at=0.0, wanted="", doubt=f"does not hold the object: {how}")
        return
    lost = row.lost + 1
    gives_up = lost > rules.max_losses
    what = "lost the object that it held" if row.proved_at else "does not hold the object that it took"
    again = f"given up after sending it {lost} times" if gives_up else f"sent again, {lost} of {rules.max_losses}"
    text = f"{what} ({how}); {again}"
    state = _D.FAILED if gives_up else _D.PENDING
    _set(
        connection, row.id, state=state.value, reason=text, lost=lost, proof="", proved_at=0.0, asked_at=0.0,
        check_at=0.0, tries=0, rechecked=0, wanted="", doubt="", not_before=now + wait_s(lost, rules), updated_at=now,
    )  # fmt: skip
    _tell(connection, row, state, text, now)
    if gives_up:
        move(connection, row.job_id, JobState.FAILED, by="proof", text=f"{row.destination} {text}", now=now,
             stage="delivery", reason=f"{row.destination} {text}",
             next_step="find out why the PACS drops it, then retry")  # fmt: skip
    else:
        move(connection, row.job_id, JobState.SEGMENTED, by="proof", text=f"{row.destination} {text}", now=now,
             stage="delivery", reason=f"{row.destination} {text}",
             next_step="sent again by itself; find out why the PACS drops it")  # fmt: skip


def _doubt(
    connection: Connection, ids: Sequence[int], doubt: str, rules: Rules, now: float, *, unanswered: int
) -> None:
    for row in connection.execute(select(delivery.c.id, delivery.c.tries).where(delivery.c.id.in_(ids) & _TAKEN)):
        _set(
            connection, row.id, doubt=doubt, asked_at=0.0, tries=row.tries + 1, wanted="",
            unanswered=delivery.c.unanswered + unanswered, check_at=now + wait_s(row.tries + 1, rules),
        )  # fmt: skip
