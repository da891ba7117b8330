"""The fast path: one thread per association that sleeps in the kernel until there is something to do.

The bytes of a data set go from the socket into one buffer and from there to the object's file. Negotiation is
pynetdicom's (`node.negotiation`); the states of PS3.8 section 9.2 that an acceptor can be in are the phases of `run`.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass

from node import answers, pdata, statuses
from node.admission import Admission
from node.errors import ProtocolViolation
from node.event_reports import EventReports
from node.incoming import Incoming, Origin, Receiver
from node.negotiation import Agreement, Refused, Request, Supported, agree, read_request
from node.operation import Body, Operation
from node.pdata import Command, Control, Fragment, Limits, Parser
from node.peers import Verdict, plain_title
from node.services import Services
from node.settings import Listener
from node.tlswire import HandshakeFailed, TlsSocket, TlsWire
from node.wire import Gone, Patience, TooSlow, Wire

log = logging.getLogger(__name__)

_BUFFER = 512 << 10
# What may still come of an object that is refused for its size, so that its sender hears the status.
_GRACE = 64_000_000
_FOR_EVER = math.inf
# Pieces that are put off to be written together: a buffer full of fragments of one byte would be 70 000.
_MOST_PIECES = 1024


@dataclass(frozen=True)
class House:
    """What all associations share.

    `judge` says of a calling AE title, a called one and an address whether they may come in. `opened` is told of every
    association that is established, with the name of the listed peer it is of, and `closed` of its number's end.
    """

    settings: Listener
    supported: Supported
    reception: Receiver
    admission: Admission
    judge: Callable[[str, str, str], Verdict]
    services: Services
    opened: Callable[[Origin, str], None]
    closed: Callable[[int], None]


class Association:
    """One connection from accept to close, as association acceptor."""

    def __init__(self, number: int, connection: socket.socket, address: str, house: House) -> None:
        self.number = number
        self.address = address
        self._house = house
        self._settings = settings = house.settings
        patience = Patience(
            settings.artim_s, settings.pdu_timeout_s, settings.network_timeout_s or _FOR_EVER, settings.min_rate
        )
        self._wire = TlsWire(connection, patience) if isinstance(connection, TlsSocket) else Wire(connection, patience)
        self._parser = Parser(Limits(settings.max_pdu, settings.max_command))
        self._origin = Origin(number, "", "", address)
        self._agreement = Agreement({}, b"")
        self._maximum = 0
        self._command: Command | None = None
        self._incoming: Incoming | None = None
        self._body: Body | None = None  # of a message that is not stored
        self._reports = EventReports(house.services.reports, number)

    def run(self) -> None:
        """Serve the peer until the connection is closed."""
        last_word = b""
        try:
            last_word = self._serve()
        except ProtocolViolation as violation:
            self._tell(violation.reason)
            last_word = answers.abort(violation.abort_reason)
        except TooSlow as slow:
            self._tell(str(slow))
            # Before the association there is nobody to abort: PS3.8 has ARTIM close the connection (AA-2).
            last_word = answers.abort(statuses.NOT_SPECIFIED) if self._wire.established else b""
        except HandshakeFailed as failed:
            self._tell(str(failed))
        except (Gone, OSError):
            if self._wire.ending and self._wire.established:
                last_word = answers.abort(statuses.NOT_SPECIFIED)
            elif self._parser.in_message:
                self._tell("the peer was gone in the middle of an object")
        except Exception as error:  # noqa: BLE001 - the thread's own boundary: the peer is to hear of it
            # Its type alone: the text may hold what the peer sent.
            self._tell(f"{type(error).__name__} in the node itself: report it")
            last_word = answers.abort(statuses.NOT_SPECIFIED) if self._wire.established else b""
        finally:
            try:
                self._end()
            finally:
                self._house.admission.part(self)
                try:
                    self._wire.last_word(last_word)
                finally:
                    self._house.admission.leave(self)

    def cut(self) -> None:
        """End the connection at once; from any thread."""
        self._wire.cut()

    def end(self) -> None:
        """Have the association aborted as soon as what it commits is committed; from any thread."""
        self._wire.end()

    # -- phases

    def _serve(self) -> bytes:
        """Go through all phases; return our last word."""
        try:
            self._establish(self._await_request())
        except Refused as refused:
            log.warning("rejected an association with %s at %s: %s", self._origin.calling_ae, self.address, refused)
            return answers.rejection(*refused.answer)
        while self._transfer():
            self._receive()
        return answers.release_response()

    def _receive(self) -> None:
        """Take what comes next; as long as nothing does, send the reports that are owed."""
        until = _FOR_EVER if self._parser.in_pdu or self._parser.in_message else self._reports.due()
        while not self._wire.receive(self._parser, until):
            if report := self._reports.next(self._maximum):
                self._wire.send(report)
            until = self._reports.due()
        if self._wire.received > self._settings.max_association_mb * 1_000_000:
            raise ProtocolViolation("more than listener.max_association_mb came over it", statuses.NOT_SPECIFIED)

    def _await_request(self) -> Request:
        while True:
            self._wire.receive(self._parser)
            for event in self._parser.events():
                if not isinstance(event, Control) or event.kind != pdata.ASSOCIATE_RQ:
                    raise Gone
                return read_request(event.body)

    def _establish(self, request: Request) -> None:
        calling, called = plain_title(request.calling_ae), plain_title(request.called_ae)
        self._origin = Origin(self.number, calling, called, self.address)
        verdict = self._house.judge(calling, called, self.address)
        if verdict.rejection is not None:
            raise Refused(verdict.rejection, verdict.reason)
        if request.wants_storage and self._house.reception.is_short_of_disk():
            raise Refused(statuses.TEMPORARY_CONGESTION, "less disk is free than listener.free_floor_mb")
        rejection = self._house.admission.admit(self, verdict.group, verdict.most)
        if rejection is not None:
            raise Refused(rejection, "as many associations are open as max_associations(_per_peer) allow")
        self._maximum = request.maximum
        self._agreement = agree(request, self._house.supported, self._settings.max_pdu)
        self._parser.establish(_BUFFER)
        self._wire.established = True
        self._house.opened(self._origin, verdict.peer)
        self._wire.send(self._agreement.answer)

    def _transfer(self) -> bool:
        """Act upon what was received; tell whether the association goes on."""
        pieces: list[memoryview] = []
        for event in self._parser.events():
            if isinstance(event, Fragment):
                pieces.append(event.data)
                if event.last or len(pieces) == _MOST_PIECES:
                    self._take(pieces)
                    pieces = []
                if event.last:
                    self._finish()
            elif isinstance(event, Command):
                self._begin(event)
            elif event.kind == pdata.RELEASE_RQ:
                return False
            else:
                raise Gone
        if pieces:
            self._take(pieces)
        return True

    # -- messages

    def _begin(self, command: Command) -> None:
        agreed = self._agreement.contexts.get(command.context_id)
        if agreed is None:
            raise ProtocolViolation(
                f"presentation context {command.context_id} was not accepted", statuses.INVALID_PARAMETER
            )
        if command.field & pdata.RESPONSE and not self._reports.awaits(command):
            raise ProtocolViolation("a response to nothing", statuses.UNEXPECTED_PARAMETER)
        self._command = command
        sop_class, sop_uid = (_text(value) for value in (command.sop_class, command.sop_instance))
        serves = sop_class == agreed[0] and self._house.services.performs(sop_class, command.field)
        if serves or command.field & pdata.RESPONSE:
            self._body = self._house.services.body()
        elif command.field == pdata.C_STORE_RQ and command.has_data and sop_class == agreed[0]:
            self._incoming = self._house.reception.begin(self._origin, sop_class, sop_uid, agreed[1])
        else:
            self._incoming = Incoming(self._origin, sop_class, sop_uid, agreed[1])
            if command.field == pdata.C_STORE_RQ:
                reason = "its class is not that of its context" if command.has_data else "it has no data set"
                status = statuses.SOP_CLASS_NOT_SUPPORTED if command.has_data else statuses.CANNOT_UNDERSTAND
                self._incoming.refuse(status, reason)
            elif command.field != pdata.C_ECHO_RQ:
                self._incoming.refuse(statuses.UNRECOGNISED_OPERATION, f"command {command.field:#06x} is not served")
        if not command.has_data:
            self._finish()

    def _take(self, pieces: list[memoryview]) -> None:
        if self._body is not None:
            self._body.append(pieces)
            _check_end(self._body.size, self._settings.max_message_mb)
            return
        incoming = self._incoming
        assert incoming is not None
        if self._command is not None and self._command.field == pdata.C_ECHO_RQ:
            incoming.size += sum(map(len, pieces))
        else:
            self._house.reception.append(incoming, pieces)
        _check_end(incoming.size, self._settings.max_object_mb)

    def _finish(self) -> None:
        command, incoming, body = self._command, self._incoming, self._body
        assert command is not None
        self._command = self._body = None
        if body is not None:
            self._perform(command, body)
            return
        assert incoming is not None
        if command.field == pdata.C_CANCEL_RQ:  # nothing runs that could be cancelled, and it has no response
            return
        status = statuses.SUCCESS if command.field == pdata.C_ECHO_RQ else self._house.reception.finish(incoming)
        self._wire.send(answers.response(command, status, self._maximum))
        if command.field == pdata.C_STORE_RQ:
            self._house.reception.tidy(incoming)
        self._incoming = None
        self._reports.rest()

    def _perform(self, command: Command, body: Body) -> None:
        """Act upon a message that came whole and is not stored: an operation, or the answer to a report of ours."""
        if command.field & pdata.RESPONSE:
            self._reports.answered(command)
            return
        syntax = self._agreement.contexts[command.context_id][1]
        sop_class, sop_uid = (_text(value) for value in (command.sop_class, command.sop_instance))
        kinds = command.action_type, command.event_type
        outcome = self._house.services.perform(
            Operation(self._origin, command.field, sop_class, sop_uid, kinds[0], syntax, body.data, kinds[1])
        )
        if outcome.owed is not None:
            self._reports.owe(outcome.owed, command.context_id, syntax)
        self._wire.send(
            answers.response(
                command, outcome.status, self._maximum, comment=outcome.comment, error_id=outcome.error_id,
                made=outcome.made,
            )
        )  # fmt: skip
        self._reports.rest()

    def _end(self) -> None:
        """Drop what is half received, and tell that the association is no more."""
        if self._incoming is not None:
            self._incoming.drop()
            self._incoming = None
        self._reports.close()
        if self._wire.established:
            self._wire.established = False
            self._house.closed(self.number)

    def _tell(self, reason: str) -> None:
        log.warning("ended the connection with %s at %s: %s", self._origin.calling_ae or "a peer", self.address, reason)


def _check_end(size: int, limit_mb: int) -> None:
    if size > limit_mb * 1_000_000 + _GRACE:
        raise ProtocolViolation("a data set without end", statuses.NOT_SPECIFIED)


def _text(uid: bytes) -> str:
    """Return a UID as text without its padding; what is no ASCII will not pass for a UID."""
    return uid.decode("ascii", errors="replace").rstrip("\0 ")
