"""The engine of TensorRT, or TensorRT-RTX: an engine file of `trt.build` run on this machine's GPU.

torch holds the buffers, the stream and the CUDA graph; TensorRT is given their addresses. Engines are really built and
refused where there is no GPU, which is tested; that they run has not been seen on a GPU yet.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trt.build import BuildPrecision, Library, build_engine, choose_capability, find_library, key_for
from trt.callbacks import logger
from trt.device_engine import BatchEngine, translated
from trt.engine import EngineError, OutOfMemory
from trt.enginecache import CachedEngine, CacheError, keep_kernels, kernels_of, obtain
from trt.manifest import Manifest

log = logging.getLogger(__name__)

ANEW = "delete its files so that it is built anew, or choose backend openvino"


def open_tensorrt(manifest: Manifest, folder: Path, *, batch: int, precision: BuildPrecision) -> TensorRtEngine:
    """The engine of a model for the GPU here: from the cache `folder`, or built into it.

    What TensorRT-RTX compiles at an engine's first run is kept beside it, so that the next start need not.

    Raises as `trt.build.build_engine` and `trt.enginecache.obtain`, and as `TensorRtEngine`.
    """
    library = find_library()
    key = key_for(manifest, library, choose_capability(library), batch=batch, precision=precision)
    model = f"{manifest.name} {manifest.version}"
    cached, plan = obtain(folder, key, model, lambda timings: build_engine(manifest, library, key, timings=timings))
    kept = kernels_of(folder, key)
    engine = TensorRtEngine(manifest, library, cached, plan, kept)
    kernels = engine.kernels()
    if kernels and kernels != kept:
        try:
            keep_kernels(folder, key, kernels)
        except CacheError as error:  # the next start compiles again, and that is all
            log.warning("%s", error)
    return engine


class TensorRtEngine(BatchEngine):
    """An engine file in the memory of the GPU, with one context, for the batch size that it was built for.

    `kernels` is what an earlier engine of this file gave as its `kernels`. `device` is where the buffers lie: a
    library that calculates on the host, as tests have one, needs them there.

    Raises
    ------
    EngineError
        The library does not take the file, or it is of another model, or there is no GPU to run it.
    OutOfMemory
        The GPU has too little memory for this batch.
    """

    backend = "tensorrt"

    def __init__(
        self,
        manifest: Manifest,
        library: Library,
        cached: CachedEngine,
        plan: bytes,
        kernels: bytes = b"",
        *,
        device: str = "cuda",
    ) -> None:
        self._manifest, self._library, self.cached = manifest, library, cached
        version = f"{library.name} {library.version}"
        self._what = f"{cached.key.name} on {version}"
        self._complaints = logger(library.module)
        self._complaints.errors.clear()
        self._runtime = library.module.Runtime(self._complaints)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._refused(f"does not load; {ANEW}")
        source, target = self._names()
        super().__init__(manifest, cached.key.shape, device, self._what, version, cached.key.precision)
        with translated(self._what):
            self._config, self._cache, self._context = self._make_context(kernels)
            addressed = (
                self._context.set_input_shape(source, cached.key.shape)
                and self._context.set_tensor_address(source, self._batch.given.data_ptr())
                and self._context.set_tensor_address(target, self._batch.answer.data_ptr())
            )
            if not addressed:
                raise self._refused("does not take its buffers")
            self._batch.prepare(self._launch, capturable=self._capturable)

    def kernels(self) -> bytes:
        """What the library compiled for this GPU so far, to be given to the next of its kind; empty for `tensorrt`."""
        if self._cache is None:
            return b""
        found = self._cache.serialize()
        return b"" if found is None else bytes(memoryview(found))

    def _let_go(self) -> None:
        # In this order: each lives in the next.
        self._context = self._cache = self._config = self._engine = self._runtime = None

    def _names(self) -> tuple[str, str]:
        """The names of the one input and the one output, which are as the manifest promises."""
        module, engine, key = self._library.module, self._engine, self.cached.key
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        names.sort(key=lambda name: bool(engine.get_tensor_mode(name) != module.TensorIOMode.INPUT))
        shapes = [tuple(engine.get_tensor_shape(name))[1:] for name in names]
        wanted = [tuple(key.shape[1:]), (self._manifest.classes, *key.shape[2:])]
        floats = all(engine.get_tensor_dtype(name) == module.DataType.FLOAT for name in names)
        if shapes != wanted or not floats:
            raise self._refused(f"takes and gives {shapes}, the manifest promises {wanted} in float32; {ANEW}")
        return names[0], names[1]

    def _make_context(self, kernels: bytes) -> tuple[Any, Any, Any]:
        """The configuration and cache of kernels that `tensorrt_rtx` alone has, and the execution context."""
        config = cache = None
        if self._library.name != "tensorrt_rtx":
            context = self._engine.create_execution_context()
        else:
            module, config = self._library.module, self._engine.create_runtime_config()
            # A graph must hold the kernels made for its shape, not those that stand in while they are compiled.
            config.dynamic_shapes_kernel_specialization_strategy = (
                module.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            cache = config.create_runtime_cache()
            if kernels and not cache.deserialize(kernels):
                log.info("%s: the kernels kept beside it are another GPU's or driver's: compiled anew", self._what)
            config.set_runtime_cache(cache)
            context = self._engine.create_execution_context(config)
        if context is None:
            raise self._refused("has no context to run in")
        return config, cache, context

    def _launch(self, _given: Tensor, _answer: Tensor) -> None:
        """Queue one batch; the addresses of both buffers are the context's since it was made."""
        stream = torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0
        if not self._context.execute_async_v3(stream):
            raise self._refused("does not run")

    def _capturable(self, stream: torch.cuda.Stream) -> bool:
        """Whether runs may be captured; TensorRT-RTX alone tells, and `tensorrt` can where shapes are fixed."""
        ask = getattr(self._context, "is_stream_capturable", None)
        if ask is None or ask(stream.cuda_stream):
            return True
        log.warning("%s: runs without a CUDA graph, which takes longer", self._what)
        return False

    def _refused(self, what: str) -> EngineError:
        said = "; ".join(self._complaints.errors) or "the library does not say why"
        self._complaints.errors.clear()
        memory = any(word in said.lower() for word in ("out of memory", "outofmemory"))
        kind = OutOfMemory if memory else EngineError
        return kind(f"{self._what}: {what}: {said}")
