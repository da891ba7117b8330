"""`make bench`: what a site will feel, measured on this machine and printed as one table.

Every figure is of real processes: `pennode up` on embedded defaults, `pennode send`, `pennode sink` as the PACS.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from rich.console import Console
from rich.table import Table

from node.records import Job
from tests.harness import Site, clean_environment, pennode, site, until
from workers.series import write_phantom

SHAPE = (20, 320, 256)


def tree(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in tree(int(child)))]


def memory_mb(pid: int, field: str = "Pss") -> float:
    """Return the proportional (Pss) or resident (Rss) memory of one process in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def serving_size_mb() -> float:
    """Return the size of pennode and all that it needs to serve, without extras, as installed here."""
    seen: set[str] = set()
    waiting, total = ["pennode"], 0
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # an optional need that this platform does not have
        total += size_of(found)
        for need in found.requires or []:
            wanted, _, marker = need.partition(";")
            extra = name == "celery" and "redis" in marker
            if "extra ==" not in marker or extra:
                waiting.append(re.split(r"[\s\[<>=!~(]", wanted.strip(), maxsplit=1)[0])
    root = Path(__file__).resolve().parents[1]
    ours = sum(f.stat().st_size for p in ("node", "workers", "trt") for f in (root / p).rglob("*") if f.is_file())
    return (total + ours) / 1e6


def size_of(found: Distribution) -> int:
    """Return the size of the files of one installed distribution, bytecode included."""
    return sum(path.stat().st_size for f in found.files or [] if (path := Path(str(f.locate()))).is_file())


def sealed_at(here: Site, job: Job) -> float:
    """Return when the job's series was sealed."""
    return next(e.at for e in here.ledger.journal(job.id) if e.after == "SEALED")


def one_round(folder: Path, seeds: range) -> dict[str, list[float]]:
    """Start a node, send phantoms one after another, and measure."""
    figures: dict[str, list[float]] = {k: [] for k in ("start", "idle", "wait", "work", "total", "busy", "busy_pss")}
    sink = [sys.executable, "-m", "node.cli", "sink", "--out", str(folder / "pacs")]
    with subprocess.Popen(sink, stdout=subprocess.PIPE, env=clean_environment()) as pacs:
        assert pacs.stdout is not None
        port = json.loads(pacs.stdout.readline())["port"]
        with site(folder, [("pacs", "PACS", port)]) as here:
            begun = time.monotonic()
            address = here.start_node("up")
            figures["start"].append(time.monotonic() - begun)
            here.wait_for_worker()
            time.sleep(5)
            node_pid = here.processes["up"].pid
            figures["idle"].append(memory_mb(node_pid, "Rss"))
            for count, seed in enumerate(seeds, start=1):
                series = write_phantom(folder / f"phantom{seed}", shape=SHAPE, seed=seed)
                sent = pennode("send", str(series[0].parent), "--to", address, "--json")
                last = json.loads(sent.stdout)["last_image_at"]
                peak = peak_pss = 0.0

                def done(count: int = count) -> bool:
                    nonlocal peak, peak_pss
                    workers = tree(node_pid)[1:]
                    peak = max(peak, sum(memory_mb(p, "Rss") for p in workers))
                    peak_pss = max(peak_pss, sum(memory_mb(p) for p in workers))
                    return len(list((folder / "pacs").glob("*.dcm"))) == count

                until(lambda: done() or None, "the segmentation comes", 120)
                newest = max((folder / "pacs").glob("*.dcm"), key=lambda f: f.stat().st_mtime)
                stored, sealed = newest.stat().st_mtime, sealed_at(here, here.jobs()[0])
                figures["wait"].append(sealed - last)
                figures["work"].append(stored - sealed)
                figures["total"].append(stored - last)
                figures["busy"].append(peak)
                figures["busy_pss"].append(peak_pss)
        pacs.terminate()
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the node on this machine.")
    parser.add_argument("--rounds", type=int, default=3, help="starts of the node")
    parser.add_argument("--series", type=int, default=3, help="series per start")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pooled: dict[str, list[float]] = {}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, values in one_round(Path(folder), range(number * 10, number * 10 + options.series)).items():
                pooled.setdefault(name, []).extend(values)
    size = serving_size_mb()
    rows = [
        ("last image acknowledged to SEG in the PACS, 20x320x256", "s", pooled["total"], "12"),
        ("  of which: wait for completeness", "s", pooled["wait"], ""),
        ("  of which: queue, segmentation, delivery", "s", pooled["work"], ""),
        ("start of `pennode up` to accepting associations", "s", pooled["start"], "6"),
        ("idle node, resident", "MB", pooled["idle"], "250"),
        ("worker at work, resident, parent and child added", "MB", pooled["busy"], "700"),
        ("worker at work, shared pages counted once", "MB", pooled["busy_pss"], ""),
        ("installed serving environment", "MB", [size], "900"),
    ]
    if options.json:
        Console().print_json(json.dumps({name.strip(): values for name, _, values, _ in rows}))
        return
    table = Table("figure", "unit", "median", "worst", "target below", title=f"pennode on {os.cpu_count()} cores")
    for name, unit, values, target in rows:
        table.add_row(name, unit, f"{statistics.median(values):.1f}", f"{max(values):.1f}", target)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
