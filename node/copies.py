"""Getting one object back from a PACS: by C-GET on an association of our own, or by C-MOVE to our listener.

PS3.4 sections C.4.2 and C.4.3, at IMAGE level. The object is kept in memory, with its file meta information.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet as StudyRootGet
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove as StudyRootMove

from node import statuses
from node.errors import InvalidInstance, PeerRefused, PeerUnavailable
from node.header import UNREADABLE
from node.inquiry import Sent
from node.returns import Returns
from node.scu import Address, associate
from node.suboperations import FOR_ALL, REACHES_US, SOME_FAILED, explain

_PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
# What pynetdicom and pydicom raise over bytes that are no data set.
_NO_DATA_SET = (*UNREADABLE, AttributeError)


def get_copy(peer: Address, timeout_s: float, sent: Sent, transfer_syntax_uid: str) -> Dataset | None:
    """Get one object by C-GET in the transfer syntax it was sent in, or a plain one; None: it is not there.

    Raises
    ------
    PeerUnavailable, ConfigurationError
        As `node.scu.associate`; the association broke, or there was no answer.
    PeerRefused
        The peer offers no C-GET of this class, or sent nothing and answered with a failure.
    InvalidInstance
        What came is no data set.
    """
    got: list[Dataset] = []
    damaged: list[str] = []

    def on_store(event: Any) -> int:
        if str(event.request.AffectedSOPInstanceUID) == sent.sop_uid:
            try:
                ds = event.dataset
                ds.file_meta = event.file_meta
            except _NO_DATA_SET as error:
                damaged.append(type(error).__name__)
                return statuses.CANNOT_UNDERSTAND
            got.append(ds)
        return statuses.SUCCESS

    syntaxes = list(dict.fromkeys([UID(transfer_syntax_uid), *_PLAIN]))
    contexts = [build_context(StudyRootGet), build_context(UID(sent.sop_class_uid), syntaxes)]
    handlers = [(evt.EVT_C_STORE, on_store)]
    with associate(peer, contexts, timeout_s, as_scp=[sent.sop_class_uid], handlers=handlers) as association:
        if {context.abstract_syntax for context in association.accepted_contexts} != {StudyRootGet, sent.sop_class_uid}:
            raise PeerRefused(f"{peer} offers no C-GET of this class", "let it accept C-GET from our AE title")
        answer = _last(association.send_c_get(_identifier(sent), StudyRootGet))
    if damaged:
        raise InvalidInstance(f"what came cannot be read ({damaged[0]})", "look at the object in the PACS")
    if not got:
        _refuse_failure(answer, "C-GET")
    return got[0] if got else None


def have_copy_sent(
    peer: Address, to: str, returns: Returns, timeout_s: float, sent: Sent, _transfer_syntax_uid: str
) -> Dataset | None:
    """Have one object sent to our listener, whose AE title is `to`, by C-MOVE; None: it is not there.

    Raises
    ------
    PeerUnavailable, ConfigurationError
        As `node.scu.associate`; the association broke, or there was no answer.
    PeerRefused
        The peer offers no C-MOVE, answered with a failure, or sent the object elsewhere.
    InvalidInstance
        What came is no data set.
    """
    with (
        returns.awaiting(sent.sop_uid) as came,
        associate(peer, [build_context(StudyRootMove, _PLAIN)], timeout_s) as association,
    ):
        if not association.accepted_contexts:
            raise PeerRefused(f"{peer} offers no C-MOVE", "let it accept C-MOVE from our AE title")
        answer = _last(association.send_c_move(_identifier(sent), to, StudyRootMove))
    if came:
        try:
            return pydicom.dcmread(BytesIO(came[0]))
        except _NO_DATA_SET as error:
            reason = f"what came cannot be read ({type(error).__name__})"
            raise InvalidInstance(reason, "look at the object in the PACS") from error
    _refuse_failure(answer, "C-MOVE", to)
    if answer.get("NumberOfCompletedSuboperations") or answer.get("NumberOfWarningSuboperations"):
        raise PeerRefused("the peer says that it sent the object, and it did not come", REACHES_US)
    return None


def _identifier(sent: Sent) -> Dataset:
    asked = Dataset()
    asked.QueryRetrieveLevel = "IMAGE"
    asked.StudyInstanceUID, asked.SeriesInstanceUID = sent.study_uid, sent.series_uid
    asked.SOPInstanceUID = sent.sop_uid
    return asked


def _last(responses: Iterator[tuple[Dataset, Dataset | None]]) -> Dataset:
    """Return the last response of a retrieval; empty where none came."""
    try:
        answers = [answer for answer, _ in responses]
    except (RuntimeError, ValueError) as error:
        raise PeerUnavailable("the association broke", "ask again") from error
    return answers[-1] if answers else Dataset()


def _refuse_failure(answer: Dataset, operation: str, to: str = "") -> None:
    """Raise where the last response of a retrieval that brought nothing says no success; `to`: where C-MOVE went."""
    status, also = answer.get("Status"), f"; {REACHES_US}" if to else ""
    if status is None:
        raise PeerUnavailable(f"no answer to {operation}", f"look into the peer's log{also}")
    if status == SOME_FAILED:
        raise PeerRefused("the peer has the object and could not send it (0xB000)", f"look into its log{also}")
    reason, step = explain(status, to)
    if reason:
        raise PeerRefused(f"no copy by {operation}: {reason}", step if status in FOR_ALL else f"{step}{also}")
