"""Who may be connected at the same time: associations, and apart from them connections that are not one (yet).

A connection waits until its A-ASSOCIATE-RQ is there, and again when its association has ended and the peer has still
to close. Waiting connections cost only each other their place, and first those of the same address: a peer that opens
many and says nothing never shuts out one that speaks.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from node.statuses import LOCAL_LIMIT_EXCEEDED


class Connection(Protocol):
    """A connection from `address`, which `cut` ends at once and from any thread."""

    address: str

    def cut(self) -> None:
        """End it."""


@dataclass(frozen=True)
class Quota:
    """Connections at the same time, in all and from one address."""

    associations: int
    associations_per_peer: int
    waiting: int
    waiting_per_peer: int


class Admission:
    """Counts connections and keeps to a `Quota`."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._lock = threading.Lock()
        self._waiting: dict[int, Connection] = {}  # by id, oldest first
        self._associated: dict[int, Connection] = {}
        self._group: dict[int, str] = {}  # of those; see `admit`
        self._waiting_of: Counter[str] = Counter()
        self._associated_of: Counter[str] = Counter()

    def enter(self, connection: Connection) -> None:
        """Take in a new connection, as waiting; where there are too many, the oldest of a peer is cut."""
        with self._lock:
            leaving = self._crowded(connection.address)
            self._wait(connection)
        if leaving is not None:
            leaving.cut()

    def admit(self, connection: Connection, group: str = "", most: int | None = None) -> tuple[int, int, int] | None:
        """Let a waiting connection become an association, or return how to reject it (PS3.8 table 9-21).

        It is counted under `group`, of which there are `most`; else under its address, with the quota of one.
        """
        with self._lock:
            group = group or connection.address
            full = len(self._associated) >= self._quota.associations
            if full or self._associated_of[group] >= (most or self._quota.associations_per_peer):
                return LOCAL_LIMIT_EXCEEDED
            self._forget(connection)
            self._associated[id(connection)] = connection
            self._group[id(connection)] = group
            self._associated_of[group] += 1
        return None

    def part(self, connection: Connection) -> None:
        """Count an association that has ended as a waiting connection, until its peer closes."""
        with self._lock:
            if id(connection) in self._associated:
                self._forget(connection)
                self._wait(connection)

    def leave(self, connection: Connection) -> None:
        """Forget a closed connection."""
        with self._lock:
            self._forget(connection)

    def everyone(self) -> list[Connection]:
        """Return all connections."""
        with self._lock:
            return [*self._waiting.values(), *self._associated.values()]

    def _crowded(self, address: str) -> Connection | None:
        if self._waiting_of[address] >= self._quota.waiting_per_peer:
            crowd = address
        elif len(self._waiting) >= self._quota.waiting:
            crowd = self._waiting_of.most_common(1)[0][0]
        else:
            return None
        oldest = next(c for c in self._waiting.values() if c.address == crowd)
        self._forget(oldest)
        return oldest

    def _wait(self, connection: Connection) -> None:
        self._waiting[id(connection)] = connection
        self._waiting_of[connection.address] += 1

    def _forget(self, connection: Connection) -> None:
        if self._waiting.pop(id(connection), None) is not None:
            _count_down(self._waiting_of, connection.address)
        if self._associated.pop(id(connection), None) is not None:
            _count_down(self._associated_of, self._group.pop(id(connection)))


def _count_down(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
