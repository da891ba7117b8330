"""Whether the fast path does what pynetdicom itself does, found out before the port opens.

One canned exchange (association, C-ECHO, C-STORE, N-ACTION, N-SET, N-EVENT-REPORT, release) goes over a socket pair to
each of the two. Its answers must be the same, byte for byte, and so must what would be stored. A version of pynetdicom
whose inner parts behave otherwise than those we know is thereby noticed at start, and not by a scanner.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydicom import Dataset
from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association as StockAssociation
from pynetdicom.events import Event
from pynetdicom.transport import AddressInformation, AssociationSocket

from node import pdata, statuses
from node.admission import Admission, Quota
from node.commitment import SOP_CLASS_UID as COMMITMENT
from node.incoming import Incoming, Origin
from node.ingest import Association, House
from node.mpps import SOP_CLASS_UID as MPPS
from node.negotiation import supported_contexts
from node.operation import Outcome
from node.peers import Verdict
from node.services import Services
from node.settings import Listener
from node.stock import application_entity

_TIMEOUT_S = 10.0
_VERIFICATION, _MR, _RT_PLAN = b"1.2.840.10008.1.1", b"1.2.840.10008.5.1.4.1.1.4", b"1.2.840.10008.5.1.4.1.1.481.5"
_IMPLICIT, _EXPLICIT = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"
_DATA = bytes(range(256)) * 12  # of PDUs that the least listener.max_pdu lets through


@dataclass
class _Seen:
    """What one path answered, and what it would have stored: class, instance, transfer syntax, data set."""

    answers: list[bytes] = field(default_factory=list)
    stored: list[tuple[str, str, str, bytes]] = field(default_factory=list)


def difference(settings: Listener) -> str:
    """Say in what the fast path differs from the stock one; empty when in nothing."""
    seen = [_exchange(settings, serve) for serve in (_serve_stock, _serve_fast)]
    if seen[0].stored != seen[1].stored:
        return "an object would be stored otherwise than by pynetdicom"
    steps = ("A-ASSOCIATE", "C-ECHO", "C-STORE", "N-ACTION", "N-SET", "N-EVENT-REPORT", "A-RELEASE")
    for what, stock, fast in zip(steps, *(s.answers for s in seen), strict=False):
        if stock != fast:
            return f"the answer to {what} is not pynetdicom's"
    return (
        ""
        if len(seen[0].answers) == len(seen[1].answers) == len(steps)
        else "the canned exchange was not answered whole"
    )


def _exchange(settings: Listener, serve: Callable[[Listener, socket.socket, _Seen], None]) -> _Seen:
    seen = _Seen()
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(_TIMEOUT_S)
        serve(settings, theirs, seen)
        try:
            for request in (_association_request(), *_messages(), struct.pack(">BxLxxxx", pdata.RELEASE_RQ, 4)):
                ours.sendall(request)
                seen.answers.append(_read_pdu(ours))
        except OSError:
            pass
    return seen


def _serve_fast(settings: Listener, connection: socket.socket, seen: _Seen) -> None:
    refused = Outcome(statuses.PROCESSING_FAILURE, "refused", statuses.NO_LONGER_UPDATED)
    performers = {
        (COMMITMENT, pdata.N_ACTION_RQ): lambda _operation: Outcome(statuses.SUCCESS),
        (COMMITMENT, pdata.N_EVENT_REPORT_RQ): lambda _operation: Outcome(statuses.SUCCESS),
        (MPPS, pdata.N_SET_RQ): lambda _operation: refused,
    }
    services = Services(performers, len(_DATA))
    house = House(
        settings,
        supported_contexts(),
        _Recorder(seen),
        Admission(Quota(1, 1, 1, 1)),
        judge=lambda _calling, _called, _address: Verdict(),
        services=services,
        opened=lambda _origin, _peer: None,
        closed=lambda _number: None,
    )
    association = Association(0, connection, "", house)
    threading.Thread(target=association.run, name="self-check", daemon=True).start()


class _Recorder:
    """Stands where `node.reception.Reception` does, and keeps what it gets in memory."""

    def __init__(self, seen: _Seen) -> None:
        self._seen = seen
        self._data = bytearray()

    def is_short_of_disk(self) -> bool:
        return False

    def begin(self, origin: Origin, sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str) -> Incoming:
        return Incoming(origin, sop_class_uid, sop_uid, transfer_syntax_uid)

    def append(self, incoming: Incoming, pieces: Sequence[memoryview]) -> None:
        for piece in pieces:
            self._data += piece

    def finish(self, incoming: Incoming) -> int:
        self._seen.stored.append(
            (incoming.sop_class_uid, incoming.sop_uid, incoming.transfer_syntax_uid, bytes(self._data))
        )
        return statuses.SUCCESS

    def tidy(self, incoming: Incoming) -> None:
        incoming.drop()

    def close(self, timeout_s: float) -> None:
        pass


def _serve_stock(settings: Listener, connection: socket.socket, seen: _Seen) -> None:
    ae = application_entity(settings, supported_contexts())
    association = StockAssociation(ae, MODE_ACCEPTOR)
    association.name = "self-check"
    association.set_socket(AssociationSocket(association, client_socket=connection))
    acceptor = association.acceptor
    acceptor.maximum_length, acceptor.ae_title = ae.maximum_pdu_size, ae.ae_title
    acceptor.implementation_class_uid = ae.implementation_class_uid
    acceptor.implementation_version_name = ae.implementation_version_name
    acceptor.supported_contexts = ae.supported_contexts
    acceptor.address_info = association.requestor.address_info = AddressInformation("127.0.0.1", 0)

    def on_store(event: Event) -> int:
        request = event.request
        uids = (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID, event.context.transfer_syntax)
        class_uid, sop_uid, syntax = (str(uid) for uid in uids)
        seen.stored.append((class_uid, sop_uid, syntax, request.DataSet.getvalue()))
        return statuses.SUCCESS

    association.bind(evt.EVT_C_STORE, on_store)
    refused = Dataset()
    refused.Status, refused.ErrorComment = statuses.PROCESSING_FAILURE, "refused"
    refused.ErrorID = statuses.NO_LONGER_UPDATED
    association.bind(evt.EVT_C_ECHO, lambda _event: statuses.SUCCESS)
    association.bind(evt.EVT_N_ACTION, lambda _event: (statuses.SUCCESS, None))
    association.bind(evt.EVT_N_EVENT_REPORT, lambda _event: (statuses.SUCCESS, None))
    association.bind(evt.EVT_N_SET, lambda _event: (refused, None))
    association.start()


def _association_request() -> bytes:
    def part(kind: int, body: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(body)) + body

    contexts = (
        (1, _VERIFICATION, (_IMPLICIT,)), (3, _MR, (_IMPLICIT, _EXPLICIT)), (5, _RT_PLAN, (_IMPLICIT,)),
        (7, COMMITMENT.encode(), (_IMPLICIT, _EXPLICIT)), (9, MPPS.encode(), (_IMPLICIT,)),
    )  # fmt: skip
    body = struct.pack(">HH16s16s32x", 1, 0, b"PENNODE".ljust(16), b"SELF-CHECK".ljust(16))
    body += part(0x10, b"1.2.840.10008.3.1.1.1")
    for number, abstract, syntaxes in contexts:
        items = part(0x30, abstract) + b"".join(part(0x40, syntax) for syntax in syntaxes)
        body += part(0x20, bytes([number, 0, 0, 0]) + items)
    # We ask to be the SCP, too (PS3.7 D.3.3.4): who does may send reports.
    role = part(0x54, struct.pack(">H", len(COMMITMENT)) + COMMITMENT.encode() + b"\1\1")
    body += part(0x50, part(0x51, struct.pack(">L", 16384)) + part(0x52, b"1.2.3.4") + role)
    return struct.pack(">BxL", pdata.ASSOCIATE_RQ, len(body)) + body


def _messages() -> tuple[bytes, ...]:
    """Return a C-ECHO-RQ, a C-STORE-RQ with a data set in several PDUs and PDVs, and one each of three DIMSE-N."""
    echo = [(0x0002, _VERIFICATION), (0x0100, b"\x30\0"), (0x0110, b"\1\0"), (0x0800, b"\1\1")]
    store = [
        (0x0002, _MR), (0x0100, b"\1\0"), (0x0110, b"\2\0"), (0x0700, b"\0\0"), (0x0800, b"\0\0"), (0x1000, b"1.2.3.5"),
    ]  # fmt: skip
    action = [
        (0x0003, COMMITMENT.encode()), (0x0100, b"\x30\1"), (0x0110, b"\3\0"), (0x0800, b"\0\0"), (0x1001, b"1.2.3.6"),
        (0x1008, b"\1\0"),
    ]  # fmt: skip
    change = [(0x0003, MPPS.encode()), (0x0100, b"\x20\1"), (0x0110, b"\4\0"), (0x0800, b"\0\0"), (0x1001, b"1.2.3.7")]
    report = [
        (0x0002, COMMITMENT.encode()), (0x0100, b"\0\1"), (0x0110, b"\5\0"), (0x0800, b"\0\0"), (0x1000, b"1.2.3.6"),
        (0x1002, b"\1\0"),
    ]  # fmt: skip
    third = len(_DATA) // 3
    pieces = [_pdv(3, 0, _DATA[:third]), _pdv(3, 0, _DATA[third : 2 * third]), _pdv(3, 2, _DATA[2 * third :])]
    return (
        _pdata(_pdv(1, 3, _command(echo))),
        (_pdata(_pdv(3, 3, _command(store))) + _pdata(pieces[0]) + _pdata(pieces[1] + pieces[2])),
        *(
            _pdata(_pdv(context_id, 3, _command(command))) + _pdata(_pdv(context_id, 2, _DATA[:100]))
            for context_id, command in ((7, action), (9, change), (7, report))
        ),
    )


def _command(elements: Sequence[tuple[int, bytes]]) -> bytes:
    padded = [(element, value + b"\0" * (len(value) % 2)) for element, value in elements]
    body = b"".join(struct.pack("<HHL", 0, element, len(value)) + value for element, value in padded)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _pdv(context_id: int, header: int, payload: bytes) -> bytes:
    return struct.pack(">LBB", len(payload) + 2, context_id, header) + payload


def _pdata(body: bytes) -> bytes:
    return struct.pack(">BxL", pdata.P_DATA_TF, len(body)) + body


def _read_pdu(connection: socket.socket) -> bytes:
    whole = b""
    while len(whole) < 6 or len(whole) < 6 + int.from_bytes(whole[2:6], "big"):
        more = connection.recv(65536)
        if not more:
            raise ConnectionError
        whole += more
    return whole
