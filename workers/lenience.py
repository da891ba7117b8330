"""Taking values as they are: pydicom neither checks them nor warns of them, in whichever threads.

Both are switches of the process. Who sets them for a while in one thread and then puts back what was there would switch
them off in the middle of another's work; so the first to come sets them, and the last to leave puts them back.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pydicom.config import disable_value_validation


class _Lenience:
    """How many are within, and what puts things back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._restored = ExitStack()

    def enter(self) -> None:
        with self._lock:
            if not self._within:
                self._restored.enter_context(warnings.catch_warnings())
                self._restored.enter_context(disable_value_validation())
                warnings.simplefilter("ignore")
            self._within += 1

    def leave(self) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._restored.close()


_shared = _Lenience()


@contextmanager
def lenient() -> Iterator[None]:
    """Let pydicom take values as they are, and say nothing of them, while the block runs."""
    _shared.enter()
    try:
        yield
    finally:
        _shared.leave()
