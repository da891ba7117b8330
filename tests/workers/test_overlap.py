"""Series that overlap: each stage at its own place, errors where they belong, and results that do not depend on it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from node import settings
from node.errors import Unsuitable
from workers.identity import digest_of
from workers.overlap import one_by_one, overlapped
from workers.pipeline import Pipeline
from workers.segment import find_series, segment_all
from workers.series import write_series

torch = pytest.importorskip("torch")


def test_while_one_is_calculated_the_next_is_read_and_the_one_before_written():
    """Each stage waits for the others to have come to their neighbours: in a row they would wait for ever."""
    began = {(stage, number): threading.Event() for stage in "rcw" for number in range(4)}

    def meet(stage: str, number: int, *others: tuple[str, int]) -> None:
        began[stage, number].set()
        for other in others:
            if other in began:
                assert began[other].wait(20), f"{stage}{number} waits for {other}"

    def read(number: int) -> int:
        meet("r", number, ("c", number - 1))
        return number * 10

    def calculate(number: int, arrived: int) -> int:
        assert threading.current_thread() is main
        meet("c", number, ("r", number + 1), ("w", number - 1))
        return arrived + 1

    def write(number: int, arrived: int, found: int) -> str:
        meet("w", number, *([("c", number + 1)] if number < 3 else []))
        return f"{arrived} {found}"

    main = threading.current_thread()
    assert list(overlapped(range(4), read, calculate, write)) == [(n, f"{n * 10} {n * 10 + 1}") for n in range(4)]
    assert not [t for t in threading.enumerate() if t.name.startswith(("read", "write"))]


def test_no_more_than_three_series_are_held():
    held, most, lock = set(), 0, threading.Lock()

    class Held:
        def __init__(self, number: int) -> None:
            nonlocal most
            with lock:
                held.add(number)
                most = max(most, len(held))

    def write(number: int, *_: Any) -> None:
        with lock:
            held.remove(number)

    list(overlapped(range(20), Held, lambda *_: None, write))
    assert most <= 3
    assert not held


@pytest.mark.parametrize("row", [overlapped, one_by_one])
@pytest.mark.parametrize("stage", ["read", "calculate", "write"])
def test_an_error_ends_its_own_series_alone(stage, row):
    called: list[tuple[str, int]] = []

    def step(name: str, number: int) -> int:
        called.append((name, number))
        if (name, number) == (stage, 1):
            raise Unsuitable("shows no spine")
        return number

    steps = [lambda number, *_, name=name: step(name, number) for name in ("read", "calculate", "write")]
    found = list(row(range(3), *steps))
    assert [number for number, _ in found] == [0, 1, 2]
    assert [type(outcome) for _, outcome in found] == [int, Unsuitable, int]
    later = ("read", "calculate", "write")[("read", "calculate", "write").index(stage) + 1 :]
    assert not {(name, 1) for name in later} & set(called)


@pytest.mark.parametrize("row", [overlapped, one_by_one])
@pytest.mark.parametrize("stage", range(3))
def test_what_is_no_error_of_ours_is_raised(stage, row):
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    steps = [lambda *_: None] * 3
    steps[stage] = fail
    with pytest.raises(ZeroDivisionError):
        list(row([1, 2], *steps))


@pytest.mark.parametrize("row", [overlapped, one_by_one])
def test_nothing_gives_nothing(row):
    assert list(row([], lambda _: 0, lambda *_: 0, lambda *_: 0)) == []


def test_one_by_one_all_is_done_here_and_in_order():
    told = []

    def stage(name):
        return lambda number, *_: told.append((name, number, threading.current_thread() is threading.main_thread()))

    list(one_by_one([0, 1], stage("r"), stage("c"), stage("w")))
    assert told == [(name, number, True) for number in (0, 1) for name in "rcw"]


@pytest.fixture
def on_torch(small):
    """The formula on torch's CPU."""

    class Engine(small.FormulaEngine):
        device, stream = torch.device("cpu"), None

        def on_device(self, patches):
            return torch.from_numpy(small.formula(patches.numpy()))

    return Engine()


@pytest.mark.parametrize("slab_mb", [16, 512])
def test_series_that_overlap_give_the_bytes_of_series_one_by_one(slab_mb, on_torch, manifest, small, tmp_path):
    spacings = [small.SPACING, (4.0, 0.6, 1.3), small.SPACING, (2.0, 1.2, 0.8)]
    for number, spacing in enumerate(spacings):
        image = small.lopsided((5 + number, 61, 45), seed=number)
        write_series(tmp_path / "in" / str(number), image, spacing, seed=number)
    bad = write_series(tmp_path / "one", small.lopsided(), small.SPACING, seed=9)[0]
    (tmp_path / "in" / "bad").mkdir()
    bad.rename(tmp_path / "in" / "bad" / "alone.dcm")
    found = find_series(tmp_path / "in", pytest.fail)
    pipeline = Pipeline(on_torch, manifest, settings.Worker(slab_mb=slab_mb, batch=4), settings.Seg())
    outcomes = list(segment_all(found, tmp_path / "out", pipeline, picture=False))
    assert [outcome.found for outcome in outcomes] == found
    refused = [outcome.error for outcome in outcomes if outcome.error is not None]
    assert [type(error) for error in refused] == [Unsuitable]
    for outcome in outcomes:
        if outcome.bundle is not None:
            alone = pipeline.segment(outcome.found.paths, digest_of(outcome.found.paths))
            assert outcome.written[0].read_bytes() == alone.objects[0].data
            assert set(outcome.bundle.timings_s) == set(alone.timings_s)


def test_what_was_sent_ahead_is_let_go_when_it_is_used(on_torch, manifest, small, tmp_path):
    paths = write_series(tmp_path, small.lopsided(), small.SPACING)
    pipeline = Pipeline(on_torch, manifest, settings.Worker(batch=4), settings.Seg())
    arrived = pipeline.read(paths, ahead=True)
    assert arrived.arrival is not None
    assert arrived.arrival.rising is not None
    pipeline.calculate(arrived)
    assert arrived.arrival is None
    assert pipeline.read(paths).arrival.rising is None
    small_budget = Pipeline(on_torch, manifest, settings.Worker(slab_mb=16), settings.Seg())
    big = write_series(tmp_path / "big", small.lopsided((9, 400, 400)), small.SPACING)  # 5.8 MB, a quarter of 16 is 4
    assert small_budget.read(big, ahead=True).arrival.rising is None
