"""What we ask a DICOMweb service about objects that it took by STOW-RS: QIDO-RS, and WADO-RS to read them back.

PS3.18 sections 10.6 and 10.4. Storage commitment has no counterpart there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from email.message import Message
from io import BytesIO
from typing import Any
from urllib.parse import urlencode

import httpx
import pydicom
from pydicom import Dataset

from node.errors import InvalidInstance, InvalidRequest, PeerRefused, PeerUnavailable
from node.header import UNREADABLE
from node.inquiry import Sent
from node.multipart import Multipart
from node.settings import Secured
from node.states import Proof
from node.tls import client_context

# The answer about one object, and one object: bytes that are read of either.
_LONGEST_LIST, _LONGEST_OBJECT = 1 << 20, 1 << 30
_JSON, _DICOM = "application/dicom+json", "application/dicom"
_SOP_INSTANCE_UID = "00080018"
_LOG = "look into its log"


@dataclass(frozen=True)
class WebService:
    """Where a DICOMweb service is, how it is connected to, and what lets us in; `bearer` gives the token, or nothing.

    `proxy` is the only one that is used: those that the environment names are not.
    """

    url: str
    security: Secured = field(default_factory=Secured)
    bearer: Callable[[], str] = lambda: ""
    proxy: str = ""

    def __str__(self) -> str:
        return self.url


class WebInquiry:
    """Asks over one HTTP connection."""

    query = Proof.QIDO
    commits = False
    finds = True

    def __init__(self, service: WebService, client: httpx.Client) -> None:
        self._service = service
        self._client = client

    def request_commitment(self, transaction_uid: str, objects: Sequence[Sent]) -> None:
        """Refuse: DICOMweb has no storage commitment."""
        raise PeerRefused(f"{self._service} offers no storage commitment", 'set proof = "auto"')

    def await_report(self, seconds: float) -> None:
        """Return at once: no report comes."""

    def holds(self, sent: Sent) -> bool:
        """Ask by QIDO-RS whether the service holds an object.

        Raises
        ------
        PeerUnavailable, PeerRefused
            It does not answer, or not now; it offers no such query, lets us not in, or its answer is none.
        """
        # Of all instances: a service may say 404 to a study that it does not know, and to a path that it has not.
        asked = urlencode(
            {"StudyInstanceUID": sent.study_uid, "SeriesInstanceUID": sent.series_uid, "SOPInstanceUID": sent.sop_uid}
        )
        with self._get(f"/instances?{asked}", _JSON) as answer:
            if answer.status_code == httpx.codes.NO_CONTENT:
                return False
            if answer.status_code != httpx.codes.OK:
                raise PeerRefused(
                    f"{self._service} answers QIDO-RS with HTTP {answer.status_code}",
                    'set proof = "none" if it offers no queries',
                )
            body = b"".join(self._pieces(answer, _LONGEST_LIST))
        try:
            names = [_first(one, _SOP_INSTANCE_UID) for one in json.loads(body or b"[]")]
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise PeerRefused(f"{self._service} answers QIDO-RS with what is no DICOM JSON", _LOG) from error
        return sent.sop_uid in names

    def fetch(self, sent: Sent) -> Dataset:
        """Get one object by WADO-RS, as the service holds it, with its file meta information.

        Raises
        ------
        PeerUnavailable, PeerRefused
            As `holds`; PeerRefused also where it has no such object.
        InvalidInstance
            What came is no DICOM file.
        """
        path = f"/studies/{sent.study_uid}/series/{sent.series_uid}/instances/{sent.sop_uid}"
        with self._get(path, f'multipart/related; type="{_DICOM}"; transfer-syntax=*') as answer:
            if answer.status_code != httpx.codes.OK:
                raise PeerRefused(f"{self._service} answers WADO-RS with HTTP {answer.status_code}", _LOG)
            fields = Message()
            fields["content-type"] = answer.headers.get("content-type", "")
            content = bytearray()
            try:
                parser = Multipart(str(fields.get_param("boundary", "")))
                for piece in self._pieces(answer, _LONGEST_OBJECT):
                    for event in parser.feed(piece):
                        if isinstance(event, memoryview):
                            content += event
            except InvalidRequest as error:
                raise PeerRefused(f"{self._service} answers WADO-RS with no DICOM objects in parts", _LOG) from error
            if not parser.finished:
                raise PeerUnavailable(f"{self._service} sent no whole answer", "ask again")
        try:
            return pydicom.dcmread(BytesIO(content))
        except (*UNREADABLE, AttributeError) as error:
            raise InvalidInstance(f"what came is no DICOM file ({type(error).__name__})", _LOG) from error

    def _pieces(self, answer: httpx.Response, longest: int) -> Iterator[bytes]:
        size = 0
        for piece in answer.iter_raw():
            size += len(piece)
            if size > longest:
                raise PeerRefused(f"{self._service} answers without end", _LOG)
            yield piece

    @contextlib.contextmanager
    def _get(self, path: str, accept: str) -> Iterator[httpx.Response]:
        service = self._service
        where, name = f"{service.url.rstrip('/')}{path}", service.security.tls_server_name
        named = {"sni_hostname": name} if name else {}
        try:
            with self._client.stream("GET", where, headers={"Accept": accept}, extensions=named) as answer:
                code = answer.status_code
                if code in (401, 403):
                    raise PeerRefused(f"{service} does not let us in (HTTP {code})", "check its token")
                if code == 429 or code >= 500:
                    raise PeerUnavailable(f"{service} fails (HTTP {code})", _LOG)
                if answer.headers.get("content-encoding", "identity").lower() != "identity":
                    raise PeerRefused(f"{service} encodes its answer though asked not to", "switch that off there")
                yield answer
        except httpx.TransportError as error:
            raise PeerUnavailable(
                f"{service} does not answer ({type(error).__name__})",
                "check that it runs, its url, and the certificates on both sides",
            ) from error


@contextlib.contextmanager
def web_inquiry(service: WebService, timeout_s: float) -> Iterator[WebInquiry]:
    """Make ready to ask a service. Redirects are not followed, so that no token goes to another host.

    Raises
    ------
    ConfigurationError
        A file that its settings name cannot be used.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": "pennode"}
    if token := service.bearer():
        headers["Authorization"] = f"Bearer {token}"
    context: Any = client_context(service.security)
    with httpx.Client(
        headers=headers, timeout=timeout_s, trust_env=False, follow_redirects=False, proxy=service.proxy or None,
        verify=context or True,
    ) as client:  # fmt: skip
        yield WebInquiry(service, client)


def _first(found: Any, tag: str) -> str:
    """Return one value of a match in the DICOM JSON Model (PS3.18 annex F)."""
    return str(found[tag]["Value"][0])
