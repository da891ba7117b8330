from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.models import SIDE, convolution, graph, small, weights
from tests.peers import real_data
from trt.engine import open_engine
from trt.extraction import finder_model
from trt.gate import LEAST_AGREEMENT, TOLERANCES, compare, probe_patches
from trt.half import HalfError, halve, to_half
from trt.manifest import Manifest, load
from trt.patches import normalise


def evaluate(model: onnx.ModelProto, patches: np.ndarray) -> np.ndarray:
    (logits,) = ReferenceEvaluator(model).run(None, {"patches": patches})
    return np.asarray(logits)


def rounded(manifest: Manifest, folder: Path) -> Manifest:
    path = folder / "half.onnx"
    path.write_bytes(halve(manifest.path.read_bytes()))
    return dataclasses.replace(manifest, path=path)


def test_a_small_network_in_float16_gives_nearly_the_same_logits() -> None:
    patches = np.random.default_rng(1).random((3, 3, SIDE, SIDE), dtype=np.float32)
    half = to_half(small())
    wanted, found = evaluate(small(), patches), evaluate(half, patches)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=4e-3)
    assert np.abs(found - wanted).max() > 0  # it did calculate in float16


def test_only_the_borders_are_float32() -> None:
    half = onnx.shape_inference.infer_shapes(to_half(small()), strict_mode=True)
    assert {tensor.data_type for tensor in half.graph.initializer} == {TensorProto.FLOAT16}
    assert {value.type.tensor_type.elem_type for value in half.graph.value_info} == {TensorProto.FLOAT16}
    assert [value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)] == [1, 1]
    assert [value.name for value in (*half.graph.input, *half.graph.output)] == ["patches", "logits"]
    assert [node.op_type for node in half.graph.node].count("Cast") == 2


def test_layers_keep_their_names_and_the_model_stays_as_it_was() -> None:
    model = small()
    before = model.SerializeToString()
    half = to_half(model)
    assert model.SerializeToString() == before
    assert [node.name for node in half.graph.node][1:-1] == [node.name for node in model.graph.node]


def test_a_tensor_that_has_the_new_name_already_is_no_clash() -> None:
    model = graph(
        [convolution("patches", "w", "patches_half"), helper.make_node("Relu", ["patches_half"], ["logits"], name="r")],
        [weights("w", 5, 3, 3, 3)],
    )
    patches = np.random.default_rng(2).random((1, 3, SIDE, SIDE), dtype=np.float32)
    np.testing.assert_allclose(evaluate(to_half(model), patches), evaluate(model, patches), atol=4e-3)


def test_weights_listed_among_the_inputs_are_no_inputs() -> None:
    model = graph([convolution("patches", "w", "logits")], [weights("w", 5, 3, 3, 3)])
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [5, 3, 3, 3]))
    patches = np.random.default_rng(2).random((1, 3, SIDE, SIDE), dtype=np.float32)
    half = to_half(model)
    assert [node.op_type for node in half.graph.node] == ["Cast", "Conv", "Cast"]
    np.testing.assert_allclose(evaluate(half, patches), evaluate(model, patches), atol=4e-3)


def test_an_unknown_op_is_refused_by_name() -> None:
    model = graph(
        [convolution("patches", "w", "a"), helper.make_node("Exp", ["a"], ["logits"], name="the_exp")],
        [weights("w", 5, 3, 3, 3)],
    )
    with pytest.raises(HalfError, match=r"layer 'the_exp': op Exp .* choose precision f32"):
        to_half(model)


def test_an_op_of_another_domain_is_refused_whatever_its_name() -> None:
    model = graph([helper.make_node("Relu", ["patches"], ["logits"], domain="my.ops")])
    with pytest.raises(HalfError, match=r"layer 'logits': op my\.ops\.Relu"):
        to_half(model)


def test_weights_that_float16_does_not_hold_are_refused_and_not_clipped() -> None:
    large = numpy_helper.from_array(np.full((5, 3, 3, 3), 7e4, np.float32), "large")
    with pytest.raises(HalfError, match=r"'large' reach 7e\+04, more than float16 holds"):
        to_half(graph([convolution("patches", "large", "logits")], [large]))


def test_weights_of_another_type_are_refused() -> None:
    double = numpy_helper.from_array(np.ones((5, 3, 3, 3)), "double")
    with pytest.raises(HalfError, match="'double' are DOUBLE, not FLOAT"):
        to_half(graph([convolution("patches", "double", "logits")], [double]))


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(HalfError, match="no valid ONNX"):
        to_half(graph([convolution("patches", "w", "logits", kernel_shape=[5, 5])], [weights("w", 5, 3, 3, 3)]))


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(HalfError, match="no valid ONNX"):
        halve(b"no model")


@pytest.mark.slow
def test_the_shipped_model_calculated_in_float16_passes_the_gate() -> None:
    manifest = load()
    patches = probe_patches(manifest, count=2)[1:]
    half = onnx.load_model_from_string(halve(manifest.path.read_bytes()))
    with open_engine(manifest, threads=1, batch=1) as engine:
        gate = compare(lambda p: evaluate(half, p), engine, patches, tolerance=TOLERANCES["f16"], name="openvino")
    assert gate.passed, gate
    assert gate.largest_difference > 1e-4  # float16 leaves a trace


def test_the_shipped_finder_calculated_in_float16_passes_the_gate() -> None:
    manifest = load()
    assert manifest.finder is not None
    finder = finder_model(manifest)
    patches = probe_patches(finder, factor=manifest.finder.factor, count=2)
    half = onnx.load_model_from_string(halve(finder.path.read_bytes()))
    with open_engine(finder, threads=1, batch=1) as engine:
        gate = compare(lambda p: evaluate(half, p), engine, patches, tolerance=TOLERANCES["f16"], name="openvino")
    assert gate.passed, gate
    assert gate.classes == 2


def test_the_shipped_model_with_rounded_weights_agrees_on_real_images(tmp_path: Path) -> None:
    manifest = load()
    path = sorted(real_data("spider_t2space").glob("*.npz"))[0]
    volume = normalise(np.load(path)["image"], manifest.normalisation)
    z, y, x = (length // 2 for length in volume.shape)
    patches = np.stack(
        [volume[z - 1 + n : z + 2 + n, y - 64 - 32 * n : y + 64 - 32 * n, x - 64 : x + 64] for n in range(-2, 3)]
    )
    with (
        open_engine(manifest, threads=1, batch=1) as full,
        open_engine(rounded(manifest, tmp_path), threads=1, batch=1) as half,
    ):
        wanted, found = full(patches), half(patches)
    assert (wanted.argmax(1) == found.argmax(1)).mean() >= LEAST_AGREEMENT
    assert np.abs(wanted - found).max() <= TOLERANCES["f16"]
    assert len(np.unique(wanted.argmax(1))) > 2
