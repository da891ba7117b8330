"""The stock path: pynetdicom's own server and threads, for `listener.fast_path = false` and as the fallback.

It stores with the same guarantees. Sizes and deadlines of single PDUs are pynetdicom's: it has none.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext

from node import pdata, statuses
from node.commitment import SOP_CLASS_UID, SOP_INSTANCE_UID, StorageCommitment
from node.errors import Retryable
from node.gate import Entrance
from node.incoming import Origin
from node.operation import Operation
from node.peers import Verdict, plain_title
from node.reception import Reception
from node.services import SOP_CLASSES, Services
from node.settings import Listener
from node.stocktls import StockContext

log = logging.getLogger(__name__)

_VERIFICATION = "1.2.840.10008.1.1"
_STOP_S = 5.0
# pynetdicom sends the answer to a request when our handler is through; a report must not overtake it.
_LEAST_PAUSE_S = 0.05
_PIECE = 512 << 10

# Data sets reach us as they were encoded; pynetdicom's per-message logging would decode them for nobody.
pynetdicom_config.LOG_HANDLER_LEVEL = "none"


@dataclass
class _Guest:
    """An association that is open, or asked for: our number, whom it counts for, the listed peer, what it brought."""

    number: int
    group: str
    peer: str = ""
    bytes: int = 0
    is_open: bool = False
    rest_since: float = 0.0
    reporting: threading.Lock = field(default_factory=threading.Lock)  # one report is on its way at a time


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
        services: Services,
        opened: Callable[[Origin, str], None],
        closed: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._reception = reception
        self._judge = judge
        self._services = services
        self._opened, self._closed = opened, closed
        self._numbers = itertools.count(1 + secrets.randbelow(2**30))  # the ledger keeps those of earlier starts
        self._lock = threading.Lock()
        self._guests: dict[int, _Guest] = {}
        self._left: WeakSet[Any] = WeakSet()  # associations whose connection is closed
        self._ae = application_entity(settings, supported)
        if services.reports is not None:
            self._ae.dimse_timeout = services.reports.rules.timeout_s
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
            context = StockContext(ssl.PROTOCOL_TLS_SERVER)
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
            (evt.EVT_N_ACTION, self._on_action),
            (evt.EVT_N_CREATE, self._on_create),
            (evt.EVT_N_EVENT_REPORT, self._on_event_report),
            (evt.EVT_N_SET, self._on_set),
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_ESTABLISHED, self._on_established),
            (evt.EVT_CONN_CLOSE, self._on_closed),
        ]

    def _on_requested(self, event: Event) -> None:
        asked = event.assoc.requestor.primitive
        calling, called, address = _titles(event)
        verdict = self._judge(calling, called, address)
        rejection, reason = verdict.rejection, verdict.reason
        wanted = asked.presentation_context_definition_list
        if (
            rejection is None
            and any(c.abstract_syntax not in (_VERIFICATION, *SOP_CLASSES) for c in wanted)
            and self._reception.is_short_of_disk()
        ):
            rejection, reason = statuses.TEMPORARY_CONGESTION, "less disk is free than listener.free_floor_mb"
        with self._lock:
            others = sum(guest.group == verdict.group for guest in self._guests.values())
            if rejection is None and verdict.most is not None and others >= verdict.most:
                rejection, reason = statuses.LOCAL_LIMIT_EXCEEDED, "as many associations are open as it may have"
            # Who aborts at once may be gone before its request is judged: nothing would ever end its place.
            if rejection is None and event.assoc not in self._left:
                self._guests[id(event.assoc)] = _Guest(next(self._numbers), verdict.group, verdict.peer)
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
        self._opened(Origin(guest.number, *_titles(event)), guest.peer)

    def _on_closed(self, event: Event) -> None:
        with self._lock:
            self._left.add(event.assoc)
            guest = self._guests.pop(id(event.assoc), None)
        if guest is not None and guest.is_open:
            self._closed(guest.number)

    def _guest(self, event: Event, length: int = 0) -> tuple[_Guest, Origin]:
        """Return who sends a message of so many bytes."""
        with self._lock:
            # A peer that went away right after its last byte is no guest any more, and is not waited for.
            guest = self._guests.get(id(event.assoc)) or _Guest(0, "")
            guest.bytes += length
            guest.rest_since = time.monotonic()
        return guest, Origin(guest.number, *_titles(event))

    def _on_store(self, event: Event) -> int:
        encoded = memoryview(event.request.DataSet.getbuffer())
        guest, origin = self._guest(event, len(encoded))
        if guest.bytes > self._settings.max_association_mb * 1_000_000:
            reason = "more than listener.max_association_mb came over it"
            log.warning("ended the connection with %s at %s: %s", origin.calling_ae, origin.address, reason)
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

    def _on_action(self, event: Event) -> tuple[Dataset, Dataset | None]:
        request = event.request
        uids = (request.RequestedSOPClassUID, request.RequestedSOPInstanceUID)
        return self._perform(event, pdata.N_ACTION_RQ, uids, request.ActionInformation, request.ActionTypeID)

    def _on_event_report(self, event: Event) -> tuple[Dataset, Dataset | None]:
        request = event.request
        uids = (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID)
        return self._perform(
            event, pdata.N_EVENT_REPORT_RQ, uids, request.EventInformation, event_type=request.EventTypeID
        )

    def _on_create(self, event: Event) -> tuple[Dataset, Dataset | None]:
        request = event.request
        uids = (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID)
        return self._perform(event, pdata.N_CREATE_RQ, uids, request.AttributeList)

    def _on_set(self, event: Event) -> tuple[Dataset, Dataset | None]:
        request = event.request
        uids = (request.RequestedSOPClassUID, request.RequestedSOPInstanceUID)
        return self._perform(event, pdata.N_SET_RQ, uids, request.ModificationList)

    def _perform(
        self,
        event: Event,
        field: int,
        uids: tuple[Any, Any],
        encoded: Any,
        action_type: int | None = None,
        event_type: int | None = None,
    ) -> tuple[Dataset, Dataset | None]:
        """Return the status, and what pynetdicom wants to be told beside it."""
        sop_class_uid, sop_uid = (str(uid or "") for uid in uids)
        answer, created = Dataset(), None
        if not self._services.performs(sop_class_uid, field):
            answer.Status = statuses.UNRECOGNISED_OPERATION
            return answer, None
        body = self._services.body()
        if encoded is not None:
            body.append([encoded.getbuffer()])
        guest, origin = self._guest(event)
        syntax = str(event.context.transfer_syntax)
        outcome = self._services.perform(
            Operation(origin, field, sop_class_uid, sop_uid, action_type, syntax, body.data, event_type)
        )
        answer.Status = outcome.status
        if outcome.comment:
            answer.ErrorComment = outcome.comment
        if outcome.error_id is not None:
            answer.ErrorID = outcome.error_id
        if outcome.made:
            created = Dataset()
            created.AffectedSOPInstanceUID = outcome.made
        if outcome.owed is not None and self._services.reports is not None:
            reporting = (event.assoc, guest, outcome.owed, self._services.reports)
            threading.Thread(target=self._report, args=reporting, name=f"report-{outcome.owed}", daemon=True).start()
        return answer, created

    def _report(self, association: Any, guest: _Guest, owed: int, commitment: StorageCommitment) -> None:
        """Report on the association of the request, once it is at rest; leave it to others where that fails."""
        pause_s = max(commitment.rules.pause_s, _LEAST_PAUSE_S)
        try:
            with guest.reporting:
                while association.is_established and (wait_s := guest.rest_since + pause_s - time.monotonic()) > 0:
                    time.sleep(wait_s)
                report = commitment.report(owed) if association.is_established else None
                if report is not None:
                    answer, _ = association.send_n_event_report(
                        report.data_set(), report.event_type, SOP_CLASS_UID, SOP_INSTANCE_UID
                    )
                    if "Status" in answer:
                        commitment.settle(owed, report, answer.Status, "on its own association")
                    else:
                        commitment.postpone(owed, "the peer did not answer the report", "look into the peer's log")
        except (Retryable, RuntimeError, ValueError) as error:  # the latter two: the association is no more
            log.warning("commitment=%d is not reported: %s", owed, type(error).__name__)
        finally:
            commitment.release(guest.number, [owed])


def _titles(event: Event) -> tuple[str, str, str]:
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
        ae.add_supported_context(
            context.abstract_syntax, context.transfer_syntax, scu_role=context.scu_role, scp_role=context.scp_role
        )
    return ae
