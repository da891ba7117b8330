"""The node, composed: starts every part in order, keeps them, and stops them in order."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from starlette.routing import Route

from node.api import WorkerApi
from node.api import create_app as create_api
from node.assembly import Assembler
from node.assurances import Assurances
from node.census import censuses
from node.commitment import StorageCommitment
from node.comparison import Comparer
from node.delivery import Courier, carriers, ladders
from node.dispatch import Dispatcher, celery_publisher
from node.errors import ConfigurationError, LedgerUnavailable, OutOfDisk
from node.fetching import Fetcher, fetchers, loop_name
from node.http import HttpServer
from node.keeper import WorkerKeeper
from node.ledger import Ledger
from node.listener import Door
from node.loops import Loop, stop_all
from node.peers import Peers
from node.proof import Prover
from node.provers import provers
from node.records import WORKER_SILENT_S, Instance
from node.reporter import Reporter
from node.retention import Caretaker
from node.returns import Returns
from node.selection import Verdict, select_series
from node.services import report_taker
from node.settings import Settings
from node.signin import STOW_PATH
from node.spool import Spool
from node.statefolder import lock_state, token_of, write_atomically
from node.stow import OriginServer
from node.tls import client_context
from node.web import Component, Health
from node.web import create_app as create_web
from node.webfetch import Orders

log = logging.getLogger(__name__)


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
        self._provers: dict[str, Prover] = {}
        self._servers: dict[str, HttpServer] = {}
        self._fetchers: list[Fetcher] = []
        self._lock: IO[str] | None = None
        self._dispatcher: Dispatcher | None = None
        self.worker_token = ""

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
        self._lock = lock_state(settings.state_dir)
        ledger = Ledger(settings.ledger_url)
        stack.callback(ledger.close)
        try:
            ledger.migrate()
            ledger.claim_alone()
            identity = ledger.identity()
        except LedgerUnavailable as error:
            raise ConfigurationError(error.reason, "start the database, or mend ledger.url") from error
        for kind in ("archives", "destinations", "peers"):
            for other in getattr(settings, kind):  # what its certificates lack is said now, not when it is first needed
                client_context(other.security, f"{kind}.{other.name}.")
        spool = Spool(settings.spool_dir)
        spool.prepare()
        spool.belongs_to(identity)
        moved = spool.set_unknown_aside(ledger.known_paths, older_than=time.time())
        if moved:
            log.warning("%d file(s) that the ledger does not know now lie in %s", moved, spool.path("unknown"))
        # A clock that was ahead while we were down leaves times that lie in the future.
        ledger.clamp_times(time.time(), settings.dispatch.lease_s)
        ledger.recover_deliveries({name: ladder[0] for name, ladder in ladders(settings).items()}, time.time())

        commitment = StorageCommitment(
            ledger, spool, settings.commitment, released=lambda: self._wake("storage commitment")
        )
        changed = partial(self._wake, "assembly")
        assurances, returns = Assurances(ledger, settings.delivery), Returns()
        door = Door(
            ledger, spool, settings.listener, changed=changed, peers=settings.peers, commitment=commitment,
            assurances=assurances, returns=returns,
        )  # fmt: skip
        self._fetchers = fetchers(settings, ledger, door)
        self._add_loops(ledger, spool, door, commitment)
        self._add_provers(ledger, spool, assurances, returns)
        api = WorkerApi(
            ledger,
            spool,
            settings.api,
            settings.dispatch,
            settings.destinations,
            finished=self._on_finished,
        )
        self._serve_http(ledger, spool, door, api, stack)
        stack.callback(stop_all, list(self._loops.values()))
        for loop in self._loops.values():
            loop.start()
        # The door opens last and closes first: whoever gets in finds everything behind it ready.
        host, port = door.start()
        stack.callback(door.stop)
        for fetcher in self._fetchers:
            stack.callback(fetcher.stop)
        title = settings.listener.ae_title
        if settings.listener.plain:
            self.addresses["dicom"] = f"{title}@{host}:{port}"
        if door.tls_address is not None:
            self.addresses["dicom_tls"] = "{}@{}:{}".format(title, *door.tls_address)
        write_atomically(settings.state_dir / "node.json", json.dumps(self.addresses))
        stack.callback((settings.state_dir / "node.json").unlink, missing_ok=True)

    def _add_loops(self, ledger: Ledger, spool: Spool, door: Door, commitment: StorageCommitment) -> None:
        settings = self.settings

        def judge(members: Sequence[Instance]) -> Verdict:
            return select_series(members, settings.selection, settings.models)

        asked = censuses(settings, self._wake)
        assembler = Assembler(
            ledger, settings.assembly, door.is_open, judge, lambda one: spool.sha256(one.path),
            sealed=lambda: self._wake("dispatch"), performed=ledger.performed_series, censuses=asked,
            announced=ledger.announcement,
        )  # fmt: skip
        self._dispatcher = Dispatcher(ledger, settings.dispatch, celery_publisher(settings))
        parts: dict[str, Callable[[float], float]] = {
            "assembly": assembler.tick,
            "dispatch": self._dispatcher.tick,
            "comparison": Comparer(ledger, spool).tick,
            "callers": door.callers.tick,
            "storage commitment": Reporter(
                commitment, Peers(settings.listener, settings.peers), settings.listener.ae_title
            ).tick,
            "retention": Caretaker(ledger, spool, settings.retention).tick,
        }
        for census in asked.values():
            parts[f"count at {census.name}"] = census.tick
        parts |= {fetcher.name: fetcher.tick for fetcher in self._fetchers}
        peers, whole = carriers(settings), ladders(settings)
        # The courier without a destination of its own says of the others' that nobody is named so any more.
        parts["delivery"] = Courier(ledger, spool, peers, settings.delivery, excluding=tuple(peers)).tick
        for name in peers:
            parts[f"delivery to {name}"] = Courier(
                ledger, spool, peers, settings.delivery, ladders=whole, only=name
            ).tick
        self._loops = {name: Loop(name, tick, self._on_broken) for name, tick in parts.items()}

    def _add_provers(self, ledger: Ledger, spool: Spool, assurances: Assurances, returns: Returns) -> None:
        take = report_taker(assurances, self.settings.listener.max_message_mb * 1_000_000)
        self._provers = provers(self.settings, ledger, spool, take, returns)
        for destination, prover in self._provers.items():
            name = f"proof at {destination}"
            self._loops[name] = Loop(name, prover.tick, self._on_broken)

    def _serve_http(
        self, ledger: Ledger, spool: Spool, door: Door, api: WorkerApi, stack: contextlib.ExitStack
    ) -> None:
        settings = self.settings
        self.worker_token = token_of(settings.api.token, settings.api.token_file, settings.state_dir / "worker.token")
        tls = settings.api if settings.api.tls_certificate else None
        self._servers["api"] = HttpServer(
            create_api(api, self.worker_token), settings.api.host, settings.api.port, "api", self._on_broken, tls
        )
        stack.callback(self._servers["api"].stop)
        self.addresses["api"] = self._servers["api"].url
        if settings.web.enabled:
            link = secrets.token_urlsafe(16)
            site = create_web(
                ledger,
                peers=Peers(settings.listener, settings.peers),
                token=token_of(settings.web.token, settings.web.token_file, settings.state_dir / "web.token"),
                health=partial(self._health, ledger, spool, door),
                allowed_hosts=(settings.web.host, *settings.web.allowed_hosts),
                link_token=link,
                more=self._stow(door),
                orders=Orders(ledger, [a.name for a in settings.archives], lambda name: self._wake(loop_name(name))),
            )
            self._servers["web"] = HttpServer(site, settings.web.host, settings.web.port, "web", self._on_broken)
            stack.callback(self._servers["web"].stop)
            self.addresses["web"] = self._servers["web"].url
            if settings.web.stow:
                self.addresses["stow"] = f"{self.addresses['web']}{STOW_PATH}"
            self.addresses["sign_in"] = f"{self.addresses['web']}/?token={link}"
        for server in self._servers.values():
            server.start()

    def _stow(self, door: Door) -> Sequence[Route]:
        web = self.settings.web
        if not web.stow:
            return ()
        token = token_of(web.stow_token, web.stow_token_file, self.settings.state_dir / "stow.token")
        return OriginServer(door, web, self.settings.listener, token).routes()

    def _health(self, ledger: Ledger, spool: Spool, door: Door) -> Health:
        try:
            free_mb = spool.free_bytes() / 1e6
            disk = (free_mb >= self.settings.listener.free_floor_mb, f"{free_mb / 1000:.1f} GB free")
        except OutOfDisk as error:
            disk = (False, str(error))
        proofs: dict[str, str] = {}
        try:
            workers = len(ledger.workers(time.time() - WORKER_SILENT_S))
            proofs = {f"proof at {name}": prover.trouble for name, prover in self._provers.items()}
            answers = (True, "answers")
        except LedgerUnavailable as error:
            workers, answers = 0, (False, str(error))
        troubles = {name: loop.trouble or proofs.get(name, "") for name, loop in self._loops.items()}
        trouble = door.trouble
        at = " and ".join(address for name, address in self.addresses.items() if name.startswith("dicom"))
        listening = "; ".join(filter(None, (f"{at}, {door.associations()} association(s) open", trouble, door.note)))
        return Health(
            components=(
                Component("ledger", *answers),
                Component("listener", door.is_listening() and not trouble, listening),
                *(Component(name, server.is_alive(), "serves") for name, server in self._servers.items()),
                Component("disk", *disk),
                Component("workers", workers > 0, f"{workers} alive"),
                self._models(),
                *(Component(name, not words, words or "works") for name, words in troubles.items()),
            )
        )

    def _models(self) -> Component:
        """Tell which models are waited for in vain."""
        absent = self._dispatcher.absent if self._dispatcher else {}
        waits = "; ".join(
            f"no living worker has the model {name}, for which {n} job(s) wait" for name, n in absent.items()
        )
        return Component("models", not absent, waits or "none is waited for")

    def _wake(self, name: str) -> None:
        for other, loop in self._loops.items():
            if other.startswith(name):
                loop.wake()

    def _on_finished(self) -> None:
        self._wake("delivery")
        self._wake("comparison")

    def _on_broken(self, name: str) -> None:
        log.critical("%s is broken: the node stops, so that it is restarted whole", name)
        self.broken.set()


def run(
    settings: Settings, *, config: Path | None, with_worker: bool, announce: Callable[[dict[str, str]], None]
) -> int:
    """Run the node until SIGTERM or SIGINT; return the exit code.

    `with_worker` keeps one local worker beside it, which reads the same settings file, `config`. `announce` gets the
    addresses once everything is ready. The caller must end the process then: a peer that sits still keeps a thread.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Node(settings) as node:
        announce(node.addresses)
        keeper = WorkerKeeper(settings, config, node.addresses["api"], node.worker_token) if with_worker else None
        try:
            while not stop.wait(0.2) and not node.broken.is_set():
                if keeper is not None:
                    keeper.look()
        finally:
            log.info("stopping")
            if keeper is not None:
                keeper.stop()
    return 1 if node.broken.is_set() else 0
