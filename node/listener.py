"""The DICOM front door: C-ECHO and C-STORE, on the fast path or, where that may not be, on pynetdicom alone.

Success (0x0000) is answered only for an image that is flushed to disk and committed to the ledger.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable

from node.admission import Admission, Quota
from node.errors import ConfigurationError
from node.gate import Gate
from node.ingest import House
from node.ledger import Ledger
from node.negotiation import supported_contexts
from node.reception import Reception
from node.selfcheck import difference
from node.settings import Listener
from node.spool import Spool
from node.stock import StockServer

log = logging.getLogger(__name__)


class Door:
    """Listens, and stores what comes in.

    Parameters
    ----------
    changed
        Called when an image was stored or an association ended, so that assembly looks again.
    check
        Returns how the fast path differs from the stock one on a canned exchange; empty: not at all.
    """

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        settings: Listener,
        changed: Callable[[], None],
        now: Callable[[], float] = time.time,
        check: Callable[[Listener], str] = difference,
    ) -> None:
        self._settings = settings
        self._changed = changed
        self._check = check
        self._lock = threading.Lock()
        self._open: dict[int, Counter[str]] = {}  # by association: how many images it brought of each series
        self._reception = Reception(ledger, spool, settings, self._on_joined, self._on_nothing_new, changed, now)
        self._server: Gate | StockServer | None = None
        self.trouble = ""

    def start(self) -> tuple[str, int]:
        """Accept associations; return the address bound.

        Raises
        ------
        ConfigurationError
            The address is taken, or not ours.
        """
        settings = self._settings
        fast = settings.fast_path
        if fast and (found := self._check(settings)):
            fast = False
            self.trouble = f"the fast path is off: {found}"
            log.error("%s; images are taken at pynetdicom's own pace", self.trouble)
        try:
            if fast:
                quota = Quota(
                    settings.max_associations,
                    settings.max_associations_per_peer,
                    settings.max_waiting,
                    settings.max_waiting_per_peer,
                )
                house = House(
                    settings, supported_contexts(), self._reception, Admission(quota), self._on_opened, self._on_closed
                )
                self._server = Gate(settings.host, settings.port, house)
            else:
                self._server = StockServer(
                    settings, supported_contexts(), self._reception, self._on_opened, self._on_closed
                )
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {settings.host}:{settings.port} ({os.strerror(error.errno or 0)})",
                "another program has this port, or the address is not of this machine: change [listener]",
            ) from error
        host, port = self._server.address
        log.info("listening for DICOM as %s on %s:%d", settings.ae_title, host, port)
        return host, port

    def stop(self) -> None:
        """Close the port, let what is being stored be finished, and abort the associations, in bounded time.

        From here on C-STORE is refused with 0xA700.
        """
        if self._server is not None:
            self._server.stop()
        self._server = None

    def is_listening(self) -> bool:
        """Tell whether the port is open."""
        return self._server is not None and self._server.is_open()

    def is_open(self, series_uid: str) -> bool:
        """Tell whether an association that brought images of this series is still there."""
        with self._lock:
            return any(brought[series_uid] > 0 for brought in self._open.values())

    def associations(self) -> int:
        """Return how many associations are open."""
        with self._lock:
            return len(self._open)

    def _on_opened(self, number: int) -> None:
        with self._lock:
            self._open[number] = Counter()

    def _on_joined(self, number: int, series_uid: str) -> None:
        # A peer that went away right after its last byte is not there to be waited for.
        with self._lock:
            if number in self._open:
                self._open[number][series_uid] += 1

    def _on_nothing_new(self, number: int, series_uid: str) -> None:
        # Who only repeats images of a series does not hold up its seal.
        with self._lock:
            if number in self._open:
                self._open[number][series_uid] -= 1
        self._changed()

    def _on_closed(self, number: int) -> None:
        with self._lock:
            self._open.pop(number, None)
        self._changed()
