"""Result objects on their way to destinations: one row per object and destination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, false, select, true, update

from node.ledger.database import Database
from node.ledger.ladder import OPEN, add_rung, replaced_in_words, take_next_rung, what
from node.ledger.moves import move, write_journal
from node.ledger.schema import delivery, job, series
from node.records import Delivery
from node.states import DeliveryState, JobState, SeriesState

_D = DeliveryState
_DONE = [_D.SENT.value, _D.COMMITTED.value, _D.REPLACED.value]
_COLUMNS = [delivery.c[name] for name in Delivery.__dataclass_fields__]


class Deliveries:
    """The part of the ledger that the delivery loop moves."""

    _db: Database

    def recover_deliveries(self, destinations: Mapping[str, Sequence[str]], now: float) -> None:
        """At start: results that were kept because no destination was configured get their deliveries.

        Where a destination wants of them what was never made, the job is FAILED: its retry makes them all.
        """
        with self._db.write() as connection:
            addressed = select(delivery.c.job_id)
            stranded = select(job.c.id).where((job.c.state == JobState.SEGMENTED.value) & job.c.id.notin_(addressed))
            stranded = stranded.where(job.c.shadow == false())
            for job_id in connection.execute(stranded).scalars().all():
                lacking = add_deliveries(connection, job_id, destinations, now)
                if lacking:
                    text = f"the results lack a form that {' and '.join(lacking)} gets"
                    move(connection, job_id, JobState.FAILED, by="delivery", text=text, now=now, stage="forms",
                         reason=text, next_step="retry: the series is segmented again")  # fmt: skip

    def due_deliveries(
        self, now: float, destination: str | None = None, excluding: Sequence[str] = (), limit: int = 64
    ) -> list[Delivery]:
        """Return deliveries to one destination, or to all but some, whose time has come, oldest first.

        One that is being sent is due as well: a destination has one courier, so a crash or a lost ledger left it so.
        Results of a series that has grown since are held back: the next revision's job will supersede theirs. Those of
        a shadow are never due, whatever a row says.
        """
        growing = (
            select(job.c.id)
            .join(series, series.c.series_uid == job.c.series_uid)
            .where(series.c.state == SeriesState.RECEIVING.value)
        )
        of_shadow = select(job.c.id).where((job.c.id == delivery.c.job_id) & (job.c.shadow == true())).exists()
        query = (
            select(*_COLUMNS)
            .where(delivery.c.state.in_(OPEN) & (delivery.c.not_before <= now) & ~of_shadow)
            .where(delivery.c.destination.notin_(excluding) & delivery.c.job_id.notin_(growing))
            .order_by(delivery.c.id)
            .limit(limit)
        )
        if destination is not None:
            query = query.where(delivery.c.destination == destination)
        with self._db.read() as connection:
            return [as_delivery(row) for row in connection.execute(query)]

    def start_sending(self, delivery_id: int, now: float) -> bool:
        """Mark one delivery as being sent; False when it was cancelled meanwhile."""
        query = update(delivery).where((delivery.c.id == delivery_id) & delivery.c.state.in_(OPEN))
        with self._db.write() as connection:
            values = query.values(state=_D.SENDING.value, attempts=delivery.c.attempts + 1, updated_at=now)
            return bool(connection.execute(values).rowcount)

    def sent(self, delivery_id: int, note: str, now: float) -> None:
        """Note that the destination has taken an object; its job is DELIVERED with the last of them."""
        self._close(delivery_id, _D.SENT, note, now)

    def postpone(self, delivery_id: int, reason: str, not_before: float, now: float) -> None:
        """Try again later: the destination cannot be reached, or cannot take it for now."""
        with self._db.write() as connection:
            connection.execute(
                update(delivery)
                .where((delivery.c.id == delivery_id) & (delivery.c.state == _D.SENDING.value))
                .values(state=_D.PENDING.value, reason=reason, not_before=not_before, updated_at=now)
            )
            _note_waiting(connection, delivery_id, reason, now)

    def refuse(self, delivery_id: int, reason: str, not_before: float, max_refusals: int, now: float) -> None:
        """The destination said no to this object; after `max_refusals` the delivery, and so the job, is FAILED."""
        with self._db.write() as connection:
            refusals = connection.execute(
                update(delivery)
                .where((delivery.c.id == delivery_id) & (delivery.c.state == _D.SENDING.value))
                .values(
                    state=_D.PENDING.value, refusals=delivery.c.refusals + 1, reason=reason, not_before=not_before,
                    updated_at=now,
                )
                .returning(delivery.c.refusals)
            ).scalar()  # fmt: skip
            _note_waiting(connection, delivery_id, reason, now)
        if refusals is not None and refusals >= max_refusals:
            self._close(delivery_id, _D.FAILED, reason, now)

    def replace(
        self, delivery_id: int, ladder: Sequence[Sequence[str]], reason: str, now: float
    ) -> frozenset[int] | None:
        """Send a destination the next rung in place of what it does not take.

        `ladder` names the forms of each rung (`node.forms.rungs`). Return the deliveries replaced, which are not to be
        sent any more; None: there is no further rung, and nothing was changed.
        """
        with self._db.write() as connection:
            job_id = connection.execute(select(delivery.c.job_id).where(delivery.c.id == delivery_id)).scalar()
            gone = take_next_rung(connection, delivery_id, ladder, reason, now)
            if gone and job_id is not None:
                _settle(connection, job_id, now)
        return gone

    def _close(self, delivery_id: int, state: DeliveryState, reason: str, now: float) -> None:
        change = update(delivery).returning(delivery.c.job_id, delivery.c.destination)
        mine = delivery.c.id == delivery_id
        with self._db.write() as connection:
            row = connection.execute(
                change.where(mine & delivery.c.state.in_(OPEN)).values(
                    state=state.value, reason=reason, updated_at=now, check_at=now if state is _D.SENT else 0.0
                )
            ).first()
            if row is None and state is _D.SENT:
                # Cancelled or superseded while it was on its way: it stays so, but the object is there.
                state, reason = _D.CANCELLED, f"{reason}; it was on its way when it was cancelled"
                late = change.where(mine & (delivery.c.state == state.value)).values(reason=reason, updated_at=now)
                row = connection.execute(late).first()
            if row is None:
                return
            series_uid = connection.execute(select(job.c.series_uid).where(job.c.id == row.job_id)).scalar_one()
            write_journal(connection, series_uid, row.job_id, "delivery", _D.SENDING.value, state.value, "delivery",
                          f"{row.destination}: {reason}", now)  # fmt: skip
            _settle(connection, row.job_id, now)

    def deliveries(self, job_id: str) -> list[Delivery]:
        """Return all deliveries of one job."""
        query = select(*_COLUMNS).where(delivery.c.job_id == job_id).order_by(delivery.c.id)
        with self._db.read() as connection:
            return [as_delivery(row) for row in connection.execute(query)]


def as_delivery(row: Row[Any]) -> Delivery:
    """Return the record of a row selected with this module's columns."""
    values = dict(row._mapping)
    return Delivery(**{**values, "state": DeliveryState(values["state"])})


def add_deliveries(
    connection: Connection, job_id: str, destinations: Mapping[str, Sequence[str]], now: float
) -> list[str]:
    """Address the results of a job anew: to each destination those whose forms stand on its first rung.

    Return the destinations that get nothing, since one of their forms was never made. A shadow's results have no
    address, by whatever way they came here.
    """
    if connection.execute(select(job.c.shadow).where(job.c.id == job_id)).scalar_one():
        return []
    connection.execute(delivery.delete().where(delivery.c.job_id == job_id))
    if not destinations:
        text = "results are kept here: no destination is configured"
        connection.execute(
            update(job).where(job.c.id == job_id).values(reason=text, next_step="add [[destinations]] and restart")
        )
    return [name for name, forms in destinations.items() if not add_rung(connection, job_id, name, forms, 0, now)]


def cancel_deliveries(connection: Connection, job_id: str, reason: str, now: float) -> None:
    """Stop what has not been sent yet."""
    connection.execute(
        update(delivery)
        .where((delivery.c.job_id == job_id) & delivery.c.state.in_(OPEN))
        .values(state=_D.CANCELLED.value, reason=reason, updated_at=now)
    )


def _note_waiting(connection: Connection, delivery_id: int, reason: str, now: float) -> None:
    """Let the job itself say why its results are not there yet."""
    job_id = select(delivery.c.job_id).where(delivery.c.id == delivery_id).scalar_subquery()
    connection.execute(
        update(job)
        .where((job.c.id == job_id) & (job.c.state == JobState.SEGMENTED.value))
        .values(reason=reason, next_step="tried again by itself; check the destination", updated_at=now)
    )


def _settle(connection: Connection, job_id: str, now: float) -> None:
    states = connection.execute(select(delivery.c.state).where(delivery.c.job_id == job_id)).scalars().all()
    if any(state in OPEN for state in states):
        return
    if all(state in _DONE for state in states):
        text = "; ".join(filter(None, ("every destination has the results", replaced_in_words(connection, job_id))))
        move(connection, job_id, JobState.DELIVERED, by="delivery", text=text, now=now, reason=text, next_step="")
    else:
        failed = delivery.c.state == _D.FAILED.value
        row = connection.execute(
            select(delivery.c.destination, delivery.c.reason, delivery.c.form)
            .where((delivery.c.job_id == job_id) & failed)
            .order_by(delivery.c.id)
            .limit(1)
        ).first()
        if row is not None:
            move(connection, job_id, JobState.FAILED, by="delivery", text=f"{row.destination}: {row.reason}", now=now,
                 stage="delivery", reason=f"{row.destination} refused the {what(row.form)}: {row.reason}",
                 next_step="mend the destination, then retry")  # fmt: skip
