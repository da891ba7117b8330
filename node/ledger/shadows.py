"""Several jobs of one series: which wait for a worker that has their model, shadows, and how these compare."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, false, func, insert, or_, select, true, update

from node.agreement import Agreement, Comparison
from node.ledger.database import Database
from node.ledger.moves import JOB_COLUMNS, as_job, move
from node.ledger.schema import comparison, job, journal, result
from node.records import Job, Result
from node.states import WAITING, JobState

_S = JobState
_COLUMNS = [comparison.c[name] for name in Comparison.__dataclass_fields__]
_UNSERVED = "no living worker has the model {}"
_UNSERVED_STEP = "add its folder to worker.models of a worker and restart that, or cancel the job"
STORED_TEXT = "shadow: its result is kept here, and nothing is sent"
_BY = "ledger"
# Between two offers of a job that workers refuse: what is broken for days is not written down each time.
_LONGEST_WAIT_S = 600.0


class Shadows:
    """The part of the ledger that knows of models."""

    _db: Database

    # -- dispatch

    def waiting(self, served: Collection[str], now: float) -> int:
        """Return how many jobs, shadows left out, wait for a worker that has one of these models."""
        with self._db.read() as connection:
            return connection.execute(select(func.count()).select_from(job).where(_waits(served, now))).scalar_one()

    def note_unserved(self, served: Collection[str], now: float) -> dict[str, int]:
        """Have each waiting job say whether a living worker has its model; return how many wait for each absent one.

        One that was queued is READY again: it is offered as soon as a worker with its model is there. Shadows say so
        as well, but are not counted: nobody waits for them.
        """
        waits = job.c.state.in_([s.value for s in WAITING]) & (job.c.wanted_model != "")
        query = select(job.c.id, job.c.state, job.c.wanted_model, job.c.shadow, job.c.reason).where(waits)
        absent: dict[str, int] = {}
        with self._db.read() as connection:
            rows = connection.execute(query).all()
        stale = [row for row in rows if (row.wanted_model in served) == (row.reason == _unserved(row.wanted_model))]
        if stale:
            with self._db.write() as connection:
                for row in stale:
                    _say(connection, row, row.wanted_model in served, now)
        for row in rows:
            if row.wanted_model not in served and not row.shadow:
                absent[row.wanted_model] = absent.get(row.wanted_model, 0) + 1
        return absent

    # -- looking

    def siblings(self, one: Job) -> list[Job]:
        """Return the other jobs of a job's series, newest revision first, the series' own before its shadows."""
        query = select(*JOB_COLUMNS).where((job.c.series_uid == one.series_uid) & (job.c.id != one.id))
        with self._db.read() as connection:
            found = connection.execute(query.order_by(job.c.revision.desc(), job.c.shadow, job.c.wanted_model))
            return [as_job(row) for row in found]

    def own_job(self, shadow: Job) -> Job:
        """Return the series' own job that a shadow runs beside."""
        with self._db.read() as connection:
            return as_job(connection.execute(select(*JOB_COLUMNS).where(_beside(shadow))).one())

    def results(self, job_id: str) -> list[Result]:
        """Return the result objects of a job that are in the spool."""
        columns = [result.c[name] for name in Result.__dataclass_fields__]
        with self._db.read() as connection:
            found = connection.execute(select(*columns).where(result.c.job_id == job_id).order_by(result.c.form))
            return [Result(**row._mapping) for row in found]

    # -- comparing

    def uncompared(self, limit: int = 16) -> list[tuple[Job, Job]]:
        """Return `(shadow, own job)` pairs whose results are both in the spool and not compared yet, oldest first."""
        own = job.alias("own")
        same = and_(own.c.series_uid == job.c.series_uid, own.c.revision == job.c.revision, own.c.shadow == false())
        known = select(comparison.c.job_id).where(
            (comparison.c.job_id == job.c.id)
            & (comparison.c.fence == job.c.fence)
            & (comparison.c.own_id == own.c.id)
            & (comparison.c.own_fence == own.c.fence)
        )
        query = (
            select(job.c.id, own.c.id.label("own_id"))
            .join(own, same)
            .where((job.c.shadow == true()) & (job.c.state == _S.STORED.value) & (job.c.purged_at == 0.0))
            .where((own.c.purged_at == 0.0) & (own.c.state != _S.RUNNING.value) & ~known.exists())
            .where(select(result.c.sop_uid).where(result.c.job_id == own.c.id).exists())
            .order_by(job.c.updated_at)
            .limit(limit)
        )
        with self._db.read() as connection:
            pairs = connection.execute(query).all()
            found = {i for pair in pairs for i in pair}
            jobs = {row.id: as_job(row) for row in connection.execute(select(*JOB_COLUMNS).where(job.c.id.in_(found)))}
        return [(jobs[pair.id], jobs[pair.own_id]) for pair in pairs]

    def note_comparison(self, found: Comparison) -> None:
        """Keep how a shadow compares, in place of the last time."""
        values = {name: getattr(found, name) for name in Comparison.__dataclass_fields__}
        values["segments"] = [agreement.to_json() for agreement in found.segments]
        with self._db.write() as connection:
            connection.execute(delete(comparison).where(comparison.c.job_id == found.job_id))
            connection.execute(insert(comparison).values(**values))

    def comparisons(self, one: Job) -> list[Comparison]:
        """Return how a shadow compares with its series' own result, or how all shadows do with this own one."""
        mine = comparison.c.job_id if one.shadow else comparison.c.own_id
        with self._db.read() as connection:
            found = connection.execute(select(*_COLUMNS).where(mine == one.id).order_by(comparison.c.at))
            return [_as_comparison(row) for row in found]


def put_back(
    connection: Connection, found: Job, worker: str, served: Collection[str], retry_after_s: float, now: float
) -> bool:
    """Tell whether a waiting job is not for this worker now; one that was queued is READY again, its message spent."""
    if found.wanted_model not in served:
        model = f"the model {found.wanted_model}" if found.wanted_model else "its default model"
        text = f"worker {worker}, which was offered it, cannot run {model} now"
        not_before = now + min(_LONGEST_WAIT_S, retry_after_s * 2 ** min(_times_put_back(connection, found), 10))
    elif found.shadow and connection.execute(select(job.c.id).where(_waits(served, now)).limit(1)).first():
        text, not_before = "shadow: others go first", now
    else:
        return False
    if found.state is _S.QUEUED:
        move(connection, found.id, _S.READY, by=_BY, text=text, now=now, not_before=not_before, stage="queue",
             reason=text, next_step="offered again by itself")  # fmt: skip
    return True


def _times_put_back(connection: Connection, found: Job) -> int:
    mine = (journal.c.series_uid == found.series_uid) & (journal.c.job_id == found.id) & (journal.c.by == _BY)
    again = mine & (journal.c.after == _S.READY.value)
    return connection.execute(select(func.count()).select_from(journal).where(again)).scalar_one()


def store_shadow(connection: Connection, job_id: str, now: float) -> bool:
    """End a shadow whose results are here; False: it is none."""
    if not connection.execute(select(job.c.shadow).where(job.c.id == job_id)).scalar_one():
        return False
    move(connection, job_id, _S.STORED, by=_BY, text=STORED_TEXT, now=now, stage="stored", next_step="")
    return True


def _waits(served: Collection[str], now: float) -> ColumnElement[bool]:
    ready = and_(job.c.state == _S.READY.value, job.c.not_before <= now)
    return or_(ready, job.c.state == _S.QUEUED.value) & (job.c.shadow == false()) & job.c.wanted_model.in_(served)


def _beside(shadow: Job) -> ColumnElement[bool]:
    same = (job.c.series_uid == shadow.series_uid) & (job.c.revision == shadow.revision)
    return same & (job.c.shadow == false())


def _unserved(model: str) -> str:
    return _UNSERVED.format(model)


def _say(connection: Connection, row: Any, served: bool, now: float) -> None:
    text, step = ("", "") if served else (_unserved(row.wanted_model), _UNSERVED_STEP)
    values: dict[str, Any] = {"reason": text, "next_step": step}
    if row.state == _S.QUEUED.value and not served:
        move(connection, row.id, _S.READY, by="dispatch", text=text, now=now, stage="queue", **values)
    else:
        same = (job.c.id == row.id) & (job.c.state == row.state) & (job.c.reason == row.reason)
        connection.execute(update(job).where(same).values(**values))


def _as_comparison(row: Row[Any]) -> Comparison:
    segments = tuple(Agreement(**values) for values in row.segments)
    return Comparison(**{**row._mapping, "segments": segments})
