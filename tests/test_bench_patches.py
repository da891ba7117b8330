"""The comparison compares like with like: every contender segments, and those with our patches agree with us."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tests.contenders import BARE, CONTENDERS, OURS, Contender
from tests.peaks import peak_mb, pipeline_peak_mb, series
from tests.runtimes import Setting
from trt.engine import EngineError, open_engine
from trt.manifest import load
from trt.network import TorchNetwork

SETTING = Setting(load(), overlap=0.25, batch=2, threads=2)
SHAPE = (2, 176, 144)
QUICK = [c for c in CONTENDERS if c.name != BARE and "torch.compile" not in c.name]  # no mask; a minute to compile


@pytest.mark.parametrize("contender", QUICK, ids=lambda c: f"{c.name} {c.precision}")
def test_contenders_agree(contender: Contender) -> None:
    volume = series(SHAPE, SETTING)
    with next(c for c in CONTENDERS if c.name == OURS).open(SETTING, SHAPE) as run:
        wanted = run(volume)
    assert wanted is not None
    assert len(np.unique(wanted)) > 3
    try:
        with contender.open(dataclasses.replace(SETTING, precision=contender.precision), SHAPE) as run:
            found = run(volume)
    except EngineError as error:
        assert "bf16" in str(error)  # noqa: PT017  # a CPU without bf16 must say so
        return
    assert found is not None
    assert found.shape == SHAPE
    assert found.dtype == np.uint8
    assert (found == wanted).mean() > 0.97


@pytest.mark.parametrize("batch", [1, 3])
def test_the_network_in_torch_is_the_one_that_serves(batch: int) -> None:
    manifest = load()
    patches = np.random.default_rng(0).random((batch, manifest.channels, *manifest.patch), np.float32)
    with open_engine(manifest, batch=batch) as engine, torch.inference_mode():
        np.testing.assert_allclose(TorchNetwork(manifest.path)(torch.from_numpy(patches)), engine(patches), atol=1e-3)


def test_an_operator_that_is_not_known_is_named(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "other", values[:1], values[1:])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="Sigmoid"):
        TorchNetwork(tmp_path / "model.onnx")


def test_the_command_tells_every_figure_as_json() -> None:
    arguments = ["--sizes", "1x144x128", "--patch", "128x96", "--rounds", "2", "--only", "whole", "--precision", "int8"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench_patches", *arguments, "--no-memory", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(done.stdout)["1x144x128"]["rows"]
    assert [(row["name"], row["precision"]) for row in rows] == [
        (OURS, "f32"),
        (OURS, "int8"),
        ("whole slices, OpenVINO", "int8"),
    ]
    for row in rows:
        assert len(row["wall_s"]) == len(row["cpu_ratio"]) == 2
    assert rows[0]["wall_ratio"] == rows[1]["wall_ratio"] == [1, 1]
    assert rows[0]["alike"] == 1


def test_a_process_tells_its_peak_and_one_that_dies_none() -> None:
    peak = peak_mb(OURS, "f32", SHAPE, SETTING, "penn-spine")
    assert peak is not None
    assert 50 < peak < 2000  # numpy, OpenVINO and 16 MB of weights at least
    assert peak_mb("nobody", "f32", SHAPE, SETTING, "penn-spine") is None


def test_what_the_pipeline_holds_is_of_the_patches_that_it_says() -> None:
    shape = (6, 320, 256)
    (own, small), (fitted, large) = (pipeline_peak_mb(shape, SETTING, fitted=choice) for choice in (False, True))
    assert own == SETTING.manifest.patch
    assert fitted == (320, 256)
    least = 4 * SETTING.manifest.classes * 320 * 256 / 1e6  # one slice of logits
    assert 2 * least < small < 12 * least
    assert 2 * least < large < 12 * least


def test_make_bench_refuses_switches_that_three_benches_would_share() -> None:
    root = Path(__file__).parents[1]
    command = ["make", "--dry-run", "bench", "ARGS=--rounds 1"]
    plain = {name: value for name, value in os.environ.items() if name not in ("ARGS", "MAKEFLAGS")}
    done = subprocess.run(command, cwd=root, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "bench-patches" in done.stderr
    for words in (["bench"], ["bench-patches", "ARGS=--rounds 1"]):
        subprocess.run(["make", "--dry-run", *words], cwd=root, env=plain, capture_output=True, check=True)
