"""Getting one object back from a PACS by C-GET (PS3.4 C.4.3), on an association of its own."""

from __future__ import annotations

from typing import Any

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet as StudyRootGet

from node import statuses
from node.errors import InvalidInstance, PeerRefused, PeerUnavailable
from node.header import UNREADABLE
from node.inquiry import Sent
from node.scu import Address, associate

_PENDING = frozenset({0xFF00, 0xFF01})
_SUBOPERATIONS_FAILED = 0xB000
# What pynetdicom and pydicom raise over bytes that are no data set.
_NO_DATA_SET = (*UNREADABLE, AttributeError)


def copy_of(peer: Address, sent: Sent, transfer_syntax_uid: str, timeout_s: float) -> Dataset | None:
    """Get one object, at IMAGE level, in the transfer syntax it was sent in or a plain one; None: it is not there.

    It is kept in memory, with its file meta information.

    Raises
    ------
    PeerUnavailable, ConfigurationError
        As `node.scu.associate`; the association broke, or there was no answer.
    PeerRefused
        The peer offers no C-GET of this class, or answered with a failure.
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

    syntaxes = list(dict.fromkeys([UID(transfer_syntax_uid), ExplicitVRLittleEndian, ImplicitVRLittleEndian]))
    contexts = [build_context(StudyRootGet), build_context(UID(sent.sop_class_uid), syntaxes)]
    asked = Dataset()
    asked.QueryRetrieveLevel = "IMAGE"
    asked.StudyInstanceUID, asked.SeriesInstanceUID = sent.study_uid, sent.series_uid
    asked.SOPInstanceUID = sent.sop_uid
    handlers = [(evt.EVT_C_STORE, on_store)]
    with associate(peer, contexts, timeout_s, as_scp=[sent.sop_class_uid], handlers=handlers) as association:
        if {context.abstract_syntax for context in association.accepted_contexts} != {StudyRootGet, sent.sop_class_uid}:
            raise PeerRefused(f"{peer} offers no C-GET of this class", "let it accept C-GET from our AE title")
        status = None
        try:
            for response, _ in association.send_c_get(asked, StudyRootGet):
                status = response.get("Status")
        except (RuntimeError, ValueError) as error:
            raise PeerUnavailable("the association broke", "ask again") from error
    if damaged:
        raise InvalidInstance(f"what came cannot be read ({damaged[0]})", "look at the object in the PACS")
    if status is None:
        raise PeerUnavailable("no answer to C-GET", "check the peer's log")
    if status not in (statuses.SUCCESS, _SUBOPERATIONS_FAILED, *_PENDING):
        raise PeerRefused(f"the peer answered C-GET with 0x{status:04X}", "look into the peer's log")
    if not got and status == _SUBOPERATIONS_FAILED:
        raise PeerRefused("the peer has the object and could not send it (0xB000)", "look into the peer's log")
    return got[0] if got else None
