"""Asking a peer by C-FIND which series of a study it has, how many images of each, and whether it has one object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from pydicom import Dataset
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as StudyRootFind

from node.errors import PeerRefused, PeerUnavailable
from node.header import UNREADABLE
from node.ledger import FetchedSeries
from node.logs import printable
from node.records import is_uid
from node.scu import Address, associate

# One series, or one object, has one match; a peer that ignores what it is asked sends all that it has.
_MOST_MATCHES = 16
MOST_SERIES = 5000
_MOST_IMAGES = 100_000
# What else a peer may answer, and what to do then.
_IGNORED_QUESTION = "other series than asked for", "set count = false"
_OTHERS = "other objects than asked for", "check that it can be queried at IMAGE level"
_TOO_MANY = f"more than {MOST_SERIES} series", "name its series"
_NO_END = "images without end", "look into its log"


def count_images(peer: Address, series: Mapping[str, str], timeout_s: float) -> dict[str, int]:
    """Ask how many images of each series a peer has, by Study Root C-FIND at SERIES level (PS3.4 C.4.1 and C.6.2.1.3).

    `series` names the Study Instance UID of each Series Instance UID. A series that the peer does not know has 0; one
    whose number it does not tell (Number of Series Related Instances is optional, PS3.4 C.3.4) is left out.

    Raises
    ------
    PeerUnavailable
        Nobody answers, or the association broke.
    PeerRefused
        The peer takes no such question, or answered with a failure.
    ConfigurationError
        A file that its `security` names cannot be used.
    """
    try:
        with associate(peer, [build_context(StudyRootFind)], timeout_s) as association:
            answers = {uid: _count(association, study_uid, uid) for uid, study_uid in series.items()}
    except RuntimeError as error:
        raise PeerUnavailable("the association broke", "it is asked again") from error
    return {uid: number for uid, number in answers.items() if number is not None}


def list_series(peer: Address, study_uid: str, timeout_s: float) -> list[FetchedSeries]:
    """Ask which series of a study a peer has, by Study Root C-FIND at SERIES level (PS3.4 C.6.2.1.3); none: no study.

    What the peer says of a series is cut to what the ledger holds. Where it tells no number of images, they are counted
    at IMAGE level (PS3.4 C.6.2.1.4); None: that cannot be either.

    Raises
    ------
    PeerUnavailable, PeerRefused, ConfigurationError
        As `count_images`; PeerRefused also where it answers with other studies, or more than `MOST_SERIES`.
    """
    asked = Dataset()
    asked.QueryRetrieveLevel = "SERIES"
    asked.StudyInstanceUID, asked.SeriesInstanceUID = study_uid, ""
    asked.Modality = asked.SeriesDescription = ""
    asked.NumberOfSeriesRelatedInstances = None
    found: dict[str, FetchedSeries] = {}
    try:
        with associate(peer, [build_context(StudyRootFind)], timeout_s) as association:
            for answer in _matches(association, asked, MOST_SERIES, _TOO_MANY):
                series_uid = _text(answer, "SeriesInstanceUID")
                if _text(answer, "StudyInstanceUID") not in ("", study_uid):
                    association.abort()
                    raise PeerRefused("the peer answers C-FIND with another study than asked for", "look into its log")
                if not is_uid(series_uid):
                    association.abort()
                    raise PeerRefused("the peer answers C-FIND with a series without a UID", "look into its log")
                found[series_uid] = FetchedSeries(
                    series_uid, printable(_text(answer, "Modality"), 16), printable(_text(answer, "SeriesDescription")),
                    _related_instances(answer),
                )  # fmt: skip
            for one in found.values():
                if one.announced is None:  # a value is replaced, no key comes or goes
                    found[one.series_uid] = replace(
                        one, announced=_count_images(association, study_uid, one.series_uid)
                    )
    except RuntimeError as error:
        raise PeerUnavailable("the association broke", "fetch again") from error
    return list(found.values())


def _count_images(association: Association, study_uid: str, series_uid: str) -> int | None:
    """Count the images of a series one by one, for a peer that does not tell their number; None: it does not say."""
    asked = Dataset()
    asked.QueryRetrieveLevel = "IMAGE"
    asked.StudyInstanceUID, asked.SeriesInstanceUID, asked.SOPInstanceUID = study_uid, series_uid, ""
    images = set()
    try:
        for answer in _matches(association, asked, _MOST_IMAGES, _NO_END):
            if _text(answer, "SeriesInstanceUID") in ("", series_uid):
                images.add(_text(answer, "SOPInstanceUID"))
    except PeerRefused:
        if not association.is_established:
            raise
    return len(images - {""}) or None


def holds_image(association: Association, study_uid: str, series_uid: str, sop_uid: str) -> bool:
    """Ask whether a peer has one object, by Study Root C-FIND at IMAGE level (PS3.4 C.6.2.1.4).

    Raises
    ------
    PeerUnavailable, PeerRefused
        There was no answer; the peer answered with a failure, or with other objects than asked for.
    RuntimeError, ValueError
        By pynetdicom, where the association broke or has no context for it.
    """
    asked = Dataset()
    asked.QueryRetrieveLevel = "IMAGE"
    asked.StudyInstanceUID, asked.SeriesInstanceUID, asked.SOPInstanceUID = study_uid, series_uid, sop_uid
    # To the end: what is left unread would pass for the answer to the next question.
    found = [_text(match, "SOPInstanceUID") for match in _matches(association, asked, _MOST_MATCHES, _OTHERS)]
    if found and sop_uid not in found:  # who ignores what was asked has not said that it is not there
        raise PeerRefused(f"the peer answers C-FIND with {_OTHERS[0]}", _OTHERS[1])
    return bool(found)


def _matches(association: Association, asked: Dataset, most: int, others: tuple[str, str]) -> Iterator[Dataset]:
    """Yield the identifiers of all matches; more than `most` of them are an error that `others` puts into words."""
    for number, (response, identifier) in enumerate(association.send_c_find(asked, StudyRootFind)):
        status = response.get("Status")
        if status is None:
            raise PeerUnavailable("no answer to C-FIND", "check the peer's log")
        if status == 0x0000:
            break
        if status not in (0xFF00, 0xFF01):
            raise PeerRefused(f"the peer answered C-FIND with 0x{status:04X}", "look into the peer's log")
        if number >= most:
            association.abort()
            raise PeerRefused(f"the peer answers C-FIND with {others[0]}", others[1])
        if identifier is not None:
            yield identifier


def _count(association: Association, study_uid: str, series_uid: str) -> int | None:
    asked = Dataset()
    asked.QueryRetrieveLevel = "SERIES"
    asked.StudyInstanceUID, asked.SeriesInstanceUID = study_uid, series_uid
    asked.NumberOfSeriesRelatedInstances = None
    found: int | None = 0
    for identifier in _matches(association, asked, _MOST_MATCHES, _IGNORED_QUESTION):
        if _text(identifier, "SeriesInstanceUID") == series_uid:
            found = _related_instances(identifier)
    return found


def _text(identifier: Dataset, keyword: str) -> str:
    try:
        return str(identifier.get(keyword) or "").strip(" \0")
    except UNREADABLE:
        return ""


def _related_instances(identifier: Dataset) -> int | None:
    try:
        number = int(str(identifier.get("NumberOfSeriesRelatedInstances")))
    except (*UNREADABLE, ValueError):
        return None
    return number if 0 <= number < 2**31 else None
