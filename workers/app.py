"""The Celery worker: one prefork child that works, and a small parent that keeps it and tells the node it lives."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version

from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_ready

from node.broker import SEGMENT_TASK, celery_config, queue_of
from node.configuration import secret
from node.errors import ConfigurationError, PennodeError
from node.settings import Settings
from trt.manifest import Manifest
from workers import tasks
from workers.benches import open_benches
from workers.nodeclient import NodeClient

log = logging.getLogger(__name__)

_GREET_EVERY_S = 15.0
_ORPHAN_CHECK_S = 1.0


def node_url(settings: Settings) -> str:
    """Return the node's address: as configured, or as the node on this machine has written it down.

    Raises
    ------
    ConfigurationError
        Neither is there.
    """
    if settings.worker.node_url:
        return settings.worker.node_url
    try:
        return str(json.loads((settings.state_dir / "node.json").read_text())["api"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            "no node is known to this worker", "start the node on this machine, or set worker.node_url"
        ) from error


def client_for(settings: Settings) -> NodeClient:
    """Return a client of the configured node."""
    url = node_url(settings)
    token = secret(settings.worker.token, settings.worker.token_file, settings.state_dir / "worker.token")
    return NodeClient(url, token, settings.worker.ca_file)


def worker_name() -> str:
    """Return this worker's name: its host and process."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}"


def create_app(settings: Settings, name: str) -> Celery:
    """Return the Celery application with its one task bound to `settings`."""
    app = Celery("pennode", set_as_current=False)
    app.conf.update(celery_config(settings))
    # Clients hold sockets and threads, which do not survive a fork: each process makes its own at first use.
    client = cache(lambda: client_for(settings))
    benches = cache(lambda: open_benches(settings))

    def segment(job_id: str) -> None:
        tasks.run(job_id, benches, client(), name)

    app.task(name=SEGMENT_TASK)(segment)

    def warm_up(**_: object) -> None:
        tasks.sweep()
        try:
            benches().claimable()
        except PennodeError as error:
            # Said again at each job, which is left to a worker that can.
            log.error("not ready: %s", error)

    worker_process_init.connect(warm_up, weak=False)
    return app


def run_worker(settings: Settings, models: Sequence[Manifest], *, supervised: bool = False) -> int:
    """Work until told to stop, with `models`, the default first.

    `supervised`: end when the parent process does, so that a killed node leaves no worker behind.
    """
    name = worker_name()
    client_for(settings).close()  # a node or token that is not configured is told at once, not by the first job
    setup_logging.connect(lambda **_: None, weak=False)  # ours is set up already, and Celery's would replace it
    app = create_app(settings, name)
    parent = os.getppid() if supervised else 0
    worker_ready.connect(lambda **_: _Attendant(settings, name, models, parent).start(), weak=False)
    queue = settings.broker.queue
    queues = ",".join((queue, *(queue_of(queue, model.name) for model in models)))
    options = ["-P", "prefork", "-c", "1", "--without-gossip", "--without-mingle", "-n", f"{name}@%h"]
    app.worker_main(["--quiet", "worker", "-Q", queues, "-l", settings.log.level, *options])
    return 0


class _Attendant(threading.Thread):
    """Tells the node every few seconds that this worker lives, and watches the process that started it."""

    def __init__(self, settings: Settings, name: str, models: Sequence[Manifest], parent: int) -> None:
        super().__init__(name="attendant", daemon=True)
        self._settings = settings
        self._name = name
        self._models = [f"{model.name} {model.version}" for model in models]
        self._parent = parent

    def run(self) -> None:
        """Greet and watch for ever."""
        client = client_for(self._settings)
        backend = self._settings.worker.backend  # as configured: this process must not ask the GPU
        device = f"openvino on {os.cpu_count()} CPU cores" if backend == "openvino" else f"{backend} on a GPU"
        device = ", else ".join((device, *self._settings.worker.fallback))
        next_greeting = 0.0
        while True:
            if time.monotonic() >= next_greeting:
                next_greeting = time.monotonic() + _GREET_EVERY_S
                try:
                    client.greet(self._name, version("pennode"), device, self._models[0], self._models)
                except PennodeError as error:
                    log.warning("the node was not greeted: %s", error)
            if self._parent and os.getppid() != self._parent:
                log.warning("the process that started this worker is gone: stopping")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(_ORPHAN_CHECK_S)
