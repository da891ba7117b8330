from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from trt.engine import Engine, EngineError, open_engine
from trt.extraction import finder_model
from trt.gate import LEAST_AGREEMENT, TOLERANCES, Gate, GateError, compare, judge, probe_patches, require
from trt.manifest import load
from trt.patches import Array, Predict


@pytest.fixture(scope="module")
def reference() -> Iterator[Engine]:
    with open_engine(load(), threads=1, batch=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def probes() -> Array:
    return probe_patches(load())


def gate_of(candidate: Predict, reference: Predict, probes: Array, precision: str = "f16") -> Gate:
    return compare(candidate, reference, probes, tolerance=TOLERANCES[precision], name="the reference")


def test_probes_are_the_same_each_time_and_normalised(probes: Array) -> None:
    manifest = load()
    assert probes.shape == (8, manifest.channels, *manifest.patch)
    assert probes.dtype == np.float32
    assert (probes.min(), probes.max()) == manifest.normalisation.clip
    np.testing.assert_array_equal(probe_patches(manifest), probes)
    assert len({patch.tobytes() for patch in probes}) == len(probes)


def test_probes_show_every_part_of_a_healthy_spine(reference: Engine, probes: Array) -> None:
    seen = {load().labels[value - 1].name for value in np.unique(reference(probes).argmax(1)) if value}
    assert {"vertebra", "spinal canal", "intervertebral disc"} <= seen


def test_probes_of_the_finder_are_shrunk_as_it_is_used() -> None:
    manifest = load()
    assert manifest.finder is not None
    patches = probe_patches(finder_model(manifest), factor=manifest.finder.factor, count=3)
    assert patches.shape == (3, manifest.finder.channels, *manifest.finder.patch)
    with open_engine(finder_model(manifest), threads=1, batch=1) as engine:
        shares = (engine(patches).argmax(1) == 1).mean(axis=(1, 2))
    assert ((shares > 0.02) & (shares < 0.7)).all()


def test_no_probes_are_refused() -> None:
    with pytest.raises(ValueError, match="count"):
        probe_patches(load(), count=0)


def test_float32_passes() -> None:
    with open_engine(load(), threads=1, batch=4) as engine:
        gate = judge(engine, load(), "f32")
    assert gate.passed
    assert gate.agreement > 0.9999
    assert gate.classes >= 4
    assert gate.reference.startswith("openvino ")
    assert gate.reference.endswith(" f32")
    require(gate, "float32")


def test_bf16_is_judged_by_the_same_rule(probes: Array, reference: Engine) -> None:
    try:
        engine = open_engine(load(), threads=1, batch=4, precision="bf16")
    except EngineError as error:
        pytest.skip(str(error))
    with engine:
        gate = judge(engine, load(), "bf16")
        found, wanted = engine(probes), reference(probes)
    assert gate.agreement == (found.argmax(1) == wanted.argmax(1)).mean()
    assert gate.largest_difference == np.abs(found - wanted).max()
    assert gate.passed == (gate.agreement >= LEAST_AGREEMENT and gate.largest_difference <= TOLERANCES["bf16"])
    assert not dataclasses.replace(gate, tolerance=TOLERANCES["f32"]).passed  # no float32 by another name


BROKEN = {
    "gives nothing": lambda logits: np.zeros_like(logits),
    "confuses two labels": lambda logits: logits[:, [0, 2, 1, *range(3, logits.shape[1])]],
    "is shifted by a pixel": lambda logits: np.roll(logits, 1, axis=3),
    "is upside down": lambda logits: np.ascontiguousarray(logits[:, :, ::-1]),
    "spoils the last patch": lambda logits: np.concatenate((logits[:-1], logits[:1])),
    "is a little off in the rarest label": lambda logits: (
        logits - np.eye(logits.shape[1], dtype=np.float32)[-1, :, None, None]
    ),
    "has one NaN": lambda logits: np.where(np.arange(logits.size).reshape(logits.shape) == 77, np.nan, logits),
    "has one infinity": lambda logits: np.where(np.arange(logits.size).reshape(logits.shape) == 77, np.inf, logits),
}


@pytest.mark.parametrize("way", BROKEN)
def test_an_engine_does_not_serve_that(way: str, reference: Engine, probes: Array) -> None:
    spoil = BROKEN[way]
    gate = gate_of(lambda patches: spoil(reference(patches)).astype(np.float32), reference, probes)
    assert not gate.passed
    with pytest.raises(GateError, match=r"engine 7: .* does not serve") as caught:
        require(gate, "engine 7")
    assert caught.value.gate == gate


def test_an_engine_that_mixes_its_batch_is_found_out(reference: Engine, probes: Array) -> None:
    gate = gate_of(lambda patches: reference(patches[::-1]), reference, probes)
    assert gate.agreement < LEAST_AGREEMENT


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (lambda logits: logits[:, :-1], r"\(8, 4, 128, 128\)"),
        (lambda logits: logits.astype(np.float16), "float16"),
    ],
)
def test_logits_of_another_model_are_refused(other: Predict, told: str, reference: Engine, probes: Array) -> None:
    with pytest.raises(GateError, match=f"{told}.*built from another model"):
        gate_of(lambda patches: other(reference(patches)), reference, probes)


def test_both_bars_must_be_taken() -> None:
    gate = Gate("openvino 1 f32", "0" * 64, 8, 4, 0.999, 0.1, 0.999, 0.1)
    assert gate.passed
    assert not dataclasses.replace(gate, agreement=0.9989).passed
    assert not dataclasses.replace(gate, largest_difference=0.101).passed
    assert not dataclasses.replace(gate, largest_difference=float("nan")).passed


def test_an_engine_never_judged_does_not_serve() -> None:
    with pytest.raises(GateError, match="engine 7: was never compared"):
        require(None, "engine 7")


def test_a_precision_without_tolerance_is_refused(reference: Engine) -> None:
    with pytest.raises(EngineError, match="no tolerance for precision 'int3'; there is one for: f32, f16, bf16"):
        judge(reference, load(), "int3")


def test_a_flexible_engine_is_judged_on_sizes_beyond_the_models_own() -> None:
    """A kernel that is wrong for wide patches alone must not serve."""
    manifest = load()

    class Wide:
        flexible = True

        def __init__(self, engine: Engine) -> None:
            self.engine = engine

        def __call__(self, patches: np.ndarray) -> np.ndarray:
            return self.engine(patches) + (1 if patches.shape[3] > manifest.patch[1] else 0)

    with open_engine(manifest, threads=2) as engine:
        assert judge(engine, manifest, "f32").patches == 9
        gate = judge(Wide(engine), manifest, "f32")
    assert not gate.passed
    assert gate.largest_difference == pytest.approx(1, abs=1e-3)
