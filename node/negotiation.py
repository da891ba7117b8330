"""Association negotiation for the fast path, with pynetdicom's PDUs and rules, and without its threads."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor
from pynetdicom.sop_class import Verification

from node.commitment import SOP_CLASS_UID as COMMITMENT
from node.errors import ProtocolViolation
from node.pdata import ASSOCIATE_RQ
from node.services import SOP_CLASSES
from node.statuses import INVALID_PARAMETER, PROTOCOL_VERSION_NOT_SUPPORTED
from node.storage_classes import STORAGE_CLASSES, TRANSFER_SYNTAXES

_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
# What pynetdicom raises over bytes that are no A-ASSOCIATE-RQ.
_UNREADABLE = (
    struct.error, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, OverflowError,
    RecursionError, AssertionError,
)  # fmt: skip

Supported = Sequence[PresentationContext]


@dataclass(frozen=True)
class Request:
    """An A-ASSOCIATE-RQ: the titles as sent, and what is asked for."""

    calling_ae: str
    called_ae: str
    wants_storage: bool
    maximum: int  # longest PDU that the peer takes, in bytes; 0: any
    primitive: A_ASSOCIATE


@dataclass(frozen=True)
class Agreement:
    """What an association may carry: `contexts` are context ID to (abstract syntax, transfer syntax)."""

    contexts: dict[int, tuple[str, str]]
    answer: bytes  # the A-ASSOCIATE-AC


def supported_contexts() -> Supported:
    """Return what we take, for all associations: storage by `node.storage_classes`, the rest in plain syntaxes."""
    plain = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]
    wanted: list[tuple[str, Sequence[str]]] = [(sop_class, plain) for sop_class in (Verification, *SOP_CLASSES)]
    wanted += [(sop_class, TRANSFER_SYNTAXES) for sop_class in STORAGE_CLASSES]
    contexts = []
    for abstract, syntaxes in wanted:
        context = PresentationContext()
        context.abstract_syntax = abstract
        context.transfer_syntax = list(syntaxes)
        if abstract == COMMITMENT:
            # A PACS that reports what we asked it calls as SCP (PS3.7 D.3.3.4), a scanner that asks us as SCU.
            context.scu_role = context.scp_role = True
        contexts.append(context)
    return contexts


def retrieval_contexts() -> list[PresentationContext]:
    """Return the contexts on which a C-GET of ours may bring objects: at most 127, beside one for the C-GET itself.

    For MR images each compressed syntax has one of its own, so that the peer need not decode what it holds; for all
    classes these would be more than there may be (PS3.8 section 9.3.2.2).
    """
    plain = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    compressed = [syntax for syntax in TRANSFER_SYNTAXES if syntax not in plain]
    contexts = []
    for abstract in STORAGE_CLASSES:
        often = abstract in (MRImageStorage, EnhancedMRImageStorage)
        for syntaxes in (plain, *([one] for one in compressed)) if often else (plain, compressed):
            context = PresentationContext()
            context.abstract_syntax = abstract
            context.transfer_syntax = list(syntaxes)
            contexts.append(context)
    return contexts


def read_request(body: bytes) -> Request:
    """Decode an A-ASSOCIATE-RQ (PS3.8 section 9.3.2), of which `body` is what follows the length.

    Raises
    ------
    Refused
        It is readable, and of another protocol version.
    ProtocolViolation
        It is not readable.
    """
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(struct.pack(">BxL", ASSOCIATE_RQ, len(body)) + body)
        if not pdu.protocol_version & 1:  # PS3.8 table 9-11: only bit 0 is tested
            raise Refused(PROTOCOL_VERSION_NOT_SUPPORTED, "another version of the protocol")
        primitive = pdu.to_primitive()
        numbers = [c.context_id for c in primitive.presentation_context_definition_list]
        if len(set(numbers)) < len(numbers):  # PS3.8 section 9.3.2.2.1: one ID, one meaning
            raise ProtocolViolation("an A-ASSOCIATE-RQ with two presentation contexts of one ID", INVALID_PARAMETER)
        wanted = {str(c.abstract_syntax) for c in primitive.presentation_context_definition_list}
        return Request(
            calling_ae=primitive.calling_ae_title,
            called_ae=primitive.called_ae_title,
            wants_storage=bool(wanted - {Verification, *SOP_CLASSES}),
            maximum=int(primitive.maximum_length_received or 0),
            primitive=primitive,
        )
    except _UNREADABLE as error:
        raise ProtocolViolation(
            f"an A-ASSOCIATE-RQ that cannot be read ({type(error).__name__})", INVALID_PARAMETER
        ) from error


class Refused(Exception):
    """Raised when an association is rejected; `answer` is the (result, source, reason) of PS3.8 table 9-21."""

    def __init__(self, answer: tuple[int, int, int], reason: str) -> None:
        super().__init__(reason)
        self.answer = answer


def agree(request: Request, supported: Supported, max_pdu: int) -> Agreement:
    """Choose presentation contexts, by our order of transfer syntaxes, and encode the A-ASSOCIATE-AC.

    `supported` is read only: it need not be copied for each association.
    """
    asked = request.primitive
    roles = {
        item.sop_class_uid: (item.scu_role, item.scp_role)
        for item in asked.user_information
        if type(item).__name__ == "SCP_SCU_RoleSelectionNegotiation"
    }
    try:
        results, role_answers = negotiate_as_acceptor(
            asked.presentation_context_definition_list, list(supported), roles
        )
        accepted = [context for context in results if context.result == 0]
        answer = A_ASSOCIATE()
        answer.application_context_name = UID(_APPLICATION_CONTEXT)
        answer.calling_ae_title, answer.called_ae_title = asked.calling_ae_title, asked.called_ae_title
        answer.result, answer.result_source = 0, 1
        answer.presentation_context_definition_results_list = accepted + [c for c in results if c.result != 0]
        maximum = MaximumLengthNotification()
        maximum.maximum_length_received = max_pdu
        implementation = ImplementationClassUIDNotification()
        implementation.implementation_class_uid = PYNETDICOM_IMPLEMENTATION_UID
        version = ImplementationVersionNameNotification()
        version.implementation_version_name = PYNETDICOM_IMPLEMENTATION_VERSION
        answer.user_information = [maximum, implementation, version, *role_answers]
        encoded = A_ASSOCIATE_AC(answer).encode()
    except _UNREADABLE as error:
        raise ProtocolViolation(
            f"an A-ASSOCIATE-RQ that cannot be answered ({type(error).__name__})", INVALID_PARAMETER
        ) from error
    contexts = {c.context_id: (str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in accepted}
    return Agreement(contexts, encoded)
