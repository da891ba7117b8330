"""Delivery: brings result objects to their destinations, and insists.

A destination that cannot be reached is tried for ever, at growing intervals; one that refuses an object a few times
fails the job, visibly. One that takes no object of a kind gets the next rung in its place (`node.forms`), at once. SOP
Instance UIDs are derived, so an object sent twice is one object.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Protocol

from node.errors import (
    ClassRefused,
    ConfigurationError,
    InvalidInstance,
    PeerRefused,
    PeerUnavailable,
    PennodeError,
    Retryable,
)
from node.forms import rungs
from node.ledger import Ledger
from node.outgoing import Outgoing, describe
from node.records import Delivery
from node.scu import Address
from node.settings import Delivery as Rules
from node.settings import Destination, Settings
from node.spool import Spool
from node.stowclient import StowService

log = logging.getLogger(__name__)

_ROUND_S = 1.0
_AT_ONCE = 64


class Carrier(Protocol):
    """A destination to which objects are brought: `node.scu.Address` by C-STORE, `StowService` by STOW-RS."""

    def opened(self, files: Sequence[Outgoing], timeout_s: float) -> AbstractContextManager[Callable[[Outgoing], str]]:
        """Make ready for these files, and yield what sends one of them and returns a note.

        Raises
        ------
        PeerUnavailable
            Nobody answers, or not for now.
        ClassRefused
            It takes no object of this kind.
        PeerRefused
            It says no.
        InvalidInstance
            The file cannot be sent.
        ConfigurationError
            A file that its settings name cannot be used.
        """


def addresses(settings: Settings) -> dict[str, Address]:
    """Return the configured destinations that are reached by DIMSE, by name."""

    def address(destination: Destination) -> Address:
        calling = destination.calling_ae_title or settings.listener.ae_title
        return Address(destination.ae_title, destination.host, destination.port, calling, destination.security)

    return {d.name: address(d) for d in settings.destinations if not d.url}


def carriers(settings: Settings) -> dict[str, Carrier]:
    """Return all configured destinations by name.

    Raises
    ------
    ConfigurationError
        A token cannot be read.
    """
    web = {d.name: StowService.at(d) for d in settings.destinations if d.url}
    by_name: dict[str, Carrier] = {**addresses(settings), **web}
    return {d.name: by_name[d.name] for d in settings.destinations}


def ladders(settings: Settings) -> dict[str, list[list[str]]]:
    """Return the forms of each rung of each destination, by its name."""
    return {d.name: [[recipe.key for recipe in rung] for rung in rungs(d)] for d in settings.destinations}


def backoff(attempts: int, rules: Rules) -> float:
    """Return the seconds to wait after so many attempts: doubling from `backoff_first_s` to `backoff_max_s`."""
    return float(min(rules.backoff_max_s, rules.backoff_first_s * 2 ** min(max(attempts - 1, 0), 30)))


class Courier:
    """Sends what is due, over one association or HTTP connection per destination and round.

    `ladders` names the forms of each rung of a destination; without them what is refused stays so. `only` confines it
    to one destination, `excluding` keeps it from some: with a courier for each, a destination that hangs holds up
    nobody else.
    """

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        peers: Mapping[str, Carrier],
        rules: Rules,
        clock: Callable[[], float] = time.time,
        *,
        ladders: Mapping[str, Sequence[Sequence[str]]] | None = None,
        only: str | None = None,
        excluding: Sequence[str] = (),
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._peers = peers
        self._rules = rules
        self._clock = clock
        self._ladders = ladders or {}
        self._only = only
        self._excluding = excluding

    def tick(self, now: float) -> float:
        """Do one round; return the seconds until the next."""
        due = self._ledger.due_deliveries(now, self._only, self._excluding, _AT_ONCE)
        for destination, group in groupby(sorted(due, key=lambda d: d.destination), key=lambda d: d.destination):
            mine = [d for d in group if self._ledger.start_sending(d.id, self._clock())]
            if mine:
                self._send_all(destination, mine)
        return 0.0 if len(due) == _AT_ONCE else _ROUND_S

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
        waiting = dict(files)
        try:
            with peer.opened([f for _, f in files], self._rules.timeout_s) as send:
                for item, outgoing in files:
                    if item not in waiting:
                        continue
                    try:
                        note = send(outgoing)
                    except (PeerRefused, InvalidInstance) as error:
                        self._refuse(item, error, waiting)
                    except PeerUnavailable as error:
                        # It may be this object alone that fails: the others go soon, and without it.
                        for other in waiting:
                            self._settle(other, error, attempts=None if other is item else 1)
                        return
                    else:
                        self._ledger.sent(item.id, note, self._clock())
                        log.info("delivered job=%s object=%s to=%s: %s", item.job_id, item.sop_uid, destination, note)
                    waiting.pop(item, None)
        except (PeerRefused, PeerUnavailable, ConfigurationError) as error:
            while waiting:
                item = next(iter(waiting))
                self._refuse(item, error, waiting)
                waiting.pop(item, None)

    def _refuse(self, item: Delivery, error: PennodeError, waiting: dict[Delivery, Outgoing]) -> None:
        """Settle what was not sent; take from `waiting` what goes with it when the next rung takes its place."""
        ladder = self._ladders.get(item.destination, ())
        gone = None
        if isinstance(error, ClassRefused) and ladder:
            gone = self._ledger.replace(item.id, ladder, str(error), self._clock())
        if gone is None:
            self._settle(item, error)
            return
        if not gone:  # cancelled meanwhile
            return
        log.warning("job=%s to=%s takes the next rung: %s", item.job_id, item.destination, error)
        for other in [one for one in waiting if one.id in gone]:
            del waiting[other]

    def _settle(self, item: Delivery, error: PennodeError, *, attempts: int | None = None) -> None:
        now = self._clock()
        not_before = now + backoff(item.attempts + 1 if attempts is None else attempts, self._rules)
        log.warning("not delivered job=%s to=%s: %s", item.job_id, item.destination, error)
        if isinstance(error, Retryable):
            self._ledger.postpone(item.id, str(error), not_before, now)
        else:
            self._ledger.refuse(item.id, str(error), not_before, self._rules.max_refusals, now)
