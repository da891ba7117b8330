"""Having an archive's DICOMweb services tell what it has of a study (QIDO-RS), and send it (WADO-RS).

PS3.18 sections 10.6 and 10.4. Objects go piece by piece from the answer's body into reception.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from email.message import Message
from pathlib import Path
from typing import Any

import httpx

from node import statuses
from node.configuration import secret
from node.errors import ConfigurationError, InvalidRequest, PeerRefused, PeerUnavailable, RequestTooLarge
from node.incoming import Origin, Receiver
from node.ledger import FetchedSeries
from node.logs import printable
from node.multipart import Multipart
from node.query import MOST_SERIES
from node.records import is_uid
from node.settings import Archive
from node.suboperations import SOME_FAILED, Counts, Retrieved, Watch
from node.tls import client_context
from node.transaction import DICOM, Transaction

_MAX_LIST = 16 << 20
_TELL_S = 0.5
_JSON = "application/dicom+json"
_SERIES_UID, _MODALITY, _DESCRIPTION, _IMAGES = "0020000E", "00080060", "0008103E", "00201209"
_LOG = "look into its log"


class DicomWeb:
    """A client of one archive's `url`; a context manager, as connections are kept open.

    Raises
    ------
    ConfigurationError
        On construction: its token or a file of its TLS cannot be used.
    """

    def __init__(self, archive: Archive) -> None:
        self._name = archive.name
        self._root = str(archive.url).rstrip("/")
        self._timeout_s = archive.timeout_s
        name = archive.tls_server_name
        self._extensions = {"sni_hostname": name} if name else {}
        headers = {"Accept-Encoding": "identity", "User-Agent": "pennode"}
        if archive.token is not None or archive.token_file is not None:
            headers["Authorization"] = f"Bearer {_token(archive)}"
        try:
            self._client = httpx.Client(
                headers=headers, timeout=archive.timeout_s, trust_env=False, follow_redirects=False,
                verify=client_context(archive.security, f"archives.{archive.name}.") or False,
            )  # fmt: skip
        except (ValueError, httpx.InvalidURL) as error:
            raise ConfigurationError(f"archives.{archive.name} cannot be used", "check its token and url") from error

    def close(self) -> None:
        """Close what is open."""
        self._client.close()

    def list_series(self, study_uid: str) -> list[FetchedSeries]:
        """Return the series of a study; none: it has no such study.

        Raises
        ------
        PeerUnavailable
            It does not answer, or not now.
        PeerRefused
            It says no, or its answer is none.
        """
        fields = f"{_MODALITY},{_DESCRIPTION},{_IMAGES}"
        with self._get(f"/studies/{study_uid}/series?includefield={fields}&limit={MOST_SERIES}", _JSON) as answer:
            if answer.status_code in (204, 404):
                return []
            body = b""
            for piece in answer.iter_raw():
                body += piece
                if len(body) > _MAX_LIST:
                    raise PeerRefused(f"{self._name} answers the query without end", _LOG)
        try:
            found = [_series(one) for one in json.loads(body or b"[]")]
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise PeerRefused(f"{self._name} answers the query with what is no DICOM JSON", _LOG) from error
        return list({one.series_uid: one for one in found if is_uid(one.series_uid)}.values())

    def get(
        self, study_uid: str, series_uid: str, reception: Receiver, origin: Origin, most: int, max_object: int,
        watch: Watch,
    ) -> Retrieved:  # fmt: skip
        """Have one series sent, as the archive holds it; it has `most` objects at most, of `max_object` bytes.

        Raises
        ------
        PeerUnavailable, PeerRefused
            As `list_series`; PeerUnavailable also where the answer breaks off. What came whole before is stored.
        Stopped
            By `watch`.
        """
        accept = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
        with self._get(f"/studies/{study_uid}/series/{series_uid}", accept) as answer:
            if answer.status_code in (204, 404):
                raise PeerRefused(f"{self._name} has no series {series_uid} any more", "fetch again")
            try:
                parser = Multipart(_boundary(answer, self._name))
            except InvalidRequest as error:
                raise PeerRefused(f"{self._name} sends no DICOM objects in parts", _LOG) from error
            transaction = Transaction(reception, origin, parser, most, max_object)
            told = 0.0
            try:
                for piece in answer.iter_raw():
                    transaction.feed(piece)
                    if time.monotonic() - told >= _TELL_S:
                        told = time.monotonic()
                        watch(_counts(transaction))
                transaction.finish()
            except RequestTooLarge as error:
                raise PeerRefused(
                    f"the series has more than {most} images", "raise listener.max_series_instances if this is no fault"
                ) from error
            except InvalidRequest as error:
                raise PeerUnavailable(f"{self._name} sent no whole answer: {error.reason}", "fetch again") from error
            finally:
                transaction.close()
        counts = _counts(transaction)
        watch(counts)
        refusal = next((o.reason for o in transaction.outcomes if o.status != statuses.SUCCESS), "")
        return Retrieved(SOME_FAILED if counts.failed else statuses.SUCCESS, counts, refusal)

    @contextlib.contextmanager
    def _get(self, path: str, accept: str) -> Iterator[httpx.Response]:
        try:
            url, headers = f"{self._root}{path}", {"Accept": accept}
            with self._client.stream("GET", url, headers=headers, extensions=self._extensions) as answer:
                self._judge(answer)
                yield answer
        except httpx.TimeoutException as error:
            raise PeerUnavailable(
                f"nothing was heard of {self._name} for {self._timeout_s:g} s", "check that it runs, and fetch again"
            ) from error
        except httpx.ConnectError as error:
            raise PeerUnavailable(
                f"{self._name} does not answer", "check that it runs, its url, and the certificates on both sides"
            ) from error
        except httpx.TransportError as error:
            raise PeerUnavailable(
                f"{self._name} ended the connection half way", "look into its log, and fetch again"
            ) from error

    def _judge(self, answer: httpx.Response) -> None:
        code = answer.status_code
        if code in (401, 403):
            raise PeerRefused(f"{self._name} does not let us in (HTTP {code})", "check the archive's token")
        if code == 429 or code >= 500:
            raise PeerUnavailable(f"{self._name} fails (HTTP {code})", _LOG)
        if code not in (200, 204, 206, 404):
            raise PeerRefused(f"{self._name} answers with HTTP {code}", "check the archive's url")
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise PeerRefused(f"{self._name} encodes its answer though it was asked not to", "switch that off there")


def _token(archive: Archive) -> str:
    """Return the bearer token that one of the two settings names."""
    if archive.token is not None:
        return secret(archive.token, None, Path())
    assert archive.token_file is not None
    return secret(None, archive.token_file, Path())


def _series(found: Mapping[str, Any]) -> FetchedSeries:
    """Read one match in the DICOM JSON Model (PS3.18 annex F)."""
    number = _first(found, _IMAGES)
    images = int(number) if number not in (None, "") else None
    return FetchedSeries(
        str(_first(found, _SERIES_UID) or ""), printable(str(_first(found, _MODALITY) or ""), 16),
        printable(str(_first(found, _DESCRIPTION) or "")), images if images is None or 0 <= images < 2**31 else None,
    )  # fmt: skip


def _first(found: Mapping[str, Any], tag: str) -> Any:
    values = found.get(tag, {}).get("Value") or [None]
    return values[0]


def _boundary(answer: httpx.Response, name: str) -> str:
    fields = Message()
    fields["content-type"] = answer.headers.get("content-type", "")
    boundary = fields.get_param("boundary", "")
    if fields.get_content_type() != "multipart/related" or not isinstance(boundary, str):
        raise PeerRefused(f"{name} sends no DICOM objects in parts", "check the archive's url")
    return boundary


def _counts(transaction: Transaction) -> Counts:
    good = sum(outcome.status == statuses.SUCCESS for outcome in transaction.outcomes)
    return Counts(None, good, len(transaction.outcomes) - good)
