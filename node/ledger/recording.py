"""How received instances become rows: the short way, which most of them can go, and the long way, which all can."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from node.ledger.database import Database
from node.ledger.moves import write_journal
from node.ledger.prepared import Prepared, Unsettled
from node.ledger.schema import instance, journal, series
from node.records import Instance
from node.states import SeriesState

_HELD = Prepared(
    select(instance.c.path, instance.c.sha256, instance.c.series_uid).where(instance.c.sop_uid == bindparam("uid"))
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
_GROW_OPEN = Prepared(
    update(series)
    .where(
        (series.c.series_uid == bindparam("uid"))
        & (series.c.state == bindparam("open"))
        & (series.c.instances + bindparam("added") <= bindparam("most"))
    )
    .values(instances=series.c.instances + bindparam("added"), last_at=bindparam("at"))
    .returning(series.c.revision)
)
_NEW_SERIES = Prepared(insert(series))
_FIRST_LINE = Prepared(insert(journal).values({c.name: bindparam(c.name) for c in journal.c if c.name != "id"}))
ANY_NUMBER = 2**31 - 1


class Receipt(StrEnum):
    """What the ledger made of an instance."""

    NEW = "new"
    HELD = "held"  # an object of this SOP Instance UID is here already; nothing was recorded
    TOO_MANY = "too many"  # the series is as large as it may be; nothing was recorded


@dataclass(frozen=True)
class Recorded:
    """What the ledger made of an instance, and of the one that it held already: its file, its digest, its series."""

    receipt: Receipt
    path: str = ""
    sha256: str = ""
    series_uid: str = ""


@dataclass
class _Growing:
    """A series within one transaction; without a state it is not there yet."""

    state: str = ""
    revision: int = 0
    instances: int = 0
    added: list[Instance] = field(default_factory=list)


def record_plain(database: Database, received: Sequence[Instance], most: int) -> bool:
    """Record instances that are all new, of series that are new or open, in a transaction of its own.

    False: they are something else; nothing is recorded.
    """
    by_series: dict[str, list[Instance]] = {}
    for one in received:
        by_series.setdefault(one.series_uid, []).append(one)
    try:
        with database.lock, database.lane as lane:
            rows = []
            for uid, members in by_series.items():
                grown = lane.run(
                    _GROW_OPEN,
                    {
                        "uid": uid, "open": SeriesState.RECEIVING.value, "added": len(members), "most": most,
                        "at": members[-1].received_at,
                    },
                )  # fmt: skip
                if not grown:
                    if len(members) > most or lane.run(_SERIES, {"uid": uid}):
                        raise Unsettled
                    lane.run(_NEW_SERIES, _as_series_row(members))
                    lane.run(_FIRST_LINE, _first_line(members[0]))
                rows += [_as_row(one, grown[0][0] + 1 if grown else 1) for one in members]
            lane.run(_INSERT, *rows)
    except Unsettled:
        return False
    return True


def record(connection: Connection, received: Sequence[Instance], most: int | None) -> list[Recorded]:
    """Record instances, whatever they are, within one transaction; one answer for each."""
    held: dict[str, Recorded] = {}
    series_seen: dict[str, _Growing] = {}
    new: list[dict[str, Any]] = []
    answers = []
    for one in received:
        if one.sop_uid not in held and (rows := _HELD.run(connection, {"uid": one.sop_uid})):
            held[one.sop_uid] = Recorded(Receipt.HELD, *rows[0])
        if one.sop_uid in held:
            answers.append(held[one.sop_uid])
            continue
        if one.series_uid not in series_seen:
            series_seen[one.series_uid] = _growing(connection, one.series_uid)
        growing = series_seen[one.series_uid]
        if most is not None and growing.instances + len(growing.added) >= most:
            answers.append(Recorded(Receipt.TOO_MANY))
            continue
        growing.added.append(one)
        held[one.sop_uid] = Recorded(Receipt.HELD, one.path, one.sha256, one.series_uid)
        new.append(_as_row(one, growing.revision + 1))
        answers.append(Recorded(Receipt.NEW))
    for series_uid, growing in series_seen.items():
        _grow(connection, series_uid, growing)
    if new:
        _INSERT.run(connection, *new)
    return answers


def _growing(connection: Connection, series_uid: str) -> _Growing:
    rows = _SERIES.run(connection, {"uid": series_uid})
    return _Growing(*rows[0]) if rows else _Growing()


def _grow(connection: Connection, series_uid: str, growing: _Growing) -> None:
    """Count instances into their series, which begins or opens its next revision by that."""
    if not growing.added:
        return
    first = growing.added[0]
    last_at = max(one.received_at for one in growing.added)
    if not growing.state:
        _NEW_SERIES.run(connection, _as_series_row(growing.added))
        _FIRST_LINE.run(connection, _first_line(first))
        return
    values = {"uid": series_uid, "now": SeriesState.RECEIVING.value, "added": len(growing.added), "at": last_at}
    _GROW.run(connection, values)
    if growing.state == SeriesState.SEALED:
        text = f"an image came after the seal: revision {growing.revision + 1} is open"
        write_journal(
            connection, series_uid, "", "series", SeriesState.SEALED.value, SeriesState.RECEIVING.value,
            "listener", text, first.received_at,
        )  # fmt: skip


def _as_series_row(members: Sequence[Instance]) -> dict[str, Any]:
    first = members[0]
    return {
        "series_uid": first.series_uid, "study_uid": first.study_uid, "state": SeriesState.RECEIVING.value,
        "revision": 0, "calling_ae": first.calling_ae, "instances": len(members), "first_at": first.received_at,
        "last_at": max(one.received_at for one in members), "seal_reason": "",
    }  # fmt: skip


def _first_line(first: Instance) -> dict[str, Any]:
    return {
        "at": first.received_at, "series_uid": first.series_uid, "job_id": "", "subject": "series", "before": "",
        "after": SeriesState.RECEIVING.value, "by": "listener",
        "text": f"first image received from {first.calling_ae}",
    }  # fmt: skip


def _as_row(one: Instance, revision: int) -> dict[str, Any]:
    return {**vars(one), "header": json.dumps(one.header.to_json()), "revision": revision}
