"""The port of the fast path: accepts connections, each with a thread of its own, and ends them all when it closes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import socket
import threading
import time

from node.ingest import Association, House

log = logging.getLogger(__name__)

_BACKLOG = 256
_STOP_S = 5.0
_OUT_OF_FILES_PAUSE_S = 0.2


class Gate:
    """Listens on one address.

    Raises
    ------
    OSError
        On construction: the address is taken, or not ours.
    """

    def __init__(self, host: str, port: int, house: House) -> None:
        self._house = house
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        self._listening = socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
        self.address: tuple[str, int] = self._listening.getsockname()[:2]
        self._numbers = itertools.count(1)
        self._threads: dict[int, threading.Thread] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._accepting = threading.Thread(target=self._accept, name="listener", daemon=True)
        self._accepting.start()

    def is_open(self) -> bool:
        """Tell whether connections are accepted."""
        return self._accepting.is_alive()

    def stop(self) -> None:
        """Close the port, let what is being stored be finished, and abort the associations, in bounded time."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._accepting.join(_STOP_S)
        self._listening.close()
        self._house.reception.close(_STOP_S)
        for connection in self._house.admission.everyone():
            if isinstance(connection, Association):
                connection.end()
        give_up = time.monotonic() + _STOP_S
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(max(0.0, give_up - time.monotonic()))

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, address = self._listening.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.error("no connection can be accepted for now: %s", error.strerror)
                    self._stopping.wait(_OUT_OF_FILES_PAUSE_S)
                continue
            self._serve(connection, address[0].removeprefix("::ffff:"))  # IPv4 on a port of both kinds

    def _serve(self, connection: socket.socket, address: str) -> None:
        number = next(self._numbers)
        try:
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
