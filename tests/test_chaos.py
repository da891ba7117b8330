"""Processes are killed without warning in the middle of the work; no acknowledged series may be lost.

The PACS here is the product's own sink, which counts nothing: that a series came exactly once is told by the objects it
holds, since one series gives one derived SOP Instance UID whatever happened on the way.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from node.outgoing import describe
from node.scu import Address, send_files
from node.states import JobState
from tests.harness import Site, clean_environment, pennode, site, until
from tests.peers import free_port, redis_server
from workers.series import write_phantom

# Recovery is by lease and by repeated offer; both are short here, so that the test is.
HASTE = {
    "PENNODE_DISPATCH_LEASE_S": "3",
    "PENNODE_DISPATCH_REQUEUE_AFTER_S": "4",
    "PENNODE_DISPATCH_RETRY_AFTER_S": "1",
    "PENNODE_DISPATCH_MAX_ATTEMPTS": "50",
    "PENNODE_DELIVERY_BACKOFF_FIRST_S": "0.5",
    "PENNODE_DELIVERY_BACKOFF_MAX_S": "2",
    "PENNODE_WORKER_BATCH": "2",
}


@pytest.fixture(scope="module")
def spines(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    """Six phantoms, large enough for a kill to hit them at work."""
    return [
        write_phantom(tmp_path_factory.mktemp(f"spine{seed}"), shape=(12, 256, 192), seed=seed) for seed in range(6)
    ]


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    folder = tmp_path / "pacs"
    command = [sys.executable, "-m", "node.cli", "sink", "--out", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment()) as process:
        assert process.stdout is not None
        yield folder, json.loads(process.stdout.readline())["port"]
        process.terminate()


def send(address: str, series: list[Path]) -> None:
    """Send a series; every image must be acknowledged."""
    title, _, rest = address.partition("@")
    host, port = rest.split(":")
    peer = Address(title, host, int(port), "SCANNER")
    assert send_files([describe(p) for p in series], peer, 20.0, lambda _file, _note: None) == []


def assert_each_once(here: Site, folder: Path, spines: list[list[Path]]) -> None:
    jobs = here.wait_finished(len(spines), seconds=180)
    expected = {str(pydicom.dcmread(s[0], stop_before_pixels=True).SeriesInstanceUID) for s in spines}
    assert set(jobs) == expected
    assert {j.state for j in jobs.values()} == {JobState.DELIVERED}, [(j.state, j.reason) for j in jobs.values()]
    held = [pydicom.dcmread(f, stop_before_pixels=True) for f in folder.glob("*.dcm")]
    assert sorted(ds.ReferencedSeriesSequence[0].SeriesInstanceUID for ds in held) == sorted(expected)
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("broker", ["filesystem", "redis"])
def test_killed_in_the_middle_every_acknowledged_series_is_delivered_once(
    tmp_path: Path, spines: list[list[Path]], pacs: tuple[Path, int], broker: str
) -> None:
    folder, port = pacs
    dice = random.Random(20)
    with site(tmp_path, [("pacs", "PACS", port)], **HASTE) as here:
        # At a fixed address the node dies and comes back under a worker that goes on working.
        here.environment["PENNODE_API_PORT"] = api = str(free_port())
        # A worker that starts while the node is down must not look for the file that tells where it is.
        here.environment["PENNODE_WORKER_NODE_URL"] = f"http://127.0.0.1:{api}"
        redis = None
        if broker == "redis":
            redis = redis_server(tmp_path / "redis")
            here.environment["PENNODE_BROKER_URL"], redis_process = redis.__enter__()
        address = here.start_node()
        here.start("worker")
        for number, spine in enumerate(spines):
            send(address, spine)
            time.sleep(dice.uniform(0.2, 2.5))
            victim = ("worker", "node", "broker")[number % 3]
            if victim == "broker" and redis is not None:
                redis_process.kill()
                redis_process.wait()
                redis.__exit__(None, None, None)
                time.sleep(0.5)
                # Started again empty: a broker may lose everything it had.
                redis = redis_server(
                    tmp_path / f"redis{number}", int(here.environment["PENNODE_BROKER_URL"].split(":")[2][:-2])
                )
                _, redis_process = redis.__enter__()
            elif victim == "broker":
                for message in (here.state / "broker" / "queue").iterdir():
                    message.unlink(missing_ok=True)
            elif victim == "worker":
                here.kill("worker")
                here.start("worker")
            else:
                here.kill("node")
                address = here.start_node()
        try:
            assert_each_once(here, folder, spines)
        finally:
            if redis is not None:
                redis.__exit__(None, None, None)


def test_a_worker_killed_at_work_is_replaced_and_its_job_done_again(
    tmp_path: Path, spines: list[list[Path]], pacs: tuple[Path, int]
) -> None:
    folder, port = pacs
    with site(tmp_path, [("pacs", "PACS", port)], **HASTE) as here:
        address = here.start_node()
        here.start("worker")
        send(address, spines[0])
        until(lambda: any(j.state is JobState.RUNNING for j in here.jobs()), "the job runs")
        here.kill("worker")
        assert here.jobs()[0].state is JobState.RUNNING
        here.start("worker")
        assert_each_once(here, folder, spines[:1])
        assert here.jobs()[0].attempts == 2
        assert any("went silent" in entry.text for entry in here.ledger.journal(here.jobs()[0].id))


def test_a_destination_that_is_down_gets_its_results_later(tmp_path: Path, spines: list[list[Path]]) -> None:
    """The node is killed while it waits for the PACS, too."""
    folder = tmp_path / "late"
    with site(tmp_path, [("pacs", "PACS", 1)], **HASTE) as here:
        address = here.start_node("up")
        send(address, spines[0])
        until(lambda: any(j.state is JobState.SEGMENTED for j in here.jobs()), "the job is segmented", 90)
        until(lambda: "does not answer" in here.jobs()[0].reason, "the reason is shown")
        here.kill("up")
        command = [sys.executable, "-m", "node.cli", "sink", "--out", str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment()) as process:
            assert process.stdout is not None
            port = json.loads(process.stdout.readline())["port"]
            here.environment["PENNODE_DESTINATIONS"] = json.dumps(
                [{"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": port, "forms": ["SEG"]}]
            )
            here.start_node("up")
            assert_each_once(here, folder, spines[:1])
            process.terminate()


def test_a_killed_node_leaves_no_worker_behind(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        here.start_node("up")
        here.wait_for_worker()
        (name,) = [w.name for w in here.ledger.workers(0)]
        worker = int(name.rpartition("-")[2])
        here.processes["up"].kill()
        until(lambda: not Path(f"/proc/{worker}").exists() or None, "the worker ends", 30)


def test_two_nodes_cannot_share_a_state_folder(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        here.start_node()
        second = pennode("node", environment=here.environment)
        assert second.returncode == 1
        assert "another node runs" in second.stderr
        assert os.linesep not in second.stderr.strip()
