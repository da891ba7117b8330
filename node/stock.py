"""The stock path: pynetdicom's own server and threads, for `listener.fast_path = false` and as the fallback.

It stores with the same guarantees. Sizes and deadlines of single PDUs are pynetdicom's: it has none.
"""

from __future__ import annotations

import itertools
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pynetdicom import AE, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext

from node import statuses
from node.gate import Entrance
from node.incoming import Origin
from node.peers import Verdict, plain_title
from node.reception import Reception
from node.settings import Listener
from node.tls import ServerTls, explain

log = logging.getLogger(__name__)

_VERIFICATION = "1.2.840.10008.1.1"
_STOP_S = 5.0
_PIECE = 512 << 10

# Data sets reach us as they were encoded; pynetdicom's per-message logging would decode them for nobody.
pynetdicom_config.LOG_HANDLER_LEVEL = "none"


@dataclass
class _Guest:
    """An association that is open, or asked for: our number for it, whom it counts for, and how much it brought."""

    number: int
    group: str
    bytes: int = 0
    is_open: bool = False


class StockTlsSocket(ssl.SSLSocket):
    """A connection of TLS, whose handshake is made by who first reads it: its own thread, not that which accepts."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Read, and say why there is no TLS where there is none."""
        try:
            return super().recv(buflen, flags)
        except ssl.SSLError as error:
            log.warning("ended the connection with a peer: no TLS: %s", explain(error))
            raise


class _Context(ssl.SSLContext):
    """What pynetdicom takes for an SSLContext; it has the certificate that lies on disk at the time."""

    tls: ServerTls
    timeout_s: float

    def wrap_socket(self, sock: socket.socket, *_: Any, **__: Any) -> ssl.SSLSocket:
        secured = self.tls.wrap(sock)
        secured.settimeout(self.timeout_s)
        return secured


class StockServer:
    """Listens on one address, at one port or several.

    Raises
    ------
    OSError
        On construction: a port is taken, or the address is not ours.
    """

    def __init__(
        self,
        settings: Listener,
        entrances: Sequence[Entrance],
        supported: Sequence[PresentationContext],
        reception: Reception,
        judge: Callable[[str, str, str], Verdict],
        opened: Callable[[int], None],
        closed: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._reception = reception
        self._judge = judge
        self._opened, self._closed = opened, closed
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._guests: dict[int, _Guest] = {}
        self._ae = application_entity(settings, supported)
        self._servers: list[Any] = []
        try:
            for entrance in entrances:
                self._servers.append(self._listen(entrance))
        except OSError:
            self._ae.shutdown()
            raise
        self.addresses: list[tuple[str, int]] = [server.socket.getsockname()[:2] for server in self._servers]

    def _listen(self, entrance: Entrance) -> Any:
        context = None
        if entrance.tls is not None:
            context = _Context(ssl.PROTOCOL_TLS_SERVER)
            context.tls, context.timeout_s = entrance.tls, self._settings.pdu_timeout_s
        at = self._settings.host, entrance.port
        return self._ae.start_server(at, block=False, ssl_context=context, evt_handlers=self.handlers())

    def is_open(self) -> bool:
        """Tell whether connections are accepted."""
        return all(server.socket.fileno() >= 0 for server in self._servers)

    def stop(self) -> None:
        """Close the ports, let what is being stored be finished, and abort the associations, in bounded time.

        Threads of peers that sit still in the middle of something may outlive this; they die with the process.
        """
        self._reception.close(_STOP_S)
        ending = threading.Thread(target=self._ae.shutdown, name="listener-end", daemon=True)
        ending.start()
        ending.join(_STOP_S)

    def handlers(self) -> list[tuple[Any, Callable[[Event], Any]]]:
        """Return what pynetdicom should call for which of its events."""
        return [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_ECHO, lambda _event: statuses.SUCCESS),
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_ESTABLISHED, self._on_established),
            (evt.EVT_CONN_CLOSE, self._on_closed),
        ]

    def _on_requested(self, event: Event) -> None:
        asked = event.assoc.requestor.primitive
        calling, called, address = _origin(event)
        verdict = self._judge(calling, called, address)
        rejection, reason = verdict.rejection, verdict.reason
        wanted = asked.presentation_context_definition_list
        if (
            rejection is None
            and any(c.abstract_syntax != _VERIFICATION for c in wanted)
            and self._reception.is_short_of_disk()
        ):
            rejection, reason = statuses.TEMPORARY_CONGESTION, "less disk is free than listener.free_floor_mb"
        with self._lock:
            others = sum(guest.group == verdict.group for guest in self._guests.values())
            if rejection is None and verdict.most is not None and others >= verdict.most:
                rejection, reason = statuses.LOCAL_LIMIT_EXCEEDED, "as many associations are open as it may have"
            if rejection is None:
                self._guests[id(event.assoc)] = _Guest(next(self._numbers), verdict.group)
        if rejection is not None:
            log.warning("rejected an association with %s at %s: %s", calling, address, reason)
            event.assoc.acse.send_reject(*rejection)
            event.assoc.kill()

    def _on_established(self, event: Event) -> None:
        with self._lock:
            guest = self._guests.get(id(event.assoc))
            if guest is None:  # gone already
                return
            guest.is_open = True
        self._opened(guest.number)

    def _on_closed(self, event: Event) -> None:
        with self._lock:
            guest = self._guests.pop(id(event.assoc), None)
        if guest is not None and guest.is_open:
            self._closed(guest.number)

    def _on_store(self, event: Event) -> int:
        calling, called, address = _origin(event)
        encoded = memoryview(event.request.DataSet.getbuffer())
        with self._lock:
            # A peer that went away right after its last byte is no guest any more, and is not waited for.
            guest = self._guests.get(id(event.assoc), _Guest(0, ""))
            guest.bytes += len(encoded)
        origin = Origin(guest.number, calling, called, address)
        if guest.bytes > self._settings.max_association_mb * 1_000_000:
            reason = "more than listener.max_association_mb came over it"
            log.warning("ended the connection with %s at %s: %s", calling, address, reason)
            event.assoc.abort()
            return statuses.OUT_OF_RESOURCES
        incoming = self._reception.begin(
            origin,
            str(event.request.AffectedSOPClassUID or ""),
            str(event.request.AffectedSOPInstanceUID or ""),
            str(event.context.transfer_syntax),
        )
        try:
            for start in range(0, len(encoded), _PIECE):
                self._reception.append(incoming, [encoded[start : start + _PIECE]])
            return self._reception.finish(incoming)
        finally:
            self._reception.tidy(incoming)


def _origin(event: Event) -> tuple[str, str, str]:
    """Return the calling and the called AE title, and the address, of a peer."""
    asked, address = event.assoc.requestor.primitive, event.assoc.requestor.address or ""
    calling, called = plain_title(asked.calling_ae_title), plain_title(asked.called_ae_title)
    return calling, called, address.removeprefix("::ffff:")


def application_entity(settings: Listener, supported: Sequence[PresentationContext]) -> AE:
    """Return pynetdicom's AE with our settings and what we take."""
    ae = AE(ae_title=settings.ae_title)
    ae.maximum_associations = settings.max_associations
    ae.maximum_pdu_size = settings.max_pdu
    ae.network_timeout = settings.network_timeout_s or None
    ae.acse_timeout = settings.artim_s
    ae.require_called_aet = False
    for context in supported:
        ae.add_supported_context(context.abstract_syntax, context.transfer_syntax)
    return ae
