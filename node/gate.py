"""The ports of the fast path: accept connections, each with a thread of its own, and end them all when they close."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from node.ingest import Association, House
from node.tls import ServerTls

log = logging.getLogger(__name__)

_BACKLOG = 256
_STOP_S = 5.0
# What the system is short of, when it is, and how long until we look again.
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SHORT_PAUSE_S = 0.2


@dataclass(frozen=True)
class Entrance:
    """A port to listen on, 0 for any that is free, and what makes its connections TLS."""

    port: int
    tls: ServerTls | None = None


class Gate:
    """Listens on one address, at one port or several.

    Raises
    ------
    OSError
        On construction: a port is taken, or the address is not ours.
    """

    def __init__(self, host: str, entrances: Sequence[Entrance], house: House) -> None:
        self._house = house
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        self._listening: list[socket.socket] = []
        try:
            for entrance in entrances:
                at = host, entrance.port
                self._listening.append(socket.create_server(at, family=family, backlog=_BACKLOG, dualstack_ipv6=both))
        except OSError:
            for listening in self._listening:
                listening.close()
            raise
        self.addresses: list[tuple[str, int]] = [listening.getsockname()[:2] for listening in self._listening]
        self._numbers = itertools.count(1 + secrets.randbelow(2**30))  # the ledger keeps those of earlier starts
        self._threads: dict[int, threading.Thread] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._accepting = [
            threading.Thread(target=self._accept, args=(listening, entrance.tls), name="listener", daemon=True)
            for listening, entrance in zip(self._listening, entrances, strict=True)
        ]
        for thread in self._accepting:
            thread.start()

    def is_open(self) -> bool:
        """Tell whether connections are accepted."""
        return all(thread.is_alive() for thread in self._accepting)

    def stop(self) -> None:
        """Close the ports, let what is being stored be finished, and abort the associations, in bounded time."""
        self._stopping.set()
        for listening in self._listening:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
        for thread in self._accepting:
            thread.join(_STOP_S)
        for listening in self._listening:
            listening.close()
        self._house.reception.close(_STOP_S)
        for connection in self._house.admission.everyone():
            if isinstance(connection, Association):
                connection.end()
        give_up = time.monotonic() + _STOP_S
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(max(0.0, give_up - time.monotonic()))

    def _accept(self, listening: socket.socket, tls: ServerTls | None) -> None:
        short = False
        while not self._stopping.is_set():
            try:
                connection, address = listening.accept()
            except OSError as error:
                if error.errno in _SHORT and not self._stopping.is_set():
                    if not short:
                        log.error("no connection can be accepted for now: %s", error.strerror)
                    short = True
                    self._stopping.wait(_SHORT_PAUSE_S)
                continue
            if short:
                log.info("connections are accepted again")
            short = False
            self._serve(connection, address[0].removeprefix("::ffff:"), tls)  # IPv4 on a port of both kinds

    def _serve(self, connection: socket.socket, address: str, tls: ServerTls | None) -> None:
        number = next(self._numbers)
        try:
            if tls is not None:
                connection = tls.wrap(connection)  # the handshake is its own thread's
            association = Association(number, connection, address, self._house)
        except OSError:  # gone already
            connection.close()
            return
        self._house.admission.enter(association)
        thread = threading.Thread(
            target=self._run, args=(number, association), name=f"association-{number}", daemon=True
        )
        with self._lock:
            self._threads[number] = thread
        try:
            thread.start()
        except RuntimeError:
            log.error("no thread can be started for a connection from %s", address)
            with self._lock:
                del self._threads[number]
            self._house.admission.leave(association)
            connection.close()

    def _run(self, number: int, association: Association) -> None:
        try:
            association.run()
        finally:
            with self._lock:
                self._threads.pop(number, None)
