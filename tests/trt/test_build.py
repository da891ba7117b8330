"""Real engines, built without a GPU by TensorRT-RTX; that they calculate what they should only a GPU can show."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
from onnx import helper

from tests.models import convolution, graph, library, small, weights, write
from trt import gpu
from trt.build import (
    BuildError,
    BuildPrecision,
    Library,
    _layers,
    build_engine,
    choose_capability,
    find_library,
    key_for,
)
from trt.callbacks import Event, logger, monitor
from trt.engine import EngineError
from trt.enginecache import Built, Key
from trt.extraction import finder_model
from trt.half import HalfError
from trt.manifest import Manifest, ManifestError, load

CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")


@pytest.fixture(scope="module")
def rtx() -> Library:
    return library()


@pytest.fixture
def tiny(tmp_path: Path) -> Manifest:
    return write(small(), tmp_path)


def key(manifest: Manifest, rtx: Library, capability: str = "SM86", precision: BuildPrecision = "f16") -> Key:
    return key_for(manifest, rtx, capability, batch=4, precision=precision)


def built(manifest: Manifest, rtx: Library, capability: str = "SM86", precision: BuildPrecision = "f16") -> Built:
    return build_engine(manifest, rtx, key(manifest, rtx, capability, precision))


def has_gpu() -> bool:
    try:
        gpu.capability()
    except EngineError:
        return False
    return True


def test_the_shipped_model_and_its_finder_become_engines_of_each_gpu(rtx: Library) -> None:
    for manifest in (load(), finder_model(load())):
        plans = [built(manifest, rtx, capability).plan for capability in CAPABILITIES]
        assert len(set(plans)) == len(CAPABILITIES)
        half = manifest.path.stat().st_size / 2
        assert all(0.9 * half < len(plan) < half + 2e6 for plan in plans)  # weights in float16, and a little besides


def test_float32_throughout_makes_a_larger_engine(rtx: Library) -> None:
    half, whole = (built(load(), rtx, precision=precision).plan for precision in ("f16", "f32"))  # type: ignore[arg-type]
    assert len(whole) > 1.6 * len(half)


def test_an_engine_says_what_it_took(rtx: Library, tiny: Manifest) -> None:
    made = build_engine(tiny, rtx, key(tiny, rtx), workspace_mb=64)
    assert made.facts["workspace_mb"] == "64"
    assert float(made.facts["build_s"]) >= 0
    assert made.timings == b""  # this library times nothing ahead


def test_the_key_holds_all_that_an_engine_depends_on(rtx: Library) -> None:
    manifest = load()
    found = key_for(manifest, rtx, "SM86", batch=4, precision="f16")
    assert found.onnx_sha256 == manifest.digest
    assert found.shape == (4, 3, 128, 128)
    assert (found.library, found.version) == ("tensorrt_rtx", rtx.version)


def test_the_key_of_what_cannot_be_is_refused(rtx: Library) -> None:
    with pytest.raises(BuildError, match="no precision 'bf16' in TensorRT; choose one of: f16, f32"):
        key_for(load(), rtx, "SM86", batch=4, precision="bf16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch"):
        key_for(load(), rtx, "SM86", batch=0, precision="f16")


def test_progress_is_told_in_the_thread_that_asked(rtx: Library, tiny: Manifest) -> None:
    told: list[tuple[str, int, int]] = []
    threads = set()

    def progress(phase: str, done: int, steps: int) -> None:
        threads.add(threading.get_ident())
        told.append((phase, done, steps))

    build_engine(tiny, rtx, key(tiny, rtx), progress=progress)
    assert threads == {threading.get_ident()}
    assert len({phase for phase, _, _ in told}) > 1
    assert all(0 <= done <= steps for _, done, steps in told)
    first = told[0][0]
    assert [event for event in told if event[0] == first][-1] == (first, told[0][2], told[0][2])


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_what_progress_raises_ends_the_build_and_harms_none_after_it(
    kind: type[BaseException], rtx: Library, tiny: Manifest
) -> None:
    def stop(_phase: str, _done: int, _steps: int) -> None:
        raise kind("enough")

    wanted = built(tiny, rtx).plan
    with pytest.raises(kind, match="enough"):
        build_engine(tiny, rtx, key(tiny, rtx), progress=stop)
    assert built(tiny, rtx).plan == wanted


def test_a_build_that_is_stopped_does_not_run_on(rtx: Library) -> None:
    """The shipped model, whose build has steps enough to be stopped between."""

    def stop(_phase: str, _done: int, _steps: int) -> None:
        raise KeyboardInterrupt

    manifest = load()
    with pytest.raises(KeyboardInterrupt):
        build_engine(manifest, rtx, key_for(manifest, rtx, "SM86", batch=8, precision="f32"), progress=stop)
    assert "BuildCanceled" in "".join(logger(rtx.module).errors)


def test_a_refusal_without_words_is_one_all_the_same(rtx: Library) -> None:
    silent = SimpleNamespace(
        num_errors=1,
        get_error=lambda _: SimpleNamespace(
            desc=lambda: "", code=lambda: rtx.module.ErrorCode.UNSUPPORTED_NODE, node_name=lambda: "n",
            node_operator=lambda: "Odd",
        ),
    )  # fmt: skip
    assert _layers(silent, rtx.module) == "layer 'n', op Odd: not supported"
    assert _layers(SimpleNamespace(num_errors=0), rtx.module) == "it does not say why"


def test_a_cancelled_build_ends_at_its_next_step(rtx: Library, tiny: Manifest) -> None:
    events: SimpleQueue[Event | None] = SimpleQueue()
    cancelled = threading.Event()
    cancelled.set()
    reporter = logger(rtx.module)
    builder = rtx.module.Builder(reporter)
    network = builder.create_network(0)
    parser = rtx.module.OnnxParser(network, reporter)
    assert parser.parse(tiny.path.read_bytes())
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("patches", *[(4, 3, 16, 16)] * 3)
    config.add_optimization_profile(profile)
    config.progress_monitor = monitor(rtx.module, events, cancelled)
    reporter.errors.clear()
    assert builder.build_serialized_network(network, config) is None
    assert "BuildCanceled" in "".join(reporter.errors)
    assert events.qsize() > 0


def test_builds_in_two_threads_give_what_they_give_alone(rtx: Library, tiny: Manifest) -> None:
    wanted = [built(tiny, rtx, capability).plan for capability in CAPABILITIES]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda capability: built(tiny, rtx, capability).plan, CAPABILITIES))
    assert found == wanted


def test_an_op_that_the_library_lacks_is_named(rtx: Library, tmp_path: Path) -> None:
    nodes = [convolution("patches", "w", "a"), helper.make_node("Det", ["a"], ["logits"], name="the_det")]
    manifest = write(graph(nodes, [weights("w", 5, 3, 3, 3)]), tmp_path)
    with pytest.raises(BuildError, match=r"layer 'the_det', op Det: not supported; choose backend openvino") as caught:
        built(manifest, rtx, precision="f32")
    assert str(manifest.path) in str(caught.value)


def test_an_op_of_nobodys_is_named(rtx: Library, tmp_path: Path) -> None:
    nodes = [helper.make_node("Foo", ["patches"], ["logits"], name="the_foo", domain="my.ops")]
    with pytest.raises(BuildError, match="layer 'the_foo', op Foo: "):
        built(write(graph(nodes), tmp_path), rtx, precision="f32")


def test_an_op_not_known_in_float16_is_named_with_the_file(rtx: Library, tmp_path: Path) -> None:
    nodes = [convolution("patches", "w", "a"), helper.make_node("Exp", ["a"], ["logits"], name="the_exp")]
    manifest = write(graph(nodes, [weights("w", 5, 3, 3, 3)]), tmp_path)
    with pytest.raises(HalfError, match=r"model\.onnx: layer 'the_exp': op Exp .* choose precision f32"):
        built(manifest, rtx)
    assert built(manifest, rtx, precision="f32").plan  # the way out is one


def test_the_next_failure_does_not_repeat_the_last(rtx: Library, tmp_path: Path, tiny: Manifest) -> None:
    (tmp_path / "other").mkdir()
    nodes = [helper.make_node("Det", ["patches"], ["logits"], name="the_det")]
    with pytest.raises(BuildError, match="the_det"):
        built(write(graph(nodes), tmp_path / "other"), rtx, precision="f32")
    wrong = dataclasses.replace(key(tiny, rtx), shape=(4, 4, 16, 16))
    with pytest.raises(
        BuildError, match=r"builds no engine for SM86: .*axis 1.*; choose precision f32, or backend openvino"
    ) as caught:
        build_engine(tiny, rtx, wrong)
    assert "the_det" not in str(caught.value)
    assert "catchCudaError" not in str(caught.value)


def test_too_small_a_workspace_says_so(rtx: Library) -> None:
    with pytest.raises(BuildError, match=r"builds no engine for SM86: .*give it a larger workspace"):
        build_engine(load(), rtx, key(load(), rtx, precision="f32"), workspace_mb=1)
    with pytest.raises(ValueError, match="workspace_mb"):
        build_engine(load(), rtx, key(load(), rtx), workspace_mb=0)


def test_a_model_that_answers_otherwise_than_promised_is_refused(rtx: Library, tiny: Manifest) -> None:
    with pytest.raises(BuildError, match=r"answers \[\(-1, 5, 16, 16\)\], the manifest promises \(N, \(3, 16, 16\)\)"):
        built(dataclasses.replace(tiny, labels=tiny.labels[:2]), rtx)


def test_a_model_replaced_since_it_was_loaded_is_refused(rtx: Library, tiny: Manifest) -> None:
    tiny.path.write_bytes(tiny.path.read_bytes() + b"\0")
    with pytest.raises(ManifestError, match="not the file that its manifest speaks of"):
        built(tiny, rtx)
    tiny.path.unlink()
    with pytest.raises(ManifestError, match="cannot be read"):
        built(tiny, rtx)


@pytest.mark.parametrize("text", ["SM86", "sm_86", "8.6", "86", " sm86 "])
def test_a_capability_may_be_written_as_people_write_it(text: str, rtx: Library) -> None:
    assert choose_capability(rtx, text) == "SM86"
    assert choose_capability(rtx, "12.0") == "SM120"


@pytest.mark.parametrize("text", ["", "hopper", "SM", "8", "8.6.1", "SM8600", "90a", "08.6", "CURRENT"])
def test_text_that_is_no_capability_is_refused(text: str, rtx: Library) -> None:
    with pytest.raises(EngineError, match=r"no compute capability; write it as SM86 or 8\.6"):
        choose_capability(rtx, text)


def test_a_gpu_that_the_library_leaves_out_names_the_way_out(rtx: Library) -> None:
    assert set(CAPABILITIES) <= set(rtx.capabilities)
    with pytest.raises(BuildError, match=r"SM86, .*not for SM90; .*Hopper.*pennode\[gpu\].*backend openvino"):
        choose_capability(rtx, "SM90")


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
def test_without_a_gpu_one_must_be_named(rtx: Library) -> None:
    with pytest.raises(BuildError, match=r"NVIDIA driver.*; name the GPU to build for: SM75, SM80, SM86"):
        choose_capability(rtx)
    with pytest.raises(BuildError, match=r"NVIDIA driver.*; tensorrt builds beside its GPU only"):
        choose_capability(Library("tensorrt", "11.4", rtx.module), "SM90")


@pytest.mark.skipif(not has_gpu(), reason="there is no GPU here")
def test_the_gpu_here_is_found_and_tensorrt_builds_for_no_other(rtx: Library) -> None:
    here = gpu.capability()
    other = "SM75" if here != "SM75" else "SM86"
    with pytest.raises(BuildError, match=f"{here}, not for {other}"):
        choose_capability(Library("tensorrt", "11.4", rtx.module), other)


def test_the_calls_that_tensorrt_alone_is_given_exist(rtx: Library, tiny: Manifest) -> None:
    # TensorRT cannot be had without a GPU. Its sister has the same calls, which do nothing and say so.
    sister = Library("tensorrt", "11.4", rtx.module)
    with pytest.warns(DeprecationWarning, match="[Tt]iming cache"):
        first = build_engine(tiny, sister, key(tiny, sister))
    assert first.timings
    with pytest.warns(DeprecationWarning, match="[Tt]iming cache"):
        again = build_engine(tiny, sister, key(tiny, sister), timings=first.timings)
    assert again.plan == first.plan


def test_tensorrt_is_taken_before_its_sister_and_none_is_told(rtx: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    assert find_library() == rtx
    monkeypatch.setitem(sys.modules, "tensorrt", rtx.module)
    assert find_library().name == "tensorrt"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BuildError, match=r"pennode\[gpu\].*pennode\[rtx\].*openvino needs neither"):
        find_library()


@pytest.mark.parametrize(
    "fault",
    [
        "import ctypes\nctypes.CDLL('libnothing_of_the_kind.so.1')\n",
        "raise ImportError('libnothing_of_the_kind.so.1: cannot open shared object file')\n",
    ],
)
def test_a_library_that_does_not_load_is_told(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text(fault)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(BuildError, match=r"does not load: libnothing_of_the_kind\.so\.1: .*; install it anew"):
        find_library()


def test_importing_all_this_needs_none_of_the_libraries() -> None:
    code = (
        "import sys, trt.build, trt.callbacks, trt.enginecache, trt.gate, trt.gpu, workers.engines\n"
        "found = {'torch', 'onnx', 'openvino', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_onnx_float16_says_what_to_install(
    rtx: Library, tiny: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "trt.half", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BuildError, match=r"onnx is not installed: `pip install 'pennode\[gpu\]'`"):
        built(tiny, rtx)
    assert built(tiny, rtx, precision="f32").plan
