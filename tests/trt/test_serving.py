"""What may serve: judged once, on the backend asked for, or visibly on the next one where the settings say so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import library, small, write
from trt.build import build_engine, key_for
from trt.engine import Engine, EngineError, OutOfMemory, open_engine
from trt.enginecache import CachedEngine, entries, obtain
from trt.gate import GateError
from trt.manifest import Manifest, ManifestError
from trt.patches import Array
from trt.serving import open_serving

Opening = Callable[..., Engine]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write(small(), tmp_path_factory.mktemp("model"))


class Spoilt:
    """An engine for real, whose logits are then changed; it counts what it is asked."""

    backend, flexible = "tensorrt", False

    def __init__(self, manifest: Manifest, spoil: Callable[[Array], Array], cached: CachedEngine | None = None) -> None:
        self.inner = open_engine(manifest, threads=1, batch=4)
        self.spoil, self.cached, self.calls, self.closed = spoil, cached, 0, False

    def __call__(self, patches: Array) -> Array:
        self.calls += 1
        return self.spoil(self.inner(patches))

    def describe(self) -> dict[str, str]:
        return {"backend": self.backend}

    def close(self) -> None:
        self.closed = True
        self.inner.close()

    def __enter__(self) -> Spoilt:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_the_reference_itself_is_not_judged(tiny: Manifest) -> None:
    serving = open_serving(tiny, "openvino", threads=1, batch=2)
    with serving.engine:
        assert serving.gate is None
        assert serving.facts() == serving.engine.describe()


def test_bf16_is_judged_and_the_figures_are_told(tiny: Manifest) -> None:
    try:
        serving = open_serving(replace(tiny, stride=None), "openvino", threads=1, precision="bf16")
    except GateError:
        raise
    except EngineError as error:
        pytest.skip(str(error))
    with serving.engine:
        facts = serving.facts()
    assert serving.gate is not None
    assert float(facts["gate_agreement"]) >= 0.999
    assert float(facts["gate_difference"]) == pytest.approx(serving.gate.largest_difference, rel=0.01)
    assert facts["gate_reference"].startswith("openvino ")


def test_torch_is_judged_too(tiny: Manifest) -> None:
    def on_the_cpu(manifest: Manifest, backend: str, **options: Any) -> Engine:
        return open_engine(manifest, backend, device="cpu", **options)

    serving = open_serving(tiny, "torch", precision="f16", batch=2, opening=on_the_cpu)
    with serving.engine:
        assert serving.facts()["backend"] == "torch"
        assert serving.gate is not None
        assert serving.gate.tolerance == 0.1


def opening(first: Opening, refused: list[str]) -> Opening:
    """`first` for tensorrt, and the real thing for all else."""

    def opens(manifest: Manifest, backend: str, **options: Any) -> Engine:
        refused.append(f"{backend} {options['precision']} {options['batch']}")
        return (
            first(manifest, backend, **options) if backend == "tensorrt" else open_engine(manifest, backend, **options)
        )

    return opens


def no_engine(*_: object, **__: object) -> Engine:
    raise EngineError("layer 'the_det', op Det: not supported")


def test_nothing_falls_back_unless_the_settings_say_so(tiny: Manifest) -> None:
    tried: list[str] = []
    with pytest.raises(EngineError, match="the_det"):
        open_serving(tiny, "tensorrt", precision="f16", opening=opening(no_engine, tried))
    assert tried == ["tensorrt f16 8"]


def test_a_fallback_is_loud_and_stays_visible(tiny: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    tried: list[str] = []
    serving = open_serving(
        tiny, "tensorrt", fallback=("openvino",), precision="f16", threads=1, opening=opening(no_engine, tried)
    )
    with serving.engine:
        facts = serving.facts()
    assert tried == ["tensorrt f16 8", "openvino f32 8"]  # which has no f16
    assert (facts["backend"], facts["precision"], facts["fallback_from"]) == ("openvino", "f32", "tensorrt")
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "layer 'the_det', op Det" in error.getMessage()
    assert "falling back to openvino" in error.getMessage()
    assert any("instead of tensorrt" in record.getMessage() for record in caplog.records)


def test_where_nothing_serves_the_last_reason_is_given(tiny: Manifest) -> None:
    with pytest.raises(EngineError, match="no backend 'abacus'"):
        open_serving(tiny, "tensorrt", fallback=("abacus",), opening=opening(no_engine, []))


def test_a_model_that_was_replaced_is_refused_and_not_fallen_back_from(tiny: Manifest) -> None:
    def replaced(*_: object, **__: object) -> Engine:
        raise ManifestError("is not the file")

    tried: list[str] = []
    with pytest.raises(ManifestError):
        open_serving(tiny, "tensorrt", fallback=("openvino",), opening=opening(replaced, tried))
    assert len(tried) == 1


def test_an_engine_that_calculates_something_else_does_not_serve(tiny: Manifest) -> None:
    spoilt = Spoilt(tiny, lambda logits: logits[:, ::-1])
    with pytest.raises(GateError, match="does not serve"):
        open_serving(tiny, "tensorrt", precision="f16", opening=opening(lambda *_, **__: spoilt, []))
    assert spoilt.closed
    other = Spoilt(tiny, lambda logits: logits * np.float32(np.nan))
    serving = open_serving(
        tiny, "tensorrt", fallback=("openvino",), threads=1, opening=opening(lambda *_, **__: other, [])
    )
    with serving.engine:
        assert serving.facts()["fallback_from"] == "tensorrt"
    assert other.closed


def small_device(most: int, tried: list[str]) -> Opening:
    def opens(manifest: Manifest, backend: str, **options: Any) -> Engine:
        if options["batch"] > most:
            raise OutOfMemory("CUDA out of memory")
        return open_engine(manifest, "openvino", threads=1, batch=options["batch"])

    return opening(opens, tried)


def test_a_batch_too_large_for_the_device_is_halved_once(tiny: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    tried: list[str] = []
    serving = open_serving(tiny, "tensorrt", batch=9, opening=small_device(4, tried))
    with serving.engine:
        assert serving.facts()["batch"] == "4"
    assert tried == ["tensorrt f32 9", "tensorrt f32 4"]
    assert [r.levelno for r in caplog.records if "once more at a batch of 4" in r.getMessage()] == [logging.WARNING]
    with pytest.raises(OutOfMemory):
        open_serving(tiny, "tensorrt", batch=9, opening=small_device(3, tried))
    with pytest.raises(OutOfMemory):
        open_serving(tiny, "tensorrt", batch=1, opening=small_device(0, tried))
    assert tried[2:] == ["tensorrt f32 9", "tensorrt f32 4", "tensorrt f32 1"]


def test_what_the_gate_found_is_kept_beside_the_engine_and_found_anew_at_every_start(
    tiny: Manifest, tmp_path: Path
) -> None:
    """A real engine file and its sidecar; OpenVINO calculates, since no GPU does here."""
    rtx, folder = library(), tmp_path / "engines"
    key = key_for(tiny, rtx, "SM86", batch=4, precision="f16")
    right = Spoilt(tiny, lambda logits: logits)
    made: list[Spoilt] = []

    def opens(manifest: Manifest, _backend: str, **_options: Any) -> Engine:
        cached, _ = obtain(folder, key, "small", lambda timings: build_engine(manifest, rtx, key, timings=timings))
        made.append(Spoilt(manifest, right.spoil, cached))
        return made[-1]

    def serve() -> int:
        """How many times the engine ran, the warm batch included."""
        with open_serving(tiny, "tensorrt", precision="f16", batch=4, cache=folder, opening=opens).engine:
            return made[-1].calls

    assert serve() == 2
    (entry,) = entries(folder)
    assert entry.engine is not None
    assert entry.engine.gate is not None
    assert entry.engine.gate.passed
    right.spoil = lambda logits: logits + 1  # the file is the same; what a driver makes of it may not be
    for _ in range(2):
        with pytest.raises(GateError):
            serve()
        (entry,) = entries(folder)
        assert entry.engine is not None
        assert entry.engine.gate is not None
        assert not entry.engine.gate.passed
    right.spoil = lambda logits: logits
    assert serve() == 2
