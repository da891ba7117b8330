"""Fetches: which studies people had fetched from an archive, what it said it has of them, and how far that came."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from node.errors import NotFound, Permanent
from node.ledger.database import Database
from node.ledger.moves import write_journal
from node.ledger.schema import fetched_series, instance
from node.ledger.schema import study_fetch as fetch


class FetchState(StrEnum):
    """Where one fetch stands."""

    ASKED = "ASKED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


OPEN = frozenset({FetchState.ASKED, FetchState.RUNNING})


@dataclass(frozen=True)
class FetchedSeries:
    """What an archive said of one series.

    `announced` is the number of images it said it has; None: it did not say. `left_out` says why the series is not
    retrieved; empty: it is. `here` counts its images in our ledger.
    """

    series_uid: str
    modality: str = ""
    description: str = ""
    announced: int | None = None
    left_out: str = ""
    here: int = 0


@dataclass(frozen=True)
class Fetch:
    """One study, or some of its series, from one archive. Times in seconds since 1970.

    `completed`, `failed` and `warned` count sub-operations (PS3.4 C.4.2 and C.4.3), or objects that came by DICOMweb.
    """

    archive: str
    study_uid: str
    asked_by: str
    wanted: tuple[str, ...] = ()
    number: int = 0
    state: FetchState = FetchState.ASKED
    completed: int = 0
    failed: int = 0
    warned: int = 0
    attempts: int = 0
    reason: str = ""
    next_step: str = ""
    asked_at: float = 0.0
    updated_at: float = 0.0
    series: tuple[FetchedSeries, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json` and the admin page's API."""
        return asdict(self)


@dataclass(frozen=True)
class Announcement:
    """What the newest fetch of a series said: how many images the archive has, and whether they still come."""

    archive: str
    asked_by: str
    number: int | None
    is_coming: bool
    fetch: int


class Fetches:
    """The part of the ledger that remembers fetches."""

    _db: Database

    def ask_fetch(
        self, archive: str, study_uid: str, wanted: Sequence[str], asked_by: str, now: float, *, most_open: int = 1000
    ) -> Fetch:
        """Remember that a study is to be fetched; the same one that is open already is returned instead.

        Raises
        ------
        Permanent
            `most_open` fetches are open.
        """
        named = sorted(set(wanted))
        with self._db.write() as connection:
            rows = connection.execute(
                select(fetch.c.number, fetch.c.wanted).where(
                    _IS_OPEN & (fetch.c.archive == archive) & (fetch.c.study_uid == study_uid)
                )
            )
            number = next((row.number for row in rows if list(row.wanted) == named), None)
            if number is None:
                waiting = connection.execute(select(func.count()).where(_IS_OPEN)).scalar_one()
                if waiting >= most_open:
                    raise Permanent(f"{waiting} fetches are open", "wait for some to end, or cancel them")
                number = connection.execute(
                    insert(fetch).values(
                        archive=archive, study_uid=study_uid, wanted=named, asked_by=asked_by[:64],
                        state=FetchState.ASKED.value, completed=0, failed=0, warned=0, attempts=0, reason="",
                        next_step="", asked_at=now, updated_at=now,
                    ).returning(fetch.c.number)
                ).scalar_one()  # fmt: skip
        return self.fetch(int(number))

    def claim_fetch(self, archive: str, now: float) -> Fetch | None:
        """Begin with the oldest open fetch of an archive, of which one thread works; None: there is none.

        One that RUNS already was broken off, as by a restart: it begins again.
        """
        with self._db.write() as connection:
            number = connection.execute(
                select(fetch.c.number).where(_IS_OPEN & (fetch.c.archive == archive)).order_by(fetch.c.number).limit(1)
            ).scalar()
            if number is None:
                return None
            connection.execute(
                update(fetch)
                .where(fetch.c.number == number)
                .values(
                    state=FetchState.RUNNING.value, attempts=fetch.c.attempts + 1, completed=0, failed=0, warned=0,
                    updated_at=now,
                )
            )  # fmt: skip
        return self.fetch(int(number))

    def note_fetched_series(self, asked: Fetch, found: Sequence[FetchedSeries], now: float) -> None:
        """Remember what the archive has of the study, and write into the history of each series that it is fetched."""
        with self._db.write() as connection:
            connection.execute(delete(fetched_series).where(fetched_series.c.fetch_number == asked.number))
            if found:
                columns = [c.name for c in fetched_series.c if c.name != "fetch_number"]
                rows = [
                    {name: getattr(one, name) for name in columns} | {"fetch_number": asked.number} for one in found
                ]
                connection.execute(insert(fetched_series), rows)
            for one in found:
                if not one.left_out:
                    number = "an unknown number of" if one.announced is None else str(one.announced)
                    text = f"fetched from {asked.archive}, which has {number} images (fetch {asked.number})"
                    _write(connection, one.series_uid, "", FetchState.RUNNING, asked.asked_by, text, now)

    def fetch_progress(self, number: int, completed: int, failed: int, warned: int, now: float) -> bool:
        """Note the counts of a fetch that runs; False: it does not any more, somebody cancelled it."""
        with self._db.write() as connection:
            changed = connection.execute(
                update(fetch)
                .where((fetch.c.number == number) & (fetch.c.state == FetchState.RUNNING.value))
                .values(completed=completed, failed=failed, warned=warned, updated_at=now)
            ).rowcount
        return bool(changed)

    def end_fetch(self, number: int, state: FetchState, reason: str, next_step: str, by: str, now: float) -> bool:
        """End an open fetch and write so into the history of its series; False: it was ended before."""
        with self._db.write() as connection:
            before = connection.execute(
                select(fetch.c.state).where((fetch.c.number == number) & _IS_OPEN).with_for_update()
            ).scalar()
            if before is None:
                return False
            connection.execute(
                update(fetch)
                .where(fetch.c.number == number)
                .values(state=state.value, reason=reason, next_step=next_step, updated_at=now)
            )
            members = (fetched_series.c.fetch_number == number) & (fetched_series.c.left_out == "")
            for series_uid in connection.execute(select(fetched_series.c.series_uid).where(members)).scalars().all():
                _write(connection, series_uid, FetchState(before).value, state, by, f"fetch {number}: {reason}", now)
        return True

    def cancel_fetch(self, number: int, by: str, now: float) -> Fetch:
        """Stop a fetch; what came of it stays.

        Raises
        ------
        NotFound
            There is none of this number.
        Permanent
            It has ended.
        """
        if not self.end_fetch(number, FetchState.CANCELLED, f"stopped by {by}", "images that came stay", by, now):
            raise Permanent(f"fetch {number} is {self.fetch(number).state}", "only one that is open can be stopped")
        return self.fetch(number)

    def end_fetches_of_others(self, archives: Collection[str], now: float) -> int:
        """End what is open of archives that the settings do not name any more; return how many."""
        with self._db.read() as connection:
            rows = connection.execute(select(fetch.c.number, fetch.c.archive).where(_IS_OPEN)).all()
        gone = [row for row in rows if row.archive not in archives]
        for row in gone:
            reason, step = f"no archive is called {row.archive} any more", "name it in [[archives]], and fetch again"
            self.end_fetch(row.number, FetchState.FAILED, reason, step, "node", now)
        return len(gone)

    def fetch(self, number: int) -> Fetch:
        """Return one fetch with its series.

        Raises
        ------
        NotFound
            There is none of this number.
        """
        with self._db.read() as connection:
            row = connection.execute(select(*_COLUMNS).where(fetch.c.number == number)).first()
            if row is None:
                raise NotFound(f"there is no fetch {number}", "pennode fetch list shows them")
            return _with_series(connection, [row])[0]

    def fetches(self, limit: int = 200) -> list[Fetch]:
        """Return fetches with their series, newest first."""
        query = select(*_COLUMNS).order_by(fetch.c.number.desc()).limit(limit)
        with self._db.read() as connection:
            return _with_series(connection, connection.execute(query).all())

    def images_here(self, series_uids: Collection[str]) -> dict[str, int]:
        """Return how many images of each series are here; a series of which there is none is left out."""
        with self._db.read() as connection:
            return _images(connection, sorted(series_uids))

    def announcement(self, series_uid: str) -> Announcement | None:
        """Return what the newest fetch of a series said of it; None: it was not fetched."""
        query = (
            select(fetch.c.number, fetch.c.archive, fetch.c.asked_by, fetch.c.state, fetched_series.c.announced)
            .where(fetched_series.c.fetch_number == fetch.c.number)
            .where((fetched_series.c.series_uid == series_uid) & (fetched_series.c.left_out == ""))
            .order_by(fetch.c.number.desc())
            .limit(1)
        )
        with self._db.read() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        return Announcement(row.archive, row.asked_by, row.announced, FetchState(row.state) in OPEN, row.number)

    def forget_fetches(self, before: float) -> int:
        """Drop fetches that ended before this time; return how many."""
        aged = select(fetch.c.number).where(~_IS_OPEN & (fetch.c.updated_at < before))
        with self._db.write() as connection:
            numbers = connection.execute(aged).scalars().all()
            for number in numbers:
                connection.execute(delete(fetched_series).where(fetched_series.c.fetch_number == number))
                connection.execute(delete(fetch).where(fetch.c.number == number))
        return len(numbers)


_IS_OPEN = fetch.c.state.in_([state.value for state in OPEN])
_COLUMNS = [fetch.c[name] for name in Fetch.__dataclass_fields__ if name != "series"]
_CHUNK = 500


def _write(
    connection: Connection, series_uid: str, before: str, after: FetchState, by: str, text: str, now: float
) -> None:
    write_journal(connection, series_uid, "", "fetch", before, after.value, by, text, now)


def _images(connection: Connection, series_uids: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for start in range(0, len(series_uids), _CHUNK):
        chunk = instance.c.series_uid.in_(series_uids[start : start + _CHUNK])
        query = select(instance.c.series_uid, func.count()).where(chunk).group_by(instance.c.series_uid)
        found.update((uid, count) for uid, count in connection.execute(query))
    return found


def _with_series(connection: Connection, rows: Sequence[Any]) -> list[Fetch]:
    members: dict[int, list[FetchedSeries]] = {row.number: [] for row in rows}
    query = (
        select(fetched_series)
        .where(fetched_series.c.fetch_number.in_(list(members)))
        .order_by(fetched_series.c.series_uid)
    )
    for row in connection.execute(query):
        values = dict(row._mapping)
        members[values.pop("fetch_number")].append(FetchedSeries(**values))
    here = _images(connection, sorted({one.series_uid for found in members.values() for one in found}))
    found = []
    for row in rows:
        values = dict(row._mapping)
        series = tuple(replace(one, here=here.get(one.series_uid, 0)) for one in members[row.number])
        changes = {"state": FetchState(values["state"]), "wanted": tuple(values["wanted"]), "series": series}
        found.append(Fetch(**{**values, **changes}))
    return found
