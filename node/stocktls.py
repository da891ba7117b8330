"""TLS of the stock path: what pynetdicom takes for a socket and a context of the ssl module."""

from __future__ import annotations

import logging
import socket
import ssl
from typing import Any

from node.tls import ServerTls, explain

log = logging.getLogger(__name__)


class StockTlsSocket(ssl.SSLSocket):
    """A connection of TLS, whose handshake is made by who first reads it: its own thread, not that which accepts."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Read, and say why there is no TLS where there is none."""
        try:
            return super().recv(buflen, flags)
        except ssl.SSLError as error:
            log.warning("ended the connection with a peer: no TLS: %s", explain(error))
            raise


class StockContext(ssl.SSLContext):
    """What pynetdicom takes for an SSLContext; it has the certificate that lies on disk at the time."""

    tls: ServerTls
    timeout_s: float

    def wrap_socket(self, sock: socket.socket, *_: Any, **__: Any) -> ssl.SSLSocket:
        """Wrap an accepted connection; the handshake is its own thread's."""
        secured = self.tls.wrap(sock)
        secured.settimeout(self.timeout_s)
        return secured
