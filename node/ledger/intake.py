"""Reception: instances come in, a series is sealed and becomes a job."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from node.evidence import Evidence, Weighing
from node.ledger.database import Database
from node.ledger.deliveries import cancel_deliveries
from node.ledger.moves import SERIES_COLUMNS, as_series, move, write_journal
from node.ledger.prepared import Unsettled
from node.ledger.recording import ANY_NUMBER, Receipt, Recorded, record, record_plain
from node.ledger.schema import instance, job, result, series
from node.ledger.weighings import write_gaps, write_weighing
from node.records import Header, Instance, Series, input_digest, is_uid
from node.states import UNFINISHED, JobState, SeriesState

# What a newer revision takes over: work that is not finished, failures that need nobody any more, what shadows made.
_OVERTAKEN = UNFINISHED | {JobState.FAILED, JobState.REJECTED, JobState.STORED}


class Intake:
    """The part of the ledger that grows while images arrive."""

    _db: Database

    def prepare_intake(self) -> None:
        """Open what the first image would else wait for."""
        with contextlib.suppress(Unsettled), self._db.lock, self._db.lane:
            pass

    def replace_file(self, received: Instance, held: Recorded) -> bool:
        """Have the file of `received` take the place of that of `held`; False: there is none of it any more."""
        with self._db.write() as connection:
            return bool(
                connection.execute(
                    update(instance)
                    .where((instance.c.sop_uid == received.sop_uid) & (instance.c.path == held.path))
                    .values(
                        path=received.path, size=received.size, transfer_syntax_uid=received.transfer_syntax_uid,
                        sha256=held.sha256, header=received.header.to_json(),
                    )
                ).rowcount
            )  # fmt: skip

    def note_conflict(self, received: Instance, series_uid: str) -> None:
        """Write into the history of `series_uid` that another object came under the UID of one of its images."""
        with self._db.write() as connection:
            write_journal(
                connection, series_uid, "", "instance", "", "conflict", received.calling_ae,
                f"another object came under SOP Instance UID {received.sop_uid}; the first was kept",
                received.received_at,
            )  # fmt: skip

    def note_digests(self, digests: Mapping[str, str]) -> None:
        """Record the sha256 of data sets by SOP Instance UID."""
        statement = update(instance).where(instance.c.sop_uid == bindparam("uid")).values(sha256=bindparam("digest"))
        if digests:
            with self._db.write() as connection:
                connection.execute(statement, [{"uid": uid, "digest": digest} for uid, digest in digests.items()])

    def known_paths(self, paths: set[str]) -> set[str]:
        """Return those of `paths` that belong to an instance or to a result."""
        found: set[str] = set()
        ordered = sorted(paths)
        with self._db.read() as connection:
            for start in range(0, len(ordered), 500):
                chunk = ordered[start : start + 500]
                for column in (instance.c.path, result.c.path):
                    found |= set(connection.execute(select(column).where(column.in_(chunk))).scalars())
        return found

    def record(self, received: Instance) -> Receipt:
        """Commit one instance whose bytes are on disk already. Success may be answered once this returns NEW."""
        return self.record_all([received])[0].receipt

    def record_all(self, received: Sequence[Instance], most: int | None = None) -> list[Recorded]:
        """Commit several instances, whose bytes are on disk already, in one transaction; one answer for each.

        A series takes `most` instances at most.
        """
        if received and record_plain(self._db, received, ANY_NUMBER if most is None else most):
            return [Recorded(Receipt.NEW)] * len(received)
        try:
            with self._db.write() as connection:
                return record(connection, received, most)
        except IntegrityError:
            # Another process brought the same new UID at once, and won.
            with self._db.write() as connection:
                return record(connection, received, most)

    def receiving(self) -> list[Series]:
        """Return the series that are still open, oldest first."""
        query = select(*SERIES_COLUMNS).where(series.c.state == SeriesState.RECEIVING.value).order_by(series.c.first_at)
        with self._db.read() as connection:
            return [as_series(row) for row in connection.execute(query)]

    def series_instances(self, series_uid: str, revision: int | None = None) -> list[Instance]:
        """Return the instances of a series, or those that belong to one of its revisions."""
        query = select(instance).where(instance.c.series_uid == series_uid).order_by(instance.c.sop_uid)
        if revision is not None:
            query = query.where(instance.c.revision <= revision)
        with self._db.read() as connection:
            return [_as_instance(row._mapping) for row in connection.execute(query)]

    def seal(
        self,
        seen: Series,
        members: Iterable[Instance],
        reason: str,
        *,
        wanted: bool,
        verdict: str,
        next_step: str,
        now: float,
        pieces: Sequence[Evidence] = (),
        model: str = "",
        shadows: Sequence[str] = (),
    ) -> str | None:
        """Seal a series as it was `seen` and make its job, for `model` (empty: any default); return the job's id.

        None: an image came in between, or another process sealed it; nothing was changed. The new job is READY when
        `wanted`, else SKIPPED with the `verdict` of selection. Each model of `shadows` gets a job beside it, which is
        READY. Earlier revisions' jobs are superseded, unless they are DELIVERED, SKIPPED or CANCELLED. `pieces` of
        evidence are kept beside the `reason`.
        """
        members = list(members)
        revision = seen.revision + 1
        with self._db.write() as connection:
            sealed = connection.execute(
                update(series)
                .where(
                    (series.c.series_uid == seen.series_uid)
                    & (series.c.state == SeriesState.RECEIVING.value)
                    & (series.c.revision == seen.revision)
                    & (series.c.instances == seen.instances)
                )
                .values(state=SeriesState.SEALED.value, revision=revision, seal_reason=reason)
            ).rowcount
            if not sealed:
                return None
            write_journal(
                connection, seen.series_uid, "", "series", SeriesState.RECEIVING.value, SeriesState.SEALED.value,
                "assembly", f"{len(members)} images: {reason}", now,
            )  # fmt: skip
            weighed = Weighing(seen.series_uid, revision, tuple(pieces), reason, seen.last_at, 0.0)
            write_weighing(connection, weighed)
            write_gaps(connection, seen.series_uid, members, now)
            self._supersede(connection, seen.series_uid, revision, now)
            header = members[0].header if members else Header()
            frame = next(filter(None, (m.header.frame_of_reference_uid for m in members)), "")
            common = {
                "series_uid": seen.series_uid, "study_uid": seen.study_uid, "revision": revision, "stage": "selection",
                "fence": 0, "attempts": 0, "calling_ae": seen.calling_ae, "description": header.series_description,
                "instances": len(members), "input_digest": input_digest((m.sop_uid, m.sha256) for m in members),
                "model": "", "worker": "", "progress": 0.0, "not_before": 0.0, "dispatched_at": 0.0, "lease_until": 0.0,
                "created_at": now, "updated_at": now, "last_image_at": seen.last_at, "purged_at": 0.0,
                "frame_of_reference_uid": frame if is_uid(frame) else "",
            }  # fmt: skip
            state = JobState.READY if wanted else JobState.SKIPPED
            jobs = [(model, False, state, verdict, next_step)]
            jobs += [
                (name, True, JobState.READY, f"shadow: agrees with the rules of model {name}", "") for name in shadows
            ]
            ids = [uuid.uuid4().hex for _ in jobs]
            for job_id, (name, shadow, at, why, step) in zip(ids, jobs, strict=True):
                values = {"id": job_id, "wanted_model": name, "shadow": shadow, "state": at.value, "priority": -shadow}
                connection.execute(insert(job).values(**common, **values, reason=why, next_step=step))
                write_journal(connection, seen.series_uid, job_id, "job", "", at.value, "selection", why, now)
        return ids[0]

    def _supersede(self, connection: Connection, series_uid: str, revision: int, now: float) -> None:
        earlier = connection.execute(
            select(job.c.id).where(
                (job.c.series_uid == series_uid)
                & (job.c.revision < revision)
                & (job.c.state.in_([s.value for s in _OVERTAKEN]))
            )
        ).scalars()
        for job_id in earlier.all():
            text = f"more images came: revision {revision} takes over"
            move(connection, job_id, JobState.SUPERSEDED, by="assembly", text=text, now=now, reason=text, next_step="")
            cancel_deliveries(connection, job_id, text, now)


def _as_instance(values: Any) -> Instance:
    fields = {name: values[name] for name in Instance.__dataclass_fields__ if name != "header"}
    return Instance(**fields, header=Header.from_json(values["header"]))
