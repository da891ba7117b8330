"""Background rounds: a thread that calls one function again and again, and takes the node down if it breaks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from node.errors import Retryable

log = logging.getLogger(__name__)

_RETRY_S = 2.0


class Loop(threading.Thread):
    """Calls `tick(now)`, which returns the seconds until its next round; `wake` shortens the wait.

    A `Retryable` error is logged once and the round tried again after a moment. Any other exception is a bug: it ends
    the thread and `broken` is called, so that the node stops instead of living on half dead.
    """

    def __init__(
        self,
        name: str,
        tick: Callable[[float], float],
        broken: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._tick = tick
        self._broken = broken
        self._clock = clock
        self._wakeup = threading.Event()
        self._stopping = threading.Event()
        self.trouble = ""

    def wake(self) -> None:
        """Begin the next round at once."""
        self._wakeup.set()

    def stop(self) -> None:
        """End after the current round."""
        self._stopping.set()
        self._wakeup.set()

    def run(self) -> None:
        """Go round until stopped."""
        ended = False
        try:
            while not self._stopping.is_set():
                self._wakeup.wait(self._round())
            ended = True
        finally:
            if not ended:
                log.critical("%s stopped by an unexpected error", self.name)
                self._broken(self.name)

    def _round(self) -> float:
        self._wakeup.clear()
        try:
            wait = self._tick(self._clock())
        except Retryable as error:
            if self.trouble != str(error):
                log.warning("%s: %s", self.name, error)
            self.trouble = str(error)
            return _RETRY_S
        if self.trouble:
            log.info("%s: works again", self.name)
        self.trouble = ""
        return wait


def stop_all(loops: Sequence[Loop], timeout: float = 10.0) -> None:
    """End several loops after their current rounds; one that hangs costs `timeout` seconds once, not each."""
    for loop in loops:
        loop.stop()
    give_up = time.monotonic() + timeout
    for loop in loops:
        if loop.is_alive():
            loop.join(max(0.0, give_up - time.monotonic()))
