"""What assembly remembers: how series were weighed, and how their senders paused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from node.evidence import Evidence, Source, Weighing, Weight
from node.ledger.database import Database
from node.ledger.schema import rhythm, series, weighing
from node.records import Instance, Job
from node.rhythm import KEPT, longest_gaps
from node.states import SeriesState

_COLUMNS = [weighing.c[name] for name in Weighing.__dataclass_fields__]


class Weighings:
    """The part of the ledger that assembly keeps."""

    _db: Database

    def note_weighing(self, weighed: Weighing) -> None:
        """Keep how a series was weighed, in place of the last time."""
        with self._db.write() as connection:
            write_weighing(connection, weighed)

    def weighing(self, series_uid: str, revision: int) -> Weighing | None:
        """Return how one revision of a series was weighed last."""
        query = select(*_COLUMNS).where((weighing.c.series_uid == series_uid) & (weighing.c.revision == revision))
        with self._db.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else _as_weighing(row)

    def weighings_of(self, sealed: Job) -> list[Weighing]:
        """Return how a job's revision was weighed, and how the next one is while it arrives."""
        found = (self.weighing(sealed.series_uid, sealed.revision), self.weighings().get(sealed.series_uid))
        return [one for one in found if one is not None]

    def weighings(self) -> dict[str, Weighing]:
        """Return, by Series Instance UID, how series that still arrive were weighed after their last image."""
        newest = (weighing.c.revision == series.c.revision + 1) & (weighing.c.last_at == series.c.last_at)
        query = (
            select(*_COLUMNS)
            .join(series, (series.c.series_uid == weighing.c.series_uid) & newest)
            .where(series.c.state == SeriesState.RECEIVING.value)
        )
        with self._db.read() as connection:
            return {row.series_uid: _as_weighing(row) for row in connection.execute(query)}

    def longest_gaps(self, calling_ae: str) -> list[float]:
        """Return the longest gap between images, in s, of each of the last series that this AE title sent."""
        query = (
            select(rhythm.c.longest_s).where(rhythm.c.calling_ae == calling_ae).order_by(rhythm.c.at.desc()).limit(KEPT)
        )
        with self._db.read() as connection:
            return list(connection.execute(query).scalars())


def write_weighing(connection: Connection, weighed: Weighing) -> None:
    """Insert or replace one row, in the caller's transaction."""
    values: dict[str, Any] = {name: getattr(weighed, name) for name in Weighing.__dataclass_fields__}
    values["pieces"] = [[p.source.value, p.weight.value, p.text] for p in weighed.pieces]
    same = (weighing.c.series_uid == weighed.series_uid) & (weighing.c.revision == weighed.revision)
    if not connection.execute(update(weighing).where(same).values(**values)).rowcount:
        connection.execute(insert(weighing).values(**values))


def write_gaps(connection: Connection, series_uid: str, members: Sequence[Instance], now: float) -> None:
    """Remember the longest gaps of a series that is being sealed, and forget those of old ones."""
    for calling_ae, longest_s in longest_gaps(members).items():
        mine = rhythm.c.calling_ae == calling_ae
        values = {"longest_s": longest_s, "at": now}
        again = update(rhythm).where(mine & (rhythm.c.series_uid == series_uid)).values(**values)
        if not connection.execute(again).rowcount:
            connection.execute(insert(rhythm).values(calling_ae=calling_ae, series_uid=series_uid, **values))
            kept = select(rhythm.c.at).where(mine).order_by(rhythm.c.at.desc()).offset(KEPT - 1).limit(1)
            connection.execute(delete(rhythm).where(mine & (rhythm.c.at < kept.scalar_subquery())))


def _as_weighing(row: Row[Any]) -> Weighing:
    pieces = tuple(Evidence(Source(source), Weight(weight), text) for source, weight, text in row.pieces)
    return Weighing(**{**row._mapping, "pieces": pieces})
