"""Group commit: many threads each bring one entry, and one of them flushes for all who wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Ticket(Generic[T, R]):
    __slots__ = ("called", "entry", "error", "leads", "result")

    def __init__(self, entry: T) -> None:
        self.entry = entry
        self.called = threading.Lock()
        self.called.acquire()
        self.leads = False
        self.result: R
        self.error: BaseException | None = None


class GroupCommit(Generic[T, R]):
    """Calls `flush` with the entries of all who came while the last flush ran.

    Who comes first leads: it flushes at once, so that a lone caller waits for nobody. Who comes during a flush waits
    for its end at most, and then belongs to the next. There is no timer and no thread of its own.

    Parameters
    ----------
    flush
        Takes entries in their order of arrival and returns one result for each.
    largest
        Entries in one flush at most; it bounds how long the first of them waits.
    """

    def __init__(self, flush: Callable[[Sequence[T]], Sequence[R]], largest: int = 64) -> None:
        self._flush = flush
        self._largest = largest
        self._lock = threading.Lock()
        self._waiting: deque[_Ticket[T, R]] = deque()
        self._led = False

    def submit(self, entry: T) -> R:
        """Return the result of this entry once its flush is done; what `flush` raises, all of its callers raise."""
        mine: _Ticket[T, R] = _Ticket(entry)
        with self._lock:
            self._waiting.append(mine)
            mine.leads, self._led = not self._led, True
        if not mine.leads:
            mine.called.acquire()
        if mine.leads:
            self._lead()
        if mine.error is not None:
            raise mine.error
        return mine.result

    def _lead(self) -> None:
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(self._largest, len(self._waiting)))]
        try:
            for ticket, result in zip(batch, self._flush([t.entry for t in batch]), strict=True):
                ticket.result = result
        except BaseException as error:  # raised on here; but who waits must be told too, or waits for ever
            for ticket in batch:
                ticket.error = error
            raise
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting[0].leads = True
                    self._waiting[0].called.release()
                else:
                    self._led = False
            for ticket in batch:
                if not ticket.leads:
                    ticket.called.release()
