"""How fast C-STORE receivers are, ours beside DCMTK, Orthanc and stock pynetdicom: `make bench-ingest`.

Everything runs on this machine over loopback, each receiver in a process of its own with an empty folder, interleaved:
one round is every receiver once, so that what else the machine does hits all alike. Read the ratios. DCMTK's programs
get TCP_NODELAY=1: without it each image stalls for 40 ms on both sides, and any comparison flatters.

"ours, no fsync" exists here only: no setting of the node takes durability away. Where TMPDIR points decides much: to a
folder of the disk that a node would use, in which little was deleted within the last minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import uid

from tests import presend
from tests.node.making import mr, write

RECEIVERS = ("dcmtk", "orthanc", "orthanc fsync", "pynetdicom", "ours", "ours no fsync")
SENDERS = ("presend", "storescu", "dcmsend")
# kB: (rows, columns, frames, how many)
SIZES = {128: (256, 256, 1, 480), 577: (544, 530, 1, 240), 50000: (500, 500, 100, 16)}
_NODELAY = {"TCP_NODELAY": "1"}
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measured:
    """One run: objects per second, CPU milliseconds of the receiver per object, its peak RSS in MB, median answer."""

    rate: float
    cpu_ms: float
    rss_mb: float
    p50_ms: float


def make(folder: Path, kilobytes: int) -> list[Path]:
    """Write the objects of one size."""
    rows, columns, frames, count = SIZES[kilobytes]
    noise = np.random.default_rng(kilobytes).integers(0, 4096, rows * columns * frames, "<u2")
    paths = []
    for number in range(1, count + 1):
        ds = mr(number, f"1.2.3.{kilobytes}", Rows=rows, Columns=columns)
        if frames > 1:
            ds.SOPClassUID, ds.NumberOfFrames = uid.EnhancedMRImageStorage, frames
        ds.PixelData = np.roll(noise, number).tobytes()
        paths.append(write(ds, folder / f"{number:04d}.dcm"))
    return paths


class Watch(threading.Thread):
    """Looks at a process and its children: CPU seconds so far, peak of the RSS in sum."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self.peak_mb = 0.0

    def run(self) -> None:
        while not self._ended.wait(0.05):
            self.peak_mb = max(self.peak_mb, sum(_rss_mb(pid) for pid in self._family()))

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def cpu_s(self) -> float:
        """CPU of the process, its children, and children that have ended."""
        total = 0
        for pid in self._family():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += sum(map(int, fields[11:15] if pid == self._pid else fields[11:13]))
        return total / _TICK

    def _family(self) -> list[int]:
        children: list[int] = []
        for task in Path(f"/proc/{self._pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children += map(int, task.read_text().split())
        return [self._pid, *children]


def _rss_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


@contextlib.contextmanager
def receiver(name: str, folder: Path) -> Iterator[tuple[int, int]]:
    """Run a receiver in an empty folder; yield its port and process id."""
    folder.mkdir()
    port = _free_port()
    environment = os.environ | _NODELAY
    if name == "dcmtk":
        (folder / "in").mkdir()
        command = ["storescp", "--fork", "--max-pdu", "131072", "+B", "-od", str(folder / "in"), str(port)]
    elif name.startswith("orthanc"):
        configuration = {
            "StorageDirectory": str(folder / "store"), "IndexDirectory": str(folder / "store"), "DicomPort": port,
            "HttpServerEnabled": False, "DicomAlwaysAllowStore": True, "UnknownSopClassAccepted": True, "Plugins": [],
            "SyncStorageArea": name.endswith("fsync"), "MaximumPduLength": 131072, "DicomAet": "ORTHANC",
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(configuration))
        command = ["Orthanc", str(folder / "orthanc.json")]
    else:
        command = [sys.executable, "-m", "tests.bench_ingest", "--serve", name, str(port), str(folder)]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=Path(__file__).resolve().parents[1]
        ) as process,
    ):
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if process.poll() is not None:
                    raise RuntimeError((folder / "log").read_text(errors="replace")[-2000:])
                time.sleep(0.05)
            time.sleep(0.3)
            yield port, process.pid
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def _free_port() -> int:
    """A port below those that the kernel gives to outgoing connections, one of which might else take it first."""
    for port in random.sample(range(20000, 32000), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def serve(name: str, port: int, folder: Path) -> None:
    """Be one of the receivers in Python, until killed."""
    if name == "pynetdicom":
        _serve_pynetdicom(port, folder)
        return
    from sqlalchemy import event

    from node.ledger import Ledger
    from node.listener import Door
    from node.settings import Listener
    from node.spool import Spool

    durable = name == "ours"
    ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite3'}")
    if not durable:
        print("BENCHMARK: nothing is flushed to disk; never run a node like this", flush=True)

        @event.listens_for(ledger._db.engine, "connect")
        def careless(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute("PRAGMA synchronous=OFF")

    ledger.migrate()
    spool = Spool(folder / "spool") if durable else Spool(folder / "spool", sync=lambda _handle: None)
    spool.prepare()
    Door(ledger, spool, Listener(port=port, max_associations=200), changed=lambda: None).start()
    threading.Event().wait()


def _serve_pynetdicom(port: int, folder: Path) -> None:
    from pynetdicom import AE, _config, evt

    from node.storage_classes import STORAGE_CLASSES, TRANSFER_SYNTAXES

    _config.LOG_HANDLER_LEVEL = "none"
    ae = AE()
    ae.maximum_associations, ae.maximum_pdu_size = 64, 131072
    ae.add_supported_context("1.2.840.10008.1.1")
    for sop_class in STORAGE_CLASSES:
        ae.add_supported_context(sop_class, TRANSFER_SYNTAXES)

    def store(one: evt.Event) -> int:
        target = folder / f"{one.request.AffectedSOPInstanceUID}.dcm"
        part = target.with_suffix(".part")
        part.write_bytes(one.encoded_dataset())
        part.replace(target)
        return 0

    ae.start_server(("127.0.0.1", port), block=True, evt_handlers=[(evt.EVT_C_STORE, store)])


def measure(
    name: str, folder: Path, sender: str, associations: int, files: list[Path], objects: list[presend.Sent]
) -> Measured:
    """Send everything once to a fresh receiver, which stores below `folder`."""
    try:
        with receiver(name, folder) as (port, pid):
            watch = Watch(pid)
            watch.start()
            cpu = watch.cpu_s()
            start = time.perf_counter()
            taken = [0.0]
            if sender == "presend":
                taken = presend.send(port, objects, associations)
            else:
                _send_dcmtk(sender, port, files, associations)
            seconds = time.perf_counter() - start
            time.sleep(0.2)
            cpu = watch.cpu_s() - cpu
            watch.stop()
        return Measured(len(files) / seconds, cpu * 1000 / len(files), watch.peak_mb, statistics.median(taken) * 1000)
    finally:
        os.sync()  # what is still to be written must not slow the next one down


def _send_dcmtk(sender: str, port: int, files: list[Path], associations: int) -> None:
    option = ["-aec", "PENNODE", *(["-R"] if sender == "storescu" else [])]  # which every receiver takes
    running = [
        subprocess.Popen(
            [sender, *option, "127.0.0.1", str(port), *map(str, files[n::associations])], env=os.environ | _NODELAY,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for n in range(associations)
    ]  # fmt: skip
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError(f"{sender} failed")


def idle(associations: int = 100, seconds: float = 5.0) -> float:
    """Return how much of a core our listener takes for associations that do nothing."""
    folder = Path(tempfile.mkdtemp())
    try:
        with receiver("ours", folder / "receiver") as (port, pid), contextlib.ExitStack() as stack:
            for number in range(associations):
                context = [(b"1.2.840.10008.1.1", b"1.2.840.10008.1.2")]
                stack.enter_context(presend.associate(port, context, f"127.0.0.{2 + number // 20}"))
            watch = Watch(pid)
            before = watch.cpu_s()
            time.sleep(seconds)
            return (watch.cpu_s() - before) / seconds
    finally:
        shutil.rmtree(folder)


def one_series(rounds: int = 9) -> dict[str, float]:
    """Return the median seconds from connecting to released for 24 images of 577 kB, one series after another."""
    taken: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        objects = [presend.load(file) for file in make(Path(folder), 577)]
        ports = {
            name: stack.enter_context(receiver(name, Path(folder) / f"to {name}"))[0] for name in ("dcmtk", "ours")
        }
        for turn in range(rounds):
            for name, port in ports.items():
                start = time.perf_counter()
                presend.send(port, objects[24 * turn : 24 * turn + 24])
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def large_objects(count: int = 16, length: int = 500_000_000) -> tuple[float, float]:
    """Return the RSS of our listener in MB before, and at its peak while large objects come at the same time."""
    with tempfile.TemporaryDirectory() as folder, receiver("ours", Path(folder) / "receiver") as (port, pid):
        beginnings = []
        for number in range(1, count + 1):
            ds = mr(number, "1.2.3.9")
            del ds.PixelData
            beginnings.append(presend.load(write(ds, Path(folder) / f"{number}.dcm")))
        presend.send(port, [presend.load(file) for file in make(Path(folder), 128)[:10]])
        before = _rss_mb(pid)
        watch = Watch(pid)
        watch.start()
        senders = [threading.Thread(target=presend.send_large, args=(port, b, length)) for b in beginnings]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        watch.stop()
        stored = [file.stat().st_size for file in Path(folder).rglob("1.2.3.9/*.dcm")]
        if len(stored) != count or min(stored) < length:
            raise RuntimeError(f"{len(stored)} of {count} large objects were stored")
        return before, watch.peak_mb


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=3, metavar=("NAME", "PORT", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--receivers", nargs="+", choices=RECEIVERS, default=RECEIVERS)
    parser.add_argument("--senders", nargs="+", choices=SENDERS, default=SENDERS)
    parser.add_argument("--associations", nargs="+", type=int, default=(1, 4, 16))
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=tuple(SIZES))
    parser.add_argument("--large", action="store_true", help="send 16 objects of 500 MB as well (8 GB of disk)")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve[0], int(arguments.serve[1]), Path(arguments.serve[2]))
        return
    receivers = [r for r in arguments.receivers if not r.startswith("orthanc") or shutil.which("Orthanc")]
    print(f"{os.cpu_count()} cores; {arguments.rounds} rounds; median [least, most]; ratio to DCMTK's median")
    print(f"{'kB':>6} {'sender':9} {'assoc':>5} {'receiver':14} {'images/s':>22} {'ratio':>6} {'CPU ms':>8}", end="")
    print(f" {'RSS MB':>7} {'p50 ms':>7}")
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as name:
            files = make(Path(name), size)
            objects = [presend.load(f) for f in files]
            for sender in arguments.senders:
                for associations in arguments.associations:
                    table(size, sender, associations, receivers, arguments.rounds, files, objects)
    series = one_series()
    print(f"24 images of 577 kB, connect to release: DCMTK {series['dcmtk'] * 1000:.0f} ms, ", end="")
    print(f"ours, durable, {series['ours'] * 1000:.0f} ms ({series['ours'] / series['dcmtk']:.2f}x)")
    print(f"100 idle associations: {idle() * 100:.1f} % of a core")
    if arguments.large:
        before, peak = large_objects()
        print(f"16 objects of 500 MB at the same time: RSS {before:.0f} MB before, {peak:.0f} MB at most")


def table(
    size: int, sender: str, associations: int, receivers: list[str], rounds: int, files: list[Path],
    objects: list[presend.Sent],
) -> None:  # fmt: skip
    """Measure and print one block."""
    runs: dict[str, list[Measured]] = defaultdict(list)
    # Everything is deleted at the end only: ext4 passes over inodes that were freed a moment ago, one by one, so that
    # what one run deletes makes each new file of the next one slow.
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for name in receivers:
                where = Path(folder, f"{turn} {name}")
                runs[name].append(measure(name, where, sender, associations, files, objects))
    reference = statistics.median(m.rate for m in runs["dcmtk"]) if "dcmtk" in runs else float("nan")
    for name, all_of_it in runs.items():
        rates = [m.rate for m in all_of_it]
        rate = statistics.median(rates)
        cpu, rss, p50 = (
            statistics.median(getattr(m, field) for m in all_of_it) for field in ("cpu_ms", "rss_mb", "p50_ms")
        )
        spread = f"{rate:.1f} [{min(rates):.1f}, {max(rates):.1f}]"
        print(f"{size:6} {sender:9} {associations:5} {name:14} {spread:>22} {rate / reference:6.2f} {cpu:8.2f}", end="")
        print(f" {rss:7.0f} {p50:7.2f}", flush=True)


if __name__ == "__main__":
    main()
