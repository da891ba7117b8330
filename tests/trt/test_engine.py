from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from trt.engine import Engine, EngineError, Precision, open_engine, require_backend
from trt.manifest import load
from trt.phantom import spine_phantom


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with open_engine(load(), threads=2, batch=4) as opened:
        yield opened


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    image = spine_phantom((7, 160, 144), (0.9, 0.9375, 0.9375), seed=3).image.astype(np.float32) / 1000
    return np.stack([image[z : z + 3, 8 * z : 8 * z + 128, 2 * z : 2 * z + 128] for z in range(5)])


def test_the_engine_agrees_with_the_onnx_reference(engine: Engine, patches: np.ndarray) -> None:
    (wanted,) = ReferenceEvaluator(onnx.load(load().path)).run(None, {"patches": patches[:1]})
    np.testing.assert_allclose(engine(patches[:1]), wanted, atol=2e-3)


def test_the_batch_does_not_change_a_patch(engine: Engine, patches: np.ndarray) -> None:
    together = engine(patches)
    assert together.shape == (5, load().classes, 128, 128)
    assert together.dtype == np.float32
    alone = np.concatenate([engine(patches[n : n + 1]) for n in range(5)])
    np.testing.assert_allclose(alone, together, atol=1e-4)
    np.testing.assert_array_equal(engine(patches), together)


@pytest.mark.parametrize("precision", ["f32", "int8"])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 11])
def test_streams_and_threads_change_no_logit(precision: Precision, count: int) -> None:
    """To the last bit: a mask must not depend on how many cores its host has."""
    given = np.random.default_rng(count).random((count, 3, 128, 128), np.float32)
    with (
        open_engine(load(), threads=1, batch=4, precision=precision) as one,
        open_engine(load(), threads=2, batch=4, precision=precision) as two,
    ):
        np.testing.assert_array_equal(two(given), one(given))
        large = np.pad(given[:3], ((0, 0), (0, 0), (0, 192), (0, 64)))  # one patch of it is more than half a batch
        np.testing.assert_array_equal(two(large), one(large))


def test_what_fails_in_one_stream_is_raised_when_all_have_ended() -> None:
    with open_engine(load(), threads=2, batch=4) as broken:
        good = broken(np.zeros((4, 3, 128, 128), np.float32))

        class Fails:
            """A request that takes everything and then fails, beside one that is real."""

            def set_output_tensor(self, tensor: object) -> None: ...

            def start_async(self, inputs: object, *, share_inputs: bool) -> None: ...

            def wait(self) -> None:
                raise RuntimeError("out of memory")

        real = broken._requests  # type: ignore[attr-defined]
        broken._requests = [Fails(), real[1]]  # type: ignore[attr-defined]
        with pytest.raises(EngineError, match="OpenVINO failed: out of memory"):
            broken(np.zeros((4, 3, 128, 128), np.float32))
        broken._requests = real  # type: ignore[attr-defined]
        np.testing.assert_array_equal(broken(np.zeros((4, 3, 128, 128), np.float32)), good)


def test_a_result_stays_when_the_engine_runs_again(engine: Engine, patches: np.ndarray) -> None:
    first = engine(patches[:4])
    kept = first.copy()
    engine(patches[1:5] * 0.5)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("count", [3, 4, 7])
def test_results_and_patches_share_no_memory_with_what_comes_after(
    engine: Engine, patches: np.ndarray, count: int
) -> None:
    given = np.resize(patches, (count, *patches.shape[1:]))
    first = engine(given)
    kept = first.copy()
    given[:] = 0
    second = engine(given)
    assert not np.shares_memory(first, second)
    first[:] = np.nan
    np.testing.assert_array_equal(engine(np.resize(patches, given.shape)), kept)
    np.testing.assert_array_equal(engine(given), second)


def test_patches_that_are_not_contiguous_are_taken(engine: Engine, patches: np.ndarray) -> None:
    np.testing.assert_array_equal(engine(patches[::-1, ::-1]), engine(patches[::-1, ::-1].copy()))


def test_no_patches_give_no_logits(engine: Engine) -> None:
    assert engine(np.empty((0, 3, 128, 128), np.float32)).shape == (0, load().classes, 128, 128)


def test_the_engine_describes_itself(engine: Engine) -> None:
    facts = engine.describe()
    assert engine.backend == facts["backend"] == "openvino"
    assert facts["precision"] == "f32"
    assert facts["threads"] == "2"
    assert facts["model"].startswith("penn-spine ")
    assert facts["version"]
    assert facts["device"]


@pytest.mark.parametrize("shape", [(3, 128, 128), (1, 1, 128, 128), (1, 3, 96, 120), (1, 3, 0, 128)])
def test_patches_of_another_shape_are_refused(engine: Engine, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="patches must be"):
        engine(np.zeros(shape, np.float32))


def test_patches_of_any_multiple_of_the_stride_are_taken_and_give_the_same_in_any_order(
    engine: Engine, patches: np.ndarray
) -> None:
    large = np.pad(patches, ((0, 0), (0, 0), (0, 48), (32, 0)))
    first = engine(large), engine(patches)
    again = engine(patches), engine(large)
    assert first[0].shape == (5, load().classes, 176, 160)
    np.testing.assert_array_equal(first[0], again[1])
    np.testing.assert_array_equal(first[1], again[0])


def test_memory_does_not_grow_with_every_shape() -> None:
    """Asked of a process of its own: what other tests hold would hide it."""
    script = """
import numpy as np
from pathlib import Path
from trt.engine import open_engine
from trt.manifest import load

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

with open_engine(load(), threads=1, batch=1) as engine:
    shapes = [(n, 16 * y, 16 * x) for n in (1, 2) for y in range(1, 6) for x in range(1, 6)]
    for number, (n, y, x) in enumerate(shapes):
        engine(np.zeros((n, 3, y, x), np.float32))
        if number == 9:
            before = held()
    print(held() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 60  # MB, over 40 shapes; 2 MB for each without a bound


def test_a_model_without_a_stride_takes_its_own_patches_alone(patches: np.ndarray) -> None:
    with open_engine(dataclasses.replace(load(), stride=None), threads=1, batch=2) as fixed:
        assert not fixed.flexible
        assert fixed(patches).shape == (5, load().classes, 128, 128)
        with pytest.raises(ValueError, match=r"sides of \(128, 128\)"):
            fixed(np.zeros((1, 3, 144, 128), np.float32))


def test_patches_of_another_dtype_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="float64"):
        engine(np.zeros((1, 3, 128, 128)))  # type: ignore[arg-type]


def test_bf16_agrees_on_the_mask_or_is_refused(engine: Engine, patches: np.ndarray) -> None:
    try:
        with open_engine(load(), batch=4, precision="bf16") as half:
            assert half.describe()["precision"] == "bf16"
            agreeing = (half(patches).argmax(1) == engine(patches).argmax(1)).mean()
    except EngineError as error:
        assert "bf16" in str(error)  # noqa: PT017  # a CPU without bf16 must say so
    else:
        assert agreeing > 0.99


def test_a_closed_engine_says_so() -> None:
    with open_engine(load(), batch=1) as engine:
        pass
    with pytest.raises(EngineError, match="closed"):
        engine(np.zeros((1, 3, 128, 128), np.float32))


def test_an_unknown_backend_names_the_choices() -> None:
    with pytest.raises(EngineError, match="openvino, tensorrt"):
        open_engine(load(), "cuda")


def test_a_backend_whose_packages_are_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "onnx", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    for backend, lacking in (("tensorrt", "torch, onnx, TensorRT or TensorRT-RTX"), ("torch", "torch, onnx")):
        with pytest.raises(EngineError, match=rf"backend {backend} needs {lacking}: .*pennode\[gpu\].*openvino"):
            require_backend(backend)
    require_backend("openvino")


@pytest.mark.parametrize("numbers", [{"threads": 0}, {"batch": 0}])
def test_numbers_below_one_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        open_engine(load(), **numbers)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(EngineError, match="refuses the model"):
        open_engine(dataclasses.replace(load(), path=path))


def test_a_model_with_other_classes_than_promised_is_refused() -> None:
    manifest = load()
    with pytest.raises(EngineError, match="promises"):
        open_engine(dataclasses.replace(manifest, labels=manifest.labels[:2]))


def test_openvino_reports_nothing_to_its_maker(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from trt.engine import open_engine\n"
        "from trt.manifest import load\n"
        "open_engine(load(), threads=1, batch=1).close()\n"
        "assert 'openvino.tools.ovc' in sys.modules  # it is what reports\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    )
    # Without CI, where it would be silent by itself.
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    assert not (tmp_path / "intel").exists()  # where it keeps the id it reports under


def test_serving_imports_no_torch() -> None:
    code = (
        "import sys, trt.patches, trt.extraction, trt.engine, trt.cpu, trt.serving, trt.manifest, trt.phantom\n"
        "found = {'torch', 'onnx', 'openvino', 'node', 'workers'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
