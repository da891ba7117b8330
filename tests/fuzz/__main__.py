"""Fuzzes the targets one after another, with what is kept and what earlier runs found as their beginning.

``python -m tests.fuzz [TARGET …] [--runs N | --seconds S] [--keep]``; ``--replay TARGET FILE`` runs one input again.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import TARGETS

KEPT = Path(__file__).parent / "corpus"
_STATISTICS = {
    "runs": "number_of_executed_units", "new": "new_units_added", "slowest s": "slowest_unit_time_sec",
    "peak MB": "peak_rss_mb",
}  # fmt: skip
# A single input may take this long on a clock, which other work on the machine moves too, and the process this much
# memory; what takes more is kept as a fault. CPU time has a tighter bound in `drive`.
_TIMEOUT_S, _MEMORY_MB = 300, 512


def main() -> None:
    """Fuzz; exit with 1 where an input broke a law."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="default: all")
    parser.add_argument("--runs", type=int, default=0, help="inputs for each target")
    parser.add_argument("--seconds", type=int, default=30, help="time for each target, where --runs is not given")
    parser.add_argument("--found", type=Path, default=Path("out/fuzz"), help="where finds are kept between runs")
    parser.add_argument("--keep", action="store_true", help="add to the kept corpus what reaches more than it does")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"), help="run one input")
    chosen = parser.parse_args()
    if chosen.replay:
        name, file = chosen.replay
        importlib.import_module(f"tests.fuzz.{name}").check(Path(file).read_bytes())
        return
    if importlib.util.find_spec("atheris") is None:
        sys.exit("atheris is not installed: pip install -c constraints.txt -e '.[fuzz]'")
    limit = [f"-runs={chosen.runs}"] if chosen.runs else [f"-max_total_time={chosen.seconds}"]
    failed = [name for name in chosen.targets or TARGETS if not _fuzz(name, chosen.found, limit)]
    if chosen.keep and not failed:
        for name in chosen.targets or TARGETS:
            _keep(name, chosen.found)
    sys.exit(1 if failed else 0)


def _fuzz(name: str, found: Path, limit: list[str]) -> bool:
    """Fuzz one target and print a line about it."""
    own, faults = found / name, found / "faults" / name
    for folder in (own, faults, KEPT / name):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as seeds:
        _write_seeds(name, Path(seeds))
        start = time.monotonic()
        done = _drive(
            name, [*limit, f"-timeout={_TIMEOUT_S}", f"-rss_limit_mb={_MEMORY_MB}", f"-artifact_prefix={faults}/",
                   "-print_final_stats=1", "-len_control=20", str(own), str(KEPT / name), seeds]
        )  # fmt: skip
    output = done.stderr
    told = {k: (re.findall(rf"stat::{v}:\s+(\d+)", output) or ["?"])[-1] for k, v in _STATISTICS.items()}
    coverage = (re.findall(r"cov: (\d+)", output) or ["?"])[-1]
    print(
        f"{name:12} {', '.join(f'{v} {k}' for k, v in told.items())}, {coverage} edges, "
        f"{time.monotonic() - start:.0f} s{'' if done.returncode == 0 else ', FAILED'}",
        flush=True,
    )
    if done.returncode:
        print(
            done.stdout[-3000:],
            output[-1500:],
            f"again: python -m tests.fuzz --replay {name} FILE, of {faults}",
            sep="\n",
        )
    return done.returncode == 0


def _keep(name: str, found: Path) -> None:
    """Add to the kept corpus those finds of at most 2 kB that reach what it does not."""
    _write_seeds(name, KEPT / name)
    small = found / "small" / name
    small.mkdir(parents=True, exist_ok=True)
    for file in (found / name).iterdir():
        if file.stat().st_size <= 2048:
            (small / file.name).write_bytes(file.read_bytes())
    again = found / f"again-{name}"  # merging starts itself anew, by the name that it was started with
    again.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.fuzz.drive {name} "$@"\n')
    again.chmod(0o755)
    _drive(name, ["-merge=1", str(KEPT / name), str(small)], {"PENNODE_FUZZ_AGAIN": str(again.resolve())})
    kept = list((KEPT / name).iterdir())
    print(f"{name:12} keeps {len(kept)} inputs, {sum(f.stat().st_size for f in kept) / 1000:.0f} kB")


def _write_seeds(name: str, folder: Path) -> None:
    for seed, data in importlib.import_module(f"tests.fuzz.{name}").seeds().items():
        (folder / seed).write_bytes(data)


def _drive(
    name: str, options: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    memory = Path("/dev/shm")
    # The fuzzer leaves without a word to Python's exit handlers: what it has left behind goes with this folder.
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="pennode-fuzz-") as scratch:
        return subprocess.run(
            [sys.executable, "-m", "tests.fuzz.drive", name, *options],
            capture_output=True,
            text=True,
            check=False,
            errors="replace",
            env={**os.environ, **(environment or {}), "TMPDIR": scratch},
            preexec_fn=lambda: os.nice(10),
        )


if __name__ == "__main__":
    main()
