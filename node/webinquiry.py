"""What we ask a DICOMweb service about objects that it took by STOW-RS: QIDO-RS, and WADO-RS to read them back.

PS3.18 sections 10.6 and 10.4. Storage commitment has no counterpart there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from urllib.parse import urlencode

import httpx
import pydicom
from pydicom import Dataset

from node.errors import InvalidInstance, InvalidRequest, PeerRefused, PeerUnavailable
from node.header import UNREADABLE
from node.inquiry import Sent
from node.states import Proof
from node.webservice import JSON, LOG, OBJECTS, WebClient, WebService

# The answer about one object, and one object: bytes that are read of either.
_LONGEST_LIST, _LONGEST_OBJECT = 1 << 20, 1 << 30
_SOP_INSTANCE_UID = "00080018"


class WebInquiry:
    """Asks over one HTTP connection."""

    query = Proof.QIDO
    commits = False
    finds = True

    def __init__(self, client: WebClient) -> None:
        self._service = client.service
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
        with self._client.get(f"/instances?{asked}", JSON) as answer:
            if answer.status_code == httpx.codes.NO_CONTENT:
                return False
            if answer.status_code != httpx.codes.OK:
                raise PeerRefused(
                    f"{self._service} answers QIDO-RS with HTTP {answer.status_code}",
                    'set proof = "none" if it offers no queries',
                )
            found = self._client.matches(answer, _LONGEST_LIST)
        try:
            names = [str(one[_SOP_INSTANCE_UID]["Value"][0]) for one in found]
        except (TypeError, LookupError) as error:
            raise self._client.no_json() from error
        if names and sent.sop_uid not in names:  # who ignores what was asked has not said that it is not there
            raise PeerRefused(
                f"{self._service} answers QIDO-RS with other objects than asked for",
                "check that it can be queried by SOPInstanceUID",
            )
        return bool(names)

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
        with self._client.get(path, OBJECTS) as answer:
            if answer.status_code != httpx.codes.OK:
                raise PeerRefused(f"{self._service} answers WADO-RS with HTTP {answer.status_code}", LOG)
            content = bytearray()
            try:
                parser = self._client.parser(answer)
                for piece in self._client.pieces(answer, _LONGEST_OBJECT):
                    for event in parser.feed(piece):
                        if isinstance(event, memoryview):
                            content += event
            except InvalidRequest as error:
                raise self._client.no_objects() from error
            if not parser.finished:
                raise PeerUnavailable(f"{self._service} sent no whole answer", "ask again")
        try:
            return pydicom.dcmread(BytesIO(content))
        except (*UNREADABLE, AttributeError) as error:
            raise InvalidInstance(f"what came is no DICOM file ({type(error).__name__})", LOG) from error


@contextlib.contextmanager
def web_inquiry(service: WebService, timeout_s: float) -> Iterator[WebInquiry]:
    """Make ready to ask a service.

    Raises
    ------
    ConfigurationError
        Its token, or a file that its settings name, cannot be used.
    """
    with WebClient(service, timeout_s) as client:
        yield WebInquiry(client)
