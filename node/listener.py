"""The DICOM front door, on the fast path or, where that may not be, on pynetdicom alone.

It takes C-ECHO, C-STORE, storage commitment and modality performed procedure steps.
Success (0x0000) is answered only for an image that is flushed to disk and committed to the ledger.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from node.admission import Admission, Quota
from node.assurances import Assurances
from node.callers import Callers
from node.commitment import StorageCommitment
from node.errors import ConfigurationError, LedgerUnavailable
from node.gate import Entrance, Gate
from node.incoming import Origin
from node.ingest import House
from node.ledger import Ledger
from node.mpps import ProcedureSteps
from node.negotiation import supported_contexts
from node.peers import Peers, Verdict
from node.reception import Reception
from node.returns import Returns
from node.selfcheck import difference
from node.services import services
from node.settings import Commitment, Delivery, Listener, Peer
from node.spool import Spool
from node.stock import StockServer
from node.stocktls import StockTlsSocket
from node.tls import ServerTls
from node.tlswire import TlsSocket

log = logging.getLogger(__name__)


class Door:
    """Listens, and stores what comes in.

    Parameters
    ----------
    changed
        Called when an image was stored, a procedure step changed or an association ended, so that assembly looks again.
    commitment
        Takes requests for storage commitment; unset: one of its own, whose reports nobody brings to other associations.
    assurances
        Takes the reports of what we asked ourselves; unset: by the default settings.
    check
        Returns how the fast path differs from the stock one on a canned exchange; empty: not at all.
    peers
        Who may come in; see `node.peers`.
    returns
        Takes what a PACS sends back because we asked it to; unset: nothing is asked for.

    `callers` holds notes of who asked for associations; somebody has to call its `tick`.
    """

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        settings: Listener,
        changed: Callable[[], None],
        now: Callable[[], float] = time.time,
        commitment: StorageCommitment | None = None,
        check: Callable[[Listener], str] = difference,
        peers: Sequence[Peer] = (),
        assurances: Assurances | None = None,
        returns: Returns | None = None,
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._changed = changed
        self._now = now
        self._check = check
        self._lock = threading.Lock()
        self._open: dict[int, Counter[str]] = {}  # by association: how many images of each series, the latest last
        self._web_numbers = itertools.count(-1, -1)  # the servers count their associations upwards
        self.reception = Reception(
            ledger, spool, settings, self._on_joined, self._on_nothing_new, changed, now, returns
        )
        self._peers = Peers(settings, peers)
        self.callers = Callers(ledger.note_callers)
        self._services = services(
            commitment or StorageCommitment(ledger, spool, Commitment(), now=now),
            assurances or Assurances(ledger, Delivery(), now),
            ProcedureSteps(ledger, changed, now),
            settings.max_message_mb * 1_000_000,
            self.reception.is_short_of_disk,
        )
        self._server: Gate | StockServer | None = None
        self._tls: ServerTls | None = None
        self._slow = ""
        self.tls_address: tuple[str, int] | None = None

    def start(self) -> tuple[str, int]:
        """Accept associations; return the address bound, that of TLS where there is no other.

        Raises
        ------
        ConfigurationError
            The address is taken, or not ours; or the certificate cannot be used.
        """
        settings = self._settings
        self._ledger.prepare_intake()
        fast = settings.fast_path
        if fast and (found := self._check(settings)):
            fast = False
            self._slow = f"the fast path is off: {found}"
            log.error("%s; images are taken at pynetdicom's own pace", self._slow)
        entrances = [Entrance(settings.port)] if settings.plain else []
        if settings.tls_port is not None:
            self._tls = ServerTls(settings, TlsSocket if fast else StockTlsSocket)
            entrances.append(Entrance(settings.tls_port, self._tls))
        try:
            self._server = self._serve(entrances, fast)
        except OSError as error:
            ports = " and ".join(str(entrance.port) for entrance in entrances)
            raise ConfigurationError(
                f"cannot listen on {settings.host}:{ports} ({os.strerror(error.errno or 0)})",
                "another program has this port, or the address is not of this machine: change [listener]",
            ) from error
        addresses = self._server.addresses
        if self._tls is not None:
            self.tls_address = addresses[-1]
            log.info("listening for DICOM over TLS as %s on %s:%d", settings.ae_title, *self.tls_address)
        if settings.plain:
            log.info("listening for DICOM as %s on %s:%d", settings.ae_title, *addresses[0])
        return addresses[0]

    def _serve(self, entrances: Sequence[Entrance], fast: bool) -> Gate | StockServer:
        settings = self._settings
        if not fast:
            return StockServer(
                settings, entrances, supported_contexts(), self.reception, self._judge, self._services,
                self._on_opened, self._on_closed,
            )  # fmt: skip
        quota = Quota(
            settings.max_associations,
            settings.max_associations_per_peer,
            settings.max_waiting,
            settings.max_waiting_per_peer,
        )
        house = House(
            settings, supported_contexts(), self.reception, Admission(quota), self._judge, self._services,
            self._on_opened, self._on_closed,
        )  # fmt: skip
        return Gate(settings.host, entrances, house)

    @property
    def trouble(self) -> str:
        """What is wrong with the listener, though it listens; empty: nothing."""
        return "; ".join(filter(None, (self._slow, self._tls.trouble if self._tls else "")))

    @property
    def note(self) -> str:
        """What will soon be wrong."""
        return self._tls.note if self._tls else ""

    def stop(self) -> None:
        """Close the port, let what is being stored be finished, and abort the associations, in bounded time.

        From here on C-STORE is refused with 0xA700.
        """
        if self._server is not None:
            self._server.stop()
            with contextlib.suppress(LedgerUnavailable):  # notes, not images
                self.callers.tick(self._now())
        self._server = None

    def is_listening(self) -> bool:
        """Tell whether the port is open."""
        return self._server is not None and self._server.is_open()

    def is_open(self, series_uid: str) -> bool:
        """Tell whether an association that brought images of this series is still there, and at no other series since.

        Who returns to a series opens it again.
        """
        with self._lock:
            return any(
                brought[series_uid] > 0 and next(reversed(brought)) == series_uid for brought in self._open.values()
            )

    @contextlib.contextmanager
    def web_association(self, calling_ae: str, address: str, study_uid: str = "") -> Iterator[Origin]:
        """Let a web request that stores be an association while the block runs: its end stands for the release.

        `study_uid` is the study that all it brings must belong to; empty: any.
        """
        number = next(self._web_numbers)
        origin = Origin(number, calling_ae, self._settings.ae_title, address, study_uid)
        self._on_opened(origin)
        try:
            yield origin
        finally:
            self._on_closed(number)

    def associations(self) -> int:
        """Return how many associations are open, web requests that store among them."""
        with self._lock:
            return len(self._open)

    def _judge(self, calling: str, called: str, address: str) -> Verdict:
        verdict = self._peers.judge(calling, called, address)
        if not verdict.peer:
            self.callers.note_caller(calling, called, address, verdict.reason, self._now())
        return verdict

    def _on_opened(self, origin: Origin, peer: str = "") -> None:
        with self._lock:
            self._open[origin.number] = Counter()
        if peer:
            self.callers.note_peer(peer, origin.calling_ae, origin.called_ae, origin.address, self._now())

    def _on_joined(self, number: int, series_uid: str) -> None:
        # A peer that went away right after its last byte is not there to be waited for.
        with self._lock:
            if (brought := self._open.get(number)) is not None:
                brought[series_uid] = brought.pop(series_uid, 0) + 1  # the last one is the one it is at

    def _on_nothing_new(self, number: int, series_uid: str) -> None:
        # Who only repeats images of a series does not hold up its seal.
        with self._lock:
            if number in self._open:
                self._open[number][series_uid] -= 1
        self._changed()

    def _on_closed(self, number: int) -> None:
        with self._lock:
            self._open.pop(number, None)
            nobody = not self._open
        if nobody:
            self.reception.rest()
        self._changed()
