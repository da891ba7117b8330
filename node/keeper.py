"""The one local worker of `pennode up`: a child process that is kept running."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from node.settings import Settings

log = logging.getLogger(__name__)

_WORKER_GRACE_S = 30.0
_RESTART_PAUSE_S = 5.0


class WorkerKeeper:
    """One local worker as a child process, started again when it ends."""

    def __init__(self, settings: Settings, config: Path | None, api: str, token: str) -> None:
        self._environment = os.environ | {
            "PENNODE_STATE_DIR": str(settings.state_dir.absolute()),
            "PENNODE_WORKER_NODE_URL": settings.worker.node_url or api,
        }
        if config is not None:
            self._environment["PENNODE_CONFIG"] = str(config.absolute())
        if settings.worker.token is None and settings.worker.token_file is None:
            self._environment["PENNODE_WORKER_TOKEN"] = token
        self._child: subprocess.Popen[bytes] | None = None
        self._not_before = 0.0

    def look(self) -> None:
        """Start the worker if there is none."""
        if self._child is not None and self._child.poll() is not None:
            log.error("the worker ended with code %s; starting it again", self._child.returncode)
            self._child = None
            self._not_before = time.monotonic() + _RESTART_PAUSE_S
        if self._child is None and time.monotonic() >= self._not_before:
            command = [sys.executable, "-m", "node.cli", "worker", "--supervised"]
            # A session of its own: Ctrl-C in the terminal is ours to pass on, in our order.
            self._child = subprocess.Popen(command, env=self._environment, start_new_session=True)

    def stop(self) -> None:
        """Let the worker finish its job for a while, then end it."""
        if self._child is None:
            return
        self._child.send_signal(signal.SIGTERM)
        try:
            self._child.wait(_WORKER_GRACE_S)
        except subprocess.TimeoutExpired:
            log.warning("the worker is still busy: ending it; its job is done again")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
