"""Modality performed procedure steps: what scanners say they do, and have done. UIDs, states and times; no patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from node.ledger.database import Database
from node.ledger.moves import write_journal
from node.ledger.schema import performed_series, procedure_step
from node.records import PerformedSeries


class StepState(StrEnum):
    """Performed Procedure Step Status (0040,0252), by PS3.3 C.4.14."""

    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"


class StepChange(StrEnum):
    """What became of a change to a procedure step."""

    DONE = "done"
    UNKNOWN = "unknown"  # there is no such step
    FINAL = "final"  # it is COMPLETED or DISCONTINUED, and stays so


@dataclass(frozen=True)
class ProcedureStep:
    """One performed procedure step. Times in seconds since 1970, of our clock; those of the modality as it wrote them.

    `started` and `ended` join its DA and TM values (PS3.5 table 6.2-1), as in ``20260301140509``; empty: not told.
    """

    sop_uid: str
    calling_ae: str
    peer: str
    state: StepState
    study_uids: tuple[str, ...]
    started: str
    ended: str
    created_at: float
    updated_at: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        return asdict(self)


class Steps:
    """The part of the ledger that MPPS moves."""

    _db: Database

    def create_step(self, step: ProcedureStep, images: Mapping[str, frozenset[str]]) -> bool:
        """Record a new step with the images of each series it names; False when its UID is taken."""
        with self._db.write() as connection:
            if connection.execute(select(procedure_step.c.sop_uid).where(_is(step.sop_uid))).first() is not None:
                return False
            values = {**asdict(step), "state": step.state.value, "study_uids": list(step.study_uids)}
            connection.execute(insert(procedure_step).values(**values))
            _replace_series(connection, step.sop_uid, images)
        return True

    def open_steps(self, calling_ae: str) -> tuple[int, int]:
        """Return how many steps are IN PROGRESS: those of one calling AE, and all."""
        step = procedure_step.c
        query = select(func.count().filter(step.calling_ae == calling_ae), func.count()).where(
            step.state == StepState.IN_PROGRESS.value
        )
        with self._db.read() as connection:
            of_one, of_all = connection.execute(query).one()
        return of_one, of_all

    def change_step(
        self, sop_uid: str, state: StepState | None, images: Mapping[str, frozenset[str]] | None, ended: str, now: float
    ) -> StepChange:
        """Change a step that is IN PROGRESS; what is None, or empty, stays as it is.

        `images` takes the place of all series named before: an N-SET carries the whole sequence (PS3.4 F.7.2.2).
        """
        with self._db.write() as connection:
            query = select(procedure_step.c.state, procedure_step.c.calling_ae).where(_is(sop_uid)).with_for_update()
            row = connection.execute(query).first()
            if row is None:
                return StepChange.UNKNOWN
            if row.state != StepState.IN_PROGRESS:
                return StepChange.FINAL
            values: dict[str, Any] = {"updated_at": now}
            if state is not None:
                values["state"] = state.value
            if ended:
                values["ended"] = ended
            connection.execute(update(procedure_step).where(_is(sop_uid)).values(**values))
            if images is not None:
                _replace_series(connection, sop_uid, images)
            if state is not None and state is not StepState.IN_PROGRESS:
                _journal(connection, sop_uid, row.calling_ae, state, now)
        return StepChange.DONE

    def performed_series(self, series_uid: str) -> PerformedSeries | None:
        """Return what MPPS says of one series; None when no step names it.

        The state is that of the step changed last; where several name the series, it has the images of all.
        """
        query = (
            select(procedure_step.c.state, performed_series.c.sop_uids)
            .join(procedure_step, procedure_step.c.sop_uid == performed_series.c.step_uid)
            .where(performed_series.c.series_uid == series_uid)
            .order_by(procedure_step.c.updated_at.desc(), procedure_step.c.created_at.desc())
        )
        with self._db.read() as connection:
            rows = connection.execute(query).all()
        if not rows:
            return None
        return PerformedSeries(series_uid, rows[0].state, frozenset().union(*(row.sop_uids for row in rows)))

    def steps(self, limit: int = 200) -> list[ProcedureStep]:
        """Return procedure steps, newest first."""
        query = select(procedure_step).order_by(procedure_step.c.created_at.desc(), procedure_step.c.sop_uid)
        with self._db.read() as connection:
            return [_as_step(row) for row in connection.execute(query.limit(limit))]

    def forget_steps(self, before: float) -> int:
        """Drop steps that nobody changed since this time; return how many."""
        aged = procedure_step.c.updated_at < before
        gone = select(procedure_step.c.sop_uid).where(aged)
        with self._db.write() as connection:
            connection.execute(delete(performed_series).where(performed_series.c.step_uid.in_(gone)))
            return connection.execute(delete(procedure_step).where(aged)).rowcount


def _is(sop_uid: str) -> Any:
    return procedure_step.c.sop_uid == sop_uid


def _replace_series(connection: Connection, step_uid: str, images: Mapping[str, frozenset[str]]) -> None:
    connection.execute(delete(performed_series).where(performed_series.c.step_uid == step_uid))
    rows = [
        {"step_uid": step_uid, "series_uid": series_uid, "sop_uids": sorted(sop_uids)}
        for series_uid, sop_uids in images.items()
    ]
    if rows:
        connection.execute(insert(performed_series), rows)


def _journal(connection: Connection, step_uid: str, calling_ae: str, state: StepState, now: float) -> None:
    """Let each series of a step that has ended say so in its journal."""
    query = select(performed_series.c.series_uid, performed_series.c.sop_uids).where(
        performed_series.c.step_uid == step_uid
    )
    for row in connection.execute(query).all():
        text = f"MPPS: the procedure step is {state} with {len(row.sop_uids)} images of this series"
        write_journal(
            connection, row.series_uid, "", "step", StepState.IN_PROGRESS.value, state.value, calling_ae, text, now
        )


def _as_step(row: Row[Any]) -> ProcedureStep:
    values = dict(row._mapping)
    return ProcedureStep(**{**values, "state": StepState(values["state"]), "study_uids": tuple(values["study_uids"])})
