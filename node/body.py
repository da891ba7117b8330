"""The body of a web request as it comes: in pieces fit for a thread, up to a size, and not too slowly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from node.errors import RequestTooLarge

# A hop to a thread for each piece that the network brings would cost more than its work.
_PIECE = 512 << 10


class RequestTooSlow(Exception):
    """Raised when less comes than must."""


class RequestBody:
    """What one ASGI request brings. Iterating raises `RequestTooLarge`, `RequestTooSlow` or `ClientDisconnect`.

    Parameters
    ----------
    limit
        Bytes of the whole body.
    min_rate, window_s
        Bytes per second that must come over each `window_s` seconds, at least one byte. Only time spent in waiting
        counts: what takes us long is no fault of the client's.
    """

    def __init__(self, receive: Receive, limit: int, min_rate: float, window_s: float) -> None:
        self._receive = receive
        self._limit = limit
        self._needed = max(1.0, min_rate * window_s)
        self._window_s = window_s
        self._waited_s, self._came = 0.0, 0
        self.size = 0
        self.whole = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        piece = bytearray()
        while not self.whole:
            message = await self._next()
            if message["type"] != "http.request":
                raise ClientDisconnect
            data = message.get("body", b"")
            self.size += len(data)
            if self.size > self._limit:
                raise RequestTooLarge("the request is larger than web.max_stow_mb", "send fewer objects at a time")
            self.whole = not message.get("more_body", False)
            piece += data
            if piece and (self.whole or len(piece) >= _PIECE):
                yield bytes(piece)
                piece.clear()

    async def _next(self) -> Message:
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._window_s - self._waited_s):
                    message = await self._receive()
            except TimeoutError:
                if self._came < self._needed:
                    raise RequestTooSlow("the request came at less than listener.min_rate") from None
                self._waited_s, self._came = 0.0, 0
            else:
                self._waited_s += time.monotonic() - began
                self._came += len(message.get("body", b""))
                return message
