"""Having an archive's DICOMweb services tell what it has of a study (QIDO-RS), and send it (WADO-RS).

PS3.18 sections 10.6 and 10.4. Objects go piece by piece from the answer's body into reception.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from node import statuses
from node.errors import InvalidRequest, PeerRefused, PeerUnavailable, RequestTooLarge
from node.incoming import Origin, Receiver
from node.ledger import FetchedSeries
from node.logs import printable
from node.query import MOST_SERIES
from node.records import is_uid
from node.suboperations import SOME_FAILED, Counts, Retrieved, Watch
from node.transaction import Transaction
from node.webservice import JSON, OBJECTS, WebClient

_MAX_LIST = 16 << 20
_TELL_S = 0.5
_SERIES_UID, _MODALITY, _DESCRIPTION, _IMAGES = "0020000E", "00080060", "0008103E", "00201209"


class DicomWeb:
    """What one archive's services are asked for, over `client`."""

    def __init__(self, client: WebClient) -> None:
        self._client = client
        self._name = str(client.service)

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
        with self._get(f"/studies/{study_uid}/series?includefield={fields}&limit={MOST_SERIES}", JSON) as answer:
            matches = [] if answer.status_code in (204, 404) else self._client.matches(answer, _MAX_LIST)
        try:
            found = [_series(one) for one in matches]
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
            raise self._client.no_json() from error
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
        with self._get(f"/studies/{study_uid}/series/{series_uid}", OBJECTS) as answer:
            if answer.status_code in (204, 404):
                raise PeerRefused(f"{self._name} has no series {series_uid} any more", "fetch again")
            try:
                parser = self._client.parser(answer)
            except InvalidRequest as error:
                raise self._client.no_objects() from error
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
        with self._client.get(path, accept) as answer:
            if answer.status_code not in (200, 204, 206, 404):
                raise PeerRefused(f"{self._name} answers with HTTP {answer.status_code}", "check the archive's url")
            yield answer


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


def _counts(transaction: Transaction) -> Counts:
    good = sum(outcome.status == statuses.SUCCESS for outcome in transaction.outcomes)
    return Counts(None, good, len(transaction.outcomes) - good)
