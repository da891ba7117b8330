"""The engine of machines without a GPU: OpenVINO, the one door to that library."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import numpy as np

from trt.engine import Engine, EngineError, Precision
from trt.manifest import Manifest
from trt.patches import Array

if TYPE_CHECKING:
    import openvino

STREAMS = 2
"""Parts of a batch that run side by side, each on its share of the threads.

Threads of one part wait for each other after every layer; those of two do not. On two cores a series as it serves takes
10 % less CPU time in f32, 14 % in bf16, 5 to 30 % in int8, with the same logits bit for bit.
"""


class OpenVinoEngine(Engine):
    """The model on the CPU by OpenVINO.

    It holds no more pixels at a time than `batch` patches of the manifest's size, or one larger patch in each stream.
    """

    backend = "openvino"

    def __init__(self, manifest: Manifest, threads: int, batch: int, precision: Precision) -> None:
        # On import OpenVINO reports its use to Google Analytics, under an id that it keeps in the home folder, unless
        # its telemetry cannot be imported: no node of a hospital calls out unasked.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        try:
            import openvino
        except ImportError as error:
            raise EngineError("OpenVINO is not installed: `pip install openvino`") from error
        quantised = manifest.quantised if precision == "int8" else None
        path = manifest.path if quantised is None else quantised.path
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineError("this CPU does not calculate in bf16; choose precision f32")
        streams = STREAMS if batch >= STREAMS and threads % STREAMS == 0 else 1
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": "f32" if precision == "int8" else precision,  # of what is not in eight bits
            "CPU_RUNTIME_CACHE_CAPACITY": "256",  # kernels of a few shapes; by default memory grows with every shape
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
            self._precision = found if quantised is None else "int8"  # what runs, not what was asked
            self._requests: list[openvino.InferRequest] = [compiled.create_infer_request() for _ in range(streams)]
        except RuntimeError as error:
            raise EngineError(f"{path}: OpenVINO refuses the model: {error}") from error
        sample = np.zeros((1, manifest.channels, *manifest.patch), np.float32)
        promised = (1, manifest.classes, *manifest.patch)
        answers = list(self._requests[0].infer([sample]).values())
        if len(answers) != 1 or answers[0].shape != promised:
            shapes = [answer.shape for answer in answers]
            raise EngineError(f"{path}: answers {shapes}, the manifest promises {promised}")
        self(np.broadcast_to(sample, (batch, *sample.shape[1:])))  # the first run allocates and tunes

    def __call__(self, patches: Array) -> Array:
        """Logits (N, K, H, W) of patches (N, C, H, W); see `Engine`."""
        if not self._requests:
            raise EngineError("the engine is closed")
        self._require(patches)
        sides = patches.shape[2:]
        logits = np.empty((len(patches), self._manifest.classes, *sides), np.float32)
        batch = max(self._most // math.prod(sides), len(self._requests))
        for first in range(0, len(patches), batch):
            last = min(first + batch, len(patches))
            share = -(-(last - first) // len(self._requests))
            started = []
            try:
                for begin, request in zip(range(first, last, share), self._requests, strict=False):
                    part = slice(begin, min(begin + share, last))
                    # Shared: patches are handed over and logits come back without a copy here.
                    request.set_output_tensor(self._tensor(logits[part], shared_memory=True))
                    request.start_async([np.ascontiguousarray(patches[part])], share_inputs=True)
                    started.append(request)
            finally:
                _wait(started)  # for all, whatever one of them raises: they write into `logits`
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
        self._requests = []


def _wait(requests: list[openvino.InferRequest]) -> None:
    """Wait for all, then raise what the first of those that failed says."""
    failed = []
    for request in requests:
        try:
            request.wait()
        except RuntimeError as error:
            failed.append(error)
    if failed:
        raise EngineError(f"OpenVINO failed: {failed[0]}") from failed[0]
