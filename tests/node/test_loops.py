"""Background rounds: waking, trouble that passes, and bugs that stop the node."""

from __future__ import annotations

import logging
import queue
import threading
import time

import pytest

from node.errors import BrokerUnavailable, Permanent
from node.loops import Loop, stop_all


@pytest.fixture
def rounds() -> queue.Queue[float]:
    return queue.Queue()


def test_a_loop_goes_round_with_the_time_and_can_be_woken(rounds: queue.Queue[float]) -> None:
    times = iter([1.0, 2.0, 3.0, 4.0])

    def tick(now: float) -> float:
        rounds.put(now)
        return 3600.0

    loop = Loop("test", tick, broken=lambda _: None, clock=lambda: next(times))
    loop.start()
    assert rounds.get(timeout=5) == 1.0
    loop.wake()
    assert rounds.get(timeout=5) == 2.0
    stop_all([loop])
    assert not loop.is_alive()
    stop_all([loop])


def test_trouble_is_shown_logged_once_and_passes(rounds: queue.Queue[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    broken: list[str] = []
    results = iter([BrokerUnavailable("gone", "wait"), BrokerUnavailable("gone", "wait"), None])

    def tick(now: float) -> float:
        result = next(results)
        rounds.put(now)
        if result is not None:
            raise result
        return 3600.0

    loop = Loop("dispatch", tick, broken.append)
    loop.start()
    for _ in range(2):
        rounds.get(timeout=5)
        give_up = threading.Event()
        while not loop.trouble and not give_up.wait(0.01):
            pass
        assert loop.trouble == "gone (wait)"
        loop.wake()
    rounds.get(timeout=5)
    stop_all([loop])
    assert loop.trouble == ""
    assert [r.getMessage() for r in caplog.records] == ["dispatch: gone (wait)", "dispatch: works again"]
    assert broken == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("bug", [ZeroDivisionError("x"), Permanent("y")])
def test_any_other_exception_takes_the_node_down(bug: Exception) -> None:
    broken: queue.Queue[str] = queue.Queue()

    def tick(_: float) -> float:
        raise bug

    loop = Loop("assembly", tick, broken.put)
    loop.start()
    assert broken.get(timeout=5) == "assembly"
    loop.join(5)
    assert not loop.is_alive()


def test_loops_that_hang_cost_their_time_once() -> None:
    hang, entered = threading.Event(), queue.Queue[float]()

    def tick(now: float) -> float:
        entered.put(now)
        hang.wait(30)
        return 3600.0

    loops = [Loop(f"hanging {n}", tick, broken=lambda _: None) for n in range(4)]
    for loop in loops:
        loop.start()
    for _ in loops:
        entered.get(timeout=5)
    begun = time.monotonic()
    stop_all(loops, timeout=0.5)
    assert time.monotonic() - begun < 1.5
    hang.set()
    stop_all(loops)
    assert not any(loop.is_alive() for loop in loops)
