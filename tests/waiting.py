"""Waiting for what happens in another thread or process."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def until(probe: Callable[[], T], seconds: float = 15.0) -> T:
    """Ask again and again, and return the first answer that is true; fail after so many seconds."""
    give_up = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < give_up, f"not within {seconds:g} s"
        time.sleep(0.01)
    return found


def read_only(disk: Path, release: Callable[[], object] = lambda: None) -> None:
    """Make a mounted disk read-only, which nobody can while a file is open for writing; `release` closes what may be.

    A file is closed a little later than its descriptor is gone.
    """

    def done() -> bool:
        release()
        return not subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True, check=False).returncode

    until(done)
