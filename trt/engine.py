"""A model made ready to run: one callable from patches to logits, held open as a context.

EngineError is raised for a backend that does not exist or is not there, and for what the backend itself refuses.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, runtime_checkable

from trt.manifest import Manifest
from trt.patches import Array

Precision = Literal["f32", "bf16", "int8", "f16"]

PRECISIONS: Mapping[str, tuple[Precision, ...]] = {
    "openvino": ("f32", "bf16", "int8"),
    "tensorrt": ("f32", "f16"),
    "torch": ("f32", "f16"),
}
"""What each backend calculates in, the most exact first."""

BACKENDS = tuple(PRECISIONS)


class EngineError(RuntimeError):
    """The model cannot be run as asked; the message says what to choose or install instead."""


class OutOfMemory(EngineError):
    """The device has no memory left for the model, or for a series; a smaller batch may fit."""


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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@runtime_checkable
class DeviceEngine(Protocol):
    """What an `Engine` has beside, if patches and logits may stay where it calculates."""

    device: Any  # torch.device
    stream: Any  # torch.cuda.Stream to queue on, or None for the current one

    def __call__(self, patches: Array) -> Array:
        """See `Engine`."""
        ...

    def on_device(self, patches: Any) -> Any:
        """Logits (N, K, H, W) of patches (N, C, H, W), both float32 `torch.Tensor` on `device`.

        Queued on the current stream; the answer is overwritten by the next call.
        """
        ...


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
    cache: Path | None = None,
    device: Literal["cuda", "cpu"] = "cuda",
) -> Engine:
    """Make the model ready for `batch` patches at a time and run it once.

    `threads` are OpenVINO's (all cores by default). `cache` is the folder of TensorRT's engines (`trt.enginecache`),
    where one is built if there is none. `device` is torch's, for whose backend "cpu" is a way to be tested. Whether
    what was opened calculates what it should is for `trt.serving` to find out.

    Raises
    ------
    EngineError
        The backend is unknown, missing or refuses the model; the device lacks the precision; there is no GPU.
    OutOfMemory
        The device has too little memory for this batch.
    ManifestError
        The model that a GPU is to run is not the file that its manifest speaks of.
    ValueError
        A number is below one.
    """
    require_backend(backend)
    require_precision(manifest, backend, precision)
    threads = cores() if threads is None else threads
    if threads < 1 or batch < 1:
        raise ValueError(f"threads and batch must be at least 1, not {threads} and {batch}")
    # Each backend's libraries are heavy and start threads or CUDA: only the one that is asked for is imported.
    if backend == "tensorrt":
        from trt.tensorrt_engine import open_tensorrt

        if cache is None:
            raise EngineError("backend tensorrt needs a folder to keep engines in")
        return open_tensorrt(manifest, cache, batch=batch, precision="f16" if precision == "f16" else "f32")
    if backend == "torch":
        from trt.torch_engine import TorchEngine

        return TorchEngine(manifest, batch, precision, device)
    from trt.cpu import OpenVinoEngine

    return OpenVinoEngine(manifest, threads, batch, precision)


def require_precision(manifest: Manifest, backend: str, precision: str) -> None:
    """Tell at once, and without loading anything, whether `backend` runs this model in `precision`.

    Raises `EngineError` when it does not, or there is no such backend.
    """
    known = PRECISIONS.get(backend, ())
    if known and precision not in known:
        raise EngineError(f"backend {backend} has no precision {precision!r}; choose one of: {', '.join(known)}")
    if precision == "int8" and manifest.quantised is None:
        raise EngineError(
            f"{manifest.name} has no version in eight bits: make one by `python -m trt.quantise`, or choose another "
            "precision"
        )


def require_backend(backend: str) -> None:
    """Tell at once, and without loading anything, whether the packages of `backend` are installed.

    Raises `EngineError` when they are not. That there is a GPU, `trt.gpu` knows.
    """
    if backend not in BACKENDS:
        raise EngineError(f"no backend {backend!r}; choose one of: {', '.join(BACKENDS)}")
    if backend == "openvino":
        return
    wanted: dict[str, tuple[str, ...]] = {"torch": ("torch",), "onnx": ("onnx",)}
    if backend == "tensorrt":
        wanted["TensorRT or TensorRT-RTX"] = ("tensorrt", "tensorrt_rtx")
    lacking = [name for name, modules in wanted.items() if not any(find_spec(module) for module in modules)]
    if lacking:
        raise EngineError(
            f"backend {backend} needs {', '.join(lacking)}: `pip install 'pennode[gpu]'` for data centre GPUs, "
            "`pip install 'pennode[rtx]'` for RTX GPUs; backend openvino needs no GPU"
        )


def finder_precision(precision: Precision) -> Precision:
    """What a model's finder calculates in where the model itself does in `precision`.

    It is small, and has no version in eight bits: what it leaves out is lost.
    """
    return "f32" if precision == "int8" else precision
