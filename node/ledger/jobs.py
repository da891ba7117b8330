"""The life of a job between its seal and its results: queued, claimed under a fence, finished or given back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, insert, or_, select, update

from node.errors import LeaseLost
from node.ledger.database import Database
from node.ledger.deliveries import add_deliveries
from node.ledger.moves import JOB_COLUMNS, as_job, move
from node.ledger.schema import delivery, instance, job, result, series
from node.ledger.shadows import put_back, store_shadow
from node.records import Claim, Job, Result
from node.states import JobState

_S = JobState


class Jobs:
    """The part of the ledger that the dispatcher and the worker API move."""

    _db: Database

    # -- dispatch

    def due(
        self, now: float, requeue_after_s: float, limit: int, *, served: Collection[str] = ("",), shadow: bool = False
    ) -> list[Job]:
        """Return jobs to publish: QUEUED ones nobody claimed for too long, then READY ones whose time has come.

        They are those for `served` models, and either shadows or the others.
        """
        ready = and_(job.c.state == _S.READY.value, job.c.not_before <= now)
        forgotten = and_(job.c.state == _S.QUEUED.value, job.c.dispatched_at < now - requeue_after_s)
        query = select(*JOB_COLUMNS).where(or_(ready, forgotten) & job.c.wanted_model.in_(served))
        query = query.where(job.c.shadow == shadow)
        query = query.order_by(case((forgotten, 0), else_=1), job.c.priority.desc(), job.c.created_at).limit(limit)
        with self._db.read() as connection:
            return [as_job(row) for row in connection.execute(query)]

    def queued(self, *, shadow: bool = False) -> int:
        """Return how many jobs, shadows or others, are in the queue, as far as the ledger knows."""
        queued = (job.c.state == _S.QUEUED.value) & (job.c.shadow == shadow)
        with self._db.read() as connection:
            return connection.execute(select(func.count()).select_from(job).where(queued)).scalar_one()

    def mark_queued(self, job_id: str, now: float) -> None:
        """Note that a message for this job was published. A job claimed meanwhile stays as it is."""
        with self._db.write() as connection:
            again = update(job).where((job.c.id == job_id) & (job.c.state == _S.QUEUED.value))
            if not connection.execute(again.values(dispatched_at=now)).rowcount:
                move(connection, job_id, _S.QUEUED, by="dispatch", text="offered to the workers", now=now,
                     dispatched_at=now, stage="queue", reason="", next_step="")  # fmt: skip

    def expire_leases(self, now: float, max_attempts: int) -> int:
        """Take jobs back from workers that went silent; return how many."""
        with self._db.write() as connection:
            lost = connection.execute(
                select(job.c.id, job.c.attempts, job.c.worker)
                .where((job.c.state == _S.RUNNING.value) & (job.c.lease_until < now))
                .with_for_update()
            ).all()
            for row in lost:
                text = f"worker {row.worker} went silent"
                _give_back(connection, row.id, row.attempts, max_attempts, text, by="dispatch", now=now, not_before=now)
        return len(lost)

    def clamp_times(self, now: float, lease_s: float) -> None:
        """After the clock was set back, pull in what lies too far ahead, so that nothing waits for an untrue time."""
        with self._db.write() as connection:
            for column, latest in (
                (job.c.not_before, now),
                (job.c.dispatched_at, now),
                (job.c.lease_until, now + lease_s),
                (series.c.last_at, now),
                (delivery.c.not_before, now),
                (delivery.c.asked_at, now),
                (delivery.c.proved_at, now),
                (delivery.c.read_back_at, now),
            ):
                connection.execute(update(column.table).where(column > latest).values({column: latest}))

    # -- workers

    def claim(
        self, job_id: str, worker: str, *, lease_s: float, max_attempts: int, now: float,
        served: Collection[str] = ("",), retry_after_s: float = 0.0,
    ) -> Claim | None:  # fmt: skip
        """Give a job to a worker under a new fence; None when it is not to be had, which is normal and no error.

        Not to be had is a job for a model that is not among those `served` by the worker, or a shadow while others
        wait that the worker could take: it is offered again, in the first case after `retry_after_s`.
        """
        free = job.c.state.in_([_S.READY.value, _S.QUEUED.value])
        with self._db.write() as connection:
            row = connection.execute(
                select(*JOB_COLUMNS).where((job.c.id == job_id) & free & (job.c.not_before <= now)).with_for_update()
            ).first()
            if row is None:
                return None
            found = as_job(row)
            if put_back(connection, found, worker, served, retry_after_s, now):
                return None
            fence, attempts = found.fence + 1, found.attempts + 1
            if found.attempts >= max_attempts:
                _fail(connection, job_id, _S.FAILED, "claim", f"never finished in {found.attempts} attempts",
                      "look at the worker's log, then retry", by="ledger", now=now)  # fmt: skip
                return None
            move(connection, job_id, _S.RUNNING, by=worker, text=f"attempt {attempts}", now=now, fence=fence,
                 attempts=attempts, lease_until=now + lease_s, worker=worker, stage="segment", progress=0.0,
                 reason="", next_step="")  # fmt: skip
        return Claim(
            job_id=job_id, fence=fence, lease_s=lease_s, series_uid=found.series_uid, study_uid=found.study_uid,
            input_digest=found.input_digest, instances=found.instances, attempt=attempts, model=found.wanted_model,
        )  # fmt: skip

    def heartbeat(self, job_id: str, fence: int, *, lease_s: float, progress: float, now: float) -> None:
        """Renew a lease.

        Raises
        ------
        LeaseLost
            The fence is stale, or the job was cancelled or superseded.
        """
        with self._db.write() as connection:
            renewed = update(job).where(_held(job_id, fence)).values(lease_until=now + lease_s, progress=progress)
            if not connection.execute(renewed).rowcount:
                raise _lost(connection, job_id)

    def input_paths(self, job_id: str, fence: int) -> list[tuple[str, str]]:
        """Return `(SOP Instance UID, spool path)` of a claimed job's images.

        Raises
        ------
        LeaseLost
            The fence is stale.
        """
        with self._db.read() as connection:
            held = connection.execute(select(job.c.series_uid, job.c.revision).where(_held(job_id, fence))).first()
            if held is None:
                raise _lost(connection, job_id)
            query = (
                select(instance.c.sop_uid, instance.c.path)
                .where((instance.c.series_uid == held.series_uid) & (instance.c.revision <= held.revision))
                .order_by(instance.c.sop_uid)
            )
            return [(row.sop_uid, row.path) for row in connection.execute(query)]

    def finish(
        self, job_id: str, fence: int, results: Sequence[Result], destinations: Mapping[str, Sequence[str]], *,
        model: str, note: str, now: float,
    ) -> None:  # fmt: skip
        """Take a job's results, which are on disk already. Saying it twice under one fence is harmless.

        `destinations` names the forms that each gets first (`node.forms`). A shadow's results are STORED, no more.

        Raises
        ------
        LeaseLost
            The fence is stale.
        """
        with self._db.write() as connection:
            if not move(connection, job_id, _S.SEGMENTED, by="worker", text=note, now=now, when=_held(job_id, fence),
                        model=model, progress=1.0, stage="delivery", reason=note, next_step=""):  # fmt: skip
                taken = or_(
                    job.c.state.in_([_S.SEGMENTED.value, _S.DELIVERED.value, _S.STORED.value]),
                    and_(job.c.state == _S.FAILED.value, job.c.stage == "delivery"),
                )
                mine = (job.c.id == job_id) & (job.c.fence == fence)
                if connection.execute(select(job.c.id).where(mine & taken)).first():
                    return
                raise _lost(connection, job_id)
            connection.execute(delete(result).where(result.c.job_id == job_id))
            for item in results:
                connection.execute(insert(result).values(**{n: getattr(item, n) for n in Result.__dataclass_fields__}))
            if not store_shadow(connection, job_id, now):
                add_deliveries(connection, job_id, destinations, now)

    def give_back(
        self, job_id: str, fence: int, stage: str, reason: str, *, retry_after_s: float, max_attempts: int, now: float
    ) -> None:
        """Return a job after a failure that may pass.

        Raises
        ------
        LeaseLost
            The fence is stale.
        """
        with self._db.write() as connection:
            row = connection.execute(select(job.c.attempts).where(_held(job_id, fence)).with_for_update()).first()
            if row is None:
                raise _lost(connection, job_id)
            _give_back(connection, job_id, row.attempts, max_attempts, f"{stage}: {reason}", by="worker", now=now,
                       not_before=now + retry_after_s)  # fmt: skip

    def fail(
        self, job_id: str, fence: int, state: JobState, stage: str, reason: str, next_step: str, *, now: float
    ) -> None:
        """End a job as FAILED or REJECTED.

        Raises
        ------
        LeaseLost
            The fence is stale.
        """
        with self._db.write() as connection:
            if connection.execute(select(job.c.id).where(_held(job_id, fence)).with_for_update()).first() is None:
                raise _lost(connection, job_id)
            _fail(connection, job_id, state, stage, reason, next_step, by="worker", now=now)


def _held(job_id: str, fence: int) -> ColumnElement[bool]:
    return (job.c.id == job_id) & (job.c.state == _S.RUNNING.value) & (job.c.fence == fence)


def _lost(connection: Connection, job_id: str) -> LeaseLost:
    row = connection.execute(select(job.c.state, job.c.worker).where(job.c.id == job_id)).first()
    return LeaseLost(f"the job is {row.state} now" if row else "there is no such job")


def _give_back(
    connection: Connection, job_id: str, attempts: int, max_attempts: int, text: str, *, by: str, now: float,
    not_before: float,
) -> None:  # fmt: skip
    if attempts >= max_attempts:
        _fail(connection, job_id, _S.FAILED, "segment", f"{text}; given up after {attempts} attempts",
              "mend the cause, then retry", by=by, now=now)  # fmt: skip
    else:
        move(connection, job_id, _S.READY, by=by, text=text, now=now, not_before=not_before, stage="queue", reason=text,
             next_step="tried again by itself", progress=0.0)  # fmt: skip


def _fail(
    connection: Connection,
    job_id: str,
    state: JobState,
    stage: str,
    reason: str,
    next_step: str,
    *,
    by: str,
    now: float,
) -> None:
    move(connection, job_id, state, by=by, text=f"{stage}: {reason}", now=now, stage=stage, reason=reason,
         next_step=next_step)  # fmt: skip
