"""Having a peer send what it has: by C-GET on an association of our own, or by C-MOVE to our listener.

PS3.4 sections C.4.2 and C.4.3. What C-GET brings goes PDV by PDV into reception, as from the listener: no object is
held in memory, and its status is answered only for what is durable.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from pydicom import Dataset, uid
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_GET, C_MOVE, C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet as StudyRootGet
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove as StudyRootMove

from node import statuses
from node.errors import PeerRefused, PeerUnavailable, ProtocolViolation
from node.incoming import Incoming, Origin, Receiver
from node.negotiation import retrieval_contexts
from node.pdata import C_STORE_RQ, Command, parse_command
from node.records import is_uid
from node.scu import Address, associate
from node.storage_classes import STORAGE_CLASSES
from node.suboperations import Counts, Retrieved, Stopped, Watch

_PLAIN = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian]
_MAX_PDU = 131072
_MAX_COMMAND = 16384
# PDUs that lie ready while we are at the disk: the peer waits then.
_READY = 8
_LOOK_S, _TELL_S, _CANCEL_S = 0.2, 0.5, 5.0
_RESPONSES = (0x8010, 0x8021)  # C-GET-RSP and C-MOVE-RSP (PS3.7 table E.1-1)
# What may still come of an object that is refused for its size, so that its sender hears the status.
_GRACE = 64_000_000


class Retrieval:
    """One association, on which series are retrieved one after the other."""

    def __init__(
        self, association: Association, timeout_s: float, reception: Receiver, origin: Origin, max_object: int
    ) -> None:
        self._association = association
        self._timeout_s = timeout_s
        self._reception = reception
        self._origin = origin
        self._max_object = max_object
        self._contexts = {
            c.context_id: (str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in _accepted(association)
        }
        self._queue: queue.Queue[Any] = queue.Queue(_READY)
        self._closed = False
        self._message_id = 0
        self._collected = bytearray()
        self._command: Command | None = None  # of the message whose data set comes
        self._incoming: Incoming | None = None
        self._counts = Counts()
        self._final: int | None = None
        self._refusal = ""
        self._step = ""  # for who ends the association: some, like Orthanc, say in no other way that we may not
        # Called by the association's own thread with each P-DATA-TF: messages never pile up in memory.
        association.dimse.receive_primitive = self._put

    def close(self) -> None:
        """Drop what is half received; whatever still comes is thrown away."""
        self._closed = True
        if self._incoming is not None:
            self._incoming.drop()
            self._incoming = None

    def get(self, study_uid: str, series_uid: str, watch: Watch) -> Retrieved:
        """Have one series sent to us on this association.

        Raises
        ------
        PeerUnavailable
            The association broke, or nothing was heard for `timeout_s`.
        ProtocolViolation
            What came is no DIMSE message, or has no place here.
        Stopped
            By `watch`; the peer was told to cancel.
        """
        self._step = "does it let our AE title retrieve? Look into its log, and fetch again"
        return self._retrieve(C_GET(), StudyRootGet, study_uid, series_uid, watch)

    def move(self, study_uid: str, series_uid: str, destination: str, watch: Watch) -> Retrieved:
        """Have one series sent to the application entity `destination`. Raises as `get` does."""
        request = C_MOVE()
        request.MoveDestination = destination
        self._step = f"does it know the move destination {destination}? Look into its log, and fetch again"
        return self._retrieve(request, StudyRootMove, study_uid, series_uid, watch)

    def _retrieve(self, request: Any, model: str, study_uid: str, series_uid: str, watch: Watch) -> Retrieved:
        context_id, syntax = next((i, s) for i, (abstract, s) in self._contexts.items() if abstract == model)
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "SERIES"
        identifier.StudyInstanceUID, identifier.SeriesInstanceUID = study_uid, series_uid
        self._message_id += 1
        self._counts, self._final, self._refusal = Counts(), None, ""
        request.MessageID, request.AffectedSOPClassUID, request.Priority = self._message_id, model, 0
        request.Identifier = BytesIO(encode(identifier, uid.UID(syntax).is_implicit_VR, True) or b"")
        self._association.dimse.send_msg(request, context_id)
        try:
            return self._await_end(watch, self._timeout_s)
        except Stopped:
            with contextlib.suppress(PeerUnavailable, ProtocolViolation, RuntimeError):
                self._association.send_c_cancel(self._message_id, context_id)
                give_up = time.monotonic() + _CANCEL_S
                self._await_end(lambda _counts: 0, _CANCEL_S, give_up)
            if self._final is None:
                self._association.abort()
            raise

    def _await_end(self, watch: Watch, timeout_s: float, give_up: float = float("inf")) -> Retrieved:
        heard = told = time.monotonic()
        activity = watch(self._counts)
        while self._final is None or self._command is not None:
            with contextlib.suppress(queue.Empty):
                self._take(self._queue.get(timeout=_LOOK_S))
                heard = time.monotonic()
                if self._final is not None:
                    continue
            now = time.monotonic()
            if now - told >= _TELL_S:
                before, activity, told = activity, watch(self._counts), now
                heard = now if activity != before else heard
            if self._queue.empty() and not (self._association.is_established and self._association.dul.is_alive()):
                raise PeerUnavailable("the peer ended the association half way", self._step)
            if now - heard > timeout_s or now > give_up:
                self._association.abort()
                raise PeerUnavailable(f"nothing was heard of the peer for {timeout_s:g} s", self._step)
        watch(self._counts)
        assert self._final is not None
        return Retrieved(self._final, self._counts, self._refusal)

    def _put(self, primitive: Any) -> None:
        while not self._closed:
            with contextlib.suppress(queue.Full):
                self._queue.put(primitive, timeout=_LOOK_S)
                return

    def _take(self, primitive: Any) -> None:
        for context_id, value in primitive.presentation_data_value_list:
            # PS3.8 annex E.2: the lowest bit marks a command, the next one the last fragment.
            is_command, is_last = bool(value[0] & 1), bool(value[0] & 2)
            if is_command == (self._command is not None):
                raise ProtocolViolation("a message out of turn", statuses.UNEXPECTED_PARAMETER)
            if not is_command:
                self._data(memoryview(value)[1:], is_last=is_last)
                continue
            self._collected += value[1:]
            if len(self._collected) > _MAX_COMMAND:
                raise ProtocolViolation("a command set over the limit", statuses.INVALID_PARAMETER)
            if is_last:
                encoded = bytes(self._collected)
                self._collected.clear()
                self._begin(parse_command(context_id, encoded), encoded)

    def _begin(self, command: Command, encoded: bytes) -> None:
        if command.field == C_STORE_RQ and command.has_data:
            self._command, self._incoming = command, self._admit(command)
        elif command.field in _RESPONSES:
            self._command = command if command.has_data else None
            if command.responded_id == self._message_id and command.status is not None:
                self._counts = _counts(encoded, self._counts)
                self._final = None if command.status in (0xFF00, 0xFF01) else command.status
        else:
            raise ProtocolViolation(f"command {command.field:#06x} has no place here", statuses.UNEXPECTED_PARAMETER)

    def _admit(self, command: Command) -> Incoming:
        abstract, syntax = self._contexts.get(command.context_id, ("", ""))
        sop_class, sop_uid = _text(command.sop_class), _text(command.sop_instance)
        if abstract not in STORAGE_CLASSES:
            raise ProtocolViolation(
                f"presentation context {command.context_id} is not for storage", statuses.INVALID_PARAMETER
            )
        if sop_class == abstract:
            return self._reception.begin(self._origin, sop_class, sop_uid, syntax)
        incoming = Incoming(self._origin, sop_class, sop_uid, syntax)
        incoming.refuse(statuses.SOP_CLASS_NOT_SUPPORTED, "its class is not that of its context")
        return incoming

    def _data(self, piece: memoryview, *, is_last: bool) -> None:
        command, incoming = self._command, self._incoming
        if incoming is not None:
            self._reception.append(incoming, [piece])
            if incoming.size > self._max_object + _GRACE:
                raise ProtocolViolation("a data set without end", statuses.NOT_SPECIFIED)
        if not is_last:
            return
        self._command = self._incoming = None
        if command is not None and incoming is not None:
            self._answer(command, incoming)

    def _answer(self, command: Command, incoming: Incoming) -> None:
        try:
            status = self._reception.finish(incoming)
        finally:
            self._reception.tidy(incoming)
        if status != statuses.SUCCESS and not self._refusal:
            reason = incoming.refusal[1] if incoming.refusal else "another object is here under its SOP Instance UID"
            self._refusal = reason
        answer = C_STORE()
        answer.MessageID = answer.MessageIDBeingRespondedTo = command.message_id
        if is_uid(incoming.sop_uid) and is_uid(incoming.sop_class_uid):
            answer.AffectedSOPInstanceUID, answer.AffectedSOPClassUID = incoming.sop_uid, incoming.sop_class_uid
        answer.Status = status
        self._association.dimse.send_msg(answer, command.context_id)


@contextlib.contextmanager
def retrieving(
    peer: Address, *, by_move: bool, timeout_s: float, reception: Receiver, origin: Origin, max_object: int
) -> Iterator[Retrieval]:
    """Open an association for C-MOVE, or for C-GET with all that the node stores.

    `max_object` is what `reception` takes of one object, in bytes.

    Raises
    ------
    PeerUnavailable, PeerRefused, ConfigurationError
        As `node.scu.associate`; PeerRefused also where the peer knows no such retrieval.
    """
    model = StudyRootMove if by_move else StudyRootGet
    contexts = [build_context(model, _PLAIN), *([] if by_move else retrieval_contexts())]
    roles = [] if by_move else STORAGE_CLASSES
    with associate(peer, contexts, timeout_s, as_scp=roles, max_pdu=_MAX_PDU) as association:
        if not any(c.abstract_syntax == model for c in _accepted(association)):
            other = "get" if by_move else "move"
            raise PeerRefused(
                f"{peer} does not accept {'C-MOVE' if by_move else 'C-GET'} from us",
                f'let it accept that, or set retrieve = "{other}" of the archive',
            )
        # What is heard of the peer is ours to judge: by C-MOVE it may be at work though this association is silent.
        association.network_timeout = None
        retrieval = Retrieval(association, timeout_s, reception, origin, max_object)
        try:
            yield retrieval
        except ProtocolViolation as violation:
            association.abort()
            raise PeerRefused(f"the peer breaks the protocol: {violation.reason}", "look into its log") from violation
        except RuntimeError as error:
            raise PeerUnavailable("the association broke", "fetch again") from error
        finally:
            retrieval.close()


def _accepted(association: Association) -> list[Any]:
    found: list[Any] = association.accepted_contexts
    return found


def _counts(encoded: bytes, before: Counts) -> Counts:
    """Read the numbers of sub-operations from a response that was parsed; what it leaves out stays as it was."""
    found: dict[int, int] = {}
    position = 0
    while position + 8 <= len(encoded):
        element = int.from_bytes(encoded[position + 2 : position + 4], "little")
        length = int.from_bytes(encoded[position + 4 : position + 8], "little")
        if 0x1020 <= element <= 0x1023 and length == 2:
            found[element] = int.from_bytes(encoded[position + 8 : position + 10], "little")
        position += 8 + length
    return Counts(
        found.get(0x1020), found.get(0x1021, before.completed), found.get(0x1022, before.failed),
        found.get(0x1023, before.warned),
    )  # fmt: skip


def _text(encoded: bytes) -> str:
    """Return a UID as text without its padding; what is no ASCII will not pass for a UID."""
    return encoded.decode("ascii", errors="replace").rstrip("\0 ")
