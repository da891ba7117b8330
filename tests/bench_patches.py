"""`make bench-patches`: what cutting into patches and blending costs, and how long others take with the same network.

Every contender turns the same normalised phantom into a mask, with the same weights, and where it has patches, of the
same size and overlap. They take turns, and each is compared with ours at its precision in the same round: what else
the machine does falls on all. CPU seconds are of all threads, and tell more than the clock where the machine is busy.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.contenders import CONTENDERS, Mask, Setting
from trt.decision import likeliest
from trt.engine import EngineError, cores
from trt.manifest import DEFAULT_MODEL, load
from trt.patches import Array, count_patches, normalise, predict_slices
from trt.phantom import spine_phantom

Shape = tuple[int, int, int]

SHAPES: tuple[Shape, ...] = ((20, 320, 256), (24, 512, 512))
LARGE: Shape = (192, 512, 512)
HUGE: Shape = (400, 1024, 1024)
BARE, OURS = "network alone", "ours"


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


def series(shape: Shape, setting: Setting) -> Array:
    """A normalised phantom on the model's grid."""
    spacing = (0.9, *setting.manifest.spacing_mm)
    return normalise(spine_phantom(shape, spacing, seed=0).image, setting.manifest.normalisation)


def peak_mb(name: str, precision: str, shape: Shape, arguments: Iterable[str]) -> float:
    """What one contender's process holds at most once its series is drawn, all that it imports included."""
    only = ["--peak", f"{name}|{precision}", "--shape", text(shape), *arguments]
    child = subprocess.run(
        [sys.executable, "-m", "tests.bench_patches", *only], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(child.stdout)


def pipeline_peak_mb(shape: Shape, setting: Setting) -> float:
    """What our patches hold at most beside the volume and the network: places, gather, blend, and the choice of labels.

    The volume takes no memory here, and logits are made of the patches.
    """
    volume = np.broadcast_to(np.float32(0.5), shape)
    classes = setting.manifest.classes

    def predict(patches: Array) -> Array:
        middle = patches.shape[1] // 2
        return np.repeat(patches[:, middle : middle + 1], classes, axis=1)

    tracemalloc.start()
    for _, logits in predict_slices(
        volume,
        predict,
        patch=setting.manifest.patch,
        channels=setting.manifest.channels,
        overlap=setting.overlap,
        batch=setting.batch,
    ):
        likeliest(logits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def compare(
    shape: Shape, setting: Setting, rounds: int, wanted: Callable[[str, str], bool]
) -> tuple[list[Row], dict[str, str]]:
    """Let contenders take turns; also why some could not."""
    volume = series(shape, setting)
    refused: dict[str, str] = {}
    with ExitStack() as stack:
        ready: dict[tuple[str, str], Callable[[Array], Mask | None]] = {}
        for contender in CONTENDERS:
            if wanted(contender.name, contender.precision):
                try:
                    run = stack.enter_context(contender.open(replace(setting, precision=contender.precision), shape))
                except EngineError as error:
                    refused[f"{contender.name} {contender.precision}"] = str(error)
                else:
                    ready[contender.name, contender.precision] = run
        masks = {key: run(volume) for key, run in ready.items()}  # also warms up, and compiles
        wall: dict[tuple[str, str], list[float]] = {key: [] for key in ready}
        cpu: dict[tuple[str, str], list[float]] = {key: [] for key in ready}
        for number in range(rounds):
            print(f"{text(shape)}: round {number + 1} of {rounds}", file=sys.stderr)
            order = list(ready.items())
            for key, run in order[number % len(order) :] + order[: number % len(order)]:
                began, began_cpu = time.perf_counter(), time.process_time()
                run(volume)
                wall[key].append(time.perf_counter() - began)
                cpu[key].append(time.process_time() - began_cpu)
    ours = masks[OURS, "f32"]
    rows = []
    for (name, precision), mask in masks.items():
        beside = (OURS, precision) if (OURS, precision) in wall else (OURS, "f32")
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


def text(shape: Shape) -> str:
    """20x320x256."""
    return "x".join(str(length) for length in shape)


def parse_shape(given: str) -> Shape:
    """The shape that a text such as 20x320x256 names."""
    depth, height, width = (int(length) for length in given.split("x"))
    return depth, height, width


def parse_plane(given: str) -> tuple[int, int]:
    """The sides that a text such as 128x160 names."""
    height, width = (int(length) for length in given.split("x"))
    return height, width


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare the patch pipeline with others, with the same network.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", type=parse_shape, action="append", help="Z x Y x X such as 20x320x256, repeatable")
    parser.add_argument("--large", action="store_true", help=f"{text(LARGE)} too, which takes many minutes")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name or folder")
    parser.add_argument("--patch", type=parse_plane, help="Y x X such as 128x160; the model's own by default")
    parser.add_argument("--overlap", type=float, help="the model's own by default")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--only", action="append", help="contenders whose name holds this, beside ours; repeatable")
    parser.add_argument("--no-memory", action="store_true", help="leave out peaks, a process for each contender")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    manifest = load(options.model)
    manifest = replace(manifest, patch=options.patch or manifest.patch)
    overlap = manifest.overlap if options.overlap is None else options.overlap
    setting = Setting(manifest, overlap, options.batch, options.threads)
    shapes = options.shape or [*SHAPES, *([LARGE] if options.large else [])]
    if options.peak:
        name, _, precision = options.peak.partition("|")
        (contender,) = (c for c in CONTENDERS if (c.name, c.precision) == (name, precision))
        volume = series(shapes[0], setting)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far: drawing a phantom takes more
        with contender.open(replace(setting, precision=precision), shapes[0]) as run:
            run(volume)
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        assert found is not None
        print(int(found[1]) * 1024 / 1e6)
        return

    def wanted(name: str, precision: str) -> bool:
        return name in (BARE, OURS) or not options.only or any(part in name for part in options.only)

    told: dict[str, object] = {}
    height, width = manifest.patch
    arguments = ["--model", str(options.model), "--patch", f"{height}x{width}", "--overlap", str(overlap)]
    arguments += ["--batch", str(options.batch), "--threads", str(options.threads)]
    for shape in shapes:
        rows, refused = compare(shape, setting, options.rounds, wanted)
        if not options.no_memory:
            rows = [replace(row, peak_mb=peak_mb(row.name, row.precision, shape, arguments)) for row in rows]
        patches = count_patches(shape, manifest.patch, overlap)
        title = (
            f"{text(shape)}: {patches} patches of {height}x{width}, overlap {overlap:g}, "
            f"{manifest.name} {manifest.version}, {options.threads} threads"
        )
        told[text(shape)] = {"title": title, "rows": [vars(row) for row in rows], "refused": refused}
        if not options.json:
            console = Console(width=120)
            console.print(table(rows, patches, title))
            for name, reason in refused.items():
                console.print(f"{name}: {reason}")
    if not options.no_memory:
        told["pipeline_peak_mb"] = {text(s): pipeline_peak_mb(s, setting) for s in (*SHAPES, HUGE)}
        if not options.json:
            for name, peak in told["pipeline_peak_mb"].items():
                print(f"{name}: patches, blend and labels hold at most {peak:.0f} MB beside the volume and the network")
    if options.json:
        print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
