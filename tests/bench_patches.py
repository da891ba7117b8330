"""`make bench-patches`: what cutting into patches and blending costs, and how long others take with the same network.

Every contender turns the same normalised phantom into a mask, with the same weights, and where it has patches, of the
same size and overlap. They take turns, and each is compared with ours at its precision in the same round: what else
the machine does falls on all. CPU seconds are of all threads, and tell more than the clock where the machine is busy.
Peaks are each of a process of its own that segments one series; see `tests.peaks`.

The largest series takes a quarter of an hour and more by every contender: --sizes, --only and --precision choose, and
it has one round where --rounds does not say otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.table import Table

from tests.contenders import CONTENDERS, OURS, Contender, Mask, Shape
from tests.peaks import parse, peak_mb, pipeline_peak_mb, series, text
from tests.runtimes import Setting
from trt.engine import PRECISIONS, EngineError, cores
from trt.manifest import DEFAULT_MODEL, load
from trt.patches import Array, count_patches

SHAPES: tuple[Shape, ...] = ((20, 320, 256), (24, 512, 512), (192, 512, 512))
HUGE: Shape = (400, 1024, 1024)
ROUNDS, MANY = 3, 64  # rounds of a series, and slices from which on there is one


@dataclass(frozen=True)
class Row:
    """A contender on series of one shape: of each round, seconds by the clock, CPU seconds, and those over ours.

    `alike` is the share of voxels labelled as by ours at f32; `peak_mb` is of a process that does this and no more.
    """

    shape: str
    name: str
    precision: str
    wall_s: list[float]
    cpu_s: list[float]
    wall_ratio: list[float]
    cpu_ratio: list[float]
    alike: float | None
    peak_mb: float | None


def compare(
    shape: Shape, setting: Setting, rounds: int, contenders: list[Contender]
) -> tuple[list[Row], dict[str, str]]:
    """Let contenders take turns; also why some could not."""
    volume = series(shape, setting)
    refused: dict[str, str] = {}
    with ExitStack() as stack:
        ready: dict[tuple[str, str], Callable[[Array], Mask | None]] = {}
        for contender in contenders:
            try:
                run = stack.enter_context(contender.open(replace(setting, precision=contender.precision), shape))
            except EngineError as error:
                refused[f"{contender.name} {contender.precision}"] = str(error)
            else:
                ready[contender.name, contender.precision] = run
        middle = _middle(volume, setting.batch)
        for run in ready.values():  # warms up, and compiles
            run(middle)
        masks: dict[tuple[str, str], Mask | None] = {}
        wall: dict[tuple[str, str], list[float]] = {key: [] for key in ready}
        cpu: dict[tuple[str, str], list[float]] = {key: [] for key in ready}
        for number in range(rounds):
            order = list(ready.items())
            for key, run in order[number % len(order) :] + order[: number % len(order)]:
                print(f"{text(shape)}: round {number + 1} of {rounds}: {' '.join(key)}", file=sys.stderr)
                began, began_cpu = time.perf_counter(), time.process_time()
                masks[key] = run(volume)
                wall[key].append(time.perf_counter() - began)
                cpu[key].append(time.process_time() - began_cpu)
    ours = masks[OURS, "f32"]
    rows = []
    for name, precision in ready:
        mask, beside = masks[name, precision], (OURS, precision) if (OURS, precision) in wall else (OURS, "f32")
        rows.append(
            Row(
                shape=text(shape),
                name=name,
                precision=precision,
                wall_s=wall[name, precision],
                cpu_s=cpu[name, precision],
                wall_ratio=[a / b for a, b in zip(wall[name, precision], wall[beside], strict=True)],
                cpu_ratio=[a / b for a, b in zip(cpu[name, precision], cpu[beside], strict=True)],
                alike=None if mask is None else float((mask == ours).mean()),
                peak_mb=None,
            )
        )
    return rows, refused


def _middle(volume: Array, batch: int) -> Array:
    """Slices enough for every size of batch that the whole volume (Z, Y, X) asks for, and no more; spine in them."""
    depth = min(len(volume), batch + len(volume) % batch)
    first = (len(volume) - depth) // 2
    return volume[first : first + depth]


def table(rows: list[Row], patches: int, title: str) -> Table:
    """The rows of one shape."""
    found = Table("", "", "s", "CPU s", "patches/s", "s / ours", "CPU s / ours", "as ours %", "peak MB", title=title)
    for row in rows:
        wall = statistics.median(row.wall_s)
        found.add_row(
            row.name,
            row.precision,
            f"{wall:.2f}",
            f"{statistics.median(row.cpu_s):.2f}",
            "" if "whole" in row.name or "serves" in row.name else f"{patches / wall:.0f}",
            f"{statistics.median(row.wall_ratio):.2f}",
            f"{statistics.median(row.cpu_ratio):.2f}",
            "" if row.alike is None else f"{100 * row.alike:.2f}",
            "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
        )
    return found


def _wanted(contender: Contender, options: argparse.Namespace) -> bool:
    """Whether a contender takes part; ours does in every precision that is asked for, and in f32, which judges all."""
    if contender.name == OURS and contender.precision == "f32":
        return True
    if options.precision and contender.precision not in options.precision:
        return False
    if options.only:
        return contender.name == OURS or any(part in contender.name for part in options.only)
    return options.slow or not contender.slow


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare the patch pipeline with others, with the same network.")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS} by default, 1 from {MANY} slices on")
    parser.add_argument(
        "--sizes", type=parse, nargs="+", default=SHAPES, metavar="ZxYxX", help=" ".join(map(text, SHAPES))
    )
    parser.add_argument("--slow", action="store_true", help="one patch at a time, and what compiles first, as well")
    parser.add_argument("--only", action="append", help="contenders whose name holds this, beside ours; repeatable")
    parser.add_argument("--precision", action="append", choices=PRECISIONS["openvino"], help="all; repeatable")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name or folder")
    parser.add_argument("--patch", type=parse, help="YxX such as 128x160; the model's own by default")
    parser.add_argument("--overlap", type=float, help="the model's own by default")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--no-memory", action="store_true", help="leave out peaks, a process for each contender")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    manifest = load(options.model)
    manifest = replace(manifest, patch=options.patch or manifest.patch)
    overlap = manifest.overlap if options.overlap is None else options.overlap
    setting = Setting(manifest, overlap, options.batch, options.threads)
    chosen = [contender for contender in CONTENDERS if _wanted(contender, options)]
    told: dict[str, object] = {}
    console = Console(width=120)
    for shape in options.sizes:
        rows, refused = compare(shape, setting, options.rounds or (1 if shape[0] >= MANY else ROUNDS), chosen)
        if not options.no_memory:
            rows = [
                replace(row, peak_mb=peak_mb(row.name, row.precision, shape, setting, options.model)) for row in rows
            ]
        patches = count_patches(shape, manifest.patch, overlap)
        title = (
            f"{text(shape)}: {patches} patches of {text(manifest.patch)}, overlap {overlap:g}, "
            f"{manifest.name} {manifest.version}, {options.threads} threads"
        )
        told[text(shape)] = {"title": title, "rows": [asdict(row) for row in rows], "refused": refused}
        if not options.json:
            console.print(table(rows, patches, title))
            for name, reason in refused.items():
                console.print(f"{name}: {reason}")
    if not options.no_memory:
        peaks = {}
        for shape in (*options.sizes, HUGE):
            for fitted in (False, True):
                patch, peak = pipeline_peak_mb(shape, setting, fitted=fitted)
                peaks[f"{text(shape)} in {'fitted' if fitted else 'own'} patches of {text(patch)}"] = peak
        told["pipeline_peak_mb"] = peaks
        if not options.json:
            for name, peak in peaks.items():
                print(f"{name}: patches, blend and labels hold at most {peak:.0f} MB beside volume and network")
    if options.json:
        print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
