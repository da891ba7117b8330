"""The stock path: pynetdicom's own server and threads, for `listener.fast_path = false` and as the fallback.

It stores with the same guarantees. Sizes and deadlines of single PDUs are pynetdicom's: it has none.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext

from node import pdata, statuses
from node.commitment import SOP_CLASS_UID, SOP_INSTANCE_UID, StorageCommitment
from node.errors import Retryable
from node.incoming import Origin
from node.logs import printable
from node.operation import Operation
from node.reception import Reception
from node.services import SOP_CLASSES, Services
from node.settings import Listener

log = logging.getLogger(__name__)

_STOP_S = 5.0
# pynetdicom sends the answer to a request when our handler is through; a report must not overtake it.
_LEAST_PAUSE_S = 0.05
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
        services: Services,
        opened: Callable[[int], None],
        closed: Callable[[int], None],
    ) -> None:
        self._reception = reception
        self._services = services
        self._opened, self._closed = opened, closed
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._number_of: dict[int, int] = {}
        self._rest_since: dict[int, float] = {}
        self._reporting: dict[int, threading.Lock] = {}
        self._ae = application_entity(settings, supported)
        if services.reports is not None:
            self._ae.dimse_timeout = services.reports.rules.timeout_s
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
            (evt.EVT_N_ACTION, self._on_action),
            (evt.EVT_N_CREATE, self._on_create),
            (evt.EVT_N_SET, self._on_set),
            (evt.EVT_REQUESTED, self._on_requested),
            (evt.EVT_ESTABLISHED, self._on_established),
            (evt.EVT_CONN_CLOSE, self._on_closed),
        ]

    def _on_requested(self, event: Event) -> None:
        if not self._reception.is_short_of_disk():
            return
        asked = event.assoc.requestor.primitive.presentation_context_definition_list
        if any(c.abstract_syntax not in ("1.2.840.10008.1.1", *SOP_CLASSES) for c in asked):
            event.assoc.acse.send_reject(*statuses.TEMPORARY_CONGESTION)
            event.assoc.kill()

    def _on_established(self, event: Event) -> None:
        with self._lock:
            number = self._number_of[id(event.assoc)] = next(self._numbers)
        self._opened(number)

    def _on_closed(self, event: Event) -> None:
        with self._lock:
            number = self._number_of.pop(id(event.assoc), None)
            self._rest_since.pop(number or 0, None)
            self._reporting.pop(number or 0, None)
        if number is not None:
            self._closed(number)

    def _origin(self, event: Event) -> Origin:
        requestor = event.assoc.requestor
        with self._lock:
            # A peer that went away right after its last byte has no number any more, and is not waited for.
            number = self._number_of.get(id(event.assoc), 0)
            self._rest_since[number] = time.monotonic()
        return Origin(
            number,
            printable(requestor.ae_title.strip(), 16),
            printable(requestor.primitive.called_ae_title.strip(), 16),
            requestor.address or "",
        )

    def _on_store(self, event: Event) -> int:
        incoming = self._reception.begin(
            self._origin(event),
            str(event.request.AffectedSOPClassUID or ""),
            str(event.request.AffectedSOPInstanceUID or ""),
            str(event.context.transfer_syntax),
        )
        encoded = memoryview(event.request.DataSet.getbuffer())
        for start in range(0, len(encoded), _PIECE):
            self._reception.append(incoming, [encoded[start : start + _PIECE]])
        return self._reception.finish(incoming)

    def _on_action(self, event: Event) -> tuple[Dataset, Dataset | None]:
        request = event.request
        uids = (request.RequestedSOPClassUID, request.RequestedSOPInstanceUID)
        return self._perform(event, pdata.N_ACTION_RQ, uids, request.ActionInformation, request.ActionTypeID)

    def _on_create(self, event: Event) -> tuple[Dataset, Dataset | None]:
        request = event.request
        uids = (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID)
        return self._perform(event, pdata.N_CREATE_RQ, uids, request.AttributeList)

    def _on_set(self, event: Event) -> tuple[Dataset, Dataset | None]:
        request = event.request
        uids = (request.RequestedSOPClassUID, request.RequestedSOPInstanceUID)
        return self._perform(event, pdata.N_SET_RQ, uids, request.ModificationList)

    def _perform(
        self, event: Event, field: int, uids: tuple[Any, Any], encoded: Any, action_type: int | None = None
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
        origin, syntax = self._origin(event), str(event.context.transfer_syntax)
        outcome = self._services.perform(
            Operation(origin, field, sop_class_uid, sop_uid, action_type, syntax, body.data)
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
            reporting = (event.assoc, origin.number, outcome.owed, self._services.reports)
            threading.Thread(target=self._report, args=reporting, name=f"report-{outcome.owed}", daemon=True).start()
        return answer, created

    def _report(self, association: Any, number: int, owed: int, commitment: StorageCommitment) -> None:
        """Report on the association of the request, once it is at rest; leave it to others where that fails."""
        pause_s = max(commitment.rules.pause_s, _LEAST_PAUSE_S)
        with self._lock:
            one_at_a_time = self._reporting.setdefault(number, threading.Lock())
        try:
            with one_at_a_time:
                while association.is_established and (wait_s := pause_s - self._rest_s(number)) > 0:
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
            commitment.release(number, [owed])

    def _rest_s(self, number: int) -> float:
        with self._lock:
            return time.monotonic() - self._rest_since.get(number, 0.0)


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
