"""The node, composed: starts every part in order, keeps them, and stops them in order."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import uvicorn
from pydantic import SecretStr

from node.api import WorkerApi
from node.api import create_app as create_api
from node.assembly import Assembler
from node.configuration import secret
from node.delivery import Courier, addresses
from node.dispatch import WORKER_SILENT_S, Dispatcher, celery_publisher
from node.errors import ConfigurationError, LedgerUnavailable
from node.ledger import Ledger
from node.listener import Door
from node.loops import Loop
from node.records import Instance
from node.retention import Caretaker
from node.selection import Verdict, select_series
from node.settings import Settings
from node.spool import Spool
from node.web import Component, Health
from node.web import create_app as create_web

log = logging.getLogger(__name__)

_WORKER_GRACE_S = 30.0
_RESTART_PAUSE_S = 5.0


class Node:
    """Everything that runs on the node's host, as one context manager.

    Raises
    ------
    ConfigurationError
        On entering, when a part cannot start; what had started is stopped again.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.addresses: dict[str, str] = {}
        self.broken = threading.Event()
        self._stack = contextlib.ExitStack()
        self._loops: dict[str, Loop] = {}

    def __enter__(self) -> Node:
        with contextlib.ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        log.info("stopped")

    def _start(self, stack: contextlib.ExitStack) -> None:
        settings = self.settings
        _lock_state(settings.state_dir, stack)
        ledger = Ledger(settings.ledger_url)
        stack.callback(ledger.close)
        try:
            ledger.migrate()
        except LedgerUnavailable as error:
            raise ConfigurationError(error.reason, "start the database, or mend ledger.url") from error
        spool = Spool(settings.spool_dir)
        spool.prepare()
        removed = spool.remove_unknown(ledger.known_paths, older_than=time.time())
        if removed:
            log.info("removed %d image(s) whose receipt was never acknowledged", removed)
        names = [d.name for d in settings.destinations]
        ledger.recover_deliveries(names, time.time())

        door = Door(ledger, spool, settings.listener, changed=lambda: self._wake("assembly"))
        self._add_loops(ledger, spool, door)
        api = WorkerApi(ledger, spool, settings.api, settings.dispatch, names, finished=lambda: self._wake("delivery"))
        self._serve_http(ledger, spool, door, api, stack)
        for loop in self._loops.values():
            loop.start()
            stack.callback(loop.stop)
        # The door opens last and closes first: whoever gets in finds everything behind it ready.
        host, port = door.start()
        stack.callback(door.stop)
        self.addresses["dicom"] = f"{settings.listener.ae_title}@{host}:{port}"
        _write_atomically(settings.state_dir / "node.json", json.dumps(self.addresses))
        stack.callback((settings.state_dir / "node.json").unlink, missing_ok=True)

    def _add_loops(self, ledger: Ledger, spool: Spool, door: Door) -> None:
        settings = self.settings

        def judge(members: Sequence[Instance]) -> Verdict:
            return select_series(members, settings.selection)

        parts: dict[str, Callable[[float], float]] = {
            "assembly": Assembler(
                ledger, settings.assembly, door.is_open, judge, sealed=lambda: self._wake("dispatch")
            ).tick,
            "dispatch": Dispatcher(ledger, settings.dispatch, celery_publisher(settings)).tick,
            "delivery": Courier(ledger, spool, addresses(settings), settings.delivery).tick,
            "retention": Caretaker(ledger, spool, settings.retention).tick,
        }
        self._loops = {name: Loop(name, tick, self._on_broken) for name, tick in parts.items()}

    def _serve_http(
        self, ledger: Ledger, spool: Spool, door: Door, api: WorkerApi, stack: contextlib.ExitStack
    ) -> None:
        settings = self.settings
        worker_token = _token(settings.api.token, settings.api.token_file, settings.state_dir / "worker.token")
        tls: dict[str, Any] = {}
        if settings.api.tls_certificate and settings.api.tls_key:
            tls = {"ssl_certfile": str(settings.api.tls_certificate), "ssl_keyfile": str(settings.api.tls_key)}
        host, port = _serve(create_api(api, worker_token), settings.api.host, settings.api.port, "api", stack, **tls)
        self.addresses["api"] = f"{'https' if tls else 'http'}://{_dialable(host)}:{port}"
        if settings.web.enabled:
            token = _token(settings.web.token, settings.web.token_file, settings.state_dir / "web.token")
            health = partial(self._health, ledger, spool, door)
            link = secrets.token_urlsafe(16)
            app = create_web(
                ledger,
                token=token,
                health=health,
                allowed_hosts=(settings.web.host, *settings.web.allowed_hosts),
                link_token=link,
            )
            host, port = _serve(app, settings.web.host, settings.web.port, "web", stack)
            self.addresses["web"] = f"http://{_dialable(host)}:{port}"
            self.addresses["sign_in"] = f"{self.addresses['web']}/?token={link}"

    def _health(self, ledger: Ledger, spool: Spool, door: Door) -> Health:
        free_mb = spool.free_bytes() / 1e6
        floor_mb = self.settings.listener.free_floor_mb
        try:
            workers = len(ledger.workers(time.time() - WORKER_SILENT_S))
            answers = (True, "answers")
        except LedgerUnavailable as error:
            workers, answers = 0, (False, str(error))
        listening = f"{self.addresses.get('dicom', '')}, {door.associations()} association(s) open"
        return Health(
            components=(
                Component("ledger", *answers),
                Component("listener", True, listening),
                Component("disk", free_mb >= floor_mb, f"{free_mb / 1000:.1f} GB free"),
                Component("workers", workers > 0, f"{workers} alive"),
                *(Component(name, not loop.trouble, loop.trouble or "works") for name, loop in self._loops.items()),
            )
        )

    def _wake(self, name: str) -> None:
        if name in self._loops:
            self._loops[name].wake()

    def _on_broken(self, name: str) -> None:
        log.critical("%s is broken: the node stops, so that it is restarted whole", name)
        self.broken.set()


def run(settings: Settings, *, with_worker: bool, announce: Callable[[dict[str, str]], None]) -> int:
    """Run the node until SIGTERM or SIGINT; return the exit code.

    `with_worker` keeps one local worker beside it. `announce` gets the addresses once everything is ready.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Node(settings) as node:
        announce(node.addresses)
        keeper = _WorkerKeeper(settings, node.addresses["api"]) if with_worker else None
        try:
            while not stop.wait(0.2) and not node.broken.is_set():
                if keeper is not None:
                    keeper.look()
        finally:
            log.info("stopping")
            if keeper is not None:
                keeper.stop()
    return 1 if node.broken.is_set() else 0


class _WorkerKeeper:
    """One local worker as a child process, started again when it ends."""

    def __init__(self, settings: Settings, api: str) -> None:
        self._environment = os.environ | {
            "PENNODE_STATE_DIR": str(settings.state_dir),
            "PENNODE_WORKER_NODE_URL": settings.worker.node_url or api,
        }
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


def _lock_state(folder: Path, stack: contextlib.ExitStack) -> None:
    """Make the state folder ours alone for as long as we run."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        lock: IO[str] = stack.enter_context((folder / "node.lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigurationError(
            f"another node runs on {folder}", "stop it, or give this one another state_dir"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"the state folder {folder} cannot be used ({error.strerror})", "check who owns it, or set state_dir"
        ) from error


def _token(given: SecretStr | None, file: Path | None, own: Path) -> str:
    """Return the token as configured; without one, that of our own file, made at first start."""
    if given is None and file is None and not own.exists():
        _write_atomically(own, secrets.token_urlsafe(24))
    return secret(given, file, own)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.touch(mode=0o600)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _serve(app: Any, host: str, port: int, name: str, stack: contextlib.ExitStack, **options: Any) -> tuple[str, int]:
    """Serve an ASGI application from a thread; return the address bound."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port} ({error.strerror})", f"another program has this port: change [{name}]"
        ) from error
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=3,
        **options,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name=name, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(5)
        listening.close()

    stack.callback(stop)
    bound = listening.getsockname()
    return bound[0], bound[1]


def _dialable(host: str) -> str:
    """Return the address by which this machine reaches a server bound to `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound to
    return f"[{host}]" if ":" in host else host
