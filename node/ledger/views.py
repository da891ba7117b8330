"""What people and retention ask of the ledger."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from sqlalchemy import delete, false, func, insert, or_, select, update

from node.errors import NotFound
from node.ledger.database import Database
from node.ledger.moves import JOB_COLUMNS, as_job
from node.ledger.schema import delivery, identity, instance, job, journal, result, series, worker
from node.records import Job, JournalEntry, Worker
from node.states import FINISHED, JobState, SeriesState

# A worker's name holds its process number: without this every restart would leave a row for ever.
_WORKER_FORGOTTEN_S = 86400.0


class Views:
    """The part of the ledger that is read by the admin page, the command line and retention."""

    _db: Database

    def jobs(
        self, *, states: Iterable[JobState] | None = None, limit: int = 200, offset: int = 0, text: str = "",
        series_uid: str = "",
    ) -> list[Job]:  # fmt: skip
        """Return jobs, newest first, all or those of one series.

        `text`: part of a series UID, job id, description, calling AE title or model.
        """
        order = (job.c.created_at.desc(), job.c.shadow, job.c.id)
        query = select(*JOB_COLUMNS).order_by(*order).limit(limit).offset(offset)
        if series_uid:
            query = query.where(job.c.series_uid == series_uid)
        if states is not None:
            query = query.where(job.c.state.in_([s.value for s in states]))
        if text:
            columns = (job.c.series_uid, job.c.id, job.c.description, job.c.calling_ae, job.c.model, job.c.wanted_model)
            sought = text.replace("\0", "")  # PostgreSQL takes no NUL in a text
            query = query.where(or_(*(c.icontains(sought, autoescape=True) for c in columns)))
        with self._db.read() as connection:
            return [as_job(row) for row in connection.execute(query)]

    def newest_job(self, series_uid: str) -> str:
        """Return the id of the newest job of a series, which is no shadow.

        Raises
        ------
        NotFound
            There is none.
        """
        mine = (job.c.series_uid == series_uid) & (job.c.shadow == false())
        query = select(job.c.id).where(mine).order_by(job.c.revision.desc()).limit(1)
        with self._db.read() as connection:
            found: str | None = connection.execute(query).scalar()
        if found is None:
            raise NotFound(f"no series {series_uid} was received", "pennode jobs list shows them")
        return found

    def identity(self) -> str:
        """Return the name this ledger was born with, made at the first call."""
        with self._db.write() as connection:
            found = connection.execute(select(identity.c.id)).scalar()
            if found is None:
                found = uuid.uuid4().hex
                connection.execute(insert(identity).values(id=found))
        return found

    def counts(self) -> dict[JobState, int]:
        """Return how many jobs are in each state; a state without jobs is left out."""
        query = select(job.c.state, func.count()).group_by(job.c.state)
        with self._db.read() as connection:
            return {JobState(state): count for state, count in connection.execute(query)}

    def journal(self, job_id: str) -> list[JournalEntry]:
        """Return the history of a job and of its series, oldest first."""
        columns = [journal.c[name] for name in JournalEntry.__dataclass_fields__]
        series_uid = select(job.c.series_uid).where(job.c.id == job_id).scalar_subquery()
        query = (
            select(*columns)
            .where((journal.c.series_uid == series_uid) & journal.c.job_id.in_([job_id, ""]))
            .order_by(journal.c.id)
        )
        with self._db.read() as connection:
            return [JournalEntry(**row._mapping) for row in connection.execute(query)]

    def worker_seen(self, seen: Worker) -> None:
        """Note that a worker is alive."""
        values = {name: getattr(seen, name) for name in Worker.__dataclass_fields__}
        with self._db.write() as connection:
            if not connection.execute(update(worker).where(worker.c.name == seen.name).values(**values)).rowcount:
                connection.execute(insert(worker).values(**values))
            connection.execute(delete(worker).where(worker.c.seen_at < seen.seen_at - _WORKER_FORGOTTEN_S))

    def workers(self, seen_since: float) -> list[Worker]:
        """Return workers heard of at or after this time, in seconds since 1970."""
        columns = [worker.c[name] for name in Worker.__dataclass_fields__]
        query = select(*columns).where(worker.c.seen_at >= seen_since).order_by(worker.c.name)
        with self._db.read() as connection:
            return [Worker(**{**row._mapping, "models": tuple(row.models)}) for row in connection.execute(query)]

    # -- retention

    def expendable(self, before: float, states: Iterable[JobState] = FINISHED, limit: int = 100) -> list[Job]:
        """Return finished jobs last touched before this time whose files are still there, oldest first."""
        query = (
            select(*JOB_COLUMNS)
            .where(job.c.state.in_([s.value for s in states]) & (job.c.updated_at < before) & (job.c.purged_at == 0.0))
            .order_by(job.c.updated_at)
            .limit(limit)
        )
        with self._db.read() as connection:
            return [as_job(row) for row in connection.execute(query)]

    def forget_files(self, purged: Job, now: float) -> list[str]:
        """Drop the rows of a finished job's files and return their spool paths, which may then be removed.

        Images are kept while another job of the series, or its open revision, still needs them. The job and its journal
        stay for ever. A crash before the files are gone leaves unknown files, which the sweep at start removes.
        """
        others = select(job.c.id).where(
            (job.c.series_uid == purged.series_uid) & (job.c.id != purged.id) & (job.c.purged_at == 0.0)
        )
        # An image that comes right now waits for this row, and then finds the series as we leave it.
        standing = select(series.c.state).where(series.c.series_uid == purged.series_uid).with_for_update()
        with self._db.write() as connection:
            reopened = connection.execute(standing).scalar() == SeriesState.RECEIVING.value
            changed = connection.execute(
                update(job)
                .where(
                    (job.c.id == purged.id) & job.c.state.in_([s.value for s in FINISHED]) & (job.c.purged_at == 0.0)
                )
                .values(purged_at=now)
            ).rowcount
            if not changed:
                return []
            paths = list(connection.execute(select(result.c.path).where(result.c.job_id == purged.id)).scalars())
            connection.execute(delete(result).where(result.c.job_id == purged.id))
            connection.execute(delete(delivery).where(delivery.c.job_id == purged.id))
            if not reopened and connection.execute(others.limit(1)).first() is None:
                images = instance.c.series_uid == purged.series_uid
                paths += connection.execute(select(instance.c.path).where(images)).scalars()
                connection.execute(delete(instance).where(images))
                connection.execute(update(series).where(series.c.series_uid == purged.series_uid).values(instances=0))
        return paths
