"""TLS on the fast path: a connection that is read, written and closed as a plain one, and its handshake's deadline.

The handshake is part of waiting for an A-ASSOCIATE-RQ: it runs in the connection's own thread, under ARTIM, while the
connection counts as one that waits. Until it is done nothing is sent in clear text, and nothing read as such.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from typing import Any

from node.pdata import Parser
from node.tls import explain
from node.wire import Patience, Wire


class HandshakeFailed(Exception):
    """Raised when there can be no TLS with a peer; the text says why, in our words."""


class TlsSocket(ssl.SSLSocket):
    """A connection of TLS, not blocking, with the manners of a plain one.

    What it has to wait for is a `BlockingIOError`, and `awaits` says for which event of the kernel. One thread reads
    and writes; `shutdown` of what is received may be called by others, and touches nothing of TLS.
    """

    awaits = select.POLLIN
    secured = False
    _over = False  # close_notify is sent: what comes now is thrown away, and is not worth deciphering

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Read all that is there and fits, over the borders of TLS records; 0: the peer has closed.

        Raises
        ------
        BlockingIOError
            Nothing is there.
        HandshakeFailed
            Nothing ever will be.
        """
        if self._over:
            return socket.socket.recv_into(self, buffer)
        space, count = memoryview(buffer), 0
        try:
            if not self.secured and not self._shake_hands():
                return 0
            while count < len(space):
                more: Any = self.read(len(space) - count, space[count:])
                if not more:
                    break
                count += more
        except ssl.SSLWantReadError:
            self.awaits = select.POLLIN
            if not count:
                raise BlockingIOError from None
        except ssl.SSLWantWriteError:
            self.awaits = select.POLLOUT
            if not count:
                raise BlockingIOError from None
        except OSError:  # the next call raises it again, when what came before is taken
            if not count:
                raise
        return count

    def send(self, data: Any, flags: int = 0) -> int:
        """Send what the kernel takes.

        Raises
        ------
        BlockingIOError
            It takes nothing.
        """
        if not self.secured or self._over:
            raise BrokenPipeError
        try:
            return super().send(data)
        except ssl.SSLWantWriteError:
            raise BlockingIOError from None

    def shutdown(self, how: int) -> None:
        """Close one direction or both; before ours alone the peer is told by close_notify (RFC 8446 section 6.1)."""
        if how == socket.SHUT_WR:
            if self.secured and not self._over:
                with contextlib.suppress(OSError, ValueError):
                    self.unwrap()  # says so, and raises because the peer has not yet
            self._over = True
        # That of ssl.SSLSocket would go on in clear text.
        socket.socket.shutdown(self, how)

    def _shake_hands(self) -> bool:
        try:
            self.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError):
            return False
        except ssl.SSLError as error:
            raise HandshakeFailed(f"no TLS: {explain(error)}") from error
        self.secured = True
        return True


class TlsWire(Wire):
    """A `Wire` over TLS."""

    def __init__(self, connection: TlsSocket, patience: Patience) -> None:
        super().__init__(connection, patience)
        self._tls = connection

    def _wait(self, parser: Parser, until: float) -> bool:
        self._readable.modify(self._tls, self._tls.awaits)
        try:
            return super()._wait(parser, until)
        finally:
            self._readable.modify(self._tls, select.POLLIN)

    def _deadline(self, parser: Parser, now: float) -> tuple[float, str]:
        deadline, reason = super()._deadline(parser, now)
        return deadline, reason if self._tls.secured else "no TLS handshake within listener.artim_s"
