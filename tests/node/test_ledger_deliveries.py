"""Deliveries and what retention may take, on SQLite and PostgreSQL."""

from __future__ import annotations

import pytest

from node.errors import Permanent
from node.ledger import Ledger
from node.states import FINISHED, DeliveryState, JobState
from tests.node.making import SERIES, T0, claim, finish, in_state, instance, seal, sealed

D, S = DeliveryState, JobState


def segmented(ledger: Ledger, to: tuple[str, ...] = ("pacs",), series: str = SERIES, count: int = 1) -> str:
    job = sealed(ledger, series)
    finish(ledger, claim(ledger, job), to, count=count)
    return job


def states(ledger: Ledger, job: str) -> list[DeliveryState]:
    return [d.state for d in ledger.deliveries(job)]


def test_every_result_goes_to_every_destination_and_the_last_one_delivers_the_job(any_ledger: Ledger) -> None:
    job = segmented(any_ledger, ("a", "b"), count=2)
    items = any_ledger.due_deliveries(T0)
    assert {(d.sop_uid, d.destination) for d in items} == {(f"2.25.{n}", d) for n in (1, 2) for d in "ab"}
    for n, item in enumerate(items):
        assert any_ledger.job(job).state is S.SEGMENTED
        assert any_ledger.start_sending(item.id, T0 + 40 + n)
        assert any_ledger.deliveries(job)[n].state is D.SENDING
        assert any_ledger.deliveries(job)[n].attempts == 1
        any_ledger.sent(item.id, "stored (0x0000)", T0 + 40 + n)
    found = any_ledger.job(job)
    assert (found.state, found.reason, found.updated_at) == (S.DELIVERED, "every destination has the results", T0 + 43)
    assert [e.after for e in any_ledger.journal(job) if e.subject == "delivery"] == ["SENT"] * 4


def test_what_was_being_sent_at_a_crash_is_due_again_and_sent_once_more_is_harmless(any_ledger: Ledger) -> None:
    job = segmented(any_ledger)
    (item,) = any_ledger.due_deliveries(T0)
    any_ledger.start_sending(item.id, T0 + 40)
    assert [d.id for d in any_ledger.due_deliveries(T0 + 41)] == [item.id]
    any_ledger.sent(item.id, "stored", T0 + 42)
    before = any_ledger.journal(job)
    any_ledger.sent(item.id, "stored", T0 + 43)
    any_ledger.postpone(item.id, "down", T0 + 99, T0 + 43)
    any_ledger.refuse(item.id, "no", T0 + 99, 1, T0 + 43)
    assert not any_ledger.start_sending(item.id, T0 + 43)
    assert any_ledger.journal(job) == before
    assert states(any_ledger, job) == [D.SENT]


def test_a_postponed_delivery_waits_and_its_job_says_why(any_ledger: Ledger) -> None:
    job = segmented(any_ledger)
    (item,) = any_ledger.due_deliveries(T0)
    any_ledger.start_sending(item.id, T0 + 40)
    any_ledger.postpone(item.id, "PACS@h:1 does not answer", T0 + 100, T0 + 41)
    assert any_ledger.due_deliveries(T0 + 99) == []
    assert [d.id for d in any_ledger.due_deliveries(T0 + 100)] == [item.id]
    found = any_ledger.job(job)
    assert (found.state, found.reason) == (S.SEGMENTED, "PACS@h:1 does not answer")
    assert "tried again by itself" in found.next_step


def test_refusals_fail_the_delivery_and_the_job_and_a_retry_sends_only_what_had_failed(any_ledger: Ledger) -> None:
    job = segmented(any_ledger, ("good", "strict"))
    good, strict = any_ledger.due_deliveries(T0)
    any_ledger.start_sending(good.id, T0)
    any_ledger.sent(good.id, "stored", T0)
    for attempt in (1, 2, 3):
        assert states(any_ledger, job)[1] is not D.FAILED
        assert any_ledger.job(job).state is S.SEGMENTED
        any_ledger.start_sending(strict.id, T0 + 40)
        any_ledger.refuse(strict.id, "the peer answered 0x0122", T0 + 40, 3, T0 + 40 + attempt)
    assert states(any_ledger, job) == [D.SENT, D.FAILED]
    found = any_ledger.job(job)
    assert (found.state, found.stage) == (S.FAILED, "delivery")
    assert found.reason == "strict refused the result: the peer answered 0x0122"
    assert found.next_step == "mend the destination, then retry"
    assert any_ledger.due_deliveries(T0 + 1e6) == []
    # The operator's retry does not segment again, and starts the count of refusals anew.
    assert any_ledger.retry(job, "admin", T0 + 60).state is S.SEGMENTED
    assert [d.destination for d in any_ledger.due_deliveries(T0 + 60)] == ["strict"]
    any_ledger.start_sending(strict.id, T0 + 61)
    any_ledger.refuse(strict.id, "again", T0 + 62, 3, T0 + 62)
    assert any_ledger.job(job).state is S.SEGMENTED
    any_ledger.start_sending(strict.id, T0 + 63)
    any_ledger.sent(strict.id, "stored", T0 + 64)
    assert any_ledger.job(job).state is S.DELIVERED


def test_a_cancelled_delivery_stays_so_even_if_it_was_under_way(any_ledger: Ledger) -> None:
    job = segmented(any_ledger)
    (item,) = any_ledger.due_deliveries(T0)
    any_ledger.start_sending(item.id, T0 + 40)
    any_ledger.cancel(job, "admin", T0 + 41)
    assert not any_ledger.start_sending(item.id, T0 + 42)
    any_ledger.sent(item.id, "stored", T0 + 42)
    assert states(any_ledger, job) == [D.CANCELLED]
    assert any_ledger.job(job).state is S.CANCELLED
    # The object is there all the same, and nobody is told otherwise.
    told = "stored; it was on its way when it was cancelled"
    assert [d.reason for d in any_ledger.deliveries(job)] == [told]
    assert any_ledger.journal(job)[-1].text == f"pacs: {told}"


def test_results_without_a_destination_are_kept_and_sent_once_there_is_one(any_ledger: Ledger) -> None:
    job = segmented(any_ledger, ())
    found = any_ledger.job(job)
    assert (found.state, found.reason) == (S.SEGMENTED, "results are kept here: no destination is configured")
    assert "[[destinations]]" in found.next_step
    any_ledger.recover_deliveries({}, T0 + 50)
    assert any_ledger.due_deliveries(T0 + 1e6) == []
    any_ledger.recover_deliveries({"pacs": ["SEG"]}, T0 + 60)
    (item,) = any_ledger.due_deliveries(T0 + 60)
    any_ledger.recover_deliveries({"pacs": ["SEG"], "other": ["SEG"]}, T0 + 61)
    assert any_ledger.due_deliveries(T0 + 61) == [item], "those that have an address keep it"
    any_ledger.start_sending(item.id, T0 + 62)
    any_ledger.sent(item.id, "stored", T0 + 63)
    assert any_ledger.job(job).state is S.DELIVERED


# -- what retention may take


@pytest.mark.parametrize("state", list(S))
def test_only_finished_jobs_are_expendable_and_only_they_are_forgotten(any_ledger: Ledger, state: JobState) -> None:
    job = any_ledger.job(in_state(any_ledger, state))
    expendable = [j.id for j in any_ledger.expendable(T0 + 1e6)]
    paths = any_ledger.forget_files(job, T0 + 1e6)
    if state in FINISHED:
        assert job.id in expendable
        assert any_ledger.forget_files(job, T0 + 1e6) == [], "only once"
        assert job.id not in [j.id for j in any_ledger.expendable(T0 + 1e6)]
        assert any_ledger.job(job.id).state is state, "the job itself stays"
        assert any_ledger.journal(job.id)
    else:
        assert job.id not in expendable
        assert paths == []
        assert len(any_ledger.series_instances(SERIES)) == 3


def test_the_files_of_a_delivered_job_are_its_images_and_results(any_ledger: Ledger) -> None:
    job = any_ledger.job(in_state(any_ledger, S.DELIVERED))
    images = [m.path for m in any_ledger.series_instances(SERIES)]
    assert any_ledger.expendable(job.updated_at) == [], "strictly older"
    assert set(any_ledger.forget_files(job, T0 + 1e6)) == {*images, f"results/{job.id}/1/2.25.1.dcm"}
    assert any_ledger.series_instances(SERIES) == []
    assert any_ledger.deliveries(job.id) == []


@pytest.mark.parametrize("newer_first", [False, True])
def test_images_go_with_the_last_job_of_the_series_whatever_the_order(any_ledger: Ledger, newer_first: bool) -> None:
    first = any_ledger.job(in_state(any_ledger, S.REJECTED))
    any_ledger.record(instance(9))
    second = any_ledger.job(seal(any_ledger, wanted=False))
    order = [second, first] if newer_first else [first, second]
    assert any_ledger.forget_files(order[0], T0 + 1e6) == []
    assert len(any_ledger.series_instances(SERIES)) == 4
    assert len(any_ledger.forget_files(order[1], T0 + 1e6)) == 4
    assert any_ledger.series_instances(SERIES) == []


def test_images_stay_while_the_series_is_open_again_and_while_a_newer_job_works(any_ledger: Ledger) -> None:
    first = any_ledger.job(in_state(any_ledger, S.REJECTED))
    any_ledger.record(instance(9))
    assert any_ledger.forget_files(first, T0 + 100) == []
    second = seal(any_ledger, now=T0 + 110)
    held = claim(any_ledger, second, now=T0 + 120)
    assert len(any_ledger.input_paths(second, held.fence)) == 4


def test_a_series_sent_again_after_its_images_left_is_a_new_revision(any_ledger: Ledger) -> None:
    first = any_ledger.job(in_state(any_ledger, S.DELIVERED))
    any_ledger.forget_files(first, T0 + 100)
    with pytest.raises(Permanent):
        any_ledger.retry(first.id, "admin", T0 + 101)
    second = any_ledger.job(sealed(any_ledger, now=T0 + 200))
    assert (second.revision, second.instances, second.input_digest) == (2, 3, first.input_digest)
    held = claim(any_ledger, second.id, now=T0 + 201)
    assert len(any_ledger.input_paths(second.id, held.fence)) == 3
