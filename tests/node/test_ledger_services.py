"""What peers ask and announce, in the ledger: the same suite on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

from node.ledger import Commitment, CommitmentState, Held, Ledger, ProcedureStep, Reference, StepChange, StepState
from node.records import PerformedSeries
from tests.node.making import SERIES, STUDY, T0, instance

MR = "1.2.840.10008.5.1.4.1.1.4"
ASKED = Commitment(
    transaction_uid="1.2.3.77", calling_ae="SCANNER", peer="127.0.0.1", asked_at=T0, not_before=T0 + 1,
    references=(Reference(MR, "1.2.1"), Reference(MR, "1.2.2")),
)  # fmt: skip
STEP = ProcedureStep("1.2.9", "SCANNER", "127.0.0.1", StepState.IN_PROGRESS, (STUDY,), "20260301", "", T0, T0)


def asked(ledger: Ledger, **values: object) -> int:
    number = ledger.ask_commitment(replace(ASKED, **values), 8).number
    assert number is not None
    return number


def test_a_request_is_pending_until_it_is_reported(any_ledger: Ledger) -> None:
    number = asked(any_ledger)
    assert any_ledger.due_commitments(T0) == []
    (due,) = any_ledger.due_commitments(T0 + 1)
    assert (due.number, due.references, due.requested, due.state) == (number, (), 2, CommitmentState.PENDING)
    pending = any_ledger.pending_commitment(number)
    assert pending is not None
    assert pending.references == ASKED.references
    any_ledger.postpone_commitment(number, "it is away", "look", T0 + 60, T0 + 2)
    assert any_ledger.due_commitments(T0 + 59) == []
    (due,) = any_ledger.due_commitments(T0 + 60)
    assert (due.attempts, due.reason, due.next_step, due.updated_at) == (1, "it is away", "look", T0 + 2)
    any_ledger.commitment_reported(number, 1, "reported", T0 + 61)
    assert any_ledger.pending_commitment(number) is None
    assert any_ledger.due_commitments(T0 + 1e6) == []
    (found,) = any_ledger.commitments()
    assert (found.state, found.failed, found.attempts, found.next_step) == (CommitmentState.REPORTED, 1, 2, "")


def test_what_is_closed_stays_closed(any_ledger: Ledger) -> None:
    number = asked(any_ledger)
    any_ledger.give_up_commitment(number, "no", "look", T0 + 9)
    any_ledger.commitment_reported(number, 0, "late", T0 + 10)
    any_ledger.postpone_commitment(number, "late", "", T0 + 11, T0 + 10)
    (found,) = any_ledger.commitments()
    assert (found.state, found.reason, found.updated_at) == (CommitmentState.FAILED, "no", T0 + 9)


def test_asking_again_is_the_same_request_and_opens_it_again(any_ledger: Ledger) -> None:
    number = asked(any_ledger)
    swapped = tuple(reversed(ASKED.references))
    assert asked(any_ledger, references=swapped) == number
    any_ledger.commitment_reported(number, 0, "reported", T0 + 2)
    assert asked(any_ledger, asked_at=T0 + 5, not_before=T0 + 6) == number
    pending = any_ledger.pending_commitment(number)
    assert pending is not None
    assert (pending.references, pending.asked_at, pending.reason) == (ASKED.references, T0 + 5, "")
    reused = any_ledger.ask_commitment(replace(ASKED, references=(Reference(MR, "1.2.3"),)), 8)
    assert (reused.number, reused.reused) == (None, True)
    assert asked(any_ledger, calling_ae="OTHER") != number


def test_open_requests_of_one_peer_are_counted(any_ledger: Ledger) -> None:
    first = any_ledger.ask_commitment(ASKED, 1)
    assert first.number is not None
    second = replace(ASKED, transaction_uid="1.2.3.78")
    refused = any_ledger.ask_commitment(second, 1)
    assert (refused.number, refused.reused) == (None, False)
    assert any_ledger.ask_commitment(replace(second, calling_ae="OTHER"), 1).number is not None
    any_ledger.commitment_reported(first.number, 0, "", T0)
    assert any_ledger.ask_commitment(second, 1).number is not None


def test_held_is_what_was_received(any_ledger: Ledger) -> None:
    one = instance(1)
    any_ledger.record(one)
    many = {f"1.2.5.{n}" for n in range(1200)}
    assert any_ledger.held({one.sop_uid, *many}) == {one.sop_uid: Held(one.sop_class_uid, one.path, one.size)}
    assert any_ledger.held(set()) == {}


def test_a_step_is_made_once_and_changed_until_it_has_ended(any_ledger: Ledger) -> None:
    images = {SERIES: frozenset({"1.2.1"})}
    assert any_ledger.open_steps(STEP.calling_ae) == (0, 0)
    assert any_ledger.create_step(STEP, images)
    assert any_ledger.open_steps(STEP.calling_ae) == (1, 1)
    assert any_ledger.open_steps("OTHER") == (0, 1)
    assert not any_ledger.create_step(replace(STEP, calling_ae="OTHER"), {})
    assert any_ledger.steps() == [STEP]
    assert any_ledger.change_step("1.2.8", None, {}, "", T0) is StepChange.UNKNOWN
    assert any_ledger.change_step("1.2.9", None, None, "", T0 + 1) is StepChange.DONE
    assert any_ledger.performed_series(SERIES) == PerformedSeries(SERIES, "IN PROGRESS", images[SERIES])
    assert any_ledger.change_step("1.2.9", None, {}, "", T0 + 2) is StepChange.DONE
    assert any_ledger.performed_series(SERIES) is None
    assert any_ledger.change_step("1.2.9", StepState.COMPLETED, images, "20260302", T0 + 3) is StepChange.DONE
    assert any_ledger.change_step("1.2.9", None, {}, "", T0 + 4) is StepChange.FINAL
    assert any_ledger.steps() == [replace(STEP, state=StepState.COMPLETED, ended="20260302", updated_at=T0 + 3)]
    assert any_ledger.performed_series(SERIES) == PerformedSeries(SERIES, "COMPLETED", images[SERIES])


def test_of_several_steps_the_last_gives_the_state_and_all_the_images(any_ledger: Ledger) -> None:
    other = replace(STEP, sop_uid="1.2.10", created_at=T0 + 1, updated_at=T0 + 1)
    any_ledger.create_step(STEP, {SERIES: frozenset({"1.2.1"}), "1.2.99": frozenset()})
    any_ledger.create_step(other, {SERIES: frozenset({"1.2.1", "1.2.2"})})
    assert any_ledger.performed_series("1.2.99") == PerformedSeries("1.2.99", "IN PROGRESS", frozenset())
    any_ledger.change_step(STEP.sop_uid, StepState.DISCONTINUED, None, "", T0 + 2)
    found = any_ledger.performed_series(SERIES)
    assert found == PerformedSeries(SERIES, "DISCONTINUED", frozenset({"1.2.1", "1.2.2"}))


def test_what_is_old_is_forgotten_and_what_is_pending_is_not(any_ledger: Ledger) -> None:
    done, pending = asked(any_ledger), asked(any_ledger, transaction_uid="1.2.3.78")
    any_ledger.commitment_reported(done, 0, "", T0 + 10)
    assert any_ledger.forget_commitments(T0 + 10) == 0
    assert any_ledger.forget_commitments(T0 + 11) == 1
    assert [c.number for c in any_ledger.commitments()] == [pending]
    any_ledger.create_step(STEP, {SERIES: frozenset({"1.2.1"})})
    assert any_ledger.forget_steps(T0) == 0
    assert any_ledger.forget_steps(T0 + 1) == 1
    assert (any_ledger.steps(), any_ledger.performed_series(SERIES)) == ([], None)
