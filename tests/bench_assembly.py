"""`make bench-assembly`: how long a series waits after its last image, by how it arrives, and what decided.

A real node receives over real associations on loopback; times are those of its journal. What must not be sealed early
says so by a second revision, which is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from node.evidence import Source, Weighing, Weight
from node.ledger import Ledger
from tests import arrivals
from tests.arrivals import Arrival, Pattern
from tests.harness import Site, site, until
from tests.peers import orthanc

BOUND_S = 1.5
# What nobody ends is sealed after this; the default of 120 s would only make the benchmark longer.
OPEN_S = 15.0
PATIENCE_S = 30.0
# Series of a sender until its rhythm counts as known.
LEARNED = 20


@dataclass(frozen=True)
class Case:
    """A pattern, how many series arrive so at a time, and whether the evidence is meant to be strong."""

    name: str
    send: Pattern
    strong: bool = True
    at_once: int = 4
    calling: str = ""
    bound_s: float = BOUND_S


@dataclass
class Found:
    """What was measured of one case."""

    waits: list[float] = field(default_factory=list)
    early: int = 0
    decided: Counter[str] = field(default_factory=Counter)


def cases(rounds: int) -> list[Case]:
    """Return the patterns in their order: those that wait long let all of their series wait together."""
    return [
        Case("steady", arrivals.steady),
        Case("bursty", arrivals.bursty),
        Case("two associations at once", arrivals.two_associations),
        Case("split over two hosts", arrivals.two_hosts),
        Case("reversed order", arrivals.reversed_order),
        Case("one image per association", arrivals.image_by_image),
        Case("two series interleaved", arrivals.interleaved),
        Case("two echoes, Images in Acquisition", arrivals.two_echoes),
        Case("the whole series sent again", arrivals.sent_again),
        Case(f"one slice {arrivals.LATE_S:g} s late", arrivals.one_slice_late, at_once=rounds),
        Case("one slice never comes", arrivals.never_whole, strong=False, at_once=rounds),
        Case("association never released", arrivals.never_released, strong=False, at_once=rounds),
    ]


def mute_cases(rounds: int) -> list[Case]:
    """Return the patterns of images that tell nothing of being all: the sender is learned, or asked."""
    first = Case("no numbers, no positions, sender unknown", arrivals.telling_nothing, False, rounds, "MUTE")
    return [first, Case("the same, sender known", arrivals.telling_nothing, False, 4, "MUTE")]


def part_cases(rounds: int) -> list[Case]:
    """Return the pattern of several associations a series: each part looks whole, so that the sender is learned."""
    name, send = "several images per association", arrivals.part_by_part
    bound_s = 2 * arrivals.PART_S + 0.5  # twice what is usual with the sender
    return [
        Case(f"{name}, sender unknown", send, False, rounds, "PARTS"),
        Case(f"{name}, sender known", send, True, 4, "PARTS", bound_s),
    ]


def decided_by(weighed: Weighing) -> str:
    """Put a seal's reason into a word or two."""
    if "open association" in weighed.outcome:
        return "open association"
    if weighed.outcome.startswith("incomplete"):
        return "patience"
    if weighed.outcome.startswith("nothing came"):
        return "silence"
    sources = [p.source for p in weighed.pieces if p.weight is Weight.FOR and p.source is not Source.ASSOCIATION]
    return "count at the sender" if Source.COUNT in sources else ", ".join(sources)


def seals(ledger: Ledger, arrival: Arrival) -> list[float] | None:
    """Return when each revision of a series was sealed, by the journal; None until one has all images."""
    jobs = [j for j in ledger.jobs(text=arrival.series_uid) if j.series_uid == arrival.series_uid]
    if not any(j.instances == arrival.whole for j in jobs):
        return None
    return [e.at for e in ledger.journal(jobs[0].id) if e.after == "SEALED"]


def run(here: Site, ledger: Ledger, port: int, number: int, case: Case, rounds: int) -> Found:
    """Let series arrive so, and measure."""
    calling = case.calling or f"BENCH{number}"
    with ThreadPoolExecutor(case.at_once) as pool:
        uids = [f"1.2.3.{number}.{n}" for n in range(1, rounds + 1)]
        sent = [a for batch in pool.map(lambda uid: case.send(port, calling, uid), uids) for a in batch]
    found = Found()
    with arrivals.finished(sent):
        for arrival in sent:
            settle(ledger, arrival, found)
    return found


def settle(ledger: Ledger, arrival: Arrival, found: Found) -> None:
    """Wait until a series is sealed with all of its images, and note how that came."""
    at = until(lambda: seals(ledger, arrival), f"{arrival.series_uid} is sealed", 120)
    found.waits.append(at[-1] - arrival.last_at)
    found.early += len(at) - 1
    weighed = ledger.weighing(arrival.series_uid, len(at))
    assert weighed is not None
    found.decided[decided_by(weighed)] += 1


@contextlib.contextmanager
def counting_pacs(folder: Path) -> Iterator[int | None]:
    """Run Orthanc, which can be asked how many images it has; None where it is not installed."""
    if shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        yield None
        return
    with orthanc(folder) as pacs:
        yield pacs.dicom_port


def through(pacs_port: int) -> Pattern:
    """Return a pattern of images that tell nothing, which lie in a PACS before it sends them."""

    def send(port: int, calling: str, series_uid: str) -> list[Arrival]:
        arrivals.telling_nothing(pacs_port, "BENCH", series_uid)
        return arrivals.telling_nothing(port, calling, series_uid)

    return send


def measure(rounds: int, folder: Path) -> dict[Case, Found]:
    """Run every pattern against one node."""
    results: dict[Case, Found] = {}
    with counting_pacs(folder / "orthanc") as pacs_port:
        peers = [{"name": "pacs", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": pacs_port, "count": True}]
        settings = {
            "PENNODE_ASSEMBLY_OPEN_S": str(OPEN_S), "PENNODE_ASSEMBLY_PATIENCE_S": str(PATIENCE_S),
            "PENNODE_SELECTION_MODALITIES": '["CT"]', "PENNODE_PEERS": json.dumps(peers if pacs_port else []),
            "PENNODE_LISTENER_MAX_ASSOCIATIONS": "256", "PENNODE_LISTENER_MAX_ASSOCIATIONS_PER_PEER": "256",
        }  # fmt: skip
        with site(folder, **settings) as here:
            port = int(here.start_node().rpartition(":")[2])
            ledger = here.ledger
            listed = [(case, rounds) for case in cases(rounds)]
            for unknown, known in (mute_cases(LEARNED), part_cases(LEARNED)):
                listed += [(unknown, LEARNED), (known, rounds)]
            if pacs_port:
                listed.append((Case("the same, asked at the PACS", through(pacs_port), calling="ORTHANC"), rounds))
            for number, (case, times) in enumerate(listed, start=1):
                print(f"{case.name} …", file=sys.stderr)
                results[case] = run(here, ledger, port, number, case, times)
            ledger.close()
    return results


def quantile(values: list[float], share: float) -> float:
    """Return the smallest value that `share` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def main() -> None:
    """Measure and print; exit 1 when strong evidence took longer than the bound, or a series was sealed too early."""
    parser = argparse.ArgumentParser(description="Measure how long series wait to be sealed.")
    parser.add_argument("--rounds", type=int, default=20, help="series per pattern")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options.rounds, Path(folder))
    held = all(quantile(f.waits, 0.95) < c.bound_s and not f.early for c, f in results.items() if c.strong)
    if options.json:
        figures = {c.name: {"waits": f.waits, "early": f.early, "decided": f.decided} for c, f in results.items()}
        Console().print_json(json.dumps(figures))
        sys.exit(0 if held else 1)
    table = Table("how it arrives", "series", "p50 s", "p95 s", "worst s", "sealed early", "decided by")
    for case, found in results.items():
        decided = "; ".join(f"{word} ({n})" if len(found.decided) > 1 else word for word, n in found.decided.items())
        times = (statistics.median(found.waits), quantile(found.waits, 0.95), max(found.waits))
        table.add_row(case.name, str(len(found.waits)), *(f"{t:.2f}" for t in times), str(found.early), decided)
    console = Console(width=150)
    console.print(f"last image acknowledged to sealed; open_s = {OPEN_S:g}, patience_s = {PATIENCE_S:g}, else defaults")
    console.print(table)
    console.print(
        f"strong evidence below {BOUND_S} s at p95 (parts: 2 pauses), none early: {'held' if held else 'NOT HELD'}"
    )
    console.print(f"{time.monotonic() - begun:.0f} s on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
