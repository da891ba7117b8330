"""How fast the configured backend is: the bare network, the patches about it, and a whole series from files to SEG."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from node.settings import Settings
from trt.engine import DeviceEngine, Engine
from trt.manifest import Manifest
from trt.patches import Array
from trt.phantom import spine_phantom
from workers.identity import digest_of
from workers.pipeline import open_pipeline
from workers.series import write_series

SHAPE = (20, 320, 256)
SLICES_MM = 4.0
LEAST_S = 0.5  # so long the bare network runs in each round
QUEUED = 4  # batches between two waits, of which a pipeline has hardly any


@dataclass(frozen=True)
class Speed:
    """Medians over rounds; `series_s` is of a phantom of SHAPE on the model's pixels, read, segmented and checked.

    `network` and `pipeline` are patches of `patch` (y, x) pixels per second, without and with all that cuts and blends.
    `ready_s` is what opening took, a build and the gate included. `shares` are those of each stage in the time of a
    device, 0..1, where there is one; see `device_shares`.
    """

    engine: dict[str, str]
    patch: tuple[int, int]
    patches: int
    network: float
    pipeline: float
    series_s: float
    stages_s: dict[str, float]
    ready_s: float
    rounds: int
    shares: dict[str, float]


def measure(settings: Settings, rounds: int = 3) -> Speed:
    """Open what a worker with these settings would, and time it. Raises as `workers.pipeline.open_pipeline`."""
    began = time.perf_counter()
    with open_pipeline(settings.worker, settings.seg, settings.state_dir / "engines") as pipeline:
        ready = time.perf_counter() - began
        manifest = pipeline.manifest
        image = spine_phantom(SHAPE, (SLICES_MM, *manifest.spacing_mm), seed=0).image
        bundles, seconds, rates = [], [], []
        with tempfile.TemporaryDirectory(prefix="pennode-bench-") as folder:
            paths = write_series(Path(folder), image, (SLICES_MM, *manifest.spacing_mm))
            digest = digest_of(paths)
            patch = pipeline.segment(paths, digest).patch  # also warms up what a first series needs
            for _ in range(rounds):
                rates.append(_rate(pipeline.engine, manifest, patch, settings.worker.batch))
                began = time.perf_counter()
                bundles.append(pipeline.segment(paths, digest))
                seconds.append(time.perf_counter() - began)
        stages = {name: statistics.median(b.timings_s[name] for b in bundles) for name in bundles[0].timings_s}
        return Speed(
            engine=bundles[0].engine,
            patch=patch,
            patches=bundles[0].patches,
            network=statistics.median(rates),
            pipeline=bundles[0].patches / stages["predict"],
            series_s=statistics.median(seconds),
            stages_s=stages,
            ready_s=ready,
            rounds=rounds,
            shares=(
                device_shares(pipeline.engine, manifest, settings.worker.batch)
                if isinstance(pipeline.engine, DeviceEngine)
                else {}
            ),
        )


def device_shares(
    engine: DeviceEngine, manifest: Manifest, batch: int, shape: tuple[int, int, int] = SHAPE
) -> dict[str, float]:
    """What gather, network, blend and label each take of the device's time, 0..1, where every patch of `shape` runs.

    Whether gather and blend are worth kernels of their own; see `trt.stages`.
    """
    from trt import device, slabs, stages  # and with them torch

    volume = np.random.default_rng(0).random(shape, np.float32)
    cut = slabs.Cut(manifest.patch, manifest.channels, manifest.classes, manifest.overlap, batch)
    for _ in range(2):  # the first time warms up
        watch = stages.Stages(engine.device)
        device.predict_mask(
            volume, engine.on_device, engine.device, cut,
            labels=manifest.labels, voxel_mm3=1.0, stream=engine.stream, stages=watch,
        )  # fmt: skip
    seconds = watch.seconds()
    return {name: took / sum(seconds.values()) for name, took in seconds.items()}


def _rate(engine: Engine, manifest: Manifest, patch: tuple[int, int], batch: int) -> float:
    """Patches of a size that the network alone runs in a second, whole batches again and again."""
    own = manifest.patch
    count = max(batch * own[0] * own[1] // (patch[0] * patch[1]), 1)  # as many pixels at a time as the pipeline gives
    run, wait = _runner(engine, np.random.default_rng(0).random((count, manifest.channels, *patch), np.float32))
    run()
    wait()
    batches, began = 0, time.perf_counter()
    while time.perf_counter() - began < LEAST_S:
        for _ in range(QUEUED):
            run()
        wait()
        batches += QUEUED
    return batches * count / (time.perf_counter() - began)


def _runner(engine: Engine, patches: Array) -> tuple[Callable[[], object], Callable[[], object]]:
    """What runs the patches once, where the engine wants them, and what waits until that is done."""
    if not isinstance(engine, DeviceEngine):
        return lambda: engine(patches), lambda: None
    from trt import device, slabs  # and with them torch

    with device.on_stream(engine.stream):
        there = slabs.up(patches, engine.device)

    def run() -> None:
        with device.on_stream(engine.stream):
            engine.on_device(there)

    return run, lambda: None if engine.stream is None else engine.stream.synchronize()
