"""A listener as a process of its own, and what it costs: memory, threads, file descriptors, temporary files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom import uid

from node import statuses
from tests import presend
from tests.node.making import SERIES, encoded, mr
from tests.presend import Sent, associate, echo_request, pdu, pdv, read_pdu, status_of
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
MR, EXPLICIT = uid.MRImageStorage.encode(), b"1.2.840.10008.1.2.1"
CONTEXTS = [(MR, EXPLICIT), (b"1.2.840.10008.1.1", b"1.2.840.10008.1.2"), (uid.CTImageStorage.encode(), EXPLICIT)]
GOOD = "127.0.0.2"
QUICK = {
    "artim_s": 0.4, "pdu_timeout_s": 0.6, "network_timeout_s": 0.8, "min_rate": 4096, "max_object_mb": 8,
    "max_waiting": 40, "max_waiting_per_peer": 20,
}  # fmt: skip
# Fifteen associations have buffers of 0.5 MB each, of which they use what comes.
BOUND_MB = 12


def image(number: int = 1, size: int = 16) -> Sent:
    return Sent(MR, f"{SERIES}.{number}".encode(), EXPLICIT, encoded(mr(number, size=size)))


@dataclass
class Child:
    """A listener as a process, and what it has; `echo_s` is how soon it has to answer."""

    pid: int
    port: int
    folder: Path
    echo_s: float

    def status(self, name: str) -> int:
        """A number of /proc/PID/status; memory in kB."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))

    def open_files(self) -> list[str]:
        """What its file descriptors are, without the ledger's, of which a pool keeps some.

        Files that are kept ready are closed for it: an open file without a name is one that was left.
        """
        os.kill(self.pid, signal.SIGUSR1)
        found = []
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(str(descriptor.readlink()))
        return [name for name in found if "ledger.sqlite3" not in name]

    def has_no_file_open(self) -> bool:
        """Tell whether it has no file of the spool open, as it should be when nobody sends."""
        return not any("/spool/" in name for name in self.open_files())

    def temporary(self) -> list[Path]:
        return list((self.folder / "spool" / "tmp").iterdir())


@contextlib.contextmanager
def listening(folder: Path, ledger: Path, **settings: object) -> Iterator[Child]:
    """Run a listener below `folder`, which has filled its caches: an echo, and an image on several associations."""
    shutil.copy(ledger, folder / "ledger.sqlite3")
    command = [sys.executable, "-m", "tests.node.listening_child", str(folder), json.dumps({**QUICK, **settings})]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        child = Child(process.pid, int(process.stdout.readline()), folder, 1.0 if settings["fast_path"] else 3.0)
        try:
            with contextlib.ExitStack() as stack:
                for peer in [stack.enter_context(associate(child.port, CONTEXTS, GOOD)) for _ in range(8)]:
                    assert store(peer, image(1000)) == statuses.SUCCESS
            echo(child.port, child.echo_s)
            yield child
            assert process.poll() is None, "the listener has died"
        finally:
            process.kill()


@contextlib.contextmanager
def bounded(child: Child, bound_mb: float = BOUND_MB) -> Iterator[list[socket.socket]]:
    """Hold the block, which puts those it leaves connected into the list given, to what this module promises."""
    until(lambda: child.status("Threads") <= 4, 10)
    until(child.has_no_file_open)
    threads, files = child.status("Threads"), len(child.open_files())
    Path(f"/proc/{child.pid}/clear_refs").write_text("5")  # the peak begins anew
    before = child.status("VmRSS")
    connected: list[socket.socket] = []
    try:
        yield connected
        echo(child.port, child.echo_s)
        until(lambda: child.status("Threads") <= threads, 10)
        until(lambda: len(child.open_files()) <= files)
        until(lambda: child.temporary() == [])
        echo(child.port, child.echo_s)
        grown = (child.status("VmHWM") - before) / 1000
        print(f"{grown:.1f} MB")
        assert grown <= bound_mb, "memory"
    finally:
        for peer in connected:
            peer.close()


def echo(port: int, within_s: float = 1.0) -> None:
    """A C-ECHO from another peer, with everything that belongs to it, in time."""
    start = time.monotonic()
    with associate(port, CONTEXTS, GOOD, timeout=within_s) as peer:
        peer.sendall(pdu(4, pdv(3, 3, echo_request())))
        kind, answer = read_pdu(peer)
        assert (kind, status_of(answer)) == (4, 0)
        peer.sendall(pdu(5, bytes(4)))
        assert read_pdu(peer)[0] == 6
    assert time.monotonic() - start < within_s


def store(peer: socket.socket, sent: Sent, context: int = 1) -> int:
    peer.sendall(presend.message(sent, context, 16384))
    kind, answer = read_pdu(peer)
    assert kind == 4
    return status_of(answer)
