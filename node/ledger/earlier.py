"""Results that an earlier job gave in the same frame of reference, for who compares with before."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, case, false, or_, select

from node.errors import LeaseLost
from node.forms import SEGMENTATIONS, Form
from node.ledger.database import Database
from node.ledger.schema import instance, job, result
from node.states import JobState


class Earlier:
    """The part of the ledger that knows what was there before."""

    _db: Database

    def earlier_result(self, job_id: str, fence: int) -> str | None:
        """Return the spool path of the newest segmentation that came before a claimed job; None: there is none.

        It is of another series, or of an earlier revision of this one, of the same frame of reference, and whatever
        model made it, but no shadow; of one job's segmentations the BINARY one. Jobs that came later do not count.
        Nothing here knows patients or dates: who uses it compares them.

        Raises
        ------
        LeaseLost
            The fence is stale.
        """
        columns = (job.c.series_uid, job.c.revision, job.c.frame_of_reference_uid, job.c.created_at)
        held = (job.c.id == job_id) & (job.c.state == JobState.RUNNING.value) & (job.c.fence == fence)
        with self._db.read() as connection:
            mine = connection.execute(select(*columns).where(held)).first()
            if mine is None:
                raise LeaseLost("the job is not in your hands any more")
            if not mine.frame_of_reference_uid:
                return None
            before = and_(job.c.series_uid == mine.series_uid, job.c.revision < mine.revision)
            query = (
                select(result.c.path)
                .join(job, job.c.id == result.c.job_id)
                .where(job.c.frame_of_reference_uid == mine.frame_of_reference_uid)
                .where(or_(job.c.series_uid != mine.series_uid, before))
                .where((job.c.created_at < mine.created_at) & (job.c.purged_at == 0.0) & (job.c.shadow == false()))
                .where(or_(*map(_is_form, SEGMENTATIONS)))
                .order_by(job.c.created_at.desc(), job.c.id, case((_is_form(Form.SEG), 0), else_=1), result.c.form)
                .limit(1)
            )
            path: str | None = connection.execute(query).scalar()
        return path

    def source_uids(self, job_id: str) -> frozenset[str]:
        """Return the SOP Instance UIDs of a job's images."""
        from_series = select(job.c.series_uid).where(job.c.id == job_id).scalar_subquery()
        revision = select(job.c.revision).where(job.c.id == job_id).scalar_subquery()
        query = select(instance.c.sop_uid).where(
            (instance.c.series_uid == from_series) & (instance.c.revision <= revision)
        )
        with self._db.read() as connection:
            return frozenset(connection.execute(query).scalars())


def _is_form(form: Form) -> ColumnElement[bool]:
    """Whether a result is of this form, whatever the options of its recipe."""
    return or_(result.c.form == form.value, result.c.form.startswith(f"{form.value}+", autoescape=True))
