"""The DICOM front door: C-ECHO and C-STORE on pynetdicom.

Success (0x0000) is answered only for an image that is flushed to disk and committed to the ledger.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from pynetdicom import AE, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification

from node.errors import ConfigurationError, InvalidInstance, LedgerUnavailable, OutOfDisk
from node.header import read_identity
from node.ledger import Ledger, Receipt
from node.logs import printable
from node.records import Instance, is_uid
from node.settings import Listener
from node.spool import Spool
from node.storage_classes import STORAGE_CLASSES, TRANSFER_SYNTAXES

log = logging.getLogger(__name__)

# C-STORE statuses (PS3.4 B.2.3, PS3.7 annex C), each named once.
SUCCESS = 0x0000
DUPLICATE_SOP_INSTANCE = 0x0111
INVALID_SOP_INSTANCE = 0x0117
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000

_STOP_S = 5.0

# Data sets reach us as they were encoded; pynetdicom's per-message logging would decode them for nobody.
pynetdicom_config.LOG_HANDLER_LEVEL = "none"


class Door:
    """Listens, and stores what comes in.

    Parameters
    ----------
    changed
        Called when an image was stored or an association ended, so that assembly looks again.
    """

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        settings: Listener,
        changed: Callable[[], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._settings = settings
        self._changed = changed
        self._now = now
        self._lock = threading.Lock()
        self._open: dict[int, set[str]] = {}
        self._stopping = False
        self._busy = 0
        self._idle = threading.Condition(self._lock)
        self._ae: AE | None = None
        self._server: Any = None

    def start(self) -> tuple[str, int]:
        """Accept associations; return the address bound.

        Raises
        ------
        ConfigurationError
            The address is taken, or not ours.
        """
        ae = self._ae = AE(ae_title=self._settings.ae_title)
        ae.maximum_associations = self._settings.max_associations
        ae.maximum_pdu_size = self._settings.max_pdu
        ae.network_timeout = self._settings.network_timeout_s
        ae.require_called_aet = False
        # The acceptor chooses by its own order. Explicit VR first: a sender that could convert is not led to Implicit
        # VR, which would lose the value representations of private elements.
        ae.add_supported_context(Verification)
        for sop_class in STORAGE_CLASSES:
            ae.add_supported_context(sop_class, TRANSFER_SYNTAXES)
        handlers = [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_ECHO, lambda _event: SUCCESS),
            (evt.EVT_ESTABLISHED, self._on_established),
            (evt.EVT_CONN_CLOSE, self._on_closed),
        ]
        try:
            self._server = ae.start_server(
                (self._settings.host, self._settings.port), block=False, evt_handlers=handlers
            )
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {self._settings.host}:{self._settings.port} ({error.strerror})",
                "another program has this port, or the address is not of this machine: change [listener]",
            ) from error
        host, port = self._server.socket.getsockname()[:2]
        log.info("listening for DICOM as %s on %s:%d", self._settings.ae_title, host, port)
        return host, port

    def stop(self) -> None:
        """Close the port, let what is being stored be finished, and abort the associations, in bounded time.

        From here on C-STORE is refused with 0xA700. Threads of peers that sit still in the middle of something may
        outlive this; they die with the process.
        """
        if self._ae is None or self._server is None:
            return
        with self._idle:
            self._stopping = True
            self._idle.wait_for(lambda: self._busy == 0, _STOP_S)
        ending = threading.Thread(target=self._ae.shutdown, name="listener-end", daemon=True)
        ending.start()
        ending.join(_STOP_S)
        self._server = None

    def is_listening(self) -> bool:
        """Tell whether the port is open."""
        return self._server is not None and self._server.socket.fileno() >= 0

    def is_open(self, series_uid: str) -> bool:
        """Tell whether an association that brought images of this series is still there."""
        with self._lock:
            return any(series_uid in brought for brought in self._open.values())

    def associations(self) -> int:
        """Return how many associations are open."""
        with self._lock:
            return len(self._open)

    def _on_established(self, event: Event) -> None:
        with self._lock:
            self._open[id(event.assoc)] = set()

    def _on_closed(self, event: Event) -> None:
        with self._lock:
            self._open.pop(id(event.assoc), None)
        self._changed()

    def _on_store(self, event: Event) -> int:
        with self._lock:
            if self._stopping:
                return OUT_OF_RESOURCES
            self._busy += 1
        try:
            return self._store(event)
        except InvalidInstance as error:
            log.warning("refused an image from %s: %s", _calling(event), error)
            return CANNOT_UNDERSTAND
        except (OutOfDisk, LedgerUnavailable) as error:
            log.error("refused an image from %s: %s", _calling(event), error)
            return OUT_OF_RESOURCES
        finally:
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()

    def _store(self, event: Event) -> int:
        request = event.request
        sop_uid = str(request.AffectedSOPInstanceUID or "")
        sop_class_uid = str(request.AffectedSOPClassUID or "")
        for uid in (sop_uid, sop_class_uid):
            if not is_uid(uid):
                log.warning("refused an image from %s: %r is no UID", _calling(event), printable(uid))
                return INVALID_SOP_INSTANCE
        if self._spool.free_bytes() < self._settings.free_floor_mb * 1_000_000:
            raise OutOfDisk("less disk is free than listener.free_floor_mb", "free some space")
        syntax = str(event.context.transfer_syntax)
        encoded = event.encoded_dataset(include_meta=False)
        identity = read_identity(encoded, syntax)
        if identity.sop_uid != sop_uid or identity.sop_class_uid != sop_class_uid:
            log.warning("refused an image from %s: the data set is another object than announced", _calling(event))
            return DATA_SET_DOES_NOT_MATCH
        # From here on the series waits for this association's end, should its seal be near. A peer that went away right
        # after its last byte is not there to be waited for.
        with self._lock:
            if id(event.assoc) in self._open:
                self._open[id(event.assoc)].add(identity.series_uid)
        digest = hashlib.sha256(encoded).hexdigest()
        held = self._ledger.path_of(sop_uid, digest)
        if held is not None and self._spool.holds(held):
            return SUCCESS
        head = b"\x00" * 128 + b"DICM" + encode_file_meta(event.file_meta)  # PS3.10 section 7.1
        path = self._spool.store_instance(identity.series_uid, sop_uid, digest, (head, encoded))
        if held is not None:
            self._ledger.replace_path(sop_uid, path)
            return SUCCESS
        receipt = self._ledger.record(
            Instance(
                sop_uid=sop_uid,
                sop_class_uid=sop_class_uid,
                series_uid=identity.series_uid,
                study_uid=identity.study_uid,
                transfer_syntax_uid=syntax,
                sha256=digest,
                size=len(encoded),
                path=path,
                calling_ae=_calling(event),
                called_ae=printable(event.assoc.requestor.primitive.called_ae_title.strip(), 16),
                peer=event.assoc.requestor.address or "",
                received_at=self._now(),
                header=identity.header,
            )
        )
        if receipt is Receipt.NEW:
            self._changed()
        else:
            self._spool.remove(path)
        if receipt is Receipt.CONFLICT:
            log.warning("another object came under SOP Instance UID %s: the first is kept", sop_uid)
            return DUPLICATE_SOP_INSTANCE
        return SUCCESS


def _calling(event: Event) -> str:
    return printable(event.assoc.requestor.ae_title.strip(), 16)
