"""How long each stage of the work queued on a torch device takes: by events on its stream, on the CPU by the clock.

For measuring alone: whether a stage is worth a kernel of its own is to be seen before one is written. What the device
waits for its host between two events counts as the stage's. It has not run on a GPU yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Stages:
    """Collects the seconds of stages on `device`; stages do not overlap."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ended: list[tuple[str, Callable[[], float]]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """What the block queues on the current stream is a part of stage `name`."""
        if self._device.type != "cuda":
            began = time.perf_counter()
            yield
            took = time.perf_counter() - began
            self._ended.append((name, lambda: took))
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self._ended.append((name, lambda: first.elapsed_time(last) / 1000))

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage so far, in the order in which they first came; waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        found: dict[str, float] = {}
        for name, took in self._ended:
            found[name] = found.get(name, 0.0) + took()
        return found


@contextmanager
def unwatched(_name: str) -> Iterator[None]:
    """In place of `Stages` where nobody asks."""
    yield
