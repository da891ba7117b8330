"""What engines of one batch size on a torch device share: the way to their batch, their description, their end.

A kind of engine makes its `FixedBatch` ready, and tells by `backend`, `version` and `precision` what it is. It has not
run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trt.engine import Engine, EngineError, OutOfMemory
from trt.fixedbatch import FixedBatch
from trt.manifest import Manifest
from trt.patches import Array


class BatchEngine(Engine):
    """A model on a torch device; see `trt.engine.Engine` and `trt.engine.DeviceEngine`.

    `what` names it in errors. Raises `OutOfMemory` where the device has too little memory for the buffers of `shape`
    (n, C, H, W).
    """

    flexible = False  # a CUDA graph, and an engine file, have one shape

    def __init__(
        self, manifest: Manifest, shape: tuple[int, int, int, int], device: str, what: str, version: str, precision: str
    ) -> None:
        self._manifest, self._what, self._version, self._precision = manifest, what, version, precision
        with translated(what):
            self.device = torch.device(device)
            self._batch = FixedBatch(shape, manifest.classes, self.device)
        self._size = shape[0]
        self.stream = self._batch.stream

    def __call__(self, patches: Array) -> Array:
        """Logits (N, K, H, W) of patches (N, C, H, W); see `trt.engine.Engine`."""
        with translated(self._what):
            return self._batch.on_host(patches)

    def on_device(self, patches: Tensor) -> Tensor:
        """Logits of patches that are on the device; see `trt.engine.DeviceEngine`."""
        return self._batch.on_device(patches)

    def describe(self) -> dict[str, str]:
        """What runs; see `trt.engine.Engine`."""
        return {
            "model": f"{self._manifest.name} {self._manifest.version}",
            "backend": self.backend,
            "version": self._version,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device),
            "precision": self._precision,
            "batch": str(self._size),
        }

    def close(self) -> None:
        """Free the model's memory; see `trt.engine.Engine`."""
        self._batch.close()
        self._let_go()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _let_go(self) -> None:
        """Free what the kind of engine holds beside its batch."""


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Say in this package's errors what torch, and CUDA under it, say of `what` in theirs."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise OutOfMemory(f"{what}: {reason}; set worker.batch lower, or free the GPU") from error
    except EngineError:
        raise
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise EngineError(f"{what}: {reason}; choose backend openvino, which needs no GPU") from error
