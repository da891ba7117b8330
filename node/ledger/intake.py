"""Reception: instances come in, a series is sealed and becomes a job."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from node.evidence import Evidence, Weighing
from node.ledger.database import Database
from node.ledger.deliveries import cancel_deliveries
from node.ledger.moves import SERIES_COLUMNS, as_series, move, write_journal
from node.ledger.prepared import Prepared
from node.ledger.schema import instance, job, result, series
from node.ledger.weighings import write_gaps, write_weighing
from node.records import UNFINISHED, Header, Instance, JobState, Series, SeriesState, input_digest

_HELD = Prepared(
    select(instance.c.sha256, instance.c.series_uid, instance.c.path).where(instance.c.sop_uid == bindparam("uid"))
)
_SERIES = Prepared(
    select(series.c.state, series.c.revision, series.c.instances)
    .where(series.c.series_uid == bindparam("uid"))
    .with_for_update()
)
_GROW = Prepared(
    update(series)
    .where(series.c.series_uid == bindparam("uid"))
    .values(state=bindparam("now"), instances=series.c.instances + bindparam("added"), last_at=bindparam("at"))
)
_INSERT = Prepared(insert(instance))
_FIELDS = tuple(name for name in Instance.__dataclass_fields__ if name != "header")


# What a newer revision takes over: work that is not finished, and failures that need nobody any more.
_OVERTAKEN = UNFINISHED | {JobState.FAILED, JobState.REJECTED}


class Receipt(StrEnum):
    """What the ledger made of an instance."""

    NEW = "new"
    DUPLICATE = "duplicate"  # the same object again, byte for byte
    CONFLICT = "conflict"  # another object under the same SOP Instance UID; the first is kept
    TOO_MANY = "too many"  # the series is as large as it may be; nothing was recorded


@dataclass(frozen=True)
class Recorded:
    """What the ledger made of an instance, and for one that it held already, where its file lies in the spool."""

    receipt: Receipt
    held_path: str = ""


@dataclass
class _Growing:
    """A series within one transaction; without a state it is not there yet."""

    state: str = ""
    revision: int = 0
    instances: int = 0
    added: list[Instance] = field(default_factory=list)


class Intake:
    """The part of the ledger that grows while images arrive."""

    _db: Database

    def replace_path(self, sop_uid: str, path: str) -> None:
        """Note that an object whose file was lost has come again and lies at `path`."""
        with self._db.write() as connection:
            connection.execute(update(instance).where(instance.c.sop_uid == sop_uid).values(path=path))

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
        try:
            with self._db.write() as connection:
                return self._record(connection, received, most)
        except IntegrityError:
            # Another process brought the same new UID at once, and won.
            with self._db.write() as connection:
                return self._record(connection, received, most)

    def _record(self, connection: Connection, received: Sequence[Instance], most: int | None) -> list[Recorded]:
        held: dict[str, tuple[str, str, str]] = {}
        series_seen: dict[str, _Growing] = {}
        new: list[dict[str, Any]] = []
        answers = []
        for one in received:
            known = held.get(one.sop_uid) or next(iter(_HELD.run(connection, {"uid": one.sop_uid})), None)
            if known is not None:
                answers.append(Recorded(self._again(connection, one, *known[:2]), known[2]))
                continue
            if one.series_uid not in series_seen:
                series_seen[one.series_uid] = self._growing(connection, one.series_uid)
            growing = series_seen[one.series_uid]
            if most is not None and growing.instances + len(growing.added) >= most:
                answers.append(Recorded(Receipt.TOO_MANY))
                continue
            growing.added.append(one)
            held[one.sop_uid] = (one.sha256, one.series_uid, one.path)
            values = {name: getattr(one, name) for name in _FIELDS}
            new.append(values | {"header": json.dumps(one.header.to_json()), "revision": growing.revision + 1})
            answers.append(Recorded(Receipt.NEW))
        for series_uid, growing in series_seen.items():
            self._grow(connection, series_uid, growing)
        if new:
            _INSERT.run(connection, *new)
        return answers

    def _again(self, connection: Connection, received: Instance, sha256: str, series_uid: str) -> Receipt:
        if sha256 == received.sha256:
            return Receipt.DUPLICATE
        write_journal(
            connection, series_uid, "", "instance", "", Receipt.CONFLICT.value, received.calling_ae,
            f"another object came under SOP Instance UID {received.sop_uid}; the first was kept",
            received.received_at,
        )  # fmt: skip
        return Receipt.CONFLICT

    def _growing(self, connection: Connection, series_uid: str) -> _Growing:
        rows = _SERIES.run(connection, {"uid": series_uid})
        return _Growing(*rows[0]) if rows else _Growing()

    def _grow(self, connection: Connection, series_uid: str, growing: _Growing) -> None:
        """Count instances into their series, which begins or opens its next revision by that."""
        if not growing.added:
            return
        first = growing.added[0]
        last_at = max(one.received_at for one in growing.added)
        if not growing.state:
            connection.execute(
                insert(series).values(
                    series_uid=series_uid, study_uid=first.study_uid, state=SeriesState.RECEIVING.value, revision=0,
                    calling_ae=first.calling_ae, instances=len(growing.added), first_at=first.received_at,
                    last_at=last_at, seal_reason="",
                )
            )  # fmt: skip
            text = f"first image received from {first.calling_ae}"
            write_journal(
                connection, series_uid, "", "series", "", SeriesState.RECEIVING.value, "listener", text,
                first.received_at,
            )  # fmt: skip
            return
        values = {"uid": series_uid, "now": SeriesState.RECEIVING.value, "added": len(growing.added), "at": last_at}
        _GROW.run(connection, values)
        if growing.state == SeriesState.SEALED:
            text = f"an image came after the seal: revision {growing.revision + 1} is open"
            write_journal(
                connection, series_uid, "", "series", SeriesState.SEALED.value, SeriesState.RECEIVING.value,
                "listener", text, first.received_at,
            )  # fmt: skip

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
    ) -> str | None:
        """Seal a series as it was `seen` and make its job; return the job's id.

        None: an image came in between, or another process sealed it; nothing was changed. The new job is READY when
        `wanted`, else SKIPPED with the `verdict` of selection. Earlier revisions' jobs are superseded, unless they are
        DELIVERED, SKIPPED or CANCELLED. `pieces` of evidence are kept beside the `reason`.
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
            state = JobState.READY if wanted else JobState.SKIPPED
            job_id = uuid.uuid4().hex
            header = members[0].header if members else Header()
            connection.execute(
                insert(job).values(
                    id=job_id, series_uid=seen.series_uid, study_uid=seen.study_uid, revision=revision,
                    state=state.value, stage="selection", reason=verdict, next_step=next_step, priority=0, fence=0,
                    attempts=0, calling_ae=seen.calling_ae, description=header.series_description,
                    instances=len(members), input_digest=input_digest((m.sop_uid, m.sha256) for m in members), model="",
                    worker="", progress=0.0, not_before=0.0, dispatched_at=0.0, lease_until=0.0, created_at=now,
                    updated_at=now, last_image_at=seen.last_at, purged_at=0.0,
                )
            )  # fmt: skip
            write_journal(connection, seen.series_uid, job_id, "job", "", state.value, "selection", verdict, now)
        return job_id

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
