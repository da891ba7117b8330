"""An engine that may serve: opened on the backend that is configured, or on the next one that is, and judged.

Nothing falls back unless the configuration says so, and what did is said in the log and in the engine's facts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt.engine import PRECISIONS, Engine, EngineError, OutOfMemory, Precision, open_engine
from trt.enginecache import CachedEngine, record_gate
from trt.gate import Gate, judge, require
from trt.manifest import Manifest

log = logging.getLogger(__name__)

EXACT = ("openvino", "f32")
"""The reference itself: there is nothing to compare it with."""


@dataclass(frozen=True)
class Serving:
    """An open engine and what is to be told of it beside its own description.

    `gate` is None for the reference itself; `fallback_from` names the backends that were to serve and could not.
    """

    engine: Engine
    gate: Gate | None
    fallback_from: tuple[str, ...]

    def facts(self) -> dict[str, str]:
        """What the engine says of itself, what the gate found, and what this is a fallback from."""
        facts = self.engine.describe()
        if self.gate is not None:
            facts["gate_agreement"] = f"{self.gate.agreement:.6f}"
            facts["gate_difference"] = f"{self.gate.largest_difference:.3g}"
            facts["gate_reference"] = self.gate.reference
        if self.fallback_from:
            facts["fallback_from"] = " ".join(self.fallback_from)
        return facts


def open_serving(
    manifest: Manifest,
    backend: str,
    *,
    fallback: Sequence[str] = (),
    threads: int | None = None,
    batch: int = 8,
    precision: Precision = "f32",
    cache: Path | None = None,
    factor: int = 1,
    opening: Callable[..., Engine] = open_engine,
) -> Serving:
    """Open a model, let it be judged, and time it; on the first of `backend` and `fallback` that can serve.

    A backend of `fallback` that lacks the precision calculates in float32. `factor` is the finder's for its model, and
    1 for others. `opening` opens one backend, as `open_engine` does. Other arguments are those of `open_engine`.

    Raises
    ------
    EngineError
        No backend serves: that of the last one. `GateError` where it calculates something else than its model does.
    ManifestError
        The model is not the file that its manifest speaks of; no other backend is tried.
    """
    tried: list[str] = []
    for name in (backend, *fallback):
        fits: Precision = precision if name == backend or precision in PRECISIONS.get(name, ()) else "f32"
        try:
            engine, gate = _open(manifest, name, threads, batch, fits, cache, factor, opening)
        except EngineError as error:
            tried.append(name)
            if len(tried) == 1 + len(fallback):
                raise
            log.error(
                "%s: backend %s does not serve: %s; falling back to %s, as worker.fallback says",
                manifest.name, name, error, fallback[len(tried) - 1],
            )  # fmt: skip
            continue
        if tried:
            log.warning("%s: serves on %s in %s instead of %s", manifest.name, name, fits, ", ".join(tried))
        return Serving(engine, gate, tuple(tried))
    raise AssertionError("unreachable")  # the last backend was returned or raised


def _open(
    manifest: Manifest,
    backend: str,
    threads: int | None,
    batch: int,
    precision: Precision,
    cache: Path | None,
    factor: int,
    opening: Callable[..., Engine],
) -> tuple[Engine, Gate | None]:
    """One backend, open and judged; closed again where it does not pass."""
    started = time.perf_counter()
    options: dict[str, Any] = {"threads": threads, "precision": precision, "cache": cache}
    try:
        engine = opening(manifest, backend, batch=batch, **options)
    except OutOfMemory as error:
        if batch == 1:
            raise
        reason, batch = str(error), batch // 2
        engine = None
    if engine is None:  # past the handler: what the error's frames held is free by now
        log.warning("%s: no memory on the device; once more at a batch of %d: %s", manifest.name, batch, reason)
        engine = opening(manifest, backend, batch=batch, **options)
    with ExitStack() as stack:
        stack.callback(engine.close)  # unless it passes
        opened = time.perf_counter()
        gate = None if (backend, precision) == EXACT else _judged(engine, manifest, precision, cache, factor)
        judged = time.perf_counter()
        engine(np.zeros((batch, manifest.channels, *manifest.patch), np.float32))
        ran = time.perf_counter()
        stack.pop_all()
    log.info(
        "%s on %s %s: opened and warm in %.2f s, judged in %.2f s, a batch of %d takes %.1f ms",
        manifest.name, backend, precision, opened - started, judged - opened, batch, (ran - judged) * 1000,
    )  # fmt: skip
    return engine, gate


def _judged(engine: Engine, manifest: Manifest, precision: Precision, cache: Path | None, factor: int) -> Gate:
    """The gate that an engine passed, written into its sidecar where it has one. Raises `GateError`."""
    file: CachedEngine | None = getattr(engine, "cached", None)  # TensorRT's alone come from files
    # At every start: what a driver made of an engine's kernels yesterday tells nothing of today.
    gate = judge(engine, manifest, precision, factor=factor)
    if file is not None and cache is not None:
        record_gate(cache, file, gate)
    require(gate, f"{manifest.name} {manifest.version} on {engine.backend} in {precision}")
    return gate
