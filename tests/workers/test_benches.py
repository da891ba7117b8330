"""Which models a worker has, which are open, and what happens to those that cannot be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.errors import ConfigurationError, DeviceLost, EngineFailure, ModelUnavailable
from node.settings import Settings, Worker
from tests import models
from trt.manifest import load
from workers.benches import Bench, Benches, manifests, open_benches
from workers.series import write_phantom


class Rack:
    """Benches that write down what is opened and closed."""

    def __init__(self, *names: str, most: int = 2, broken: tuple[str, ...] = ()) -> None:
        self.log: list[str] = []
        self.broken = set(broken)
        self.now = 100.0
        self.benches = Benches({name: self.opener(name) for name in names}, most, lambda: self.now)

    def opener(self, name: str) -> Callable[[], Bench]:
        def open_bench() -> Bench:
            if name in self.broken:
                raise EngineFailure(f"{name} is broken", "mend it")
            self.log.append(f"+{name}")
            return Bench(lambda *_: None, f"{name} 1.0.0", lambda: self.log.append(f"-{name}"))  # type: ignore[arg-type,return-value]

        return open_bench


def test_a_model_is_opened_when_it_is_wanted_and_kept() -> None:
    rack = Rack("a", "b")
    assert rack.benches.claimable() == ("", "a", "b")
    assert rack.log == ["+a"]
    assert rack.benches.get("").model == rack.benches.get("a").model == "a 1.0.0"
    assert rack.benches.get("b").model == "b 1.0.0"
    rack.benches.get("a")
    assert rack.log == ["+a", "+b"]


def test_the_one_not_used_for_longest_is_closed_before_another_is_opened() -> None:
    rack = Rack("a", "b", "c")
    for name in ("a", "b", "a", "c", "a", "b"):
        rack.benches.get(name)
    assert rack.log == ["+a", "+b", "-b", "+c", "-c", "+b"]
    assert rack.benches.claimable() == ("", "a", "b", "c")
    assert rack.log[-1] == "+b", "what was opened once need not be open to be claimed"


def test_with_room_for_one_there_is_never_more_than_one_open() -> None:
    rack = Rack("a", "b", most=1)
    for name in ("a", "b", "a"):
        rack.benches.get(name)
    assert rack.log == ["+a", "-a", "+b", "-b", "+a"]


def test_a_default_that_cannot_be_opened_leaves_the_others_and_is_tried_at_each_job() -> None:
    rack = Rack("a", "b", broken=("a",))
    assert rack.benches.claimable() == ("b",)
    rack.broken.clear()
    assert rack.benches.claimable() == ("", "a", "b")


def test_without_any_model_that_opens_nothing_is_claimed() -> None:
    with pytest.raises(EngineFailure, match="a is broken"):
        Rack("a", broken=("a",)).benches.claimable()


def test_another_model_that_fails_is_left_alone_for_a_minute() -> None:
    rack = Rack("a", "b", broken=("b",))
    with pytest.raises(ModelUnavailable, match=r"the model b cannot be opened here: b is broken \(mend it\)"):
        rack.benches.get("b")
    assert rack.benches.claimable() == ("", "a")
    rack.now += 60
    assert rack.benches.claimable() == ("", "a", "b")
    rack.broken.clear()
    assert rack.benches.get("b").model == "b 1.0.0"


def test_a_lost_gpu_stays_a_lost_gpu() -> None:
    def lost() -> Bench:
        raise DeviceLost("the GPU failed", "see nvidia-smi")

    with pytest.raises(DeviceLost):
        Benches({"a": lost}, 1).get("")


def worker(*further: object, **values: Any) -> Worker:
    return Worker(models=tuple(map(str, further)), **values)


def test_manifests_are_those_of_the_default_and_the_further_models(tmp_path: Path) -> None:
    models.save(tmp_path / "x", name="small", version="2.0.0")
    found = manifests(worker(tmp_path / "x"))
    assert [(m.name, m.version) for m in found.values()] == [("penn-spine", load().version), ("small", "2.0.0")]


@pytest.mark.parametrize(
    ("further", "values", "says"),
    [
        (("nowhere",), {}, r"no model 'nowhere'.*\(check worker.models\)"),
        (("penn-spine",), {}, "two of worker.model and worker.models are named 'penn-spine'"),
        ((), {"model": "nowhere"}, r"\(check worker.model\)"),
    ],
)
def test_a_model_that_is_not_there_or_there_twice_is_a_configuration_error(
    further: tuple[str, ...], values: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        manifests(worker(*further, **values))


def test_a_further_model_without_eight_bits_is_refused_at_once(tmp_path: Path) -> None:
    models.save(tmp_path / "x")
    with pytest.raises(ConfigurationError, match=r"no version in eight bits.*worker.models"):
        manifests(worker(tmp_path / "x", precision="int8"))


def test_two_real_models_give_two_results_of_one_series(tmp_path: Path) -> None:
    for name in ("one", "two"):
        models.save(tmp_path / name, name=name, seed=name)
    settings = Settings(state_dir=tmp_path, worker=worker(tmp_path / "two", model=str(tmp_path / "one"), open_models=1))
    benches = open_benches(settings)
    assert benches.claimable() == ("", "one", "two")
    source = write_phantom(tmp_path / "phantom", shape=(7, 64, 48))
    made = {}
    for name in ("one", "two", "one"):
        bench = benches.get(name)
        assert bench.model == f"{name} 1.0.0"
        (result,) = bench.segment(source, "0", models.SEG, lambda *_: None).objects
        assert made.setdefault(name, result.data) == result.data, "the same again after it was closed and opened"
        made[f"{name} uid"] = result.sop_uid.encode()
    assert made["one uid"] != made["two uid"]


def test_a_model_replaced_on_disk_since_is_not_run(tmp_path: Path) -> None:
    models.save(tmp_path / "one", name="one")
    models.save(tmp_path / "two", name="two")
    benches = open_benches(Settings(state_dir=tmp_path, worker=worker(tmp_path / "two", model=str(tmp_path / "one"))))
    (tmp_path / "two" / "model.onnx").write_bytes(b"another")
    with pytest.raises(ModelUnavailable, match=r"the model two cannot be opened here.*sha256"):
        benches.get("two")


def test_a_bench_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Bench(lambda *_: None, "a").model = "b"  # type: ignore[misc,arg-type,return-value]
