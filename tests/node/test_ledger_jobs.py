"""The life of a job in the ledger, on SQLite and PostgreSQL: moves, claims, fences, leases, the operator's words."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
from sqlalchemy import update

from node.errors import LeaseLost, NotFound, Permanent
from node.ledger import Ledger
from node.ledger.moves import move
from node.ledger.schema import job as job_table
from node.records import Worker
from node.states import FINISHED, JOB_MOVES, UNFINISHED, WAITING, DeliveryState, JobState
from tests.node.making import SERIES, T0, claim, finish, in_state, instance, results, seal, sealed

S = JobState


# -- the table of moves


def test_the_table_of_moves_is_whole() -> None:
    assert set(JOB_MOVES) == set(S)
    assert WAITING < UNFINISHED
    assert set(S) == FINISHED | UNFINISHED
    # Whatever is not finished can end; what is delivered or superseded never moves again.
    assert all(JOB_MOVES[s] & FINISHED for s in UNFINISHED)
    assert JOB_MOVES[S.SUPERSEDED] == frozenset()
    assert JOB_MOVES[S.DELIVERED] == {S.SEGMENTED, S.FAILED}, "left only where a destination lost what it took"


def test_every_pair_of_states_moves_as_the_table_says_with_one_line_of_journal(any_ledger: Ledger) -> None:
    job = sealed(any_ledger)
    for before, to in product(S, S):
        with any_ledger._db.write() as connection:
            connection.execute(update(job_table).values(state=before.value))
        lines = len(any_ledger.journal(job))
        with any_ledger._db.write() as connection:
            moved = move(connection, job, to, by="test", text="why", now=T0 + 99, reason="because")
        entries = any_ledger.journal(job)[lines:]
        if to in JOB_MOVES[before]:
            assert moved
            assert any_ledger.job(job).state is to
            assert [(e.before, e.after, e.by, e.text, e.at) for e in entries] == [(before, to, "test", "why", T0 + 99)]
        else:
            assert not moved
            assert any_ledger.job(job).state is before
            assert entries == []


def test_a_move_whose_condition_fails_or_whose_job_is_absent_changes_nothing(any_ledger: Ledger) -> None:
    job = sealed(any_ledger)
    with any_ledger._db.write() as connection:
        other_fence = job_table.c.fence == 5
        assert not move(connection, job, S.QUEUED, by="t", text="", now=T0, when=other_fence, reason="x")
        assert not move(connection, "0" * 32, S.QUEUED, by="t", text="", now=T0)
    assert any_ledger.job(job).reason == "agrees"


# -- claims


def test_eight_threads_claim_one_job_and_one_gets_it(any_ledger: Ledger) -> None:
    job = sealed(any_ledger)
    barrier = threading.Barrier(8)

    def ask(n: int):
        barrier.wait()
        return claim(any_ledger, job, f"w{n}")

    with ThreadPoolExecutor(8) as pool:
        claims = [c for c in pool.map(ask, range(8)) if c is not None]
    assert [(c.fence, c.attempt) for c in claims] == [(1, 1)]
    found = any_ledger.job(job)
    assert (found.state, found.fence, found.attempts) == (S.RUNNING, 1, 1)
    assert len([e for e in any_ledger.journal(job) if e.after == "RUNNING"]) == 1


def test_a_claim_tells_the_worker_all_it_needs(any_ledger: Ledger) -> None:
    job = sealed(any_ledger, images=4)
    held = claim(any_ledger, job)
    found = any_ledger.job(job)
    assert (held.series_uid, held.study_uid, held.instances) == (SERIES, found.study_uid, 4)
    assert (held.input_digest, held.lease_s, found.worker) == (found.input_digest, 60.0, "w1")


@pytest.mark.parametrize("state", sorted(set(S) - {S.READY, S.QUEUED}))
def test_only_a_waiting_job_is_to_be_had(any_ledger: Ledger, state: JobState) -> None:
    job = in_state(any_ledger, state)
    assert claim(any_ledger, job, "w2", now=T0 + 1000) is None
    assert any_ledger.job(job).state is state


def test_nothing_is_to_be_had_before_its_time_or_under_an_unknown_id(any_ledger: Ledger) -> None:
    job = sealed(any_ledger)
    held = claim(any_ledger, job)
    any_ledger.give_back(job, held.fence, "model", "no memory", retry_after_s=30, max_attempts=3, now=T0 + 30)
    assert claim(any_ledger, job, now=T0 + 59) is None
    assert claim(any_ledger, job, now=T0 + 60).fence == 2
    assert claim(any_ledger, "f" * 32) is None


def zombies(ledger: Ledger, job: str, fence: int):
    """All that a worker may say under a fence."""
    return [
        lambda: ledger.heartbeat(job, fence, lease_s=60, progress=0.9, now=T0 + 90),
        lambda: ledger.finish(job, fence, results(job, 2), {"pacs": ["SEG"]}, model="old", note="late", now=T0 + 90),
        lambda: ledger.fail(job, fence, S.FAILED, "segment", "late", "", now=T0 + 90),
        lambda: ledger.fail(job, fence, S.REJECTED, "segment", "late", "", now=T0 + 90),
        lambda: ledger.give_back(job, fence, "segment", "late", retry_after_s=0, max_attempts=3, now=T0 + 90),
        lambda: ledger.input_paths(job, fence),
    ]


@pytest.mark.parametrize("fence", [1, 3], ids=["stale", "never_given"])
@pytest.mark.parametrize("state", [S.READY, S.RUNNING, S.SEGMENTED, S.DELIVERED, S.FAILED, S.CANCELLED])
def test_a_fence_that_is_not_the_jobs_changes_nothing(any_ledger: Ledger, state: JobState, fence: int) -> None:
    job = sealed(any_ledger)
    claim(any_ledger, job)
    any_ledger.expire_leases(T0 + 81, 3)
    if state is not S.READY:
        held = claim(any_ledger, job, "w2", now=T0 + 82)
        assert held.fence == 2
        if state in (S.SEGMENTED, S.DELIVERED):
            finish(any_ledger, held)
        if state is S.DELIVERED:
            deliver(any_ledger, job)
        if state is S.FAILED:
            any_ledger.fail(job, 2, S.FAILED, "segment", "broken", "", now=T0 + 83)
        if state is S.CANCELLED:
            any_ledger.cancel(job, "test", T0 + 83)
    before = any_ledger.job(job), any_ledger.journal(job), any_ledger.deliveries(job)
    assert before[0].state is state
    for say in zombies(any_ledger, job, fence):
        with pytest.raises(LeaseLost, match=f"is {state} now"):
            say()
    assert (any_ledger.job(job), any_ledger.journal(job), any_ledger.deliveries(job)) == before


def deliver(ledger: Ledger, job: str) -> None:
    for item in ledger.deliveries(job):
        ledger.start_sending(item.id, T0 + 84)
        ledger.sent(item.id, "stored", T0 + 84)


def test_nobody_speaks_for_a_job_that_does_not_exist(any_ledger: Ledger) -> None:
    for say in zombies(any_ledger, "f" * 32, 1):
        with pytest.raises(LeaseLost, match="no such job"):
            say()


def test_a_heartbeat_keeps_the_lease_and_tells_the_progress(any_ledger: Ledger) -> None:
    job = sealed(any_ledger)
    held = claim(any_ledger, job)  # until T0 + 80
    any_ledger.heartbeat(job, held.fence, lease_s=60, progress=0.5, now=T0 + 79)
    assert any_ledger.expire_leases(T0 + 138, 3) == 0
    assert any_ledger.job(job).progress == 0.5
    assert any_ledger.expire_leases(T0 + 140, 3) == 1


def test_a_job_comes_back_from_a_silent_worker_until_its_attempts_are_used_up(any_ledger: Ledger) -> None:
    job, now = sealed(any_ledger), T0 + 20
    for attempt in (1, 2, 3):
        assert any_ledger.job(job).state is S.READY
        assert claim(any_ledger, job, f"w{attempt}", now=now).fence == attempt
        now += 61
        assert any_ledger.expire_leases(now, 3) == 1
    found = any_ledger.job(job)
    assert found.state is S.FAILED
    assert found.reason == "worker w3 went silent; given up after 3 attempts"
    assert found.next_step
    assert any_ledger.expire_leases(now + 1000, 3) == 0


def test_a_claim_beyond_the_cap_fails_the_job_instead(any_ledger: Ledger) -> None:
    """The cap may have been lowered since."""
    job = sealed(any_ledger)
    for n in (1, 2):
        claim(any_ledger, job, now=T0 + 100 * n)
        any_ledger.expire_leases(T0 + 100 * n + 61, 3)
    assert claim(any_ledger, job, now=T0 + 500, cap=2) is None
    assert any_ledger.job(job).state is S.FAILED
    assert any_ledger.job(job).reason == "never finished in 2 attempts"


def test_a_job_given_back_waits_says_why_and_fails_at_the_cap(any_ledger: Ledger) -> None:
    job = sealed(any_ledger)
    for attempt in (1, 2):
        held = claim(any_ledger, job, now=T0 + 100 * attempt)
        any_ledger.give_back(job, held.fence, "engine", "out of memory", retry_after_s=30, max_attempts=2,
                             now=T0 + 100 * attempt)  # fmt: skip
        if attempt == 1:
            found = any_ledger.job(job)
            assert (found.state, found.reason) == (S.READY, "engine: out of memory")
            assert found.not_before == T0 + 130
            assert any_ledger.due(T0 + 129, 300, 9) == []
            assert [j.id for j in any_ledger.due(T0 + 130, 300, 9)] == [job]
    found = any_ledger.job(job)
    assert (found.state, found.reason) == (S.FAILED, "engine: out of memory; given up after 2 attempts")


@pytest.mark.parametrize("state", [S.FAILED, S.REJECTED])
def test_a_worker_ends_a_job_with_its_reason(any_ledger: Ledger, state: JobState) -> None:
    job = sealed(any_ledger)
    held = claim(any_ledger, job)
    any_ledger.fail(job, held.fence, state, "geometry", "slices overlap", "send it again", now=T0 + 25)
    found = any_ledger.job(job)
    assert (found.state, found.stage, found.reason, found.next_step, found.updated_at) == (
        state, "geometry", "slices overlap", "send it again", T0 + 25,
    )  # fmt: skip


def test_finishing_twice_under_one_fence_is_harmless(any_ledger: Ledger) -> None:
    job = sealed(any_ledger)
    held = claim(any_ledger, job)
    finish(any_ledger, held, ("a", "b"), count=2)
    before = any_ledger.job(job), any_ledger.journal(job), any_ledger.deliveries(job)
    assert (before[0].state, before[0].model, before[0].progress) == (S.SEGMENTED, "penn", 1.0)
    assert len(before[2]) == 4
    finish(any_ledger, held, ("a", "b"), count=2, now=T0 + 31)
    assert (any_ledger.job(job), any_ledger.journal(job), any_ledger.deliveries(job)) == before
    deliver(any_ledger, job)
    assert any_ledger.job(job).state is S.DELIVERED
    finish(any_ledger, held, ("a", "b"), count=2)


def test_finishing_twice_is_harmless_even_when_delivery_has_failed_since(any_ledger: Ledger) -> None:
    """A LeaseLost here would make the node drop the very files that a retry of the delivery needs."""
    job = sealed(any_ledger)
    held = claim(any_ledger, job)
    finish(any_ledger, held)
    (item,) = any_ledger.deliveries(job)
    any_ledger.start_sending(item.id, T0)
    any_ledger.refuse(item.id, "no", T0, 1, T0 + 40)
    assert any_ledger.job(job).state is S.FAILED
    finish(any_ledger, held)
    assert any_ledger.job(job).state is S.FAILED


def test_a_result_that_comes_after_the_job_was_given_up_does_not_count(any_ledger: Ledger) -> None:
    """FAILED returns to SEGMENTED by the operator's word alone."""
    job = sealed(any_ledger)
    held = claim(any_ledger, job)
    any_ledger.expire_leases(T0 + 81, 1)
    with pytest.raises(LeaseLost):
        finish(any_ledger, held)
    assert any_ledger.job(job).state is S.FAILED


# -- dispatch


def test_due_are_ready_jobs_by_priority_and_age_and_before_them_those_nobody_claimed(any_ledger: Ledger) -> None:
    jobs = [sealed(any_ledger, f"1.2.{n}", now=T0 + n) for n in range(5)]
    with any_ledger._db.write() as connection:
        connection.execute(update(job_table).where(job_table.c.id == jobs[3]).values(priority=5))
    any_ledger.mark_queued(jobs[4], T0 + 10)
    assert any_ledger.queued() == 1
    due = [j.id for j in any_ledger.due(T0 + 20, 300, 9)]
    assert due == [jobs[3], jobs[0], jobs[1], jobs[2]]
    # Forgotten messages come first: behind a full window they may be what keeps it full.
    assert [j.id for j in any_ledger.due(T0 + 311, 300, 2)] == [jobs[4], jobs[3]]
    any_ledger.mark_queued(jobs[4], T0 + 311)
    assert jobs[4] not in [j.id for j in any_ledger.due(T0 + 312, 300, 9)]


def test_marking_a_job_queued_that_was_claimed_meanwhile_leaves_it_running(any_ledger: Ledger) -> None:
    job = in_state(any_ledger, S.RUNNING)
    any_ledger.mark_queued(job, T0 + 21)
    assert any_ledger.job(job).state is S.RUNNING
    assert any_ledger.queued() == 0


# -- the operator


@pytest.mark.parametrize("state", list(S))
def test_retry_takes_what_ended_badly_and_nothing_else(any_ledger: Ledger, state: JobState) -> None:
    job = in_state(any_ledger, state)
    if state in (S.FAILED, S.REJECTED, S.SKIPPED, S.CANCELLED):
        assert any_ledger.retry(job, "admin", T0 + 100).state is S.READY
        found = any_ledger.job(job)
        assert (found.attempts, found.not_before, found.reason, found.next_step) == (0, 0.0, "", "")
        assert any_ledger.journal(job)[-1].by == "admin"
        assert claim(any_ledger, job, now=T0 + 101).attempt == 1
    else:
        with pytest.raises(Permanent) as caught:
            any_ledger.retry(job, "admin", T0 + 100)
        expected = "newer revision" if state is S.SUPERSEDED else f"a job that is {state} cannot be retried"
        assert expected in caught.value.reason
        assert any_ledger.job(job).state is state


@pytest.mark.parametrize("state", list(S))
def test_cancel_stops_what_is_not_finished_and_nothing_else(any_ledger: Ledger, state: JobState) -> None:
    job = in_state(any_ledger, state)
    if state in UNFINISHED:
        assert any_ledger.cancel(job, "admin", T0 + 100).state is S.CANCELLED
        assert all(d.state is DeliveryState.CANCELLED for d in any_ledger.deliveries(job))
        assert any_ledger.due_deliveries(T0 + 1e6) == []
        assert claim(any_ledger, job, now=T0 + 1e6) is None
    else:
        with pytest.raises(Permanent, match=f"a job that is {state} cannot be cancelled"):
            any_ledger.cancel(job, "admin", T0 + 100)
        assert any_ledger.job(job).state is state


def test_a_job_cancelled_after_its_results_runs_anew_and_is_delivered(any_ledger: Ledger) -> None:
    job = in_state(any_ledger, S.SEGMENTED)
    any_ledger.cancel(job, "admin", T0 + 50)
    any_ledger.retry(job, "admin", T0 + 60)
    held = claim(any_ledger, job, now=T0 + 61)
    assert held.fence == 2
    finish(any_ledger, held)
    deliver(any_ledger, job)
    assert any_ledger.job(job).state is S.DELIVERED


def test_an_older_revision_is_not_retried(any_ledger: Ledger) -> None:
    job = in_state(any_ledger, S.FAILED)
    any_ledger.record(instance(7))
    seal(any_ledger)
    with pytest.raises(Permanent, match="a newer revision of this series exists"):
        any_ledger.retry(job, "admin", T0 + 100)


def test_a_job_whose_images_have_left_is_not_retried(any_ledger: Ledger) -> None:
    job = in_state(any_ledger, S.FAILED)
    any_ledger.forget_files(any_ledger.job(job), T0 + 100)
    with pytest.raises(Permanent, match=r"left the spool \(send the series again\)"):
        any_ledger.retry(job, "admin", T0 + 101)


# -- looking


def test_a_job_is_found_by_any_prefix_no_other_shares(any_ledger: Ledger) -> None:
    jobs = [sealed(any_ledger, f"1.2.{n}") for n in range(20)]  # 20 ids over 16 first digits: some pair shares one
    for job in jobs:
        assert any_ledger.job(job).id == any_ledger.job(job[:12]).id == job
    firsts = [job[0] for job in jobs]
    shared = next(c for c in firsts if firsts.count(c) > 1)
    with pytest.raises(NotFound, match="more than one job"):
        any_ledger.job(shared)


@pytest.mark.parametrize("asked", ["", "%", "_", "%" * 32, "../x", "zz", "0" * 33, "'; --", "\0", "\x00abc", "\ud800"])
def test_what_is_no_id_finds_nothing(any_ledger: Ledger, asked: str) -> None:
    sealed(any_ledger)
    for look in (any_ledger.job, lambda j: any_ledger.retry(j, "x", T0), lambda j: any_ledger.cancel(j, "x", T0)):
        with pytest.raises(NotFound):
            look(asked)


def test_the_list_is_filtered_by_state_and_text_and_cut_into_pages(any_ledger: Ledger) -> None:
    texts = ["T2 sag", "50% dose", "a_b", "axb", "back\\slash"]
    for n, description in enumerate(texts):
        any_ledger.record(instance(1, f"1.2.{n}", header={"series_description": description}, calling_ae=f"MR{n}"))
        seal(any_ledger, f"1.2.{n}", wanted=n != 4, now=T0 + n)

    def found(**words):
        return [j.description for j in any_ledger.jobs(**words)]

    assert found() == texts[::-1]
    assert found(text="t2 SAG") == ["T2 sag"]
    assert found(text="%") == ["50% dose"]
    assert found(text="a_b") == ["a_b"]
    assert found(text="\\") == ["back\\slash"]
    assert found(text="mr3") == ["axb"]
    assert found(text="1.2.0") == ["T2 sag"]
    assert found(text="no such") == []
    assert found(states=[S.SKIPPED]) == ["back\\slash"]
    assert found(states=[]) == []
    assert found(limit=2, offset=1) == ["axb", "a_b"]
    assert any_ledger.counts() == {S.READY: 4, S.SKIPPED: 1}


def test_workers_are_known_by_what_they_last_said(any_ledger: Ledger) -> None:
    any_ledger.worker_seen(Worker("b", T0, "1", "cpu", "m"))
    any_ledger.worker_seen(Worker("a", T0 + 5, "1", "cpu", "m"))
    any_ledger.worker_seen(Worker("b", T0 + 9, "2", "gpu", "m"))
    assert [(w.name, w.version, w.seen_at) for w in any_ledger.workers(T0)] == [("a", "1", T0 + 5), ("b", "2", T0 + 9)]
    assert [w.name for w in any_ledger.workers(T0 + 9)] == ["b"]
