"""What a TensorRT library calls while it works: its logger, and the monitor of a build.

No exception may pass through the library's own code, so nothing here does more than keep or pass on what it is told.
"""

from __future__ import annotations

import logging
import threading
from functools import cache
from queue import SimpleQueue
from typing import Any, TypeAlias

log = logging.getLogger(__name__)

Event: TypeAlias = tuple[str, int, int]
"""A phase of a build: its name, steps done, steps in all."""


@cache
def logger(module: Any) -> Any:
    """The one logger of a library in this process: whatever logger it is given later, the library keeps the first.

    Its `errors`, a list of text, is what the library complained of since somebody cleared it.
    """
    severities = module.ILogger.Severity
    levels = {severities.WARNING: logging.WARNING, severities.INFO: logging.DEBUG}

    class Logger(module.ILogger):  # type: ignore[misc]  # the library is not followed by the type checker
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in levels:
                log.log(levels[severity], "%s", text)
            elif severity < severities.WARNING:
                self.errors.append(text)

    return Logger()


def monitor(module: Any, events: SimpleQueue[Event | None], cancelled: threading.Event) -> Any:
    """A monitor that puts every step of a build into `events`, and ends the build once it is `cancelled`."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # the library is not followed by the type checker
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            events.put((phase, 0, steps))

        def step_complete(self, phase: str, step: int) -> bool:
            events.put((phase, step + 1, self.steps.get(phase, step + 1)))
            return not cancelled.is_set()

        def phase_finish(self, phase: str) -> None:
            steps = self.steps.get(phase, 0)
            events.put((phase, steps, steps))

    return Monitor()
