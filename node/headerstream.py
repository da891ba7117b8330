"""The stream from which pydicom reads a header: bounded in bytes and pieces, and a long one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

ReadAt = Callable[[int, int], bytes]

# Read at once: the header of a classic image is shorter.
HEAD = 32768
# Pieces that one reading may ask for: an element or item takes one or two, and pydicom some 10 µs for each. The groups
# of 20 000 frames need fewer.
_MOST_READS = 2_000_000
# Bytes from which a header is a heavy one, and reads: two at a time would take the processor and the memory from all.
_LIGHT, _LIGHT_READS = 256 * 1024, 10_000
_HEAVY = threading.Lock()


class OverBudget(Exception):
    """Raised when a header is longer, or in more pieces, than one reading may take."""


class HeaderStream:
    """A file for pydicom that raises where the data ends within an element: half a value would pass for a whole one.

    It reads `budget` bytes at most, in no more than `most_reads` pieces (`_MOST_READS` where none is given). Once it
    has turned out to be heavy, only one such is read at a time, until it is closed.
    """

    def __init__(self, read_at: ReadAt, size: int, head: bytes, budget: int, most_reads: int | None = None) -> None:
        self._read_at = read_at
        self._size = size
        self._budget = budget
        self._light_above = budget - _LIGHT
        self._most_reads = _MOST_READS if most_reads is None else most_reads
        self._may_wait = most_reads is None  # a part of a header is read under what the whole has taken
        self._is_heavy = False
        self._window, self._window_at = head, 0
        self._position = 0
        self._at_end = False
        self.is_over_budget = False
        self.reads = 0

    def __enter__(self) -> HeaderStream:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_heavy:
            _HEAVY.release()

    @property
    def has_too_many_pieces(self) -> bool:
        """Tell whether it was the number of pieces, which no second reading makes smaller."""
        return self.reads > self._most_reads

    def tell(self) -> int:
        """Return the position, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position, as of a file."""
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next `size` bytes.

        Raises
        ------
        OverBudget
            That is more than this reading may take; `is_over_budget` says so from then on.
        EOFError
            The data ends before.
        """
        rest = max(0, self._size - self._position)
        count = rest if size is None or size < 0 else min(size, rest)
        self._budget -= count
        self.reads += 1
        if self._budget < 0 or self.reads > self._most_reads:
            self.is_over_budget = True
            raise OverBudget
        if self._may_wait and not self._is_heavy and (self._budget < self._light_above or self.reads > _LIGHT_READS):
            self._is_heavy = _HEAVY.acquire()
        begin = self._position - self._window_at
        if begin < 0 or begin + count > len(self._window):
            self._window, self._window_at = self._read_at(max(count, HEAD), self._position), self._position
            begin = 0
        data = self._window[begin : begin + count]
        self._position += len(data)
        if size and size > 0 and len(data) < size:
            # Only where the next tag would begin, once, may nothing be left.
            if data or self._at_end:
                raise EOFError
            self._at_end = True
        return data
