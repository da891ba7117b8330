"""The one way a job changes state: a conditional UPDATE and a journal row, in the caller's transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select, update

from node.ledger.schema import job, journal, series
from node.records import Job, Series
from node.states import JOB_MOVES, JobState, SeriesState


def move(
    connection: Connection,
    job_id: str,
    to: JobState,
    *,
    by: str,
    text: str,
    now: float,
    when: ColumnElement[bool] | None = None,
    **values: Any,
) -> bool:
    """Move one job to state `to` if `JOB_MOVES` allows it from where it stands and `when` holds; tell whether it did.

    `values` are further columns to set. A refused move writes nothing.
    """
    before = connection.execute(select(job.c.state).where(job.c.id == job_id).with_for_update()).scalar()
    if before is None or to not in JOB_MOVES[JobState(before)]:
        return False
    condition = (job.c.id == job_id) & (job.c.state == before)
    if when is not None:
        condition &= when
    changed = connection.execute(
        update(job).where(condition).values(state=to.value, updated_at=now, **values).returning(job.c.series_uid)
    ).scalar()
    if changed is None:
        return False
    write_journal(connection, changed, job_id, "job", before, to.value, by, text, now)
    return True


def write_journal(
    connection: Connection,
    series_uid: str,
    job_id: str,
    subject: str,
    before: str,
    after: str,
    by: str,
    text: str,
    now: float,
) -> None:
    """Append one line of history."""
    connection.execute(
        journal.insert().values(
            at=now,
            series_uid=series_uid,
            job_id=job_id,
            subject=subject,
            before=before,
            after=after,
            by=by[:64],
            text=text,
        )
    )


JOB_COLUMNS = [job.c[name] for name in Job.__dataclass_fields__]
SERIES_COLUMNS = [series.c[name] for name in Series.__dataclass_fields__]


def as_job(row: Row[Any]) -> Job:
    """Return the record of a row selected with `JOB_COLUMNS`."""
    values = dict(row._mapping)
    return Job(**{**values, "state": JobState(values["state"])})


def as_series(row: Row[Any]) -> Series:
    """Return the record of a row selected with `SERIES_COLUMNS`."""
    values = dict(row._mapping)
    return Series(**{**values, "state": SeriesState(values["state"])})
