"""The folder of engines, with real engine files: what is damaged, foreign or half done is never handed out."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import until
from tests.models import library, small, write
from trt.build import Library, build_engine, key_for
from trt.enginecache import Built, CachedEngine, CacheError, Key, entries, load, obtain, record_gate
from trt.gate import Gate, GateError, require
from trt.manifest import Manifest
from trt.manifest import load as load_manifest

ROOT = Path(__file__).parents[2]
PASSED = Gate("openvino 1 f32", "0" * 64, 8, 4, 0.9999, 0.02, 0.999, 0.1)


@pytest.fixture(scope="module")
def rtx() -> Library:
    return library()


@pytest.fixture
def tiny(tmp_path: Path) -> Manifest:
    (tmp_path / "model").mkdir()
    return write(small(), tmp_path / "model")


@pytest.fixture
def key(tiny: Manifest, rtx: Library) -> Key:
    return key_for(tiny, rtx, "SM86", batch=4, precision="f16")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "engines"


class Builds:
    """Builds for real, and counts how often."""

    def __init__(self, manifest: Manifest, library: Library, key: Key) -> None:
        self.manifest, self.library, self.key, self.runs = manifest, library, key, 0

    def __call__(self, timings: bytes) -> Built:
        self.runs += 1
        return build_engine(self.manifest, self.library, self.key, timings=timings)


@pytest.fixture
def builds(tiny: Manifest, rtx: Library, key: Key) -> Builds:
    return Builds(tiny, rtx, key)


def no_build(_timings: bytes) -> Built:
    raise AssertionError("built again")


def test_an_engine_is_built_once_and_found_ever_after(folder: Path, key: Key, builds: Builds) -> None:
    engine, plan = obtain(folder, key, "small 1.0.0", builds)
    assert obtain(folder, key, "small 1.0.0", no_build) == (engine, plan)
    assert load(folder, key) == (engine, plan)
    assert (folder / f"{key.name}.engine").read_bytes() == plan
    assert engine.key == key
    assert (engine.model, engine.size, engine.gate) == ("small 1.0.0", len(plan), None)
    assert {"workspace_mb", "build_s"} <= set(engine.facts)
    assert folder.stat().st_mode & 0o077 == 0  # an engine is code


def test_the_shipped_model_goes_through_the_cache(folder: Path, rtx: Library) -> None:
    for capability in ("SM80", "SM86", "SM89", "SM120"):
        manifest = load_manifest()
        key = key_for(manifest, rtx, capability, batch=8, precision="f16")
        engine, plan = obtain(folder, key, manifest.name, Builds(manifest, rtx, key))
        assert obtain(folder, key, manifest.name, no_build) == (engine, plan)
    assert [entry.fault for entry in entries(folder)] == [""] * 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("onnx_sha256", "f" * 64),
        ("library", "tensorrt"),
        ("version", "9.9"),
        ("capability", "SM89"),
        ("shape", (5, 3, 16, 16)),
        ("precision", "f32"),
        ("recipe", 99),
    ],
)
def test_another_key_is_another_engine(field: str, value: object, folder: Path, key: Key, builds: Builds) -> None:
    obtain(folder, key, "small", builds)
    other = dataclasses.replace(key, **{field: value})  # type: ignore[arg-type]
    with pytest.raises(CacheError, match="no engine"):
        load(folder, other)
    obtain(folder, other, "small", builds)
    assert builds.runs == 2
    obtain(folder, key, "small", no_build)
    assert len(entries(folder)) == 2


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def sidecar_with(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        sidecar = json.loads(path.with_suffix(".json").read_bytes())
        path.with_suffix(".json").write_text(json.dumps(sidecar | changes))

    return change


def sidecar_of_another_model(path: Path) -> None:
    sidecar = json.loads(path.with_suffix(".json").read_bytes())
    sidecar["key"]["onnx_sha256"] = sidecar["key"]["onnx_sha256"][:16] + "0" * 48  # the name does not tell them apart
    path.with_suffix(".json").write_text(json.dumps(sidecar))


FAULTS = {
    "a bit is flipped": (damage, "damaged"),
    "it is cut short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
    "it is empty": (lambda path: path.write_bytes(b""), "damaged"),
    "it is longer": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "damaged"),
    "it is foreign": (lambda path: path.write_bytes(b"another file altogether"), "damaged"),
    "it is missing": (lambda path: path.unlink(), "missing"),
    "it has no sidecar": (lambda path: path.with_suffix(".json").unlink(), "no sidecar says what it is"),
    "its sidecar is no JSON": (lambda path: path.with_suffix(".json").write_text("{"), "not readable as JSON"),
    "its sidecar is not UTF-8": (lambda path: path.with_suffix(".json").write_bytes(b"\xff"), "not readable as JSON"),
    "its sidecar is a list": (lambda path: path.with_suffix(".json").write_text("[]"), "no sidecar of an engine"),
    "its sidecar lacks a field": (
        lambda path: path.with_suffix(".json").write_text('{"model": "small"}'), "no sidecar of an engine: key: ",
    ),
    "its sidecar has a field too many": (sidecar_with(extra=1), "no sidecar of an engine: extra: "),
    "its sidecar has another sha256": (sidecar_with(sha256="0" * 64), "damaged"),
    "its sidecar is of another model": (sidecar_of_another_model, "speaks of another engine"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_trusted_is_never_loaded_but_built_anew(
    fault: str, folder: Path, key: Key, builds: Builds, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, told = FAULTS[fault]
    _, wanted = obtain(folder, key, "small", builds)
    spoil(folder / f"{key.name}.engine")
    with pytest.raises(CacheError, match=told):
        load(folder, key)
    if told != "speaks of another engine":  # which is to be seen only by who knows what is wanted
        (entry,) = entries(folder)
        assert told in entry.fault
        assert entry.engine is None
    with caplog.at_level(logging.WARNING):
        engine, plan = obtain(folder, key, "small", builds)
    assert "built anew" in caplog.text
    assert builds.runs == 2
    assert plan == wanted
    assert load(folder, key) == (engine, plan)
    assert [entry.fault for entry in entries(folder)] == [""]


def test_an_engine_under_anothers_name_is_told(folder: Path, key: Key, builds: Builds) -> None:
    obtain(folder, key, "small", builds)
    other = dataclasses.replace(key, capability="SM89")
    for ending in ("engine", "json"):
        shutil.copy(folder / f"{key.name}.{ending}", folder / f"{other.name}.{ending}")
    with pytest.raises(CacheError, match="speaks of another engine"):
        load(folder, other)
    faults = {entry.name: entry.fault for entry in entries(folder)}
    assert faults == {key.name: "", other.name: f"its sidecar speaks of {key.name}"}


def test_a_build_that_fails_leaves_no_engine(folder: Path, key: Key, builds: Builds) -> None:
    def fail(_timings: bytes) -> Built:
        raise RuntimeError("no engine today")

    with pytest.raises(RuntimeError, match="no engine today"):
        obtain(folder, key, "small", fail)
    assert entries(folder) == []
    obtain(folder, key, "small", builds)


def test_half_a_file_of_a_killed_process_is_in_nobodys_way(folder: Path, key: Key, builds: Builds) -> None:
    folder.mkdir(parents=True)
    (folder / f"{key.name}.engine.draft").write_bytes(b"half an eng")
    assert entries(folder) == []
    _, plan = obtain(folder, key, "small", builds)
    assert load(folder, key)[1] == plan
    assert not list(folder.glob("*.draft"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, key: Key) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CacheError, match=r"file/engines: cannot be written: Not a directory; .*another folder"):
        obtain(tmp_path / "file" / "engines", key, "small", no_build)


def test_files_that_cannot_be_written_are_named(folder: Path, key: Key, builds: Builds) -> None:
    (folder / f"{key.name}.lock").mkdir(parents=True)
    with pytest.raises(CacheError, match=r"\.lock: cannot be written: Is a directory"):
        obtain(folder, key, "small", no_build)
    (folder / f"{key.name}.lock").rmdir()
    (folder / f"{key.name}.engine.draft").mkdir()
    with pytest.raises(CacheError, match=r"\.engine: cannot be written: Is a directory"):
        obtain(folder, key, "small", builds)


def test_no_folder_has_no_engines(tmp_path: Path) -> None:
    assert entries(tmp_path / "none") == []


def test_what_the_builder_timed_is_given_to_the_next_build_for_that_gpu(folder: Path, key: Key) -> None:
    given: list[bytes] = []

    def build(timings: bytes) -> Built:
        given.append(timings)
        return Built(b"plan", timings + b"+", {})

    for batch in (1, 2, 3):
        obtain(folder, dataclasses.replace(key, shape=(batch, 3, 16, 16)), "small", build)
    obtain(folder, dataclasses.replace(key, capability="SM89"), "small", build)
    assert given == [b"", b"+", b"++", b""]
    (timings,) = folder.glob("*SM86.timings")
    damage(timings)
    obtain(folder, dataclasses.replace(key, shape=(4, 3, 16, 16)), "small", build)
    timings.write_bytes(b"short")
    obtain(folder, dataclasses.replace(key, shape=(5, 3, 16, 16)), "small", build)
    assert given[4:] == [b"", b""]


def test_what_the_gate_found_stays_with_the_engine(folder: Path, key: Key, builds: Builds) -> None:
    engine, plan = obtain(folder, key, "small", builds)
    with pytest.raises(GateError, match="never compared"):
        require(engine.gate, key.name)
    record_gate(folder, engine, PASSED)
    found, again = obtain(folder, key, "small", no_build)
    assert again == plan
    assert found == dataclasses.replace(engine, gate=PASSED)
    require(found.gate, key.name)


def test_a_gate_that_failed_is_kept_too(folder: Path, key: Key, builds: Builds) -> None:
    engine, _ = obtain(folder, key, "small", builds)
    failed = dataclasses.replace(PASSED, largest_difference=float("inf"))
    assert record_gate(folder, engine, failed).gate == failed
    assert load(folder, key)[0].gate == failed
    with pytest.raises(GateError, match="does not serve"):
        require(load(folder, key)[0].gate, key.name)


def test_an_engine_built_anew_is_judged_anew(folder: Path, key: Key, builds: Builds) -> None:
    engine, _ = obtain(folder, key, "small", builds)
    record_gate(folder, engine, PASSED)
    damage(folder / f"{key.name}.engine")
    with pytest.raises(CacheError, match="damaged"):
        record_gate(folder, engine, PASSED)
    assert obtain(folder, key, "small", lambda _: Built(b"another plan", b"", {}))[0].gate is None
    with pytest.raises(CacheError, match="built anew since it was judged"):
        record_gate(folder, engine, PASSED)
    assert load(folder, key)[0].gate is None


def test_no_engine_no_gate(folder: Path, key: Key) -> None:
    with pytest.raises(CacheError, match="no engine"):
        record_gate(folder, CachedEngine(key, "small", "0" * 64, 1, {}), PASSED)
    assert not folder.exists()


CHILD = """
import json, logging, sys, time
from pathlib import Path
from tests.models import library
from trt.build import build_engine, key_for
from trt.enginecache import obtain
from trt.manifest import Manifest
import dataclasses, trt.manifest

folder, model, diary, seconds = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
manifest = dataclasses.replace(
    trt.manifest.load(), path=model, digest=trt.manifest.sha256(model), patch=(16, 16), finder=None
)
logging.basicConfig(filename=diary, format="%(message)s", level=logging.INFO)
rtx = library()
key = key_for(manifest, rtx, "SM86", batch=4, precision="f16")

def build(timings):
    with diary.open("a") as file:
        file.write("begun\\n")
    until = time.monotonic() + seconds
    while time.monotonic() < until and not diary.with_name("go").exists():
        time.sleep(0.05)
    return build_engine(manifest, rtx, key, timings=timings)

engine, plan = obtain(folder, key, "small", build)
print(engine.sha256)
"""


def child(folder: Path, tiny: Manifest, diary: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(tiny.path), str(diary), str(seconds)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def begun(diary: Path) -> int:
    return diary.read_text().count("begun") if diary.exists() else 0


def waits(diary: Path) -> bool:
    return "another process is at it; waiting" in diary.read_text()


def test_two_processes_never_build_the_same_engine(
    folder: Path, key: Key, tiny: Manifest, builds: Builds, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    first = child(folder, tiny, diary, 60)
    until(lambda: begun(diary) == 1, "the first build begins", 120)
    second = child(folder, tiny, diary, 0)
    until(lambda: waits(diary), "the second process waits", 120)
    (tmp_path / "go").touch()
    told = [process.communicate(timeout=120)[0].strip() for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert begun(diary) == 1
    assert told[0] == told[1] == load(folder, key)[0].sha256


def test_engines_of_different_keys_do_not_wait_for_each_other(
    folder: Path, key: Key, tiny: Manifest, rtx: Library, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    slow = child(folder, tiny, diary, 60)
    try:
        until(lambda: begun(diary) == 1, "the slow build begins", 120)
        other = dataclasses.replace(key, capability="SM89")
        obtain(folder, other, "small", Builds(tiny, rtx, other))
        assert slow.poll() is None
    finally:
        slow.kill()
        slow.communicate()


def test_a_killed_holder_gives_its_lock_back(
    folder: Path, key: Key, tiny: Manifest, builds: Builds, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    holder = child(folder, tiny, diary, 600)
    until(lambda: begun(diary) == 1, "the build begins", 120)
    waiting = child(folder, tiny, diary, 0)
    until(lambda: waits(diary), "the second process waits", 120)
    assert begun(diary) == 1
    holder.send_signal(signal.SIGKILL)
    told, _ = waiting.communicate(timeout=120)
    assert holder.communicate() == ("", None)
    assert holder.returncode == -signal.SIGKILL
    assert begun(diary) == 2
    assert told.strip() == load(folder, key)[0].sha256
