"""The engine of TensorRT: real engine files, refused where there is no GPU, and run where there is one.

How it drives the library is tested with a stand-in that has the library's names and calculates at the addresses that it
is given; that the library has those names is tested with the library.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.models import CLASSES, SIDE, library, small, write
from trt.build import BuildError, Library, build_engine, key_for
from trt.engine import DeviceEngine, EngineError, OutOfMemory, open_engine
from trt.enginecache import CachedEngine, CacheError, Key, entries, keep_kernels, kernels_of, obtain
from trt.gate import judge
from trt.manifest import Manifest, load
from trt.tensorrt_engine import TensorRtEngine, open_tensorrt

pytestmark = pytest.mark.usefixtures("one_thread")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
without_one = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture
def tiny(tmp_path: Path) -> Manifest:
    (tmp_path / "model").mkdir()
    return write(small(), tmp_path / "model")


def made(manifest: Manifest, library: Library, folder: Path) -> tuple[CachedEngine, bytes]:
    key = key_for(manifest, library, "SM86", batch=4, precision="f16")
    return obtain(folder, key, "small", lambda timings: build_engine(manifest, library, key, timings=timings))


@without_one
def test_a_real_engine_is_refused_without_a_driver(tiny: Manifest, tmp_path: Path) -> None:
    rtx = library()
    with pytest.raises(EngineError, match=r"does not load; delete its files .*driver") as caught:
        TensorRtEngine(tiny, rtx, *made(tiny, rtx, tmp_path / "engines"))
    assert "SM86" in str(caught.value)


@without_one
def test_without_a_gpu_nothing_is_built_and_the_way_out_is_named(tiny: Manifest, tmp_path: Path) -> None:
    library()
    with pytest.raises(BuildError, match=r"(no NVIDIA driver|finds no GPU).*SM86"):
        open_engine(tiny, "tensorrt", cache=tmp_path / "engines")
    assert entries(tmp_path / "engines") == []


def test_it_wants_a_folder(tiny: Manifest) -> None:
    library()
    with pytest.raises(EngineError, match="folder"):
        open_engine(tiny, "tensorrt")


def test_the_library_has_every_name_that_is_used() -> None:
    module = library().module
    names = {
        module.Runtime: ["deserialize_cuda_engine"],
        module.ICudaEngine: [
            "num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_shape", "get_tensor_dtype",
            "create_runtime_config", "create_execution_context",
        ],
        module.IRuntimeConfig: [
            "create_runtime_cache", "set_runtime_cache", "dynamic_shapes_kernel_specialization_strategy",
        ],
        module.IRuntimeCache: ["serialize", "deserialize"],
        module.IExecutionContext: ["set_input_shape", "set_tensor_address", "execute_async_v3", "is_stream_capturable"],
        module.TensorIOMode: ["INPUT", "OUTPUT"],
        module.DataType: ["FLOAT"],
        module.DynamicShapesKernelSpecializationStrategy: ["EAGER"],
    }  # fmt: skip
    lacking = [f"{kind.__name__}.{name}" for kind, each in names.items() for name in each if not hasattr(kind, name)]
    assert lacking == []


# --- a library that calculates on the host --------------------------------------------------------------------------


class Context:
    def __init__(self, engine: StandIn) -> None:
        self.engine, self.addresses, self.shape = engine, dict[str, int](), ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "patches"
        self.shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.engine.takes_addresses

    def execute_async_v3(self, _stream: int) -> bool:
        def at(name: str, shape: tuple[int, ...]) -> np.ndarray:
            count = int(np.prod(shape))
            return np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses[name])).reshape(shape)

        given = at("patches", self.shape)
        at("logits", (self.shape[0], CLASSES, SIDE, SIDE))[:] = given.mean(axis=1, keepdims=True)
        self.engine.runs += 1
        return self.engine.runs_well


class Cache:
    def __init__(self) -> None:
        self.held = b""

    def serialize(self) -> bytes:
        return self.held + b"+"

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"kernels"):
            return False
        self.held = blob
        return True


class StandIn:
    """The module, its runtime and its engine in one: what a real engine of `small` says of itself."""

    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    DataType = SimpleNamespace(FLOAT="float")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    ILogger = SimpleNamespace(Severity=SimpleNamespace(WARNING=2, INFO=3))
    num_io_tensors = 2

    def __init__(self, **changes: Any) -> None:
        self.shapes = {"logits": (-1, CLASSES, SIDE, SIDE), "patches": (-1, 3, SIDE, SIDE)}  # the output is told first
        self.dtype, self.loads, self.has_context = "float", True, True
        self.takes_addresses = self.runs_well = True
        self.complaint, self.runs, self.config = "", 0, SimpleNamespace(create_runtime_cache=Cache)
        self.config.set_runtime_cache = lambda cache: setattr(self.config, "cache", cache)
        vars(self).update(changes)

    def Runtime(self, logger: Any) -> StandIn:  # noqa: N802
        if self.complaint:
            logger.errors.append(self.complaint)
        return self

    def deserialize_cuda_engine(self, plan: bytes) -> StandIn | None:
        assert plan == b"plan"
        return self if self.loads else None

    def get_tensor_name(self, number: int) -> str:
        return list(self.shapes)[number]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "patches" else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_dtype(self, _name: str) -> str:
        return self.dtype

    def create_runtime_config(self) -> Any:
        return self.config

    def create_execution_context(self, _config: Any = None) -> Context | None:
        return Context(self) if self.has_context else None


class _Logger:
    """The module's logger is a class to derive from."""

    Severity = SimpleNamespace(WARNING=2, INFO=3)

    def __init__(self) -> None: ...


@pytest.fixture
def opened(tiny: Manifest) -> Callable[..., TensorRtEngine]:
    def opens(name: str = "tensorrt_rtx", kernels: bytes = b"", **changes: Any) -> TensorRtEngine:
        module = StandIn(ILogger=_Logger, **changes)
        key = Key("0" * 64, name, "1.0", "SM86", (4, 3, SIDE, SIDE), "f16", 1)
        cached = CachedEngine(key, "small", "0" * 64, 4, {})
        return TensorRtEngine(tiny, Library(name, "1.0", module), cached, b"plan", kernels, device="cpu")

    return opens


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_it_calculates_at_the_addresses_it_was_given(
    opened: Callable[..., TensorRtEngine], name: str, count: int
) -> None:
    given = np.random.default_rng(0).random((count, 3, SIDE, SIDE), np.float32)
    wanted = np.repeat(given.mean(axis=1, keepdims=True), CLASSES, axis=1)
    with opened(name) as engine:
        np.testing.assert_allclose(engine(given), wanted, rtol=1e-6)
        np.testing.assert_allclose(engine.on_device(torch.from_numpy(given)).numpy(), wanted, rtol=1e-6)
        assert isinstance(engine, DeviceEngine)
        assert engine.describe()["version"] == f"{name} 1.0"
        assert engine.describe()["precision"] == "f16"
    with pytest.raises(EngineError, match="closed"):
        engine(given)


def test_kernels_are_taken_up_and_given_on(opened: Callable[..., TensorRtEngine]) -> None:
    with opened(kernels=b"kernels of yesterday") as engine:
        assert engine.kernels() == b"kernels of yesterday+"
    with opened(kernels=b"of another driver") as engine:
        assert engine.kernels() == b"+"
        assert engine._config.dynamic_shapes_kernel_specialization_strategy == "eager"
    with opened("tensorrt") as engine:
        assert engine.kernels() == b""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loads": False, "complaint": "built by version 9"}, r"does not load; delete its files.*built by version 9"),
        ({"has_context": False}, "has no context to run in: the library does not say why"),
        ({"takes_addresses": False}, "does not take its buffers"),
        ({"runs_well": False}, "does not run"),
        ({"dtype": "half"}, "promises .*float32"),
        ({"shapes": {"patches": (-1, 3, 8, 8), "logits": (-1, CLASSES, 8, 8)}}, "promises"),
        ({"shapes": {"patches": (-1, 3, SIDE, SIDE), "logits": (-1, 2, SIDE, SIDE)}}, "promises"),
    ],
)
def test_what_the_library_refuses_is_said(
    opened: Callable[..., TensorRtEngine], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        opened(**changes)
    assert "SM86" in str(caught.value)
    assert not isinstance(caught.value, OutOfMemory)


@pytest.mark.parametrize("said", ["Error Code 2: OutOfMemory (Requested size was 4096 bytes.)", "CUDA out of memory"])
def test_too_little_memory_is_told_apart(opened: Callable[..., TensorRtEngine], said: str) -> None:
    with pytest.raises(OutOfMemory, match="has no context"):
        opened(has_context=False, complaint=said)


# --- kernels beside the engine --------------------------------------------------------------------------------------


def test_kernels_are_kept_beside_the_engine_and_never_handed_out_damaged(
    tiny: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "engines"
    key = made(tiny, library(), folder)[0].key
    assert kernels_of(folder, key) == b""
    keep_kernels(folder, key, b"compiled")
    assert kernels_of(folder, key) == b"compiled"
    assert kernels_of(folder, dataclasses.replace(key, capability="SM89")) == b""
    assert [entry.fault for entry in entries(folder)] == [""]
    path = folder / f"{key.name}.kernels"
    path.write_bytes(path.read_bytes()[:-1])
    assert kernels_of(folder, key) == b""
    assert "damaged; they are compiled anew" in caplog.text
    path.unlink()
    path.mkdir()
    with pytest.raises(CacheError, match="cannot be read"):
        kernels_of(folder, key)


# --- on a GPU -------------------------------------------------------------------------------------------------------


@on_a_gpu
@pytest.mark.parametrize("precision", ["f16", "f32"])
def test_it_calculates_what_the_model_does_and_the_next_start_builds_nothing(precision: Any, tmp_path: Path) -> None:
    manifest = load()
    for _ in range(2):
        with open_tensorrt(manifest, tmp_path, batch=4, precision=precision) as engine:
            assert judge(engine, manifest, precision, count=7).passed
            given = torch.rand((5, 3, *manifest.patch), device=engine.device)
            np.testing.assert_array_equal(engine.on_device(given).cpu().numpy(), engine(given.cpu().numpy()))
            assert engine._batch.graphed
    assert len(entries(tmp_path)) == 1
