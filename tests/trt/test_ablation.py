"""The table of parts: runs that are done stay done, those of another kind are done again, and nothing outlives it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from trt import ablation
from trt.ablation import COLUMNS, markdown, table
from trt.dataset import Split, write_split
from trt.penn import Penn, PennConfig
from trt.recipes import TrainConfig

ROOT = Path(__file__).parents[2]
FIGURES = dict.fromkeys(COLUMNS, 0.5) | {"simulated tumour": math.nan}


class Here:
    """A pool that runs what it is given at once, in this process."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., None], *arguments: Any) -> Future[None]:
        future: Future[None] = Future()
        future.set_result(work(*arguments))
        return future


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the runs that were trained; no network is."""
    seeds: list[int] = []
    monkeypatch.setattr(ablation, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(ablation, "train", lambda _, config: seeds.append(config.seed))
    monkeypatch.setattr(ablation, "judge", lambda *_: FIGURES)
    monkeypatch.setattr(ablation, "patch_ms", lambda *_: 7.25)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    return seeds


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Result]:
    (tmp_path / "data").mkdir()
    for name in "abc":
        image = np.random.default_rng(ord(name)).random((2, 8, 8), np.float32)
        np.savez(tmp_path / "data" / f"{name}.npz", image=image, mask=(image * 4).astype(np.uint8))
    write_split(Split(("a", "b"), ("c",), 0), tmp_path / "split.json")
    app = Typer()
    app.command()(ablation.main)

    def run(*words: str) -> Result:
        paths = {"data": tmp_path / "data", "out": tmp_path / "out", "split": tmp_path / "split.json"}
        options = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
        return CliRunner().invoke(app, [*options, "--row", "PENN", "--seed", "1", "--seed", "2", *words])

    return run


def strict(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


def test_runs_are_done_once_and_figures_that_are_not_there_are_null(
    runs: list[int], command: Callable[..., Result], tmp_path: Path
) -> None:
    for _ in range(2):
        done = command()
        assert done.exit_code == 0, done.output
        assert "done again" not in done.output
    assert runs == [1, 2]
    (first, _) = sorted((tmp_path / "out").glob("PENN*.json"))
    assert strict(first)["dice"]["simulated tumour"] is None
    document = strict(tmp_path / "out" / "ablation.json")
    assert document["patients held back"] == ["c"]
    (row,) = document["rows"]
    assert row["mean"]["vertebra"] == 0.5
    assert (row["mean"]["simulated tumour"], row["sd"]["simulated tumour"]) == (None, None)
    assert row["patch_ms"] == 7.25
    assert "| 0.500 ± 0.000 | - | 7.2 |" in done.output


@pytest.mark.parametrize("other", ["split", "data", "settings", "keys", "damaged"])
def test_a_run_of_another_kind_is_done_again(
    other: str, runs: list[int], command: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command().exit_code == 0
    path = sorted((tmp_path / "out").glob("PENN*.json"))[0]
    if other == "split":
        write_split(Split(("a", "c"), ("b",), 0), tmp_path / "split.json")
    elif other == "data":
        image = np.linspace(0, 1, 128, dtype=np.float32).reshape(2, 8, 8)
        np.savez(tmp_path / "data" / "a.npz", image=image, mask=(image * 4).astype(np.uint8))
    elif other == "settings":
        name = next(iter(ablation.ROWS))
        monkeypatch.setitem(ablation.ROWS, name, ablation.replace(ablation.ROWS[name], clip=1.0))
    elif other == "keys":
        kept = {key: value for key, value in strict(path).items() if key in ("row", "seed", "steps", "dice")}
        path.write_text(json.dumps(kept))
    else:
        path.write_text("{")
    runs.clear()
    done = command()
    assert done.exit_code == 0, done.output
    assert f"{path.name}: of other settings, data or patients; done again" in done.output
    assert runs == ([1, 2] if other in ("split", "data", "settings") else [1])


@pytest.mark.parametrize("split", [Split(("a", "b"), ("x",), 0), Split(("x",), ("c",), 0)])
def test_a_split_of_other_data_is_refused_before_anything_is_trained(
    split: Split, runs: list[int], command: Callable[..., Result], tmp_path: Path
) -> None:
    write_split(split, tmp_path / "split.json")
    done = command()
    assert done.exit_code == 2
    assert "holds no patient that the split has as" in " ".join(done.output.replace("│", " ").split())
    assert not runs


def test_a_table_copes_with_figures_that_some_seeds_lack() -> None:
    results = [
        {
            "row": "all",
            "seed": seed,
            "dice": dict.fromkeys(COLUMNS, 0.5) | {"inverted": value, "T1-like": None},
            "patch_ms": 3.0 + seed,
        }
        for seed, value in enumerate((None, 0.25))
    ]
    rows = table(results)
    assert rows[0]["mean"]["inverted"] == 0.25
    assert "| 0.500 ± 0.000 | 0.250 | - | 0.500 ± 0.000 | 3.5 |" in markdown(rows)


def test_a_wider_network_costs_more() -> None:
    costs = []
    for width in (8, 64):  # of 64 times the work
        config = TrainConfig(network=PennConfig(width=width, levels=3), batch=2, patch=64)
        costs.append(ablation.patch_ms(Penn(config.network).eval(), config, rounds=5))
    assert 0 < costs[0] < costs[1]


CHILD = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from trt.ablation import end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_it_leaves_no_process_behind(tmp_path: Path) -> None:
    script = tmp_path / "table.py"
    script.write_text(CHILD)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = Path("/proc", parent.stdout.readline().strip())
        assert child.is_dir()
        parent.kill()
    until = time.monotonic() + 20
    while running(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not running(child)


def running(process: Path) -> bool:
    try:
        return "\nState:\tZ" not in (process / "status").read_text()
    except OSError:
        return False
