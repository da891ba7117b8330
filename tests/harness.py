"""The product as its users run it: `pennode` commands in processes of their own, which tests may kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from node.ledger import Ledger
from node.records import Job
from node.states import FINISHED, JobState

T = TypeVar("T")


def pennode(
    *arguments: str, environment: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "node.cli", *arguments],
        env=clean_environment() | (environment or {}), capture_output=True, text=True, check=False, timeout=240,
        **options,
    )  # fmt: skip


def clean_environment() -> dict[str, str]:
    """Return this process's environment without pennode's own variables."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PENNODE_")}


def until(probe: Callable[[], T | None], what: str, seconds: float = 60.0) -> T:
    """Ask until there is an answer; fail saying `what` did not happen."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        answer = probe()
        if answer is not None and answer is not False:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


@dataclass
class Site:
    """One node's state folder and settings, and the processes that run on it."""

    state: Path
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def ledger(self) -> Ledger:
        """A connection of our own to the ledger."""
        return Ledger(self.environment.get("PENNODE_LEDGER_URL") or f"sqlite:///{self.state / 'ledger.sqlite3'}")

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Start `pennode up`, `node` or `worker`."""
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state.parent / f"{command}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "node.cli", command],
                env=clean_environment() | self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes[command] = process
        return process

    def start_node(self, command: str = "node") -> str:
        """Start a node and return its DICOM address, AE@HOST:PORT, once it accepts associations."""
        (self.state / "node.json").unlink(missing_ok=True)
        process = self.start(command)

        def address() -> str | None:
            assert process.poll() is None, self.log(command)
            with contextlib.suppress(OSError, ValueError):
                return str(json.loads((self.state / "node.json").read_text())["dicom"])
            return None

        return until(address, "the node starts", 30)

    def wait_for_worker(self) -> None:
        """Wait until the node has heard of a worker within this run."""
        since = time.time() - 1
        until(lambda: self.ledger.workers(since) or None, f"a worker greets the node\n{self.log('worker')}", 60)

    def kill(self, command: str) -> None:
        """Kill a process and all its children without a word of warning."""
        process = self.processes.pop(command)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, command: str) -> str:
        """Return the end of a process's log."""
        path = self.state.parent / f"{command}.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def jobs(self) -> list[Job]:
        """Return all jobs."""
        return self.ledger.jobs(limit=1000)

    def wait_finished(self, count: int, seconds: float = 120.0) -> dict[str, Job]:
        """Wait until `count` jobs are there and all are at an end; return them by series UID."""

        def finished() -> list[Job] | None:
            jobs = [j for j in self.jobs() if j.state != JobState.SUPERSEDED]
            return jobs if len(jobs) >= count and all(j.state in FINISHED for j in jobs) else None

        try:
            jobs = until(finished, f"{count} finished jobs", seconds)
        except AssertionError as error:
            states = [(j.state, j.stage, j.reason) for j in self.jobs()]
            raise AssertionError(
                f"{error}: {states}\n{self.log('node')}\n{self.log('up')}\n{self.log('worker')}"
            ) from None
        return {job.series_uid: job for job in jobs}

    def stop(self) -> None:
        """End all processes, politely at first."""
        for process in self.processes.values():
            process.terminate()
        for command in list(self.processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes[command].wait(45)
            self.kill(command)


@contextlib.contextmanager
def site(
    folder: Path,
    destinations: Sequence[tuple[str, str, int]] = (),
    forms: Sequence[str] = ("SEG",),
    **environment: str,
) -> Iterator[Site]:
    """Make a site below `folder` that delivers `forms` to `(name, AE title, port)` destinations on loopback."""
    state = folder / "state"
    here = Site(
        state,
        {
            "PENNODE_STATE_DIR": str(state),
            "PENNODE_LISTENER_PORT": "0",
            "PENNODE_API_PORT": "0",
            "PENNODE_WEB_PORT": "0",
            "PENNODE_LISTENER_FREE_FLOOR_MB": "0",
            "PENNODE_RETENTION_FREE_FLOOR_MB": "0",
            "PENNODE_DESTINATIONS": json.dumps(
                [
                    {"name": n, "ae_title": ae, "host": "127.0.0.1", "port": port, "forms": forms}
                    for n, ae, port in destinations
                ]
            ),
        }
        | environment,
    )
    try:
        yield here
    finally:
        here.stop()
