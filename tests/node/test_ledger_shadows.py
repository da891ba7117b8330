"""Several jobs of one series in the ledger, on SQLite and PostgreSQL: models, shadows, and how they compare."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, func, inspect, select, text
from sqlalchemy.exc import IntegrityError

from node.agreement import Agreement, Comparison, outlook
from node.errors import PennodeError, Permanent
from node.ledger import Ledger, database
from node.ledger.schema import delivery
from node.ledger.schema import job as job_table
from node.records import Worker
from node.states import FINISHED, UNFINISHED, JobState
from tests.node.making import SERIES, T0, claim, finish, in_state, instance, results, seal, sealed, with_shadow

S = JobState


# -- jobs of one series


def test_a_series_gets_one_job_of_its_own_and_one_for_each_shadow(any_ledger: Ledger) -> None:
    own = sealed(any_ledger, model="own", shadows=["b", "a"])
    found = any_ledger.job(own)
    assert (found.wanted_model, found.shadow, found.state) == ("own", False, S.READY)
    shadows = any_ledger.siblings(found)
    assert [(s.wanted_model, s.shadow, s.state) for s in shadows] == [("a", True, S.READY), ("b", True, S.READY)]
    assert {s.input_digest for s in shadows} == {found.input_digest}
    assert any_ledger.newest_job(SERIES) == own
    assert any_ledger.jobs(series_uid=SERIES)[0].id == own
    assert any_ledger.jobs(series_uid="1.2.3") == []
    assert sum(any_ledger.counts().values()) == 3
    assert [any_ledger.own_job(s).id for s in shadows] == [own, own]
    assert any_ledger.journal(shadows[0].id)[-1].text == "shadow: agrees with the rules of model a"


def test_a_series_has_one_job_for_each_model_and_revision(any_ledger: Ledger) -> None:
    with pytest.raises(IntegrityError):
        sealed(any_ledger, model="same", shadows=["same"])
    assert any_ledger.jobs() == []
    assert len(any_ledger.receiving()) == 1, "nothing of the seal was kept"


def test_a_shadow_runs_although_the_series_itself_is_skipped(any_ledger: Ledger) -> None:
    own = sealed(any_ledger, wanted=False, shadows=["b"])
    (shadow,) = any_ledger.siblings(any_ledger.job(own))
    assert (any_ledger.job(own).state, shadow.state) == (S.SKIPPED, S.READY)
    assert outlook(any_ledger.job(shadow.id), any_ledger.job(own)).startswith("the shadow is READY")


@pytest.mark.parametrize("state", [S.READY, S.QUEUED, S.RUNNING, S.STORED, S.FAILED, S.REJECTED, S.CANCELLED])
def test_late_images_supersede_every_job_of_the_series(any_ledger: Ledger, state: JobState) -> None:
    own, shadow = with_shadow(any_ledger)
    if state is S.QUEUED:
        any_ledger.mark_queued(shadow, T0 + 12)
    elif state is S.CANCELLED:
        any_ledger.cancel(shadow, "test", T0 + 12)
    elif state is not S.READY:
        held = claim(any_ledger, shadow)
        if state is S.STORED:
            finish(any_ledger, held)
        elif state is not S.RUNNING:
            any_ledger.fail(shadow, held.fence, state, "segment", "no good", "", now=T0 + 25)
    assert any_ledger.job(shadow).state is state
    any_ledger.record(instance(99))
    newer = seal(any_ledger, model="own", shadows=["other"])
    after = [any_ledger.job(j).state for j in (own, shadow)]
    assert after == [S.SUPERSEDED, S.CANCELLED if state is S.CANCELLED else S.SUPERSEDED]
    assert any_ledger.newest_job(SERIES) == newer
    assert [(j.revision, j.shadow) for j in any_ledger.siblings(any_ledger.job(newer))] == [
        (2, True), (1, False), (1, True),
    ]  # fmt: skip
    with pytest.raises(Permanent):
        any_ledger.retry(shadow, "admin", T0 + 100)
    assert claim(any_ledger, shadow, now=T0 + 100) is None


def test_a_job_of_a_series_is_cancelled_and_retried_by_itself(any_ledger: Ledger) -> None:
    own, shadow = with_shadow(any_ledger)
    any_ledger.cancel(own, "admin", T0 + 12)
    assert any_ledger.job(shadow).state is S.READY
    any_ledger.retry(own, "admin", T0 + 13)
    assert any_ledger.cancel(shadow, "admin", T0 + 14).state is S.CANCELLED
    assert any_ledger.job(own).state is S.READY
    again = any_ledger.retry(shadow, "admin", T0 + 15)
    assert (again.state, again.shadow, again.wanted_model) == (S.READY, True, "other")


def test_images_stay_until_the_last_job_of_the_series_has_left(any_ledger: Ledger) -> None:
    own, shadow = with_shadow(any_ledger)
    finish(any_ledger, claim(any_ledger, shadow))
    assert [j.id for j in any_ledger.expendable(T0 + 1000)] == [shadow], "the own job is not finished"
    assert any_ledger.forget_files(any_ledger.job(shadow), T0 + 1000) == [f"results/{shadow}/1/2.25.1.dcm"]
    assert len(any_ledger.series_instances(SERIES)) == 3
    held = claim(any_ledger, own)
    any_ledger.fail(own, held.fence, S.FAILED, "segment", "no", "", now=T0 + 1001)
    assert len(any_ledger.forget_files(any_ledger.job(own), T0 + 1002)) == 3
    assert any_ledger.series_instances(SERIES) == []


# -- a shadow sends nothing


def test_a_shadows_result_is_stored_and_its_end_is_told_once(any_ledger: Ledger) -> None:
    _, shadow = with_shadow(any_ledger)
    held = claim(any_ledger, shadow)
    assert held.model == "other"
    finish(any_ledger, held, ("pacs", "archive"), count=2)
    found = any_ledger.job(shadow)
    assert (found.state, found.stage, found.model, found.reason) == (S.STORED, "stored", "penn", "segmented")
    assert len(any_ledger.results(shadow)) == 2
    assert [e.after for e in any_ledger.journal(shadow)][-2:] == ["SEGMENTED", "STORED"]
    finish(any_ledger, held, ("pacs", "archive"), count=2)
    assert any_ledger.job(shadow) == found


def deliveries_of_shadows(ledger: Ledger) -> int:
    with ledger._db.read() as connection:
        query = select(func.count()).join_from(delivery, job_table, delivery.c.job_id == job_table.c.id)
        return connection.execute(query.where(job_table.c.shadow)).scalar_one()


def deeds(ledger: Ledger, job: str, fence: int, now: float) -> list[Callable[[], object]]:
    """All that may happen to a job."""
    to = {"pacs": ["SEG"], "archive": ["SEG"]}

    def bring() -> None:
        ledger.finish(job, fence, results(job, 1, fence), to, model="m", note="n", now=now)

    def send() -> None:
        for item in ledger.deliveries(job):
            if ledger.start_sending(item.id, now):
                ledger.sent(item.id, "ok", now)

    return [
        bring,
        bring,
        send,
        send,
        lambda: ledger.mark_queued(job, now),
        lambda: claim(ledger, job, now=now),
        lambda: ledger.fail(job, fence, S.FAILED, "delivery", "no", "", now=now),
        lambda: ledger.give_back(job, fence, "x", "y", retry_after_s=0, max_attempts=9, now=now),
        lambda: ledger.expire_leases(now, 9),
        lambda: ledger.cancel(job, "test", now),
        lambda: ledger.retry(job, "test", now),
        lambda: ledger.recover_deliveries(to, now),
    ]


def test_no_delivery_of_a_shadow_can_exist_whatever_is_done(ledger: Ledger) -> None:
    """Random lives: everything that moves a job, in any order, with restarts and late images."""
    chance = random.Random(7)
    with_shadow(ledger)
    seen = set()
    for step in range(600):
        now = T0 + 100 + 40 * step
        if step % 40 == 39:
            ledger.record(instance(100 + step))
            assert seal(ledger, model="own", shadows=["other"], now=now)
        job = chance.choice(ledger.jobs()[:4])
        with contextlib.suppress(PennodeError):
            chance.choice(deeds(ledger, job.id, job.fence, now))()
        assert deliveries_of_shadows(ledger) == 0
        seen |= {(j.shadow, j.state) for j in ledger.jobs()[:4]}
    assert {(True, S.STORED), (False, S.SEGMENTED), (False, S.DELIVERED)} <= seen, "the lives lead there"
    assert not {(True, S.DELIVERED), (False, S.STORED)} & seen


def test_even_a_row_written_by_hand_is_not_sent(any_ledger: Ledger) -> None:
    own, shadow = with_shadow(any_ledger)
    finish(any_ledger, claim(any_ledger, own))
    finish(any_ledger, claim(any_ledger, shadow))
    with any_ledger._db.write() as connection:
        connection.execute(text("UPDATE delivery SET job_id = :shadow"), {"shadow": shadow})
    assert deliveries_of_shadows(any_ledger) == 1
    assert any_ledger.due_deliveries(T0 + 1e6) == []
    assert any_ledger.due_deliveries(T0 + 1e6, "pacs") == []


# -- models and workers


def test_a_job_is_given_only_to_a_worker_that_has_its_model(any_ledger: Ledger) -> None:
    job = sealed(any_ledger, model="own")
    any_ledger.mark_queued(job, T0 + 12)
    refused = any_ledger.claim(
        job, "w1", lease_s=60, max_attempts=3, now=T0 + 20, served=["", "other"], retry_after_s=30
    )
    assert refused is None
    found = any_ledger.job(job)
    assert (found.state, found.not_before, found.attempts) == (S.READY, T0 + 50, 0)
    assert found.reason == "worker w1, which was offered it, cannot run the model own now"
    held = any_ledger.claim(job, "w2", lease_s=60, max_attempts=3, now=T0 + 50, served=["own"])
    assert (held.model, any_ledger.job(job).worker) == ("own", "w2")


def test_a_job_for_the_default_waits_for_a_worker_whose_default_runs(any_ledger: Ledger) -> None:
    job = sealed(any_ledger)
    any_ledger.mark_queued(job, T0 + 12)
    assert any_ledger.claim(job, "w1", lease_s=60, max_attempts=3, now=T0 + 20, served=["other"]) is None
    assert "cannot run its default model now" in any_ledger.job(job).reason
    assert any_ledger.claim(job, "w2", lease_s=60, max_attempts=3, now=T0 + 20, served=[""]).model == ""


def test_a_job_that_is_refused_again_and_again_is_offered_ever_more_seldom(any_ledger: Ledger) -> None:
    job, now, waits = sealed(any_ledger, model="own"), T0 + 20, []
    for _ in range(8):
        any_ledger.mark_queued(job, now)
        claimed = any_ledger.claim(job, "w1", lease_s=60, max_attempts=3, now=now, served=["other"], retry_after_s=30)
        assert claimed is None
        waits.append(any_ledger.job(job).not_before - now)
        now += waits[-1]
    assert waits == [30, 60, 120, 240, 480, 600, 600, 600]


def test_a_shadow_waits_while_another_job_could_be_taken_by_the_same_worker(any_ledger: Ledger) -> None:
    _, shadow = with_shadow(any_ledger)
    any_ledger.mark_queued(shadow, T0 + 12)
    assert claim(any_ledger, shadow, served=["own", "other"]) is None
    assert (any_ledger.job(shadow).state, any_ledger.job(shadow).reason) == (S.READY, "shadow: others go first")
    # A worker without the other job's model does not let it wait.
    assert any_ledger.claim(shadow, "w2", lease_s=60, max_attempts=3, now=T0 + 20, served=["other"]).fence == 1


def test_a_shadow_does_not_wait_for_a_job_whose_time_has_not_come(any_ledger: Ledger) -> None:
    own, shadow = with_shadow(any_ledger)
    held = claim(any_ledger, own)
    any_ledger.give_back(own, held.fence, "x", "y", retry_after_s=30, max_attempts=3, now=T0 + 30)
    assert claim(any_ledger, shadow, now=T0 + 31, served=["own", "other"])


def test_jobs_whose_model_nobody_has_say_so_and_are_ready_again_when_somebody_has(any_ledger: Ledger) -> None:
    own, shadow = with_shadow(any_ledger)
    plain = sealed(any_ledger, "1.2.9")
    any_ledger.mark_queued(own, T0 + 12)
    assert any_ledger.note_unserved({""}, T0 + 20) == {"own": 1}
    for job in (own, shadow):
        found = any_ledger.job(job)
        assert found.state is S.READY
        assert found.reason == f"no living worker has the model {found.wanted_model}"
        assert "worker.models" in found.next_step
    assert any_ledger.job(plain).reason == "agrees"
    lines = len(any_ledger.journal(own))
    assert any_ledger.note_unserved({""}, T0 + 21) == {"own": 1}
    assert len(any_ledger.journal(own)) == lines, "it is said once"
    assert [j.id for j in any_ledger.due(T0 + 22, 300, 9)] == [plain]
    assert any_ledger.note_unserved({"", "own"}, T0 + 23) == {}
    assert (any_ledger.job(own).reason, any_ledger.job(own).next_step) == ("", "")
    assert {j.id for j in any_ledger.due(T0 + 22, 300, 9, served=["", "own"])} == {plain, own}
    assert any_ledger.due(T0 + 22, 300, 9, served=["", "own"], shadow=True) == []
    assert [j.id for j in any_ledger.due(T0 + 22, 300, 9, served=["other"], shadow=True)] == [shadow]


def test_a_worker_is_remembered_with_its_models(any_ledger: Ledger) -> None:
    any_ledger.worker_seen(Worker("w", T0, "1", "cpu", "a 1.0.0", ("a 1.0.0", "b 2.0.0")))
    any_ledger.worker_seen(Worker("old", T0, "1", "cpu", "a"))
    old, new = any_ledger.workers(T0)
    assert new.models == ("a 1.0.0", "b 2.0.0")
    assert (new.served, old.served) == ({"", "a", "b"}, {""})


# -- comparisons


def comparison(ledger: Ledger, shadow: str, own: str, **values: object) -> Comparison:
    first, second = ledger.job(shadow), ledger.job(own)
    fields = {"segments": (Agreement("Vertebra", "51282000", "SCT", "Vertebra", 0.9, 10.0, 11.0),), **values}
    return Comparison(shadow, first.fence, own, second.fence, T0 + 50, **fields)  # type: ignore[arg-type]


def test_a_shadow_is_to_be_compared_once_both_results_are_here_and_again_when_one_changes(any_ledger: Ledger) -> None:
    own, shadow = with_shadow(any_ledger)
    finish(any_ledger, claim(any_ledger, shadow))
    assert any_ledger.uncompared() == []
    assert outlook(any_ledger.job(shadow), any_ledger.job(own)) == "the series has no result of its own yet"
    finish(any_ledger, claim(any_ledger, own), ())
    assert any_ledger.uncompared() == [(any_ledger.job(shadow), any_ledger.job(own))]
    any_ledger.note_comparison(found := comparison(any_ledger, shadow, own))
    assert any_ledger.uncompared() == []
    assert any_ledger.comparisons(any_ledger.job(shadow)) == any_ledger.comparisons(any_ledger.job(own)) == [found]
    # The own job is done again: its result may be another one.
    any_ledger.cancel(own, "admin", T0 + 60)
    any_ledger.retry(own, "admin", T0 + 61)
    held = claim(any_ledger, own, now=T0 + 62)
    assert any_ledger.uncompared() == []
    finish(any_ledger, held, ())
    assert [pair[0].id for pair in any_ledger.uncompared()] == [shadow]
    any_ledger.note_comparison(again := comparison(any_ledger, shadow, own, segments=(), reason="too large"))
    assert any_ledger.comparisons(any_ledger.job(shadow)) == [again]
    assert any_ledger.uncompared() == []


def test_a_shadow_whose_series_has_no_result_is_never_due_and_says_why(any_ledger: Ledger) -> None:
    own, shadow = with_shadow(any_ledger)
    finish(any_ledger, claim(any_ledger, shadow))
    held = claim(any_ledger, own)
    any_ledger.fail(own, held.fence, S.REJECTED, "segment", "no spine", "", now=T0 + 40)
    assert any_ledger.uncompared() == []
    said = outlook(any_ledger.job(shadow), any_ledger.job(own))
    assert said == "the series' own job is REJECTED: there is no result to compare with"


def test_each_shadow_is_compared_with_the_result_of_its_own_revision(any_ledger: Ledger) -> None:
    own, shadow = with_shadow(any_ledger)
    finish(any_ledger, claim(any_ledger, own), ())
    any_ledger.record(instance(99))
    newer = seal(any_ledger, model="own", shadows=["other"])
    (second,) = [j.id for j in any_ledger.siblings(any_ledger.job(newer)) if j.revision == 2]
    finish(any_ledger, claim(any_ledger, second))
    assert any_ledger.uncompared() == []
    finish(any_ledger, claim(any_ledger, newer), ())
    assert [(s.id, o.id) for s, o in any_ledger.uncompared()] == [(second, newer)]
    assert any_ledger.job(shadow).state is S.SUPERSEDED


# -- the table of states


def test_a_stored_shadow_is_finished_and_only_superseded(any_ledger: Ledger) -> None:
    assert S.STORED in FINISHED - UNFINISHED
    job = in_state(any_ledger, S.STORED)
    with pytest.raises(Permanent, match="a job that is STORED cannot be retried"):
        any_ledger.retry(job, "admin", T0 + 100)


# -- the migration


def test_a_ledger_from_before_models_keeps_its_jobs(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.sqlite3'}"
    engine = create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent.parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        columns = {c["name"]: c for c in inspect(connection).get_columns("job")}
        values = {n: "x" if "CHAR" in str(c["type"]) or "TEXT" in str(c["type"]) else 0 for n, c in columns.items()}
        values |= {"id": "a" * 32, "series_uid": SERIES, "revision": 1, "state": "READY"}
        marks = ", ".join(f":{name}" for name in values)
        connection.execute(text(f"INSERT INTO job ({', '.join(values)}) VALUES ({marks})"), values)
    engine.dispose()
    ledger = Ledger(url)
    ledger.migrate()
    (found,) = ledger.jobs()
    assert (found.id, found.state, found.wanted_model, found.shadow) == ("a" * 32, S.READY, "", False)
    with ledger._db.read() as connection:
        assert {i["name"] for i in inspect(connection).get_indexes("job")} >= {"ix_job_due", "ix_job_updated_at"}
        (unique,) = inspect(connection).get_unique_constraints("job")
    assert unique["column_names"] == ["series_uid", "revision", "wanted_model"]
    ledger.close()
