"""Waiting for what happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(probe: Callable[[], T], seconds: float = 15.0) -> T:
    """Ask again and again, and return the first answer that is true; fail after so many seconds."""
    give_up = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < give_up, f"not within {seconds:g} s"
        time.sleep(0.01)
    return found
