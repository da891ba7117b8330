"""torch as an engine, on torch's CPU device; on a GPU where there is one, by the same tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from tests.models import SIDE, convolution, graph, library, small, weights, write
from trt.build import BuildPrecision, build_engine, key_for
from trt.device_engine import translated
from trt.engine import DeviceEngine, Engine, EngineError, OutOfMemory, open_engine
from trt.fixedbatch import FixedBatch
from trt.gate import judge
from trt.manifest import Manifest, ManifestError, load, sha256
from trt.patches import predict_volume
from trt.slabs import Cut, slabs
from trt.torch_engine import TorchEngine, has_code

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write(small(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=DEVICES)
def engine(request: pytest.FixtureRequest, tiny: Manifest) -> Iterator[TorchEngine]:
    with TorchEngine(tiny, 4, "f32", request.param) as opened:
        yield opened


def patches(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, SIDE, SIDE), np.float32)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 9])
def test_any_number_of_patches_gives_what_openvino_gives(engine: TorchEngine, tiny: Manifest, count: int) -> None:
    given = patches(count)
    with open_engine(tiny, threads=1, batch=4) as reference:
        np.testing.assert_allclose(engine(given), reference(given), atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_patches_on_the_device_give_the_same(engine: TorchEngine, count: int) -> None:
    given = patches(count)
    found = engine.on_device(torch.from_numpy(given).to(engine.device))
    assert found.device.type == engine.device.type
    np.testing.assert_array_equal(found.cpu().numpy(), engine(given))


def test_results_and_patches_share_no_memory_with_what_comes_after(engine: TorchEngine) -> None:
    given = patches(4)
    first = engine(given)
    kept = first.copy()
    given[:] = 0
    engine(given)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("shape", [(3, SIDE, SIDE), (1, 1, SIDE, SIDE), (1, 3, SIDE, SIDE + 2)])
def test_patches_of_another_shape_or_dtype_are_refused(engine: TorchEngine, shape: tuple[int, ...]) -> None:
    for given in (np.zeros(shape, np.float32), np.zeros((1, 3, SIDE, SIDE))):
        with pytest.raises(ValueError, match="patches must be"):
            engine(given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patches must be"):
        engine.on_device(torch.zeros(shape, device=engine.device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_the_shipped_model_passes_the_gate(precision: str, device: str) -> None:
    with TorchEngine(load(), 4, precision, device) as engine:
        assert judge(engine, load(), precision, count=3).passed
        assert engine.describe()["precision"] == precision


def test_it_describes_itself_and_is_told_from_engines_of_the_host(engine: TorchEngine, tiny: Manifest) -> None:
    facts = engine.describe()
    assert (engine.backend, facts["backend"], facts["batch"]) == ("torch", "torch", "4")
    assert facts["version"] == torch.__version__
    assert isinstance(engine, DeviceEngine)
    assert not engine.flexible
    with open_engine(tiny, threads=1) as other:
        assert not isinstance(other, DeviceEngine)


def test_it_is_opened_by_name(tiny: Manifest) -> None:
    with open_engine(tiny, "torch", batch=2, device="cpu") as engine:
        assert engine(patches(1)).shape == (1, 5, SIDE, SIDE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_why_and_what_to_choose(tiny: Manifest) -> None:
    with pytest.raises(EngineError, match=r"(built without CUDA|no NVIDIA driver|finds no GPU).*openvino"):
        open_engine(tiny, "torch")


def test_a_closed_engine_says_so(tiny: Manifest) -> None:
    with TorchEngine(tiny, 1, "f32", "cpu") as engine:
        pass
    with pytest.raises(EngineError, match="closed"):
        engine(patches(1))


def test_a_file_that_is_not_the_manifests_is_refused(tiny: Manifest) -> None:
    with pytest.raises(ManifestError, match="is not the file"):
        TorchEngine(dataclasses.replace(tiny, digest="0" * 64), 1, "f32", "cpu")


def test_an_operator_that_is_not_known_is_named(tmp_path: Path) -> None:
    nodes = [convolution("patches", "w", "a"), helper.make_node("Softplus", ["a"], ["logits"], name="odd")]
    manifest = write(graph(nodes, [weights("w", 5, 3, 3, 3)]), tmp_path)
    with pytest.raises(EngineError, match="Softplus odd"):
        TorchEngine(manifest, 1, "f32", "cpu")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, tiny: Manifest) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(EngineError, match="refuses the model"):
        TorchEngine(dataclasses.replace(tiny, path=path, digest=sha256(path)), 1, "f32", "cpu")


def test_a_model_with_other_classes_than_promised_is_refused(tiny: Manifest) -> None:
    with pytest.raises(EngineError, match="promises"):
        TorchEngine(dataclasses.replace(tiny, labels=tiny.labels[:2]), 1, "f32", "cpu")


def test_a_precision_it_lacks_is_refused(tiny: Manifest) -> None:
    with pytest.raises(EngineError, match=r"bf16.*f32, f16"):
        TorchEngine(tiny, 1, "bf16", "cpu")
    with pytest.raises(EngineError, match="backend torch has no precision 'bf16'"):
        open_engine(tiny, "torch", precision="bf16")


def test_what_torch_says_of_memory_and_of_all_else_is_told_apart() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"the model: CUDA out of memory; set worker\.batch lower"),
        translated("the model"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory\nand more")
    with pytest.raises(EngineError, match=r"no kernel image.*openvino") as caught, translated("the model"):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
    assert not isinstance(caught.value, OutOfMemory)
    with pytest.raises(EngineError, match=r"^as it was$"), translated("the model"):
        raise EngineError("as it was")


@pytest.mark.parametrize(
    ("built", "here", "runs"),
    [
        (["sm_75", "sm_80", "sm_90"], "SM86", True),
        (["sm_75", "sm_80", "sm_90"], "SM75", True),
        (["sm_75", "sm_86", "sm_90"], "SM80", False),
        (["sm_75", "sm_80", "sm_90"], "SM61", False),
        (["sm_75", "sm_80", "sm_90"], "SM120", False),
        (["sm_75", "compute_90"], "SM120", True),
        (["sm_90a"], "SM90", True),
        (["sm_100a"], "SM103", False),
        (["sm_120"], "SM121", True),
        ([], "SM80", False),
    ],
)
def test_cards_that_torch_has_no_code_for_are_known(built: list[str], here: str, runs: bool) -> None:
    assert has_code(built, here) is runs


# --- laws, for every backend ----------------------------------------------------------------------------------------


def fixed(model: onnx.ModelProto, folder: Path, classes: int) -> Manifest:
    manifest = write(model, folder)
    return dataclasses.replace(manifest, labels=manifest.labels[: classes - 1])


def law(folder: Path) -> Manifest:
    """A model of two classes: the middle slice as it is, and a mixture."""
    kernel = np.array([[0, 1, 0], [0.5, -2, 0.25]], np.float32)
    mix = helper.make_node("Conv", ["patches", "w"], ["logits"], name="mix")
    return fixed(graph([mix], [onnx.numpy_helper.from_array(kernel[:, :, None, None], "w")], classes=2), folder, 2)


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_the_model_of_the_laws_becomes_an_engine_where_none_can_run(tmp_path: Path, precision: BuildPrecision) -> None:
    rtx = library()
    for batch in (1, 64):
        key = key_for(law(tmp_path), rtx, "SM86", batch=batch, precision=precision)
        assert build_engine(law(tmp_path), rtx, key).plan


@pytest.fixture(params=["openvino", "torch on the CPU", "torch", "tensorrt"])
def opened(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Opens a manifest on one backend at some batch."""

    def by_name(manifest: Manifest, batch: int) -> Engine:
        if request.param == "torch on the CPU":
            return open_engine(manifest, "torch", batch=batch, device="cpu")
        return open_engine(manifest, request.param, batch=batch, threads=1, cache=tmp_path / "engines")

    if request.param in ("torch", "tensorrt") and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return by_name


@pytest.mark.parametrize(("overlap", "batch"), [(0.0, 1), (0.25, 3), (0.5, 4), (0.61, 5), (0.75, 64)])
@pytest.mark.parametrize("shape", [(3, 41, 37), (2, 7, 16), (1, 16, 90), (4, 3, 5)])
def test_identity_and_linear_laws_hold_for_a_backend(  # type: ignore[no-untyped-def]
    opened, tmp_path: Path, shape: tuple[int, int, int], overlap: float, batch: int
) -> None:
    """Of what the engine really runs, through the pipeline that it would serve in."""
    volume = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    padded = np.concatenate([volume[:1], volume, volume[-1:]])
    mixed = 0.5 * padded[:-2] - 2 * padded[1:-1] + 0.25 * padded[2:]
    with opened(law(tmp_path), batch) as engine:
        if isinstance(engine, DeviceEngine):
            cut = Cut((SIDE, SIDE), 3, 2, overlap, batch)
            found = [
                part.cpu().numpy().copy() for _, part in slabs(volume, engine.on_device, engine.device, cut, depth=2)
            ]
            logits = np.concatenate(found).transpose(1, 0, 2, 3)
        else:
            logits = predict_volume(volume, engine, patch=(SIDE, SIDE), channels=3, overlap=overlap, batch=batch)
    np.testing.assert_array_equal(logits[0], volume)
    np.testing.assert_allclose(logits[1], mixed, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("precision", "atol"), [("f32", 1e-5), ("f16", 1e-3)])
@pytest.mark.parametrize("shape", [(5, 41, 37), (2, 9, 60)])
def test_one_engine_gives_the_same_through_both_pipelines(
    tiny: Manifest, shape: tuple[int, int, int], precision: str, atol: float, device: str
) -> None:
    volume = np.random.default_rng(6).random(shape).astype(np.float32)
    with TorchEngine(tiny, 4, precision, device) as engine:
        found = [
            part.cpu().numpy().copy()
            for _, part in slabs(volume, engine.on_device, engine.device, Cut((SIDE, SIDE), 3, 5, 0.5, 4), depth=2)
        ]
        wanted = predict_volume(volume, engine, patch=(SIDE, SIDE), channels=3, overlap=0.5, batch=4)
    np.testing.assert_allclose(np.concatenate(found).transpose(1, 0, 2, 3), wanted, atol=atol)


# --- buffers --------------------------------------------------------------------------------------------------------


def test_a_batch_that_is_not_full_repeats_its_last_patch() -> None:
    seen = []

    def launch(given: torch.Tensor, answer: torch.Tensor) -> None:
        seen.append(given.clone())
        answer.copy_(given[:, :1])

    batch = FixedBatch((4, 2, 2, 3), 1, torch.device("cpu"))
    batch.prepare(launch)
    given = np.arange(3 * 2 * 2 * 3, dtype=np.float32).reshape(3, 2, 2, 3)
    np.testing.assert_array_equal(batch.on_host(given), given[:, :1])
    np.testing.assert_array_equal(seen[-1][3], given[2])
    assert not batch.graphed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_a_batch_is_a_graph(tiny: Manifest) -> None:
    with TorchEngine(tiny, 4, "f16", "cuda") as engine:
        assert engine._batch.graphed
