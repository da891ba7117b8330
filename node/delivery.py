"""Delivery: brings result objects to their destinations, and insists.

A destination that cannot be reached is tried for ever, at growing intervals; one that refuses an object a few times
fails the job, visibly. SOP Instance UIDs are derived, so an object sent twice is one object.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from node.errors import ConfigurationError, InvalidInstance, PeerRefused, PeerUnavailable, PennodeError, Retryable
from node.ledger import Ledger
from node.records import Delivery
from node.scu import Address, Outgoing, associate, contexts_for, describe, send
from node.settings import Delivery as Rules
from node.settings import Destination, Settings
from node.spool import Spool

log = logging.getLogger(__name__)

_ROUND_S = 1.0


def addresses(settings: Settings) -> dict[str, Address]:
    """Return the configured destinations by name."""

    def address(destination: Destination) -> Address:
        calling = destination.calling_ae_title or settings.listener.ae_title
        return Address(destination.ae_title, destination.host, destination.port, calling, destination.security)

    return {d.name: address(d) for d in settings.destinations}


def backoff(attempts: int, rules: Rules) -> float:
    """Return the seconds to wait after so many attempts: doubling from `backoff_first_s` to `backoff_max_s`."""
    return float(min(rules.backoff_max_s, rules.backoff_first_s * 2 ** min(max(attempts - 1, 0), 30)))


class Courier:
    """Sends what is due, one association per destination and round.

    `only` confines it to one destination, `excluding` keeps it from some: with a courier for each, a destination that
    hangs holds up nobody else.
    """

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        peers: Mapping[str, Address],
        rules: Rules,
        clock: Callable[[], float] = time.time,
        *,
        only: str | None = None,
        excluding: Sequence[str] = (),
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._peers = peers
        self._rules = rules
        self._clock = clock
        self._only = only
        self._excluding = excluding

    def tick(self, now: float) -> float:
        """Do one round; return the seconds until the next."""
        due = sorted(self._ledger.due_deliveries(now, self._only, self._excluding), key=lambda d: d.destination)
        for destination, group in groupby(due, key=lambda d: d.destination):
            mine = [d for d in group if self._ledger.start_sending(d.id, self._clock())]
            if mine:
                self._send_all(destination, mine)
        return _ROUND_S

    def _send_all(self, destination: str, deliveries: Sequence[Delivery]) -> None:
        peer = self._peers.get(destination)
        files: list[tuple[Delivery, Outgoing]] = []
        for item in deliveries:
            try:
                if peer is None:
                    raise PeerRefused(
                        f"no destination is named {destination!r} any more", "add it again to [[destinations]]"
                    )
                files.append((item, describe(self._spool.path(item.path))))
            except (PeerRefused, InvalidInstance) as error:
                self._settle(item, error)
        if peer is None or not files:
            return
        waiting = list(files)
        try:
            with associate(peer, contexts_for([f for _, f in files]), self._rules.timeout_s) as association:
                for item, outgoing in files:
                    try:
                        note = send(association, outgoing)
                    except (PeerRefused, InvalidInstance) as error:
                        self._settle(item, error)
                    else:
                        self._ledger.sent(item.id, note, self._clock())
                        log.info("delivered job=%s object=%s to=%s: %s", item.job_id, item.sop_uid, destination, note)
                    waiting.remove((item, outgoing))
        except (PeerRefused, PeerUnavailable, ConfigurationError) as error:
            for item, _ in waiting:
                self._settle(item, error)

    def _settle(self, item: Delivery, error: PennodeError) -> None:
        now = self._clock()
        not_before = now + backoff(item.attempts + 1, self._rules)
        log.warning("not delivered job=%s to=%s: %s", item.job_id, item.destination, error)
        if isinstance(error, Retryable):
            self._ledger.postpone(item.id, str(error), not_before, now)
        else:
            self._ledger.refuse(item.id, str(error), not_before, self._rules.max_refusals, now)
