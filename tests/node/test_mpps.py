"""Modality Performed Procedure Step with pynetdicom as its user: what a scanner says is kept, its patient is not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pynetdicom import AE

from node import mpps, statuses
from node.assembly import Assembler
from node.ledger import Ledger, StepState
from node.listener import Door
from node.mpps import SOP_CLASS_UID as MPPS
from node.records import PerformedSeries
from node.selection import Verdict
from node.settings import Assembly, Listener
from node.spool import Spool
from tests.node.making import SERIES, STUDY, T0, instance, seal
from tests.node.test_commitment import way

STEP = "1.2.3.500"

# pynetdicom leaves some sockets to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
__all__ = ["way"]


@pytest.fixture
def woken() -> list[int]:
    """Grows with every call of the door's `changed`."""
    return []


@pytest.fixture
def port(ledger: Ledger, spool: Spool, way: dict[str, bool], woken: list[int]) -> Iterator[int]:
    settings = Listener(port=0, free_floor_mb=0, **way)
    door = Door(ledger, spool, settings, changed=lambda: woken.append(1))
    yield door.start()[1]
    door.stop()


@contextmanager
def associated(port: int, syntax: str = uid.ExplicitVRLittleEndian):
    ae = AE(ae_title="MR1")
    ae.add_requested_context(MPPS, syntax)
    assoc = ae.associate("127.0.0.1", port, ae_title="PENNODE")
    assert assoc.is_established
    try:
        yield assoc
    finally:
        assoc.release()


def item(**values: object) -> Dataset:
    ds = Dataset()
    for name, value in values.items():
        setattr(ds, name, value)
    return ds


def begun(**values: object) -> Dataset:
    """An N-CREATE's attributes as a scanner sends them, its patient among them; None takes one away."""
    ds = item(
        ScheduledStepAttributesSequence=[item(StudyInstanceUID=STUDY, AccessionNumber="A1", RequestedProcedureID="R1")],
        PatientName="Secretname^Zoe", PatientID="PID-73519", PatientBirthDate="19700101", PatientSex="F",
        PerformedProcedureStepID="P1", PerformedStationAETitle="MR1", PerformedProcedureStepStartDate="20260301",
        PerformedProcedureStepStartTime="140509.5", PerformedProcedureStepStatus="IN PROGRESS",
        PerformedProcedureStepDescription="Secretname's spine", Modality="MR", PerformedSeriesSequence=[],
    )  # fmt: skip
    for name, value in values.items():
        setattr(ds, name, value)
        if value is None:
            delattr(ds, name)
    return ds


def series(*numbers: int, series_uid: str = SERIES, other: tuple[int, ...] = ()) -> Dataset:
    def images(which: tuple[int, ...]) -> list[Dataset]:
        names = [f"{series_uid}.{n}" for n in which]
        return [item(ReferencedSOPClassUID=uid.MRImageStorage, ReferencedSOPInstanceUID=name) for name in names]

    return item(
        SeriesInstanceUID=series_uid, SeriesDescription="t2", PerformingPhysicianName="Doe^Jo", ProtocolName="spine",
        ReferencedImageSequence=images(numbers), ReferencedNonImageCompositeSOPInstanceSequence=images(other),
    )  # fmt: skip


def ended(state: str = "COMPLETED", *of: Dataset) -> Dataset:
    return item(
        PerformedProcedureStepStatus=state, PerformedProcedureStepEndDate="20260301",
        PerformedProcedureStepEndTime="1412", PerformedSeriesSequence=list(of),
    )  # fmt: skip


def create(assoc, ds: Dataset, step: str | None = STEP) -> int:
    return int(assoc.send_n_create(ds, MPPS, step)[0].Status)


def change(assoc, ds: Dataset, step: str = STEP) -> Dataset:
    return assoc.send_n_set(ds, MPPS, step)[0]


def test_below_the_disk_floor_nothing_begins_and_what_has_begun_ends(
    port: int, spool: Spool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with associated(port) as assoc:
        assert create(assoc, begun()) == 0
        monkeypatch.setattr(spool, "free_bytes", lambda: -1)
        assert create(assoc, begun(), "1.2.3.501") == statuses.RESOURCE_LIMITATION
        assert change(assoc, ended()).Status == 0
    (step,) = ledger.steps()
    assert step.state is StepState.COMPLETED


@pytest.mark.parametrize("bound", ["MOST_OPEN_OF_ONE", "MOST_OPEN"])
def test_steps_in_progress_are_bounded(bound: str, port: int, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpps, bound, 2)
    with associated(port) as assoc:
        assert [create(assoc, begun(), f"1.2.3.{n}") for n in range(500, 503)] == [0, 0, statuses.RESOURCE_LIMITATION]
        assert change(assoc, ended(), "1.2.3.500").Status == 0
        assert create(assoc, begun(), "1.2.3.502") == 0
    assert len(ledger.steps()) == 3


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_a_step_is_created_filled_and_completed(syntax: str, port: int, ledger: Ledger, woken: list[int]) -> None:
    ledger.record(instance(1))
    with associated(port, syntax) as assoc:
        assert create(assoc, begun()) == 0
        (step,) = ledger.steps()
        assert (step.state, step.calling_ae, step.peer) == (StepState.IN_PROGRESS, "MR1", "127.0.0.1")
        assert (step.study_uids, step.started, step.ended) == ((STUDY,), "20260301140509.5", "")
        assert ledger.performed_series(SERIES) is None
        woken.clear()
        assert change(assoc, item(PerformedSeriesSequence=[series(1, 2)])).Status == 0
        assert ledger.performed_series(SERIES) == PerformedSeries(
            SERIES, "IN PROGRESS", frozenset({f"{SERIES}.1", f"{SERIES}.2"})
        )
        assert woken == [1]
        assert change(assoc, ended("COMPLETED", series(1, 2, 3, other=(4,)))).Status == 0
        assert woken == [1, 1]
    (step,) = ledger.steps()
    assert (step.state, step.ended) == (StepState.COMPLETED, "202603011412")
    images = frozenset(f"{SERIES}.{n}" for n in (1, 2, 3, 4))
    assert ledger.performed_series(SERIES) == PerformedSeries(SERIES, "COMPLETED", images)
    job = seal(ledger)
    assert job is not None
    assert [(e.before, e.after, e.by, e.text) for e in ledger.journal(job) if e.subject == "step"] == [
        ("IN PROGRESS", "COMPLETED", "MR1", "MPPS: the procedure step is COMPLETED with 4 images of this series")
    ]


@pytest.mark.parametrize("state", ["COMPLETED", "DISCONTINUED"])
def test_a_step_that_has_ended_may_no_longer_be_updated(state: str, port: int, ledger: Ledger) -> None:
    with associated(port) as assoc:
        assert create(assoc, begun()) == 0
        assert change(assoc, ended(state, series(1))).Status == 0
        for again in (ended("COMPLETED", series(1, 2)), ended("DISCONTINUED"), item(PerformedSeriesSequence=[])):
            answer = change(assoc, again)
            assert answer.Status == statuses.PROCESSING_FAILURE
            assert (answer.ErrorID, answer.ErrorComment) == (
                0xA710, "Performed Procedure Step Object may no longer be updated"
            )  # fmt: skip
    found = ledger.performed_series(SERIES)
    assert found == PerformedSeries(SERIES, state, frozenset({f"{SERIES}.1"}))


def test_a_step_without_a_uid_is_given_one(port: int, ledger: Ledger) -> None:
    with associated(port) as assoc:
        assert create(assoc, begun(), None) == 0
        (step,) = ledger.steps()
        assert step.sop_uid.startswith("2.25.")
        assert change(assoc, ended(), step.sop_uid).Status == 0


def test_a_uid_makes_one_step(port: int, ledger: Ledger) -> None:
    with associated(port) as assoc:
        assert create(assoc, begun()) == 0
        assert create(assoc, begun(PerformedSeriesSequence=[series(1)])) == statuses.DUPLICATE_SOP_INSTANCE
    assert len(ledger.steps()) == 1
    assert ledger.performed_series(SERIES) is None


@pytest.mark.parametrize(
    ("ds", "step", "status"),
    [
        (begun(PerformedProcedureStepStatus=None), STEP, 0x0120),
        (begun(PerformedProcedureStepStatus=""), STEP, 0x0121),
        (begun(PerformedProcedureStepStatus="COMPLETED"), STEP, 0x0106),
        (begun(PerformedProcedureStepStatus="RUNNING"), STEP, 0x0106),
        (begun(ScheduledStepAttributesSequence=None), STEP, 0x0120),
        (begun(ScheduledStepAttributesSequence=[]), STEP, 0x0120),
        (begun(ScheduledStepAttributesSequence=[Dataset()]), STEP, 0x0106),
        (begun(PerformedSeriesSequence=[Dataset()]), STEP, 0x0106),
        (begun(PerformedSeriesSequence=[item(SeriesInstanceUID="1.2", ReferencedImageSequence=[Dataset()])]), STEP,
         0x0106),
    ],
)  # fmt: skip
def test_what_is_no_step_is_answered_so_and_leaves_nothing(
    ds: Dataset, step: str, status: int, port: int, ledger: Ledger
) -> None:
    with associated(port) as assoc:
        assert create(assoc, ds, step) == status
        assert ledger.steps() == []
        assert create(assoc, begun()) == 0, "the association goes on"


@pytest.mark.parametrize(
    ("ds", "step", "status"),
    [
        (ended(), "1.2.3.501", 0x0112),
        (ended("PAUSED"), STEP, 0x0106),
        (ended(""), STEP, 0x0121),
        (ended("COMPLETED", Dataset()), STEP, 0x0106),
    ],
)
def test_what_is_no_change_changes_nothing(
    ds: Dataset, step: str, status: int, port: int, ledger: Ledger, woken: list[int]
) -> None:
    with associated(port) as assoc:
        assert create(assoc, begun(PerformedSeriesSequence=[series(1)])) == 0
        before = ledger.steps(), ledger.performed_series(SERIES)
        woken.clear()
        assert change(assoc, ds, step).Status == status
        assert (ledger.steps(), ledger.performed_series(SERIES)) == before
        assert woken == []


def test_no_patient_is_stored_or_logged(
    port: int, ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "node")
    with associated(port) as assoc:
        assert create(assoc, begun()) == 0
        assert create(assoc, begun()) != 0
        assert change(assoc, ended("COMPLETED", series(1))).Status == 0
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as connection:
        dump = "\n".join(connection.iterdump())
    connection.close()
    assert STEP in dump
    for word in ("Secretname", "73519", "19700101", "Doe", "spine", "A1"):
        assert word not in dump
        assert word not in caplog.text


def test_several_steps_of_a_series_make_one_list(ledger: Ledger, port: int) -> None:
    with associated(port) as assoc:
        for step, numbers in (("1.2.3.1", (1, 2)), ("1.2.3.2", (2, 3))):
            assert create(assoc, begun(), step) == 0
            assert change(assoc, item(PerformedSeriesSequence=[series(*numbers)]), step).Status == 0
        assert change(assoc, ended("COMPLETED", series(1, 2)), "1.2.3.1").Status == 0
    found = ledger.performed_series(SERIES)
    assert found == PerformedSeries(SERIES, "COMPLETED", frozenset(f"{SERIES}.{n}" for n in (1, 2, 3)))


def test_a_series_waits_for_the_images_that_its_step_lists_and_is_then_sealed(port: int, ledger: Ledger) -> None:
    assembler = Assembler(
        ledger, Assembly(), lambda _uid: True, lambda _members: Verdict(True, "agrees"), lambda one: one.sha256,
        lambda: None, performed=ledger.performed_series, censuses={},
    )  # fmt: skip
    for number in (1, 2):
        ledger.record(instance(number))
    with associated(port) as assoc:
        create(assoc, begun())
        assert change(assoc, ended("COMPLETED", series(1, 2, 3))).Status == 0
    assembler.tick(T0)
    assembler.tick(T0 + 30)
    waiting = ledger.weighings()[SERIES]
    assert "2 of 3 images that MPPS lists are here (completed)" in [piece.text for piece in waiting.pieces]
    ledger.record(instance(3, at=T0 + 30))
    assembler.tick(T0 + 30)
    assembler.tick(T0 + 31)
    assert ledger.receiving() == [], "though an association is open"
    sealed = ledger.weighing(SERIES, 1)
    assert sealed is not None
    assert sealed.outcome == "all 3 images that MPPS lists are here (completed)"
