"""Serving an ASGI application from a thread of the node."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from node.errors import ConfigurationError
from node.settings import Api

# The head of a request must have come within this time from the connection, or from the answer before it; so must the
# TLS handshake, before which no protocol of ours sees the connection.
HEAD_S = 10.0
# Connections to one port. More are closed at once: each costs a file, and C-STORE needs files too.
MAX_CONNECTIONS = 256
# What of them one address may have.
_SHARE = 4


class PunctualLoop(asyncio.SelectorEventLoop):
    """An event loop whose servers end a TLS handshake in `HEAD_S`: asyncio's 60 s cannot be set through uvicorn."""

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        """Listen as asyncio does."""
        if options.get("ssl") is not None:
            options = {"ssl_handshake_timeout": HEAD_S, "ssl_shutdown_timeout": HEAD_S, **options}
        return await super().create_server(*args, **options)


class Port(socket.socket):
    """A listening socket that holds `MAX_CONNECTIONS`, a share of them of one address, counted from accept to close.

    So a connection counts before it has spoken TLS, which no protocol of ours sees before its end.
    """

    def __init__(self, family: int) -> None:
        super().__init__(family)
        self._open: list[tuple[socket.socket, str]] = []

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection; ConnectionAbortedError, which event loops pass over, where it is one too many."""
        connection, address = super().accept()
        self._open = [(other, host) for other, host in self._open if other.fileno() >= 0]
        neighbours = sum(host == address[0] for _, host in self._open)
        if len(self._open) >= MAX_CONNECTIONS or neighbours >= max(1, MAX_CONNECTIONS // _SHARE):
            connection.close()
            raise ConnectionAbortedError
        self._open.append((connection, address[0]))
        return connection, address


class _Punctual(H11Protocol):
    """uvicorn's protocol with a deadline for the head of each request, which it has not."""

    _head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    def _await_head(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
        self._head_due = self.loop.call_later(HEAD_S, self._end_if_no_head)

    def _end_if_no_head(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()


class HttpServer:
    """One listening address. It is bound, and its certificate read, on construction.

    Parameters
    ----------
    name
        The settings section that errors speak of.
    broken
        Called, with the name, when serving ends unasked.
    tls
        The section that names certificate and key, when it does.

    Raises
    ------
    ConfigurationError
        The address is taken or not ours, or the certificate cannot be read.
    """

    def __init__(
        self, app: Any, host: str, port: int, name: str, broken: Callable[[str], None], tls: Api | None = None
    ) -> None:
        self._name = name
        self._broken = broken
        config = uvicorn.Config(
            app,
            http=_Punctual,
            loop="node.http:PunctualLoop",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=3,
            ssl_certfile=tls.tls_certificate if tls else None,
            ssl_keyfile=tls.tls_key if tls else None,
        )
        try:
            config.load()
        except OSError as error:
            raise ConfigurationError(
                f"the certificate or key of [{name}] cannot be read ({error.strerror or type(error).__name__})",
                "both are PEM files, and the node's user must be able to read them",
            ) from error
        self._socket = Port(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise ConfigurationError(
                f"cannot listen on {host}:{port} ({error.strerror})",
                f"another program has this port, or the address is not of this machine: change [{name}]",
            ) from error
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def url(self) -> str:
        """How this machine reaches it."""
        host, port = self._socket.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound to
        scheme = "https" if self._server.config.is_ssl else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def start(self) -> None:
        """Serve from a thread."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Tell whether it serves."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End what is being answered within a few seconds, and close the port."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(5)
        self._socket.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            if not self._server.should_exit:
                self._broken(self._name)
