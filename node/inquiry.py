"""What we ask a PACS about objects that it took: storage commitment and C-FIND, both on one association."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as StudyRootFind
from pynetdicom.sop_class import Verification

from node import statuses
from node.commitment import SOP_CLASS_UID, SOP_INSTANCE_UID
from node.errors import PeerRefused, PeerUnavailable
from node.incoming import Origin
from node.operation import Operation, Outcome
from node.pdata import N_EVENT_REPORT_RQ
from node.query import holds_image
from node.scu import Address, associate
from node.states import Proof

_SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_REQUEST = 1  # the only Action Type (PS3.4 J.3.2.1.1)
# Attribute list error and attribute value out of range: warnings, the request is accepted (PS3.7 annex C).
_ACCEPTED = frozenset({statuses.SUCCESS, 0x0107, 0x0116})
_GLANCE_S = 0.05


@dataclass(frozen=True)
class Sent:
    """One object as a PACS may be asked about it; all are UIDs."""

    sop_class_uid: str
    sop_uid: str
    series_uid: str
    study_uid: str


class Inquiry:
    """Asks on one association what the peer offers to answer."""

    query = Proof.FIND

    def __init__(self, association: Association, reported: threading.Event) -> None:
        self._association = association
        self._reported = reported
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        self.commits = SOP_CLASS_UID in accepted
        self.finds = StudyRootFind in accepted

    def request_commitment(self, transaction_uid: str, objects: Sequence[Sent]) -> None:
        """Ask for storage commitment by N-ACTION (PS3.4 J.3.2); its report comes when the peer likes.

        Raises
        ------
        PeerRefused, PeerUnavailable
            The peer answered with a failure; the association broke, or there was no answer.
        """
        asked = Dataset()
        asked.TransactionUID = transaction_uid
        asked.ReferencedSOPSequence = []
        for one in objects:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.sop_class_uid, one.sop_uid
            asked.ReferencedSOPSequence.append(item)
        try:
            answer, _ = self._association.send_n_action(asked, _REQUEST, SOP_CLASS_UID, SOP_INSTANCE_UID)
        except (RuntimeError, ValueError) as error:
            raise PeerUnavailable("the association broke", "it is asked again") from error
        if "Status" not in answer:
            raise PeerUnavailable("no answer to N-ACTION", "check the peer's log")
        if answer.Status not in _ACCEPTED:
            raise PeerRefused(f"the peer answered N-ACTION with 0x{answer.Status:04X}", "look into the peer's log")

    def await_report(self, seconds: float) -> None:
        """Keep the association open until a report has come on it, or for so long."""
        give_up = time.monotonic() + seconds
        while self._association.is_established and time.monotonic() < give_up:
            if self._reported.wait(_GLANCE_S):
                return

    def holds(self, sent: Sent) -> bool:
        """Ask by C-FIND at IMAGE level whether the peer holds an object.

        Raises
        ------
        PeerRefused, PeerUnavailable
            The peer answered with a failure; the association broke, or there was no answer.
        """
        try:
            return holds_image(self._association, sent.study_uid, sent.series_uid, sent.sop_uid)
        except (RuntimeError, ValueError) as error:
            raise PeerUnavailable("the association broke", "it is asked again") from error


@contextlib.contextmanager
def inquire(peer: Address, timeout_s: float, report: Callable[[Operation], Outcome]) -> Iterator[Inquiry]:
    """Open an association to ask on. A report that comes on it is given to `report`.

    Raises
    ------
    PeerUnavailable, PeerRefused, ConfigurationError
        As `node.scu.associate`.
    """
    reported = threading.Event()

    def on_report(event: Any) -> tuple[Dataset, None]:
        request, answer = event.request, Dataset()
        if request.AffectedSOPClassUID != SOP_CLASS_UID:
            answer.Status = statuses.UNRECOGNISED_OPERATION
            return answer, None
        encoded = request.EventInformation
        outcome = report(
            Operation(
                Origin(0, peer.ae_title, peer.calling_ae_title, peer.host), N_EVENT_REPORT_RQ,
                str(request.AffectedSOPClassUID or ""), str(request.AffectedSOPInstanceUID or ""), None,
                str(event.context.transfer_syntax), encoded.getvalue() if encoded is not None else b"",
                request.EventTypeID,
            )
        )  # fmt: skip
        reported.set()
        answer.Status = outcome.status
        if outcome.comment:
            answer.ErrorComment = outcome.comment
        return answer, None

    # Verification, so that there is an association to see the answer on where the peer offers neither.
    contexts = [build_context(name, _SYNTAXES) for name in (Verification, SOP_CLASS_UID, StudyRootFind)]
    with associate(peer, contexts, timeout_s, handlers=[(evt.EVT_N_EVENT_REPORT, on_report)]) as association:
        yield Inquiry(association, reported)
