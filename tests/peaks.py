"""Peak memory, for `tests.bench_patches`: of a process that segments one series by one contender, and of our patches.

Run as a program it is that process: it draws the series, forgets the peak so far (drawing takes more), segments, and
prints what the kernel says it held at most since then (VmHWM of proc_pid_status(5)): all that it imports, the series,
the network and the mask included.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.contenders import CONTENDERS, Mask, Shape
from tests.runtimes import Setting
from trt.decision import likeliest
from trt.fitting import fit
from trt.manifest import load
from trt.patches import Array, normalise
from trt.phantom import spine_phantom


def series(shape: Shape, setting: Setting) -> Array:
    """A normalised phantom on the model's grid."""
    spacing = (0.9, *setting.manifest.spacing_mm)
    return normalise(spine_phantom(shape, spacing, seed=0).image, setting.manifest.normalisation)


def text(shape: tuple[int, ...]) -> str:
    """20x320x256."""
    return "x".join(str(length) for length in shape)


def parse(given: str) -> tuple[int, ...]:
    """The lengths that a text such as 20x320x256 names."""
    return tuple(int(length) for length in given.split("x"))


def peak_mb(name: str, precision: str, shape: Shape, setting: Setting, model: str) -> float | None:
    """What one contender's process holds at most; None where it does not come to its end, as without memory enough."""
    words = ["--name", name, "--precision", precision, "--shape", text(shape), "--model", model]
    words += ["--patch", text(setting.manifest.patch), "--overlap", str(setting.overlap)]
    words += ["--batch", str(setting.batch), "--threads", str(setting.threads)]
    child = subprocess.run(
        [sys.executable, "-m", "tests.peaks", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    return float(child.stdout) if child.returncode == 0 else None


def pipeline_peak_mb(shape: Shape, setting: Setting, *, fitted: bool) -> tuple[tuple[int, int], float]:
    """What our patches hold at most beside the volume and the network, and the sides (y, x) of a patch.

    Places, gather, blend, and the choice of labels; everything runs, as where no spine is found. Patches are the
    model's own, or `fitted`, as a flexible engine gets them. The volume takes no memory here, and logits, which are the
    network's, are made of the patches.
    """
    volume = np.broadcast_to(np.float32(0.5), shape)
    manifest = setting.manifest
    found = fit(shape, None, manifest, flexible=fitted, overlap=setting.overlap, batch=setting.batch)

    def predict(patches: Array) -> Array:
        middle = patches.shape[1] // 2
        return np.repeat(patches[:, middle : middle + 1], manifest.classes, axis=1)

    tracemalloc.start()
    try:
        for _, logits in found.slices(volume, predict, manifest, None):
            likeliest(logits)
        return found.patch, tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def main() -> None:
    """Be the process that is measured."""
    parser = argparse.ArgumentParser()
    for word in ("--name", "--precision", "--model"):
        parser.add_argument(word)
    for word in ("--shape", "--patch"):
        parser.add_argument(word, type=parse)
    parser.add_argument("--overlap", type=float)
    for word in ("--batch", "--threads"):
        parser.add_argument(word, type=int)
    options = parser.parse_args()
    manifest = replace(load(options.model), patch=options.patch)
    setting = Setting(manifest, options.overlap, options.batch, options.threads, options.precision)
    (contender,) = (c for c in CONTENDERS if (c.name, c.precision) == (options.name, options.precision))
    volume = series(options.shape, setting)
    Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5): VmHWM starts from here
    with contender.open(setting, options.shape) as run:
        found: Mask | None = run(volume)
        assert found is None or found.shape == options.shape
    peak = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert peak is not None
    print(int(peak[1]) * 1024 / 1e6)


if __name__ == "__main__":
    main()
