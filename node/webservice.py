"""A DICOMweb service of somebody else's: where it is, what lets us in, and how it is asked (PS3.18 section 10)."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, Self

import httpx
from pydantic import SecretStr

from node.configuration import secret
from node.errors import ConfigurationError, PeerRefused, PeerUnavailable
from node.multipart import Multipart
from node.settings import Archive, Destination, Secured
from node.tls import client_context

JSON = "application/dicom+json"
OBJECTS = 'multipart/related; type="application/dicom"; transfer-syntax=*'
LOG = "look into its log"
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class WebService:
    """Where a DICOMweb service is, how it is connected to, and what lets us in; errors call it by `name`, or its url.

    `proxy` is the only one that is used: those that the environment names are not.
    """

    url: str
    security: Secured = field(default_factory=Secured)
    token: SecretStr | None = None
    token_file: Path | None = None
    proxy: str = ""
    name: str = ""

    @classmethod
    def at(cls, place: Destination) -> Self:
        """Return the service of a destination with a `url`.

        Raises
        ------
        ConfigurationError
            Its token cannot be read, or is none.
        """
        service = cls(str(place.url), place.security, place.token, place.token_file, place.proxy)
        service.bearer()
        return service

    @classmethod
    def of_archive(cls, archive: Archive) -> Self:
        """Return the service of an archive with a `url`, whose token is read when it is asked."""
        return cls(str(archive.url), archive.security, archive.token, archive.token_file, name=archive.name)

    def __str__(self) -> str:
        return self.name or str(self.url)

    def bearer(self) -> str:
        """Return the token as it is now; empty: there is none.

        Raises
        ------
        ConfigurationError
            It cannot be read, or is none.
        """
        if self.token is None and self.token_file is None:
            return ""
        token = secret(self.token, self.token_file, Path())
        if not _TOKEN.fullmatch(token):
            raise ConfigurationError(f"the token for {self} holds what no header may", "it is one word of plain text")
        return token


class WebClient:
    """Asks one service over connections that are kept open; a context manager.

    Redirects are not followed, so that no token goes to another host.

    Raises
    ------
    ConfigurationError
        On construction: the token or a file of the settings cannot be used.
    """

    def __init__(self, service: WebService, timeout_s: float) -> None:
        self.service = service
        self._timeout_s = timeout_s
        name = service.security.tls_server_name
        self._extensions = {"sni_hostname": name} if name else {}
        headers = {"Accept-Encoding": "identity", "User-Agent": "pennode"}
        if token := service.bearer():
            headers["Authorization"] = f"Bearer {token}"
        try:
            self._client = httpx.Client(
                headers=headers, timeout=timeout_s, trust_env=False, follow_redirects=False,
                proxy=service.proxy or None, verify=client_context(service.security) or True,
            )  # fmt: skip
        except (ValueError, httpx.InvalidURL) as error:
            raise ConfigurationError(f"{service} cannot be used", "check its url and proxy") from error

    def __enter__(self) -> WebClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @contextlib.contextmanager
    def get(self, path: str, accept: str) -> Iterator[httpx.Response]:
        """Yield the answer to a GET, its body unread; what the status says beyond the errors below is the caller's.

        Raises
        ------
        PeerUnavailable
            It does not answer, or not now.
        PeerRefused
            It does not let us in, or encodes its answer.
        """
        service = self.service
        url, headers = f"{service.url.rstrip('/')}{path}", {"Accept": accept}
        try:
            with self._client.stream("GET", url, headers=headers, extensions=self._extensions) as answer:
                code = answer.status_code
                if code in (401, 403):
                    raise PeerRefused(f"{service} does not let us in (HTTP {code})", "check its token")
                if code == 429 or code >= 500:
                    raise PeerUnavailable(f"{service} fails (HTTP {code})", LOG)
                if answer.headers.get("content-encoding", "identity").lower() != "identity":
                    raise PeerRefused(f"{service} encodes its answer though asked not to", "switch that off there")
                yield answer
        except httpx.TimeoutException as error:
            raise PeerUnavailable(
                f"nothing was heard of {service} for {self._timeout_s:g} s", "check that it runs, and ask again"
            ) from error
        except httpx.ConnectError as error:
            raise PeerUnavailable(
                f"{service} does not answer", "check that it runs, its url, and the certificates on both sides"
            ) from error
        except httpx.TransportError as error:
            raise PeerUnavailable(
                f"{service} ended the connection half way", "look into its log, and ask again"
            ) from error

    def pieces(self, answer: httpx.Response, longest: int) -> Iterator[bytes]:
        """Yield the body of an answer; `PeerRefused` where it has more than `longest` bytes."""
        size = 0
        for piece in answer.iter_raw():
            size += len(piece)
            if size > longest:
                raise PeerRefused(f"{self.service} answers without end", LOG)
            yield piece

    def matches(self, answer: httpx.Response, longest: int) -> list[Any]:
        """Return what a query found, in the DICOM JSON Model (PS3.18 annex F); `PeerRefused` where it is none."""
        try:
            found = json.loads(b"".join(self.pieces(answer, longest)) or b"[]")
        except (ValueError, RecursionError) as error:
            raise self.no_json() from error
        if not isinstance(found, list):
            raise self.no_json()
        return found

    def no_json(self) -> PeerRefused:
        """Return what to raise over an answer that is no DICOM JSON."""
        return PeerRefused(f"{self.service} answers the query with what is no DICOM JSON", LOG)

    def parser(self, answer: httpx.Response) -> Multipart:
        """Return a parser of the objects in an answer; `PeerRefused`, or `InvalidRequest`, where it holds none."""
        fields = Message()
        fields["content-type"] = answer.headers.get("content-type", "")
        boundary = fields.get_param("boundary", "")
        if fields.get_content_type() != "multipart/related" or not isinstance(boundary, str):
            raise self.no_objects()
        return Multipart(boundary)

    def no_objects(self) -> PeerRefused:
        """Return what to raise over an answer that holds no objects."""
        return PeerRefused(f"{self.service} sends no DICOM objects in parts", "check its url")
