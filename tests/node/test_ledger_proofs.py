"""What the ledger keeps of proofs, on SQLite and PostgreSQL."""

from __future__ import annotations

import pytest

from node.errors import Permanent
from node.ledger import Ledger
from node.records import Delivery
from node.settings import Delivery as Rules
from node.states import DeliveryState, JobState, Proof, Wanted
from tests.node.making import SERIES, T0, in_state, instance, seal

D, J = DeliveryState, JobState
RULES = Rules(recheck_s=(60, 3600), backoff_first_s=5, backoff_max_s=60, max_losses=1, report_timeout_s=300)
DAY = 86400.0


def delivered(ledger: Ledger) -> tuple[str, Delivery]:
    job = in_state(ledger, JobState.DELIVERED)
    (item,) = ledger.deliveries(job)
    return job, item


def due(ledger: Ledger, now: float) -> list[int]:
    return [d.id for d in ledger.due_proofs(now, "pacs", 2 * DAY)]


def test_what_was_sent_is_due_at_once_then_at_the_times_of_the_settings(any_ledger: Ledger) -> None:
    _, item = delivered(any_ledger)
    assert due(any_ledger, T0 + 39) == []
    assert due(any_ledger, T0 + 40) == [item.id]
    assert any_ledger.due_proofs(T0 + 40, "other", 2 * DAY) == []
    for now, next_at in ((T0 + 50, T0 + 110), (T0 + 110, T0 + 3650), (T0 + 3650, None)):
        any_ledger.proved(item.id, Proof.FIND, RULES, now)
        if next_at is None:
            assert due(any_ledger, now + DAY) == []
        else:
            assert due(any_ledger, next_at - 1) == []
            assert due(any_ledger, next_at) == [item.id]


def test_a_report_is_taken_once_and_an_unknown_one_is_none(any_ledger: Ledger) -> None:
    job, item = delivered(any_ledger)
    any_ledger.commitment_asked([item.id], "2.25.99", RULES, T0 + 50)
    assert due(any_ledger, T0 + 349) == []
    assert due(any_ledger, T0 + 350) == [item.id], "the report was lost"
    assert any_ledger.reported("2.25.98", {item.sop_uid}, {}, RULES, T0 + 60) is None
    assert any_ledger.reported("", {item.sop_uid}, {}, RULES, T0 + 60) is None
    assert any_ledger.reported("2.25.99", {item.sop_uid}, {}, RULES, T0 + 60) == 1
    (known,) = any_ledger.deliveries(job)
    assert (known.state, known.proof, known.proved_at) == (D.COMMITTED, Proof.COMMITMENT, T0 + 60)
    assert any_ledger.reported("2.25.99", set(), {item.sop_uid: 0x0112}, RULES, T0 + 70) == 1
    assert any_ledger.deliveries(job) == [known], "it was taken before"


def test_waiting_for_reports_becomes_longer(any_ledger: Ledger) -> None:
    _, item = delivered(any_ledger)
    waits, now = [], T0 + 50
    for number in range(11):
        any_ledger.commitment_asked([item.id], f"2.25.{number}", RULES, now)
        (found,) = any_ledger.due_proofs(now + 300 * 256, "pacs", 10 * DAY)
        waits.append((found.check_at - now) / 300)
        now = found.check_at
        any_ledger.report_missing([item.id], "no report came")
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256]


def test_a_loss_brings_the_job_back_and_the_last_one_fails_it(any_ledger: Ledger) -> None:
    job, item = delivered(any_ledger)
    any_ledger.proved(item.id, Proof.COMMITMENT, RULES, T0 + 50)
    any_ledger.not_held(item.id, "not found by C-FIND", RULES, T0 + 110)
    (lost,) = any_ledger.deliveries(job)
    assert (lost.state, lost.lost, lost.not_before, lost.check_at) == (D.PENDING, 1, T0 + 115, 0.0)
    assert any_ledger.job(job).state is J.SEGMENTED
    assert any_ledger.proof_trouble("pacs").lost == 1
    any_ledger.not_held(item.id, "again", RULES, T0 + 111)
    assert any_ledger.deliveries(job) == [lost], "it is on its way again"
    any_ledger.start_sending(item.id, T0 + 115)
    any_ledger.sent(item.id, "stored", T0 + 116)
    assert any_ledger.job(job).state is J.DELIVERED
    any_ledger.not_held(item.id, "not found by C-FIND", RULES, T0 + 120)
    (gone,) = any_ledger.deliveries(job)
    assert (gone.state, gone.lost) == (D.FAILED, 2)
    found = any_ledger.job(job)
    assert (found.state, found.stage) == (J.FAILED, "delivery")
    took = "pacs does not hold the object that it took (not found by C-FIND)"
    assert found.reason == f"{took}; given up after sending it 2 times"
    assert any_ledger.proof_trouble("pacs").lost == 0, "the failed job says it"


def test_of_jobs_that_were_superseded_nothing_is_asked_or_sent(any_ledger: Ledger) -> None:
    job, item = delivered(any_ledger)
    any_ledger.commitment_asked([item.id], "2.25.99", RULES, T0 + 50)
    any_ledger.record(instance(99, SERIES))
    assert due(any_ledger, T0 + DAY) == []
    seal(any_ledger)
    assert due(any_ledger, T0 + DAY) == []
    assert any_ledger.job(job).state is J.DELIVERED


def test_what_cannot_be_asked_is_asked_later_and_is_trouble_after_some_tries(any_ledger: Ledger) -> None:
    job, item = delivered(any_ledger)
    for number, wait in enumerate((5, 10, 20), 1):
        assert any_ledger.proof_trouble("pacs").doubtful == 0
        any_ledger.doubt([item.id], "does not answer", RULES, T0 + 100)
        (found,) = any_ledger.deliveries(job)
        assert (found.tries, found.check_at, found.state) == (number, T0 + 100 + wait, D.SENT)
    assert any_ledger.proof_trouble("pacs") == (0, 1, "does not answer")
    any_ledger.proved(item.id, Proof.FIND, RULES, T0 + 130)
    assert any_ledger.proof_trouble("pacs") == (0, 0, "")


def test_an_operator_waits_for_a_report_that_is_under_way(any_ledger: Ledger) -> None:
    job, item = delivered(any_ledger)
    any_ledger.commitment_asked([item.id], "2.25.99", RULES, T0 + 50)
    any_ledger.want_proof(job, Wanted.PROOF, "test", T0 + 51)
    assert due(any_ledger, T0 + 52) == []
    any_ledger.reported("2.25.99", {item.sop_uid}, {}, RULES, T0 + 60)
    assert any_ledger.deliveries(job)[0].wanted == ""
    any_ledger.want_proof(job, Wanted.PROOF, "test", T0 + 61)
    assert due(any_ledger, T0 + 62) == [item.id]
    any_ledger.want_proof(job, Wanted.READ_BACK, "test", T0 + 61)
    any_ledger.commitment_asked([item.id], "2.25.98", RULES, T0 + 62)
    assert due(any_ledger, T0 + 63) == [item.id], "reading back waits for nothing"


def test_times_that_lie_ahead_after_the_clock_was_set_back_are_pulled_in(any_ledger: Ledger) -> None:
    job, item = delivered(any_ledger)
    any_ledger.proved(item.id, Proof.FIND, RULES, T0 + 10 * DAY)
    any_ledger.clamp_times(T0 + 50, 60)
    assert any_ledger.deliveries(job)[0].proved_at == T0 + 50
    assert due(any_ledger, T0 + 50) == [item.id], "what is due in ten days cannot be by these settings"


def test_a_copy_that_differs_fails_the_job_and_a_retry_begins_anew(any_ledger: Ledger) -> None:
    job, item = delivered(any_ledger)
    any_ledger.proved(item.id, Proof.FIND, RULES, T0 + 50)
    any_ledger.read_back(item.id, "read back and found different: Rows", False, RULES, T0 + 60)
    assert (any_ledger.deliveries(job)[0].state, any_ledger.job(job).state) == (D.FAILED, J.FAILED)
    any_ledger.retry(job, "test", T0 + 70)
    (again,) = any_ledger.deliveries(job)
    assert (again.state, again.proof, again.read_back, again.lost) == (D.PENDING, "", "", 0)


def test_a_late_report_on_an_older_revision_sends_nothing_again(any_ledger: Ledger) -> None:
    job, item = delivered(any_ledger)
    any_ledger.commitment_asked([item.id], "2.25.99", RULES, T0 + 50)
    any_ledger.record(instance(9, received_at=T0 + 55))
    seal(any_ledger, now=T0 + 60)
    assert any_ledger.job(job).state is J.DELIVERED
    assert any_ledger.reported("2.25.99", set(), {item.sop_uid: 0x0112}, RULES, T0 + 70) == 1
    (known,) = any_ledger.deliveries(job)
    assert (any_ledger.job(job).state, known.state, known.lost) == (J.DELIVERED, D.SENT, 0)
    assert "does not hold the object" in known.doubt
    with pytest.raises(Permanent, match="its series has grown"):
        any_ledger.want_proof(job, Wanted.PROOF, "test", T0 + 80)


def test_what_differs_is_no_longer_proved(any_ledger: Ledger) -> None:
    job, item = delivered(any_ledger)
    any_ledger.proved(item.id, Proof.COMMITMENT, RULES, T0 + 50)
    any_ledger.read_back(item.id, "read back and found different", False, RULES, T0 + 60)
    (known,) = any_ledger.deliveries(job)
    assert (known.state, known.proof, known.proved_at) == (D.FAILED, "", 0.0)
