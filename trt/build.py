"""From a model to a TensorRT engine for one GPU, one batch and one precision.

Written against what `tensorrt` (10.x, 11.x) and `tensorrt_rtx` have in common, and so far run with the latter alone.
Networks are strongly typed: they calculate in the types that the ONNX says, float16 inside float32 borders
(`trt.half`), or float32 throughout. `tensorrt` measures kernels on the GPU it builds for; `tensorrt_rtx` needs none, it
leaves that to the first run.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal, TypeAlias, get_args

from trt.callbacks import Event, logger, monitor
from trt.engine import EngineError
from trt.enginecache import Built, Key
from trt.gpu import capability as capability_here
from trt.gpu import parse_capability
from trt.manifest import Manifest, ManifestError

BuildPrecision = Literal["f16", "f32"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told of a build's phases: name, steps done, steps in all. What it raises ends the build."""

RECIPE = 2
"""To be raised whenever this module or `trt.half` gives another engine for the same model."""

WORKSPACE_MB = 1024

_BUILDING = threading.Lock()  # one logger serves the whole process, so builds take turns


class BuildError(EngineError):
    """No engine can be built as asked; the message names the layer and op, or what is missing, and what to do."""


@dataclass(frozen=True)
class Library:
    """The library that builds: `tensorrt` or `tensorrt_rtx`, its version and the module itself."""

    name: str
    version: str
    module: Any

    @property
    def needs_gpu(self) -> bool:
        """Whether it builds only for the GPU that it runs on."""
        return self.name == "tensorrt"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Compute capabilities it builds for without the GPU, as SM86; none for a library that needs the GPU."""
        if self.needs_gpu:
            return ()
        names = [name for name in self.module.ComputeCapability.__members__ if name[2:].isdecimal()]
        return tuple(sorted(names, key=lambda name: int(name[2:])))


def find_library() -> Library:
    """`tensorrt` where it is installed, else `tensorrt_rtx`. Raises `BuildError` where neither is, or one is broken."""
    try:
        return _import()
    except ModuleNotFoundError as error:
        raise BuildError(
            "neither TensorRT nor TensorRT-RTX is installed: `pip install 'pennode[gpu]'` for data centre GPUs, "
            "`pip install 'pennode[rtx]'` for RTX GPUs and to build without one; backend openvino needs neither"
        ) from error
    except (ImportError, OSError) as error:  # the modules load the vendor's libraries themselves
        raise BuildError(f"TensorRT is installed but does not load: {error}; install it anew") from error


def _import() -> Library:
    try:
        import tensorrt
    except ModuleNotFoundError:
        import tensorrt_rtx

        return Library("tensorrt_rtx", tensorrt_rtx.__version__, tensorrt_rtx)
    return Library("tensorrt", tensorrt.__version__, tensorrt)


def choose_capability(library: Library, wanted: str | None = None) -> str:
    """The compute capability to build for, as SM86: that which is `wanted`, or that of this machine's GPU.

    Raises `BuildError` where the library does not build for it, `EngineError` for text that is no capability and where
    none is wanted and there is no GPU.
    """
    here = ""
    if wanted is None or library.needs_gpu:
        try:
            here = capability_here()
        except EngineError as error:
            way = f"name the GPU to build for: {', '.join(library.capabilities)}"
            beside = "tensorrt builds beside its GPU only, TensorRT-RTX (`pip install 'pennode[rtx]'`) without one"
            raise BuildError(f"{error}; {beside if library.needs_gpu else way}") from error
    chosen = parse_capability(wanted) if wanted is not None else here
    if library.needs_gpu:
        if chosen != here:
            raise BuildError(
                f"tensorrt builds for the GPU it runs on, {here}, not for {chosen}; build on a machine with that GPU, "
                "or with TensorRT-RTX alone installed (`pip install 'pennode[rtx]'`)"
            )
    elif chosen not in library.capabilities:
        raise BuildError(
            f"tensorrt_rtx {library.version} builds for {', '.join(library.capabilities)}, not for {chosen}; GPUs that "
            "it leaves out, as Hopper (SM90), are served by TensorRT on the machine itself "
            "(`pip install 'pennode[gpu]'`), and every machine by backend openvino"
        )
    return chosen


def key_for(manifest: Manifest, library: Library, capability: str, *, batch: int, precision: BuildPrecision) -> Key:
    """The key of the engine that takes `batch` patches at a time; `capability` is that of `choose_capability`.

    Raises `BuildError` for an unknown precision, `ValueError` for a batch below one.
    """
    if precision not in get_args(BuildPrecision):
        raise BuildError(
            f"no precision {precision!r} in TensorRT; choose one of: {', '.join(get_args(BuildPrecision))}"
        )
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    shape = (batch, manifest.channels, *manifest.patch)
    return Key(manifest.digest, library.name, library.version, capability, shape, precision, RECIPE)


def build_engine(
    manifest: Manifest,
    library: Library,
    key: Key,
    *,
    workspace_mb: int = WORKSPACE_MB,
    timings: bytes = b"",
    progress: Progress | None = None,
) -> Built:
    """Build the engine of `key_for`: patches (N, C, H, W) float32 to logits (N, K, H, W) float32, N fixed.

    `workspace_mb` bounds the memory that a layer may use for its work, `timings` is the timing cache of earlier builds
    for this GPU (tensorrt alone keeps one). `progress` is called in the caller's thread.

    Raises
    ------
    BuildError
        The library refuses the model, or builds no engine of it.
    HalfError
        The model cannot be calculated in float16.
    ManifestError
        The model is not the file that its manifest speaks of.
    ValueError
        `workspace_mb` is below one.
    """
    if workspace_mb < 1:
        raise ValueError(f"workspace_mb must be at least 1, not {workspace_mb}")
    onnx = _checked(manifest)
    if key.precision == "f16":
        onnx = _halve(onnx, manifest)
    events: SimpleQueue[Event | None] = SimpleQueue()
    cancelled = threading.Event()
    began = time.monotonic()
    # The library calls back through C++, which no exception may cross, Ctrl-C's least of all: it builds in a thread.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(_build, manifest, library, key, onnx, workspace_mb, timings, events, cancelled)
        future.add_done_callback(lambda _: events.put(None))
        try:
            for event in iter(events.get, None):
                if progress is not None:
                    progress(*event)
        finally:
            cancelled.set()
        plan, measured = future.result()
    facts = {"workspace_mb": str(workspace_mb), "build_s": f"{time.monotonic() - began:.2f}"}
    return Built(plan, measured, facts)


def _checked(manifest: Manifest) -> bytes:
    """The model's bytes; what was checked when the manifest was read may have been replaced since."""
    try:
        data = manifest.path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{manifest.path}: cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != manifest.digest:
        raise ManifestError(f"{manifest.path}: is not the file that its manifest speaks of; load the model again")
    return data


def _halve(data: bytes, manifest: Manifest) -> bytes:
    try:
        from trt.half import HalfError, halve
    except ImportError as error:
        raise BuildError("onnx is not installed: `pip install 'pennode[gpu]'` or 'pennode[rtx]'") from error
    try:
        return halve(data)
    except HalfError as error:
        raise HalfError(f"{manifest.path}: {error}") from error


def _build(
    manifest: Manifest,
    library: Library,
    key: Key,
    onnx: bytes,
    workspace_mb: int,
    timings: bytes,
    events: SimpleQueue[Event | None],
    cancelled: threading.Event,
) -> tuple[bytes, bytes]:
    """The engine's bytes and the timing cache, by the library itself."""
    module, refused = library.module, f"{manifest.path}: {library.name} {library.version}"
    with _BUILDING:
        complaints = logger(module)
        complaints.errors.clear()
        builder = module.Builder(complaints)
        network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = module.OnnxParser(network, complaints)
        if not parser.parse(onnx):
            raise BuildError(f"{refused} refuses the model: {_layers(parser, module)}; choose backend openvino")
        answer = (manifest.classes, *manifest.patch)
        if (network.num_inputs, network.num_outputs) != (1, 1) or tuple(network.get_output(0).shape)[1:] != answer:
            shapes = [tuple(network.get_output(n).shape) for n in range(network.num_outputs)]
            raise BuildError(f"{manifest.path}: answers {shapes}, the manifest promises (N, {answer})")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, workspace_mb << 20)
        config.clear_flag(module.BuilderFlag.TF32)  # allowed by default, and no float32: it has float16's mantissa
        config.progress_monitor = monitor(module, events, cancelled)
        profile = builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, key.shape, key.shape, key.shape)  # least, best, most
        config.add_optimization_profile(profile)
        if library.needs_gpu:
            kept = config.create_timing_cache(timings) or config.create_timing_cache(b"")  # None: of another version
            config.set_timing_cache(kept, ignore_mismatch=False)
        else:
            config.num_compute_capabilities = 1
            config.set_compute_capability(module.ComputeCapability.__members__[key.capability], 0)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BuildError(f"{refused} builds no engine for {key.capability}: {_reason(complaints.errors)}")
        measured = bytes(memoryview(config.get_timing_cache().serialize())) if library.needs_gpu else b""
        return bytes(memoryview(plan)), measured


def _layers(parser: Any, module: Any) -> str:
    """The layers and ops that the parser refuses, each with what it says of them."""
    said = []
    for number in range(parser.num_errors):
        error = parser.get_error(number)
        why = (error.desc().splitlines() or [""])[0]
        if error.code() == module.ErrorCode.UNSUPPORTED_NODE:
            why = "not supported" if why in ("", "false") else f"not supported: {why}"
        where = f"layer {error.node_name()!r}, op {error.node_operator()}: " if error.node_operator() else ""
        said.append(where + why)
    return "; ".join(said) or "it does not say why"


def _reason(errors: list[str]) -> str:
    """What the library said of its failure, without what it says of having no GPU, which it needs not."""
    said = [text for text in errors if "catchCudaError" not in text] or errors or ["it does not say why"]
    if any("workspace" in text or "OutOfMemory" in text for text in said):
        said.append("give it a larger workspace")
    else:
        said.append("choose precision f32, or backend openvino")
    return "; ".join(said)
