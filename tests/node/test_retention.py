"""Retention: by age, by free disk, and never what is unfinished."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from node.ledger import Ledger
from node.ledger.schema import job as job_table
from node.records import Instance
from node.retention import Caretaker
from node.settings import Retention
from node.spool import Spool
from node.states import FINISHED, JobState
from tests.node.making import T0, files_below, in_state

DAY = 86400.0


def fill(ledger: Ledger, spool: Spool, series: str, state: JobState, size: int = 10) -> str:
    """A job in `state` whose images lie in the spool."""
    job = in_state(ledger, state, series)
    member: Instance
    for member in ledger.series_instances(series):
        path = spool.path(member.path)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
    if state in (JobState.SEGMENTED, JobState.DELIVERED, JobState.STORED):
        result = spool.root / "results" / job / "1" / "2.25.1.dcm"
        result.parent.mkdir(parents=True)
        result.write_bytes(b"result")
    return job


def left(spool: Spool) -> set[str]:
    """Series and jobs that still have files."""
    return {p.relative_to(spool.root).parts[1] for p in files_below(spool.root)}


def test_finished_jobs_leave_by_age_and_unfinished_ones_never(ledger: Ledger, spool: Spool) -> None:
    jobs = {state: fill(ledger, spool, f"1.2.{n}", state) for n, state in enumerate(JobState)}
    caretaker = Caretaker(ledger, spool, Retention(days=14, free_floor_mb=0, interval_s=600))
    everything = left(spool)
    assert caretaker.tick(T0 + 13.9 * DAY) == 600
    assert left(spool) == everything
    caretaker.tick(T0 + 15 * DAY)
    kept = {f"1.2.{n}" for n, state in enumerate(JobState) if state not in FINISHED}
    # The superseded job's series has a newer one, the stored shadow's its own: they are READY and need the images.
    kept |= {f"1.2.{list(JobState).index(state)}" for state in (JobState.SUPERSEDED, JobState.STORED)}
    kept |= {jobs[JobState.SEGMENTED]}
    assert left(spool) == kept
    for state, job in jobs.items():
        assert ledger.job(job).state is state
    caretaker.tick(T0 + 1000 * DAY)
    assert left(spool) == kept


def test_more_jobs_than_one_page_leave_in_one_round(ledger: Ledger, spool: Spool) -> None:
    in_state(ledger, JobState.SKIPPED)
    (row,) = ledger.jobs()
    with ledger._db.write() as connection:
        values = connection.execute(select(job_table)).mappings().one()
        copies = [{**values, "id": f"{n:032x}", "series_uid": f"{row.series_uid}.{n}"} for n in range(102)]
        connection.execute(insert(job_table), copies)
    Caretaker(ledger, spool, Retention(free_floor_mb=0)).tick(T0 + 15 * DAY)
    assert ledger.expendable(T0 + 99 * DAY) == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Spool]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here (needs root)")
    spool = Spool(folder)
    spool.prepare()
    yield spool
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_when_the_disk_runs_short_the_oldest_leave_early_until_it_does_not(ledger: Ledger, small: Spool) -> None:
    early = [JobState.DELIVERED, JobState.SKIPPED, JobState.CANCELLED, JobState.DELIVERED]
    for n, state in enumerate([JobState.FAILED, JobState.REJECTED, JobState.RUNNING, *early]):
        fill(ledger, small, f"1.2.{n}", state, size=300_000)  # three images each
    with ledger._db.write() as connection:  # one after another, in order
        connection.exec_driver_sql("UPDATE job SET updated_at = 1700000000 + substr(series_uid, 5)")
    assert small.free_bytes() < 3_000_000
    Caretaker(ledger, small, Retention(free_floor_mb=3)).tick(T0 + DAY)
    assert small.free_bytes() >= 3_000_000
    series = {name for name in left(small) if name.startswith("1.2.")}
    assert series == {"1.2.0", "1.2.1", "1.2.2", "1.2.5", "1.2.6"}, "the two oldest that nobody may still retry"
    Caretaker(ledger, small, Retention(free_floor_mb=10**6)).tick(T0 + DAY)
    assert left(small) == {"1.2.0", "1.2.1", "1.2.2"}, "a person may still retry the others"
