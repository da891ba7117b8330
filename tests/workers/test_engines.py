"""`pennode engine`: real engines of the shipped model, without a GPU."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from onnx import numpy_helper
from typer.testing import CliRunner, Result

from node.cli import join
from node.errors import ConfigurationError, EngineFailure
from tests.models import library
from trt.build import key_for
from trt.enginecache import load as load_engine
from trt.enginecache import record_gate
from trt.gate import Gate
from trt.manifest import load, sha256
from workers.engines import app

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENNODE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PENNODE_WORKER_THREADS", "1")
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # where it is installed it would want its GPU
    return tmp_path / "state"


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def engines(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.engine"))


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_engines_are_built_once_for_each_gpu_named(state: Path) -> None:
    library()
    words = ("build", *(word for sm in ("SM80", "8.6", "sm_89", "120", "SM80") for word in ("--sm", sm)))
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("built in") == 8  # the model and its finder, four GPUs each
    assert len(engines(state / "engines")) == 8
    times = [path.stat().st_mtime_ns for path in engines(state / "engines")]
    again = run(*words)
    assert again.exit_code == 0
    assert again.stdout.count("is there") == 8
    assert [path.stat().st_mtime_ns for path in engines(state / "engines")] == times


def test_what_is_asked_is_what_is_built(tmp_path: Path) -> None:
    rtx = library()
    done = run(
        "build", "--sm", "86", "--batch", 3, "--precision", "f32", "--workspace-mb", 512,
        "--cache", tmp_path / "here", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    key = key_for(load(), rtx, "SM86", batch=3, precision="f32")
    assert told[0]["name"] == key.name
    assert [item["model"].split()[0] for item in told] == ["penn-spine", "penn-spine-finder"]
    assert all(item["built"] and item["workspace_mb"] == "512" for item in told)
    engine, plan = load_engine(tmp_path / "here", key)
    assert told[0]["bytes"] == len(plan) == engine.size


def test_batch_and_model_come_from_the_settings(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library()
    shutil.copytree(load().path.parent, tmp_path / "site")
    fields = json.loads((tmp_path / "site" / "manifest.json").read_text())
    del fields["finder"]
    (tmp_path / "site" / "manifest.json").write_text(json.dumps(fields | {"name": "site-spine"}))
    monkeypatch.setenv("PENNODE_WORKER_MODEL", str(tmp_path / "site"))
    monkeypatch.setenv("PENNODE_WORKER_BATCH", "2")
    done = run("build", "--sm", "SM86", "--json")
    assert done.exit_code == 0, done.output
    (only,) = json.loads(done.stdout)
    assert only["model"].startswith("site-spine ")
    assert "-2x3x128x128-f32-" in only["name"]
    monkeypatch.setenv("PENNODE_WORKER_PRECISION", "bf16")  # TensorRT has none: what is half as exact as float32, then
    (half,) = json.loads(run("build", "--sm", "SM86", "--json").stdout)
    assert "-2x3x128x128-f16-" in half["name"]


def test_the_list_tells_what_is_there_and_what_is_wrong(state: Path) -> None:
    rtx = library()
    assert run("list").stderr == "no engines yet\n"
    run("build", "--sm", "SM86", "--precision", "f16")
    key = key_for(load(), rtx, "SM86", batch=8, precision="f16")
    listed = run("list")
    assert listed.exit_code == 0
    assert listed.stdout.count("gate: not judged yet") == 2
    assert f"{key.name}  penn-spine " in listed.stdout
    engine, _ = load_engine(state / "engines", key)
    record_gate(state / "engines", engine, Gate("openvino 1 f32", "0" * 64, 8, 4, 0.9999, 0.02, 0.999, 0.1))
    assert run("list").stdout.count("gate: passed") == 1
    record_gate(state / "engines", engine, Gate("openvino 1 f32", "0" * 64, 8, 4, 0.9, math.inf, 0.999, 0.1))
    assert run("list").stdout.count("gate: FAILED") == 1
    gates = [item["engine"]["gate"] for item in strict(run("list", "--json").stdout)]
    assert [gate["largest_difference"] for gate in gates if gate] == [None]
    path = state / "engines" / f"{key.name}.engine"
    path.write_bytes(path.read_bytes()[:1000])
    assert "DAMAGED" in run("list").stdout
    told = {item["name"]: item for item in json.loads(run("list", "--json").stdout)}
    assert told[key.name]["engine"] is None
    assert "1000 bytes" in told[key.name]["fault"]
    assert run("build", "--sm", "SM86", "--precision", "f16").stdout.count("built in") == 1
    assert "DAMAGED" not in run("list").stdout


def test_verify_checks_bytes_and_judges_openvino(state: Path) -> None:
    library()
    run("build", "--sm", "SM86")
    done = run("verify")
    assert done.exit_code == 0, done.output
    assert done.stdout.count(" on openvino f32: passed") == 2
    path = engines(state / "engines")[0]
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    again = run("verify", "--json")
    assert again.exit_code == 1
    told = json.loads(again.stdout)
    assert [bool(item["fault"]) for item in told["engines"]] == [True, False]
    assert {name: gate["passed"] for name, gate in told["openvino"].items()} == {
        "penn-spine": True,
        "penn-spine-finder": True,
    }


def test_verify_fails_where_openvino_does_not_pass(tmp_path: Path) -> None:
    folder = shutil.copytree(load().path.parent, tmp_path / "site")
    model = onnx.load(folder / "model.onnx")
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(load().classes, np.nan, np.float32), bias.name))
    onnx.save(model, folder / "model.onnx")
    fields = json.loads((folder / "manifest.json").read_text())
    del fields["int8"]
    (folder / "manifest.json").write_text(json.dumps(fields | {"sha256": sha256(folder / "model.onnx")}))
    done = run("verify", "--model", folder)
    assert done.exit_code == 1
    assert f"penn-spine {load().version} on openvino f32: FAILED" in done.stdout
    assert f"penn-spine-finder {load().version} on openvino f32: passed" in done.stdout
    told = strict(run("verify", "--model", folder, "--json").stdout)["openvino"]["penn-spine"]
    assert (told["passed"], told["largest_difference"]) == (False, None)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    error = run("build", "--sm", "SM86").exception
    assert isinstance(error, EngineFailure)
    assert "pip install 'pennode[rtx]'" in str(error)


def test_a_gpu_that_the_library_leaves_out_is_refused_before_anything_is_built(state: Path) -> None:
    library()
    error = run("build", "--sm", "SM86", "--sm", "SM90").exception
    assert isinstance(error, EngineFailure)
    assert "not for SM90" in str(error)
    assert not (state / "engines").exists()


def test_a_model_that_is_not_what_its_manifest_says_is_refused(tmp_path: Path) -> None:
    shutil.copytree(load().path.parent, tmp_path / "site")
    with (tmp_path / "site" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    for command in ("build", "verify"):
        error = run(command, "--model", tmp_path / "site").exception
        assert isinstance(error, ConfigurationError)
        assert "sha256" in error.reason
        assert error.next_step == "check --model"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    library()
    (tmp_path / "file").write_text("no folder")
    error = run("build", "--sm", "SM86", "--cache", tmp_path / "file").exception
    assert isinstance(error, EngineFailure)
    assert f"{tmp_path / 'file'}: cannot be written" in str(error)


def test_the_entry_point_makes_it_part_of_the_command_line() -> None:
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pennode.commands"]
    program = typer.Typer()
    join(program, [EntryPoint(name, value, "pennode.commands") for name, value in entries.items()])
    for words in (["engine", "build", "--help"], ["engine", "list"], ["worker", "--help"]):
        done = CliRunner().invoke(program, words)
        assert done.exit_code == 0, done.output


def test_an_error_is_one_readable_line(state: Path) -> None:
    library()
    code = (
        "import node.cli, workers.engines\n"
        "node.cli.app.add_typer(workers.engines.app, name='engine')\n"
        "node.cli.join = lambda *_: None\n"
        "node.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "engine", "build", "--sm", "SM90"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("pennode: tensorrt_rtx ")
    assert done.stderr.count("\n") == 1


def test_bench_tells_how_fast_the_backend_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENNODE_WORKER_EXTRACTION", "spine")
    done = run("bench", "--rounds", "1", "--json")
    assert done.exit_code == 0, done.output
    told = strict(done.stdout)
    assert told["shape"] == [20, 320, 256]
    assert told["engine"]["backend"] == "openvino"
    assert told["network"] > 0
    assert 0 < told["stages_s"]["predict"] < told["series_s"]
    assert told["pipeline"] == pytest.approx(told["patches"] / told["stages_s"]["predict"])
    assert told["rounds"] == 1
    assert told["shares"] == {}  # of a device alone
