"""The ledger's tables, and reception: the same suite on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import make_url, text

from node.errors import ConfigurationError, LeaseLost, LedgerUnavailable
from node.evidence import Evidence, Source, Weighing, Weight
from node.ledger import Ledger, Receipt, Recorded, intake
from node.ledger.schema import metadata
from node.records import input_digest
from node.rhythm import KEPT
from node.states import DeliveryState, JobState, SeriesState
from tests import peers
from tests.node.making import SERIES, T0, claim, finish, in_state, instance, seal, sealed

# -- tables


def test_the_migrations_make_the_tables_that_the_schema_describes(any_ledger: Ledger) -> None:
    with any_ledger._db.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_migrating_twice_is_harmless(any_ledger: Ledger) -> None:
    job = sealed(any_ledger)
    any_ledger.migrate()
    assert any_ledger.job(job).state is JobState.READY


def test_a_ledger_of_a_newer_version_is_refused(any_ledger: Ledger) -> None:
    with any_ledger._db.write() as connection:
        before = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    try:
        with pytest.raises(ConfigurationError, match="a newer pennode wrote it"):
            any_ledger.migrate()
    finally:
        with any_ledger._db.write() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :before"), {"before": before})


def test_sqlite_survives_a_power_cut(ledger: Ledger) -> None:
    with ledger._db.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense://x", "nonsense"),
        ("postgresql//me:geheim@host/db", "cannot be used"),
        ("postgresql://me:geheim@host:port/db", "cannot be used"),
    ],
)
def test_an_unusable_url_is_named_without_its_password(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        Ledger(url)
    assert "geheim" not in str(caught.value)


def test_a_ledger_in_a_place_that_cannot_be_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="folder cannot be made"):
        Ledger("sqlite:////proc/nowhere/ledger.sqlite3")


def test_a_stopped_postgresql_is_unavailable_and_then_works_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("stopping")
    user = [peers.program("runuser", "util-linux"), "-u", "postgres", "--"] if os.geteuid() == 0 else []
    control = [*user, peers.program("pg_ctl", "postgresql"), "-D", str(folder / "data"), "-w", "-s"]
    with peers.postgresql_server(folder) as url:
        port = make_url(url).port
        ledger = Ledger(url)
        ledger.migrate()
        job = sealed(ledger)
        subprocess.run([*control, "stop", "-m", "fast"], check=True)
        with pytest.raises(LedgerUnavailable):
            ledger.job(job)
        with pytest.raises(LedgerUnavailable):
            ledger.record(instance(9))
        options = f"-p {port} -h 127.0.0.1 -k {folder / 'run'}"
        subprocess.run([*control, "start", "-o", options, "-l", str(folder / "run" / "log")], check=True)
        try:
            assert ledger.job(job).state is JobState.READY
            assert ledger.record(instance(9)) is Receipt.NEW
        finally:
            ledger.close()
            subprocess.run([*control, "stop", "-m", "fast"], check=True)


def test_a_connection_to_postgresql_notices_that_its_other_end_has_gone(migrated_postgresql: str) -> None:
    ledger = Ledger(migrated_postgresql.replace("postgresql://", "postgresql+psycopg://", 1))
    with ledger._db.engine.connect() as connection:
        driver = connection.connection.driver_connection
        with socket.fromfd(driver.pgconn.socket, socket.AF_INET, socket.SOCK_STREAM) as end:
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            found = [
                end.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            ]
    ledger.close()
    assert found == [30, 10, 3, 30_000]


# -- instances


def test_an_instance_is_new_once_and_then_held(any_ledger: Ledger) -> None:
    one = instance(1, header={"position": (1.5, 2.0, -3.0), "image_type": ("ORIGINAL", "PRIMARY")})
    assert any_ledger.record(one) is Receipt.NEW
    assert any_ledger.record(one) is Receipt.HELD
    assert any_ledger.series_instances(SERIES) == [one]
    assert any_ledger.record_all([one]) == [Recorded(Receipt.HELD, one.path, one.sha256, SERIES)]
    (series,) = any_ledger.receiving()
    assert (series.instances, series.state, series.first_at, series.last_at) == (1, SeriesState.RECEIVING, T0, T0)


def test_many_instances_in_one_transaction_are_judged_in_their_order(any_ledger: Ledger) -> None:
    any_ledger.record(instance(1))
    batch = [
        instance(2, at=T0 + 2), instance(1), instance(2, at=T0 + 3), instance(2, "1.2.3.30", sop_uid=f"{SERIES}.2"),
        instance(3), instance(4), instance(1, "1.2.3.20"),
    ]  # fmt: skip
    answers = any_ledger.record_all(batch, most=3)
    kinds = [Receipt.NEW, Receipt.HELD, Receipt.HELD, Receipt.HELD, Receipt.NEW, Receipt.TOO_MANY, Receipt.NEW]
    assert [a.receipt for a in answers] == kinds
    assert [a.path for a in answers[1:4]] == [instance(1).path, instance(2).path, instance(2).path]
    assert {a.series_uid for a in answers[1:4]} == {SERIES}
    series = {s.series_uid: s for s in any_ledger.receiving()}
    assert set(series) == {SERIES, "1.2.3.20"}
    assert (series[SERIES].instances, series[SERIES].last_at) == (3, T0 + 2)
    assert series["1.2.3.20"].instances == 1
    assert [m.sop_uid for m in any_ledger.series_instances(SERIES)] == [f"{SERIES}.{n}" for n in (1, 2, 3)]
    assert any_ledger.record_all([]) == []


def test_plain_batches_go_the_short_way_and_mean_the_same(any_ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short way, for new images of new and open series, and the long way that takes all: one outcome."""
    long_way: list[int] = []
    record = intake.record
    monkeypatch.setattr(intake, "record", lambda c, batch, most: long_way.append(len(batch)) or record(c, batch, most))
    for series in ("1.2.3.20", SERIES):
        any_ledger.record(instance(1, series))
    assert long_way == []
    batch = [instance(2, at=T0 + 2), instance(2, "1.2.3.20", at=T0 + 3), instance(3, at=T0 + 4)]
    assert {a.receipt for a in any_ledger.record_all(batch, most=3)} == {Receipt.NEW}
    assert long_way == []
    series = {s.series_uid: (s.instances, s.last_at) for s in any_ledger.receiving()}
    assert series == {SERIES: (3, T0 + 4), "1.2.3.20": (2, T0 + 3)}
    assert any_ledger.series_instances(SERIES, 1) == [instance(1), *batch[::2]]
    assert any_ledger.record_all([instance(4)], most=3)[0].receipt is Receipt.TOO_MANY
    assert any_ledger.record(instance(2)) is Receipt.HELD
    seal(any_ledger)
    assert any_ledger.record(instance(5)) is Receipt.NEW, "it opens the next revision"
    assert long_way == [1, 1, 1]


def test_the_log_of_sqlite_has_its_length_from_the_first_plain_image(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger'}")
    ledger.migrate()
    for number in range(1, 5):
        ledger.record(instance(number))
    assert len(ledger.series_instances(SERIES)) == 4
    assert (tmp_path / "ledger-wal").stat().st_size > 4_000_000
    assert (tmp_path / "ledger").stat().st_size < 500_000
    ledger.close()
    assert len(Ledger(f"sqlite:///{tmp_path / 'ledger'}").series_instances(SERIES)) == 4


def test_a_conflict_is_kept_in_the_history_of_the_series_that_holds_the_uid(any_ledger: Ledger) -> None:
    any_ledger.record(instance(1))
    any_ledger.note_conflict(instance(1, "1.2.3.20"), SERIES)
    job = seal(any_ledger)
    (entry,) = [e for e in any_ledger.journal(job) if e.subject == "instance"]
    assert (entry.after, entry.by) == ("conflict", "SCANNER")
    assert "1.2.3.20.1" in entry.text


def test_digests_are_noted_when_they_are_known(any_ledger: Ledger) -> None:
    for number in (1, 2, 3):
        any_ledger.record(instance(number, sha256=""))
    any_ledger.note_digests({f"{SERIES}.1": "aa", f"{SERIES}.3": "cc"})
    any_ledger.note_digests({})
    assert [m.sha256 for m in any_ledger.series_instances(SERIES)] == ["aa", "", "cc"]


def test_eight_threads_with_one_new_uid_make_one_row(any_ledger: Ledger) -> None:
    barrier = threading.Barrier(8)

    def bring(n: int) -> Receipt:
        barrier.wait()
        return any_ledger.record(instance(1, content=str(n)))

    with ThreadPoolExecutor(8) as pool:
        receipts = sorted(pool.map(bring, range(8)))
    assert receipts == sorted([Receipt.NEW, *[Receipt.HELD] * 7])
    (series,) = any_ledger.receiving()
    assert series.instances == len(any_ledger.series_instances(SERIES)) == 1


def test_eight_threads_with_one_new_series_all_count(any_ledger: Ledger) -> None:
    barrier = threading.Barrier(8)

    def bring(n: int) -> Receipt:
        barrier.wait()
        return any_ledger.record(instance(n, at=T0 + n))

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(bring, range(8))) == {Receipt.NEW}
    (series,) = any_ledger.receiving()
    assert series.instances == 8


def test_text_that_no_database_takes_never_reaches_it(any_ledger: Ledger) -> None:
    """PostgreSQL refuses NUL in a text; whoever asks with one simply finds nothing more."""
    job = sealed(any_ledger)
    assert [j.id for j in any_ledger.jobs(text="t2\0")] == [job]


# -- seal


def test_a_seal_makes_one_job_and_tells_why(any_ledger: Ledger) -> None:
    job = any_ledger.job(sealed(any_ledger, images=3))
    assert (job.state, job.revision, job.instances, job.description) == (JobState.READY, 1, 3, "t2_sag")
    assert job.input_digest == input_digest((m.sop_uid, m.sha256) for m in any_ledger.series_instances(SERIES))
    assert (job.calling_ae, job.last_image_at, job.fence, job.attempts) == ("SCANNER", T0, 0, 0)
    assert [(e.subject, e.before, e.after) for e in any_ledger.journal(job.id)] == [
        ("series", "", "RECEIVING"),
        ("series", "RECEIVING", "SEALED"),
        ("job", "", "READY"),
    ]
    assert any_ledger.receiving() == []


def test_an_unwanted_series_is_skipped_with_the_verdict(any_ledger: Ledger) -> None:
    job = any_ledger.job(sealed(any_ledger, wanted=False))
    assert (job.state, job.reason, job.next_step) == (JobState.SKIPPED, "it is a localizer", "nothing to do")


def test_a_seal_is_refused_when_an_image_came_in_between(any_ledger: Ledger) -> None:
    any_ledger.record(instance(1))
    (seen,) = any_ledger.receiving()
    members = any_ledger.series_instances(SERIES)
    any_ledger.record(instance(2))
    words = {"wanted": True, "verdict": "", "next_step": "", "now": T0}
    assert any_ledger.seal(seen, members, "complete", **words) is None
    assert any_ledger.jobs() == []
    (seen,) = any_ledger.receiving()
    assert any_ledger.seal(seen, any_ledger.series_instances(SERIES), "complete", **words)
    assert any_ledger.seal(seen, members, "complete", **words) is None, "sealed already"
    assert len(any_ledger.jobs()) == 1


def test_eight_threads_seal_once(any_ledger: Ledger) -> None:
    any_ledger.record(instance(1))
    (seen,) = any_ledger.receiving()
    members = any_ledger.series_instances(SERIES)
    with ThreadPoolExecutor(8) as pool:
        words = {"wanted": True, "verdict": "", "next_step": "", "now": T0}
        made = list(pool.map(lambda _: any_ledger.seal(seen, members, "complete", **words), range(8)))
    assert sum(job is not None for job in made) == 1


TAKEN_OVER = [
    JobState.READY, JobState.QUEUED, JobState.RUNNING, JobState.SEGMENTED, JobState.FAILED, JobState.REJECTED,
]  # fmt: skip


@pytest.mark.parametrize("state", TAKEN_OVER)
def test_a_late_image_opens_revision_two_which_takes_over_from_what_is_unfinished_or_went_wrong(
    any_ledger: Ledger, state: JobState
) -> None:
    first = in_state(any_ledger, state)
    assert any_ledger.record(instance(7, at=T0 + 50)) is Receipt.NEW
    (series,) = any_ledger.receiving()
    assert (series.revision, series.instances) == (1, 4)
    second = any_ledger.job(seal(any_ledger, now=T0 + 60))
    assert (second.revision, second.instances, second.state) == (2, 4, JobState.READY)
    assert any_ledger.job(first).state is JobState.SUPERSEDED
    assert any_ledger.due_deliveries(T0 + 1e6) == [], "the older result is not sent after all"
    # Who belongs to which revision stays known.
    assert len(any_ledger.series_instances(SERIES, revision=1)) == 3
    held = claim(any_ledger, second.id, now=T0 + 70)
    assert len(any_ledger.input_paths(second.id, held.fence)) == 4


@pytest.mark.parametrize("state", [JobState.DELIVERED, JobState.SKIPPED, JobState.CANCELLED])
def test_a_late_image_leaves_a_finished_job_as_it_was(any_ledger: Ledger, state: JobState) -> None:
    first = in_state(any_ledger, state)
    any_ledger.record(instance(7))
    second = seal(any_ledger)
    assert any_ledger.job(first).state is state
    assert second is not None
    assert second != first


def test_a_running_job_keeps_the_images_of_its_own_revision(any_ledger: Ledger) -> None:
    job = in_state(any_ledger, JobState.RUNNING)
    any_ledger.record(instance(7))
    assert len(any_ledger.input_paths(job, 1)) == 3


def test_results_of_a_series_that_grows_again_are_held_back(any_ledger: Ledger) -> None:
    """Its images are not all of the series any more: what they gave must not reach the PACS after the late ones did."""
    job = in_state(any_ledger, JobState.SEGMENTED)
    assert len(any_ledger.due_deliveries(T0 + 1e6)) == 1
    any_ledger.record(instance(1, "1.2.9"))
    assert len(any_ledger.due_deliveries(T0 + 1e6)) == 1, "another series is another matter"
    any_ledger.record(instance(7))
    assert any_ledger.due_deliveries(T0 + 1e6) == []
    seal(any_ledger)
    assert any_ledger.job(job).state is JobState.SUPERSEDED
    assert [d.state for d in any_ledger.deliveries(job)] == [DeliveryState.CANCELLED]


def test_a_result_that_comes_for_a_superseded_job_is_not_taken(any_ledger: Ledger) -> None:
    first = in_state(any_ledger, JobState.READY)
    held = claim(any_ledger, first)
    any_ledger.record(instance(7))
    second = seal(any_ledger)
    for late in (
        lambda: finish(any_ledger, held),
        lambda: any_ledger.heartbeat(first, held.fence, lease_s=60, progress=0.5, now=T0 + 30),
        lambda: any_ledger.fail(first, held.fence, JobState.REJECTED, "segment", "bad", "", now=T0 + 30),
    ):
        with pytest.raises(LeaseLost, match="SUPERSEDED"):
            late()
    assert any_ledger.deliveries(first) == []
    assert {j.id: j.state for j in any_ledger.jobs()} == {first: JobState.SUPERSEDED, second: JobState.READY}


# -- what assembly remembers


def weighed(revision: int = 1, last_at: float = T0, until: float = T0 + 20, text: str = "a single image") -> Weighing:
    return Weighing(SERIES, revision, (Evidence(Source.NUMBERS, Weight.NEUTRAL, text),), "waits", last_at, until)


def test_how_a_series_was_weighed_is_kept_for_each_revision(any_ledger: Ledger) -> None:
    any_ledger.record(instance(1))
    assert any_ledger.weighing(SERIES, 1) is None
    assert any_ledger.weighings() == {}
    for one in (weighed(text="ä"), weighed()):
        any_ledger.note_weighing(one)
        assert any_ledger.weighing(SERIES, 1) == one
        assert any_ledger.weighings() == {SERIES: one}
    seal(any_ledger)
    assert any_ledger.weighings() == {}
    assert any_ledger.weighing(SERIES, 1) == Weighing(SERIES, 1, (), "complete", T0, 0.0)
    any_ledger.record(instance(2, at=T0 + 50))
    any_ledger.note_weighing(weighed(2, T0 + 50))
    assert any_ledger.weighings() == {SERIES: weighed(2, T0 + 50)}
    any_ledger.record(instance(3, at=T0 + 51))
    assert any_ledger.weighings() == {}, "it was weighed without the last image"


def test_the_longest_gaps_of_the_last_series_of_each_sender_are_kept(any_ledger: Ledger) -> None:
    for n in range(KEPT + 10):
        for image in range(3):
            any_ledger.record(instance(image, f"1.2.{n}", at=T0 + 10 * n + image * n / 100, association=image))
        seal(any_ledger, f"1.2.{n}", now=T0 + 10 * n + 9)
    expected = [n / 100 for n in range(KEPT + 9, 9, -1)]
    assert any_ledger.longest_gaps("SCANNER") == pytest.approx(expected, abs=1e-4)
    assert any_ledger.longest_gaps("OTHER") == []


def test_a_single_image_teaches_nothing_and_a_further_revision_counts_once(any_ledger: Ledger) -> None:
    sealed(any_ledger, images=1)
    assert any_ledger.longest_gaps("SCANNER") == []
    for number, at in ((2, 30), (3, 31)):
        any_ledger.record(instance(number, at=T0 + at, association=at))
        seal(any_ledger)
    assert any_ledger.longest_gaps("SCANNER") == [30]


# -- what is known of files


def test_known_paths_are_those_of_images_and_of_results(any_ledger: Ledger) -> None:
    job = sealed(any_ledger, images=2)
    finish(any_ledger, claim(any_ledger, job))
    images = {m.path for m in any_ledger.series_instances(SERIES)}
    result = f"results/{job}/1/2.25.1.dcm"
    assert any_ledger.known_paths({*images, result, "series/1.2/none.dcm"}) == {*images, result}
    many = {f"series/1.2/{n}.dcm" for n in range(1200)}
    assert any_ledger.known_paths(many | images) == images
    assert any_ledger.known_paths(set()) == set()
