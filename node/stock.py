"""The stock path: pynetdicom's own server and threads, for `listener.fast_path = false` and as the fallback.

It stores with the same guarantees. Sizes and deadlines of single PDUs are pynetdicom's: it has none.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from pynetdicom import AE, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext

from node import statuses
from node.incoming import Origin
from node.logs import printable
from node.reception import Reception
from node.settings import Listener

_STOP_S = 5.0
_PIECE = 512 << 10

# Data sets reach us as they were encoded; pynetdicom's per-message logging would decode them for nobody.
pynetdicom_config.LOG_HANDLER_LEVEL = "none"


class StockServer:
    """Listens on one address.

    Raises
    ------
    OSError
        On construction: the address is taken, or not ours.
    """

    def __init__(
        self,
        settings: Listener,
        supported: Sequence[PresentationContext],
        reception: Reception,
        opened: Callable[[int], None],
        closed: Callable[[int], None],
    ) -> None:
        self._reception = reception
        self._opened, self._closed = opened, closed
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._number_of: dict[int, int] = {}
        self._ae = application_entity(settings, supported)
        self._server: Any = self._ae.start_server(
            (settings.host, settings.port), block=False, evt_handlers=self.handlers()
        )
        self.address: tuple[str, int] = self._server.socket.getsockname()[:2]

    def is_open(self) -> bool:
        """Tell whether connections are accepted."""
        return bool(self._server.socket.fileno() >= 0)

    def stop(self) -> None:
        """Close the port, let what is being stored be finished, and abort the associations, in bounded time.

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
        if not self._reception.is_short_of_disk():
            return
        asked = event.assoc.requestor.primitive.presentation_context_definition_list
        if any(c.abstract_syntax != "1.2.840.10008.1.1" for c in asked):
            event.assoc.acse.send_reject(*statuses.TEMPORARY_CONGESTION)
            event.assoc.kill()

    def _on_established(self, event: Event) -> None:
        with self._lock:
            number = self._number_of[id(event.assoc)] = next(self._numbers)
        self._opened(number)

    def _on_closed(self, event: Event) -> None:
        with self._lock:
            number = self._number_of.pop(id(event.assoc), None)
        if number is not None:
            self._closed(number)

    def _on_store(self, event: Event) -> int:
        requestor = event.assoc.requestor
        with self._lock:
            # A peer that went away right after its last byte has no number any more, and is not waited for.
            number = self._number_of.get(id(event.assoc), 0)
        origin = Origin(
            number,
            printable(requestor.ae_title.strip(), 16),
            printable(requestor.primitive.called_ae_title.strip(), 16),
            requestor.address or "",
        )
        incoming = self._reception.begin(
            origin,
            str(event.request.AffectedSOPClassUID or ""),
            str(event.request.AffectedSOPInstanceUID or ""),
            str(event.context.transfer_syntax),
        )
        try:
            encoded = memoryview(event.request.DataSet.getbuffer())
            for start in range(0, len(encoded), _PIECE):
                self._reception.append(incoming, [encoded[start : start + _PIECE]])
            return self._reception.finish(incoming)
        finally:
            self._reception.tidy(incoming)


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
