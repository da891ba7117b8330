"""The next rung: what a destination gets in place of what it does not take (`node.forms.rungs`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, insert, select, update

from node.forms import SEGMENTATIONS, Form, Recipe, leads, short
from node.ledger.moves import write_journal
from node.ledger.schema import delivery, job, result
from node.states import DeliveryState, JobState

_D = DeliveryState
OPEN = [_D.PENDING.value, _D.SENDING.value]
_HAS = [_D.SENT.value, _D.COMMITTED.value]
# The columns of `node.ledger.proofs`, as they are before anything was sent.
_UNPROVED = {
    "lost": 0, "proof": "", "proved_at": 0.0, "check_at": 0.0, "asked_at": 0.0, "tries": 0, "unanswered": 0,
    "rechecked": 0, "wanted": "", "doubt": "", "read_back": "", "read_back_at": 0.0,
}  # fmt: skip


def add_rung(
    connection: Connection, job_id: str, destination: str, forms: Sequence[str], rung: int, now: float
) -> bool:
    """Address the results of `forms` to a destination, segmentations first; False: one of the forms was never made.

    What is addressed to it already stays as it is. A report comes after the segmentation that it refers to.
    """
    made = connection.execute(
        select(result.c.sop_uid, result.c.path, result.c.form)
        .where((result.c.job_id == job_id) & result.c.form.in_(forms))
        .order_by(result.c.sop_uid)
    ).all()
    if {row.form for row in made} < set(forms):
        return False
    there = set(
        connection.execute(
            select(delivery.c.sop_uid).where((delivery.c.job_id == job_id) & (delivery.c.destination == destination))
        ).scalars()
    )
    order = {form: (not _is_segmentation(form), n) for n, form in enumerate(forms)}
    rows = [
        {
            "job_id": job_id, "sop_uid": row.sop_uid, "destination": destination, "path": row.path,
            "state": _D.PENDING.value, "attempts": 0, "refusals": 0, "not_before": 0.0, "reason": "",
            "updated_at": now, "form": row.form, "rung": rung,
        }
        for row in sorted(made, key=lambda row: order[row.form])
        if row.sop_uid not in there
    ]  # fmt: skip
    if rows:
        connection.execute(insert(delivery), rows)
    return True


def take_next_rung(
    connection: Connection, delivery_id: int, ladder: Sequence[Sequence[str]], reason: str, now: float
) -> frozenset[int] | None:
    """Replace an object that its destination takes none of by the next rung; `ladder` names the forms of each.

    Return the deliveries that are REPLACED, none where this one was cancelled meanwhile. None: there is no further
    rung, or this object is not what its rung is for; nothing was changed.
    """
    query = select(delivery.c.job_id, delivery.c.destination, delivery.c.form, delivery.c.rung, job.c.series_uid)
    row = connection.execute(
        query.join(job, job.c.id == delivery.c.job_id)
        .where((delivery.c.id == delivery_id) & (delivery.c.state == _D.SENDING.value))
        .where(job.c.state.in_([JobState.SEGMENTED.value, JobState.FAILED.value]))  # FAILED by another destination
        .with_for_update()
    ).first()
    if row is None:
        return frozenset()
    if row.rung >= len(ladder) or row.form not in leads(ladder[row.rung]):
        return None
    for number in range(row.rung + 1, len(ladder)):
        if add_rung(connection, row.job_id, row.destination, ladder[number], number, now):
            return _replace(connection, delivery_id, row, ladder[number], reason, now)
    return None


def _replace(
    connection: Connection, delivery_id: int, row: Any, instead: Sequence[str], reason: str, now: float
) -> frozenset[int]:
    of_rung = (
        (delivery.c.job_id == row.job_id)
        & (delivery.c.destination == row.destination)
        & (delivery.c.rung == row.rung)
        & delivery.c.state.in_(OPEN)
    )
    going = connection.execute(select(delivery.c.id, delivery.c.form).where(of_rung)).all()
    # With it go the rest of its form, and the report that refers to it.
    gone = {delivery_id, *(one.id for one in going if row.form in (one.form, Recipe.parse(one.form).of))}
    text = f"{row.destination} takes no {short([row.form])}: sends {short(instead)} instead"
    why = f"{text}; {reason}"
    connection.execute(
        update(delivery).where(delivery.c.id.in_(gone)).values(state=_D.REPLACED.value, reason=why, updated_at=now)
    )
    mine = (job.c.id == row.job_id) & (job.c.state == JobState.SEGMENTED.value)
    connection.execute(update(job).where(mine).values(reason=text, next_step="", updated_at=now))
    write_journal(connection, row.series_uid, row.job_id, "delivery", _D.SENDING.value, _D.REPLACED.value, "delivery",
                  why, now)  # fmt: skip
    return frozenset(gone)


def begin_again(connection: Connection, job_id: str, now: float) -> None:
    """Send again what had failed: to each destination where something did, from its first rung."""
    of_job = delivery.c.job_id == job_id
    failed = select(delivery.c.destination).where(of_job & (delivery.c.state == _D.FAILED.value))
    again = of_job & delivery.c.destination.in_(connection.execute(failed).scalars().all())
    connection.execute(delivery.delete().where(again & (delivery.c.rung > 0) & delivery.c.state.notin_(_HAS)))
    connection.execute(
        update(delivery)
        .where(again & delivery.c.state.in_([_D.FAILED.value, _D.REPLACED.value]))
        .values(state=_D.PENDING.value, refusals=0, not_before=now, reason="", updated_at=now, **_UNPROVED)
    )


def replaced_in_words(connection: Connection, job_id: str) -> str:
    """Say what the destinations of a job took in place of what: ``PACS took SC in place of SEG``; empty: nothing."""
    rows = connection.execute(
        select(delivery.c.destination, delivery.c.form, delivery.c.state, delivery.c.rung)
        .where(delivery.c.job_id == job_id)
        .order_by(delivery.c.id)
    ).all()
    said = []
    for name in dict.fromkeys(row.destination for row in rows if row.state == _D.REPLACED.value):
        mine = [row for row in rows if row.destination == name]
        gone = [row.form for row in mine if row.state == _D.REPLACED.value]
        said.append(f"{name} took {short(r.form for r in mine if r.state in _HAS)} in place of {short(gone)}")
    return "; ".join(said)


def _is_segmentation(form: str) -> bool:
    return Recipe.parse(form).form in SEGMENTATIONS


def what(form: str) -> str:
    """Return how a refused object is called: ``result`` for what shows the mask, ``report`` for what measures it."""
    return "report" if Recipe.parse(form).form is Form.SR else "result"
