"""The engine of machines without a GPU: OpenVINO, the one door to that library."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from trt.engine import Engine, EngineError, Precision
from trt.manifest import Manifest
from trt.patches import Array

if TYPE_CHECKING:
    import openvino


class OpenVinoEngine(Engine):
    """The model on the CPU by OpenVINO.

    No call of it holds more pixels than `batch` patches of the manifest's size, but for one larger patch alone.
    """

    backend = "openvino"

    def __init__(self, manifest: Manifest, threads: int, batch: int, precision: Precision) -> None:
        try:
            import openvino
        except ImportError as error:
            raise EngineError("OpenVINO is not installed: `pip install openvino`") from error
        quantised = manifest.quantised if precision == "int8" else None
        path = manifest.path if quantised is None else quantised.path
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineError("this CPU does not calculate in bf16; choose precision f32")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",  # one batch at a time, on all threads; more streams hold more memory
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
