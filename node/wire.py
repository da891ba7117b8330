"""A connection and its deadlines: it sleeps in the kernel until bytes come or a deadline passes; nothing is polled."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from node.pdata import Parser

# How long a peer may take to close after our last word; PS3.8 lets ARTIM run, which is longer than anybody needs.
_LAST_WORD_S = 2.0
# The kernel counts milliseconds in 32 bits.
_LONGEST_SLEEP_S = 3600.0


class Gone(Exception):
    """Raised when the peer has closed, or the connection was ended from our side."""


class TooSlow(Exception):
    """Raised when a deadline has passed."""


@dataclass(frozen=True)
class Patience:
    """Seconds that a peer may take: for its A-ASSOCIATE-RQ, for one PDU, and between messages; bytes per second."""

    artim_s: float
    pdu_s: float
    idle_s: float
    min_rate: float


class Wire:
    """One accepted connection, of which one thread reads; `cut` and `end` may be called by others."""

    def __init__(
        self, connection: socket.socket, patience: Patience, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._socket = connection
        self._patience = patience
        self._clock = clock
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # not every kind of socket has it
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self.ending = False
        self.established = False
        self.received = 0  # bytes so far
        self._rest_since = self._busy_since = clock()  # connected, or last answered; last received
        self._pdu, self._pdu_since = -1, 0.0
        self._message = -1
        self._window_since, self._window_bytes = 0.0, 0

    def receive(self, parser: Parser, until: float = math.inf) -> bool:
        """Put at least one byte into the parser; False when nothing came before the clock says `until`.

        Raises
        ------
        Gone, TooSlow
        """
        space = parser.space()
        ours = self._clock() - self._busy_since  # what was received took us so long: no fault of the peer's
        self._pdu_since += ours
        self._window_since += ours
        while True:
            if self.ending:
                raise Gone
            try:
                count = self._socket.recv_into(space)
            except BlockingIOError:
                if self._wait(parser, until):
                    continue
                self._busy_since = self._clock()
                return False
            if not count:
                raise Gone
            parser.received(count)
            self.received += count
            self._window_bytes += count
            self._busy_since = self._clock()
            return True

    def send(self, data: bytes) -> None:
        """Send all of `data`, which is short.

        Raises
        ------
        TooSlow
            The peer does not take it.
        """
        give_up = self._clock() + self._patience.pdu_s
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                writable = select.poll()
                writable.register(self._socket, select.POLLOUT)
                wait_s = give_up - self._clock()
                if wait_s <= 0 or not writable.poll(min(wait_s, _LONGEST_SLEEP_S) * 1000 + 1):
                    raise TooSlow("the peer does not take its answers") from None
        self._rest_since = self._clock()

    def last_word(self, data: bytes) -> None:
        """Send `data`, wait a moment for the peer to close, and close.

        Closing at once would reset the connection where bytes are unread, and the peer might never see `data`.
        """
        give_up = self._clock() + min(_LAST_WORD_S, self._patience.artim_s)
        waste = bytearray(65536)
        with contextlib.suppress(OSError):
            if data:
                self._socket.send(data)
            self._socket.shutdown(socket.SHUT_WR)
            while (wait_s := give_up - self._clock()) > 0 and self._readable.poll(wait_s * 1000 + 1):
                with contextlib.suppress(BlockingIOError):
                    if not self._socket.recv_into(waste):
                        break
        self._socket.close()

    def cut(self) -> None:
        """End the connection at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Have `receive` raise `Gone`, as soon as its thread comes back to it."""
        self.ending = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def _wait(self, parser: Parser, until: float) -> bool:
        """Sleep until the peer sends; False when `until` came first.

        Only here are deadlines looked at: here the peer has us wait, not we the peer.
        """
        if parser.in_pdu and self._pdu != parser.pdus:
            self._pdu, self._pdu_since = parser.pdus, self._clock()
        if parser.in_message and self._message != parser.messages:
            self._message, self._window_since, self._window_bytes = parser.messages, self._clock(), 0
        while True:
            now = self._clock()
            deadline, reason = self._deadline(parser, now)
            if deadline <= now:
                raise TooSlow(reason)
            if until <= now:
                return False
            if self._readable.poll(min(deadline - now, until - now, _LONGEST_SLEEP_S) * 1000 + 1):
                return True

    def _deadline(self, parser: Parser, now: float) -> tuple[float, str]:
        patience = self._patience
        if not self.established:
            return self._rest_since + patience.artim_s, "no A-ASSOCIATE-RQ within listener.artim_s"
        if parser.in_message:
            if now >= self._window_since + patience.pdu_s and self._window_bytes >= patience.min_rate * patience.pdu_s:
                self._window_since, self._window_bytes = now, 0
            first = self._window_since + patience.pdu_s, "an object came at less than listener.min_rate"
        else:
            first = self._rest_since + patience.idle_s, "nothing came for listener.network_timeout_s"
        if not parser.in_pdu:
            return first
        return min(first, (self._pdu_since + patience.pdu_s, "a PDU took longer than listener.pdu_timeout_s"))
