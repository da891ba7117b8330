"""A model made ready to run: one callable from patches to logits, held open as a context.

EngineError is raised for a backend that does not exist or is not there, and for what the backend itself refuses.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Literal, Protocol, Self, get_args

from trt.manifest import Manifest
from trt.patches import Array

Precision = Literal["f32", "bf16"]
BACKENDS = ("openvino", "tensorrt")


class EngineError(RuntimeError):
    """The model cannot be run as asked; the message says what to choose or install instead."""


class Engine(Protocol):
    """Patches (N, C, H, W) float32 to logits (N, K, H, W) float32, for one thread at a time.

    `flexible` tells whether H and W may be any multiples of the manifest's stride; else they are those of its patch.
    """

    backend: str
    flexible: bool

    def __call__(self, patches: Array) -> Array:
        """Logits of any number of patches, in a new array; `ValueError` when shape or dtype do not fit the model."""
        ...

    def describe(self) -> dict[str, str]:
        """What runs: model, backend, its version, device, precision, threads, batch."""
        ...

    def close(self) -> None:
        """Free the model's memory; the engine cannot be called again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_engine(
    manifest: Manifest,
    backend: str = "openvino",
    *,
    threads: int | None = None,
    batch: int = 8,
    precision: Precision = "f32",
) -> Engine:
    """Open the model for `batch` patches at a time on `threads` CPU threads (all cores by default) and run it once.

    Raises `EngineError` for an unknown or missing backend or a precision the device lacks, `ValueError` for numbers
    below one.
    """
    require_backend(backend)
    if precision not in get_args(Precision):
        raise EngineError(f"no precision {precision!r}; choose one of: {', '.join(get_args(Precision))}")
    threads = cores() if threads is None else threads
    if threads < 1 or batch < 1:
        raise ValueError(f"threads and batch must be at least 1, not {threads} and {batch}")
    from trt.cpu import OpenVinoEngine

    return OpenVinoEngine(manifest, threads, batch, precision)


def require_backend(backend: str) -> None:
    """Tell at once, and at no cost, whether this version can serve on `backend`.

    Raises `EngineError` when it cannot.
    """
    if backend not in BACKENDS:
        raise EngineError(f"no backend {backend!r}; choose one of: {', '.join(BACKENDS)}")
    if backend == "tensorrt":
        raise EngineError("this version does not serve on TensorRT yet: choose backend openvino, which needs no GPU")
