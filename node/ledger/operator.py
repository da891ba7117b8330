"""What a person says of a job: try it again, or stop it."""

from __future__ import annotations

from sqlalchemy import Connection, select

from node.errors import NotFound, Permanent
from node.ledger.database import Database
from node.ledger.deliveries import cancel_deliveries
from node.ledger.ladder import begin_again
from node.ledger.moves import JOB_COLUMNS, as_job, move
from node.ledger.schema import job, result, series
from node.records import Job
from node.states import JobState

_S = JobState


class Operator:
    """The part of the ledger that an operator moves."""

    _db: Database

    def retry(self, job_id: str, by: str, now: float) -> Job:
        """Try a job again: from the start, or only its delivery when just that had failed.

        Raises
        ------
        NotFound, Permanent
            There is no such job; its state does not allow it; its images have left the spool.
        """
        with self._db.write() as connection:
            found = _get(connection, job_id)
            newest = select(series.c.revision).where(series.c.series_uid == found.series_uid)
            purged = connection.execute(select(job.c.purged_at).where(job.c.id == found.id)).scalar_one()
            if purged:
                raise Permanent("the images of this job have left the spool", "send the series again")
            if found.revision < connection.execute(newest).scalar_one():
                raise Permanent("a newer revision of this series exists", "retry that one")
            results = connection.execute(select(result.c.sop_uid).where(result.c.job_id == found.id).limit(1)).first()
            if found.state is _S.FAILED and found.stage == "delivery" and results is not None:
                text = "delivery retried by the operator"
                done = move(connection, found.id, _S.SEGMENTED, by=by, text=text, now=now, reason=text, next_step="")
                begin_again(connection, found.id, now)
            else:
                done = move(connection, found.id, _S.READY, by=by, text="retried by the operator", now=now, attempts=0,
                            not_before=0.0, stage="queue", progress=0.0, reason="", next_step="",
                            when=job.c.state.notin_([_S.RUNNING.value, _S.QUEUED.value]))  # fmt: skip
            if not done:
                raise Permanent(
                    f"a job that is {found.state} cannot be retried",
                    "only FAILED, REJECTED, SKIPPED and CANCELLED jobs can",
                )
            return _get(connection, found.id)

    def cancel(self, job_id: str, by: str, now: float) -> Job:
        """Stop a job. A worker that runs it notices at its next heartbeat.

        Raises
        ------
        NotFound, Permanent
            There is no such job; it is finished already.
        """
        with self._db.write() as connection:
            found = _get(connection, job_id)
            text = "cancelled by the operator"
            if not move(connection, found.id, _S.CANCELLED, by=by, text=text, now=now, reason=text, next_step=""):
                raise Permanent(f"a job that is {found.state} cannot be cancelled", "it is finished already")
            cancel_deliveries(connection, found.id, text, now)
            return _get(connection, found.id)

    def job(self, job_id: str) -> Job:
        """Return one job by its id, or a prefix of it that no other job shares.

        Raises
        ------
        NotFound
            No job, or more than one, begins so.
        """
        with self._db.read() as connection:
            return _get(connection, job_id)


def _get(connection: Connection, job_id: str) -> Job:
    if not job_id.isalnum():
        raise NotFound(f"{job_id[:32]!r} is no job's id", "pennode jobs list shows them")
    found = connection.execute(select(*JOB_COLUMNS).where(job.c.id.startswith(job_id)).limit(2)).all()
    if len(found) != 1:
        many = "more than one job begins" if found else "no job begins"
        raise NotFound(f"{many} with {job_id[:32]!r}", "pennode jobs list shows them")
    return as_job(found[0])
