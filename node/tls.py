"""TLS by BCP 195 (RFC 9325; PS3.15 B.12 and B.13): 1.2 or 1.3, ephemeral keys, authenticated encryption; no more.

Certificates are files, and files are replaced while the node runs: what serves looks after them, and keeps what it had
where the new ones are no good.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from node.errors import ConfigurationError
from node.settings import Listener, Secured

log = logging.getLogger(__name__)

C = TypeVar("C", bound=ssl.SSLContext)

# For TLS 1.2 (RFC 9325 section 4.2); those of 1.3 are all good.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# Without one of ours OpenSSL would ask for a password at the terminal.
_NO_PASSWORD = b""
_LOOK_EVERY_S = 1.0
_SOON_S = 14 * 86400.0
# What OpenSSL calls them, in the words of who looks after a hospital's network.
_REASONS = {
    "HTTP_REQUEST": "it speaks HTTP",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "it offers neither TLS 1.2 nor 1.3",
    "VERSION_TOO_LOW": "it offers neither TLS 1.2 nor 1.3",
    "NO_SHARED_CIPHER": "it offers no cipher suite of BCP 195",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the authority of our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not take our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not take our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it finds our certificate expired",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate of us",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it takes neither TLS 1.2 nor 1.3",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it takes none of what we offer",
}


def explain(error: ssl.SSLError) -> str:
    """Say why there is no TLS with a peer. Nothing of what the peer sent is in it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not good: {error.verify_message.rstrip('.')}"
    reason = error.reason or "UNKNOWN"
    return _REASONS.get(reason) or reason.lower().replace("_", " ")


@dataclass(frozen=True)
class _Loaded:
    context: ssl.SSLContext
    expires_at: float
    fault: str


class ServerTls:
    """The listener's certificate, its key, and the authorities of the peers' certificates, as they lie on disk now.

    `trouble` says what is wrong with them, empty when nothing is; what was loaded before goes on serving. Connections
    become sockets of the class given.

    Raises
    ------
    ConfigurationError
        On construction: they cannot be used.
    """

    def __init__(
        self, settings: Listener, sockets: type[ssl.SSLSocket], clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._sockets = sockets
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self._looked_at = time.monotonic()
        self._broken = ""
        self._loaded = self._load()

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """Return an accepted connection as one of TLS, its handshake still to be made.

        Raises
        ------
        OSError
            The connection is gone.
        """
        self._look()
        return self._loaded.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    @property
    def trouble(self) -> str:
        """What is wrong with the files, or with the certificate in use."""
        self._look()
        if self._broken:
            return f"the new TLS certificate is not used: {self._broken}"
        expired = self._loaded.expires_at < self._clock()
        fault = self._loaded.fault or ("certificate has expired" if expired else "")
        return f"peers will not take listener.tls_certificate: {fault}" if fault else ""

    @property
    def note(self) -> str:
        """What will soon be wrong."""
        left = self._loaded.expires_at - self._clock()
        return f"the TLS certificate expires in {left / 86400:.0f} d" if 0 < left < _SOON_S else ""

    def _look(self) -> None:
        """Load the files anew when they have changed, at most once in a while."""
        with self._lock:
            if time.monotonic() < self._looked_at + _LOOK_EVERY_S:
                return
            self._looked_at = time.monotonic()
            stamps = self._stamps()
            if stamps == self._seen:
                return
            self._seen = stamps
            try:
                self._loaded = self._load()
            except ConfigurationError as error:
                self._broken = str(error)
                log.error("the new TLS certificate is not used, the one before serves on: %s", error)
            else:
                self._broken = ""
                log.info("TLS certificate, key and authorities were loaded anew")

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        stamps: list[tuple[int, int, int] | None] = []
        for path in (self._settings.tls_certificate, self._settings.tls_key, self._settings.tls_ca_file):
            stamps.append(None)
            with contextlib.suppress(OSError):
                if path is not None:
                    found = path.stat()
                    stamps[-1] = found.st_mtime_ns, found.st_size, found.st_ino
        return stamps

    def _load(self) -> _Loaded:
        settings = self._settings
        context = _hardened(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        context.sslsocket_class = self._sockets
        # Associations are long and few: tickets for a quicker next handshake would be sent for nothing.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        certificate, key = settings.tls_certificate, settings.tls_key
        assert certificate is not None
        _load_chain(context, certificate, key, "listener.")
        if settings.tls_ca_file is not None:
            _load_authorities(context, settings.tls_ca_file, "listener.")
            context.verify_mode = ssl.CERT_REQUIRED if settings.tls_client == "required" else ssl.CERT_OPTIONAL
        return _Loaded(context, *_look_at_ourselves(certificate, key))


class ClientTls(ssl.SSLContext):
    """How one connection to a peer is made; `trouble` says why its handshake failed."""

    trouble = ""
    _connection: ssl.SSLSocket | None = None

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """Wrap the one socket, as pynetdicom asks."""
        self.sslsocket_class = _OutgoingSocket
        self._connection = super().wrap_socket(*arguments, **options)
        return self._connection

    def close(self) -> None:
        """Close the connection, which pynetdicom does not always."""
        if self._connection is not None:
            self._connection.close()


class _OutgoingSocket(ssl.SSLSocket):
    def connect(self, addr: Any) -> None:
        try:
            super().connect(addr)
        except ssl.SSLError as error:
            if isinstance(self.context, ClientTls):
                self.context.trouble = explain(error)
            # pynetdicom would print the traceback of an SSLError.
            raise ConnectionAbortedError(explain(error)) from error


def client_context(peer: Secured, section: str = "") -> ClientTls | None:
    """Return what connects to a peer over TLS, from the files as they are now; None: it is connected to without.

    `section` is where its settings stand, for the text of errors: ``destinations.NAME.``, or empty.

    Raises
    ------
    ConfigurationError
        Its files cannot be used.
    """
    if not peer.tls:
        return None
    context = _hardened(ClientTls(ssl.PROTOCOL_TLS_CLIENT))
    if peer.tls_ca_file is not None:
        _load_authorities(context, peer.tls_ca_file, section)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if peer.tls_certificate is not None:
        _load_chain(context, peer.tls_certificate, peer.tls_key, section)
    return context


def _hardened(context: C) -> C:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def _load_chain(context: ssl.SSLContext, certificate: Path, key: Path | None, section: str) -> None:
    for path, name in ((certificate, "tls_certificate"), (key, "tls_key")):
        if path is not None:
            _readable(path, f"{section}{name}")
    try:
        context.load_cert_chain(certificate, key, password=_NO_PASSWORD)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{section}tls_certificate and tls_key cannot be used ({_words(error)})",
            "both are PEM, the key is not encrypted and belongs to the first certificate of its chain",
        ) from error


def _load_authorities(context: ssl.SSLContext, path: Path, section: str) -> None:
    text = _readable(path, f"{section}tls_ca_file")
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{section}tls_ca_file cannot be used ({_words(error)})", "it is a PEM file of certificates"
        ) from error
    if b"-----BEGIN X509 CRL-----" in text:
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _readable(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{name} {path} cannot be read ({os.strerror(error.errno or 0)})", "the node's user must be able to"
        ) from error


def _words(error: Exception) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    return reason.lower().replace("_", " ") if reason else type(error).__name__


def _look_at_ourselves(certificate: Path, key: Path | None) -> tuple[float, str]:
    """Return until when a certificate is good, in seconds since 1970, and what is wrong with it now.

    A handshake with ourselves, in memory, tells what a peer would find out.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it is its own authority here
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        server.load_cert_chain(certificate, key, _NO_PASSWORD)
        client.load_verify_locations(cafile=certificate)
        asking, answering = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
        for side in (asking, answering, asking):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        shown: Any = asking.getpeercert()
    except ssl.SSLCertVerificationError as error:
        fault = error.verify_message.rstrip(".")
        log.error("peers will not take listener.tls_certificate: %s", fault)
        return math.inf, fault
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"listener.tls_certificate cannot be served with ({_words(error)})", "have another one issued"
        ) from error
    return float(ssl.cert_time_to_seconds(shown["notAfter"])), ""
