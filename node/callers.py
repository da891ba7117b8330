"""Who asked for associations: peers as last seen, and callers that nobody listed, so that the admin can list them.

What is kept is bounded, in memory and in the ledger, whatever a scanner of ports does: the latest callers, few of one
address, written once in a while by a round of its own. An association never waits for it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from node.errors import Retryable

MOST_CALLERS = 100
_MOST_OF_AN_ADDRESS = 10
_FORGOTTEN_S = 30 * 86400.0
_ROUND_S = 5.0


@dataclass(frozen=True)
class Caller:
    """Somebody who asked for an association and is no listed peer, or was rejected; `rejected` says why, empty: let in.

    Titles and address are fit for a page or a log line. Times in seconds since 1970.
    """

    calling_ae: str
    called_ae: str
    address: str
    rejected: str
    times: int
    first_at: float
    last_at: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes one caller another than the next."""
        return self.calling_ae, self.called_ae, self.address

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Contact:
    """When a listed peer last opened an association, from where, and how many it has opened so far."""

    peer: str
    address: str
    associations: int
    seen_at: float
    # The caller it is, should it have been rejected before it was listed.
    calling_ae: str = ""
    called_ae: str = ""


class Callers:
    """Takes notes of associations as they are judged, and hands them on at every `tick`.

    Parameters
    ----------
    write
        Puts notes on top of what was written before; see `node.ledger.callers`.
    """

    def __init__(self, write: Callable[[Sequence[Caller], Sequence[Contact]], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._callers: dict[tuple[str, str, str], Caller] = {}
        self._contacts: dict[tuple[str, str, str, str], Contact] = {}

    def note_caller(self, calling: str, called: str, address: str, reason: str, now: float) -> None:
        """Note a caller that was rejected for `reason`, or let in without being listed: then there is none."""
        self._add([Caller(calling, called, address, reason, 1, now, now)], [])

    def note_peer(self, peer: str, calling: str, called: str, address: str, now: float) -> None:
        """Note an association of a listed peer."""
        self._add([], [Contact(peer, address, 1, now, calling, called)])

    def tick(self, now: float) -> float:
        """Write what was noted since the last round; return the seconds until the next.

        Raises
        ------
        LedgerUnavailable
            The notes are kept for the next round.
        """
        with self._lock:
            callers, contacts = list(self._callers.values()), list(self._contacts.values())
            self._callers, self._contacts = {}, {}
        if callers or contacts:
            try:
                self._write(callers, contacts)
            except Retryable:
                self._add(callers, contacts)
                raise
        return _ROUND_S

    def _add(self, callers: Iterable[Caller], contacts: Iterable[Contact]) -> None:
        with self._lock:
            for one in callers:
                self._callers[one.key] = joined(self._callers.get(one.key), one)
            if len(self._callers) > MOST_CALLERS:
                self._callers = {c.key: c for c in latest(self._callers.values())}
            for contact in contacts:
                key = (contact.peer, contact.calling_ae, contact.called_ae, contact.address)
                held = self._contacts.pop(key, None)
                count = contact.associations + (held.associations if held else 0)
                self._contacts[key] = replace(contact, associations=count)
            while len(self._contacts) > MOST_CALLERS:
                del self._contacts[next(iter(self._contacts))]


def joined(held: Caller | None, new: Caller) -> Caller:
    """Return both notes of the same caller as one; of what changed, the later counts."""
    if held is None:
        return new
    earlier, later = sorted((held, new), key=lambda c: c.last_at)
    return replace(later, times=held.times + new.times, first_at=min(earlier.first_at, later.first_at))


def latest(callers: Iterable[Caller]) -> list[Caller]:
    """Return the callers worth keeping, latest first: few of one address, so that none pushes out all others."""
    kept: list[Caller] = []
    of: Counter[str] = Counter()
    for caller in sorted(callers, key=lambda c: c.last_at, reverse=True):
        if kept and caller.last_at < kept[0].last_at - _FORGOTTEN_S:
            break
        if of[caller.address] < _MOST_OF_AN_ADDRESS and len(kept) < MOST_CALLERS:
            of[caller.address] += 1
            kept.append(caller)
    return kept
