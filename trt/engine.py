"""A model made ready to run: one callable from patches to logits, held open as a context.

EngineError is raised for a backend that does not exist or is not there, and for what the backend itself refuses.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, get_args

import numpy as np

from trt.manifest import Manifest
from trt.patches import Array

if TYPE_CHECKING:
    import openvino

Precision = Literal["f32", "bf16", "int8"]
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
    return OpenVinoEngine(manifest, threads, batch, precision)


def require_backend(backend: str) -> None:
    """Tell at once, and at no cost, whether this version can serve on `backend`.

    Raises `EngineError` when it cannot.
    """
    if backend not in BACKENDS:
        raise EngineError(f"no backend {backend!r}; choose one of: {', '.join(BACKENDS)}")
    if backend == "tensorrt":
        raise EngineError("this version does not serve on TensorRT yet: choose backend openvino, which needs no GPU")


def finder_precision(precision: Precision) -> Precision:
    """What a model's finder calculates in where the model itself does in `precision`.

    It is small, and has no version in eight bits: what it leaves out is lost.
    """
    return "f32" if precision == "int8" else precision


def _quantised(manifest: Manifest) -> Path:
    """The file for precision int8; `EngineError` where the model has none."""
    if manifest.quantised is None:
        raise EngineError(
            f"{manifest.name} has no version in eight bits: make one by `python -m trt.quantise`, or choose another "
            "precision"
        )
    return manifest.quantised.path


class OpenVinoEngine:
    """The model on the CPU by OpenVINO; no call of it holds more pixels than `batch` patches of the manifest's size."""

    backend = "openvino"

    def __init__(self, manifest: Manifest, threads: int, batch: int, precision: Precision) -> None:
        try:
            import openvino
        except ImportError as error:
            raise EngineError("OpenVINO is not installed: `pip install openvino`") from error
        path = manifest.path if precision != "int8" else _quantised(manifest)
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineError("this CPU does not calculate in bf16; choose precision f32")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",  # one batch at a time, on all threads; more streams hold more memory
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": "f32" if precision == "int8" else precision,  # of what is not in eight bits
            "ENABLE_CPU_PINNING": "NO",  # several workers on one host would pin themselves to the same cores
        }
        self._manifest, self._version, self._threads = manifest, openvino.get_version(), threads
        self._tensor = openvino.Tensor
        self._batch, self._most = batch, batch * math.prod(manifest.patch)  # patches, and pixels, at a time
        self.flexible = manifest.stride is not None
        try:
            model = core.read_model(path)
            # Of any number, and where the model allows it any size: the kernels of new shapes are made as they come.
            model.reshape([-1, manifest.channels, *([-1, -1] if self.flexible else manifest.patch)])
            compiled = core.compile_model(model, "CPU", settings)
            self._device = str(core.get_property("CPU", "FULL_DEVICE_NAME"))
            found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            self._precision = precision if precision == "int8" else found
            self._request: openvino.InferRequest | None = compiled.create_infer_request()
        except RuntimeError as error:
            raise EngineError(f"{path}: OpenVINO refuses the model: {error}") from error
        sample = np.zeros((batch, manifest.channels, *manifest.patch), np.float32)
        promised = (batch, manifest.classes, *manifest.patch)
        answers = list(self._request.infer([sample]).values())  # the first run allocates and tunes
        if len(answers) != 1 or answers[0].shape != promised:
            shapes = [answer.shape for answer in answers]
            raise EngineError(f"{path}: answers {shapes}, the manifest promises {promised}")

    def __call__(self, patches: Array) -> Array:
        """Logits (N, K, H, W) of patches (N, C, H, W); see `Engine`."""
        if self._request is None:
            raise EngineError("the engine is closed")
        self._require(patches)
        sides = patches.shape[2:]
        logits = np.empty((len(patches), self._manifest.classes, *sides), np.float32)
        batch = max(self._most // math.prod(sides), 1)
        for first in range(0, len(patches), batch):
            part = slice(first, first + batch)
            # Shared: batches are handed over and come back without a copy here.
            self._request.set_output_tensor(self._tensor(logits[part], shared_memory=True))
            self._request.infer([np.ascontiguousarray(patches[part])], share_inputs=True, share_outputs=True)
        return logits

    def _require(self, patches: Array) -> None:
        channels, patch, stride = self._manifest.channels, self._manifest.patch, self._manifest.stride
        if patches.dtype == np.float32 and patches.ndim == 4 and patches.shape[1] == channels:
            height, width = patches.shape[2:]
            if (height, width) == patch or (stride and min(height, width) > 0 == height % stride == width % stride):
                return
        sides = f"sides that are multiples of {stride}" if stride else f"sides of {patch}"
        raise ValueError(
            f"patches must be (N, {channels}, H, W) float32 with {sides}, not {patches.shape} {patches.dtype}"
        )

    def describe(self) -> dict[str, str]:
        """What runs; see `Engine`."""
        return {
            "model": f"{self._manifest.name} {self._manifest.version}",
            "backend": self.backend,
            "version": self._version,
            "device": self._device,
            "precision": self._precision,
            "threads": str(self._threads),
            "batch": str(self._batch),
        }

    def close(self) -> None:
        """Free the model's memory; see `Engine`."""
        self._request = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
