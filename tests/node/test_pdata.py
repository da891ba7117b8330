"""The P-DATA parser by laws: fragmentation never matters, and no bytes can hurt."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pynetdicom.dimse_messages import C_ECHO_RSP, C_STORE_RSP
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_RJ, A_RELEASE_RP, P_DATA_TF

from node import answers, pdata, statuses
from node.errors import ProtocolViolation
from node.pdata import Command, Control, Fragment, Limits, Parser

LIMITS = Limits(pdu=4096, command=512)
BUFFERS = st.sampled_from([12, 13, 64, 1000, 65536])
SOP_CLASS, SOP = uid.MRImageStorage.encode() + b"\0", b"1.2.3.10.1"


def command_set(elements: list[tuple[int, bytes]]) -> bytes:
    return b"".join(struct.pack("<HHL", 0, e, len(v)) + v for e, v in elements)


def store_command(sop: bytes = SOP, data_set: int = 0) -> bytes:
    values = [
        (0x0002, SOP_CLASS), (0x0100, b"\1\0"), (0x0110, b"\7\0"), (0x0700, b"\0\0"),
        (0x0800, struct.pack("<H", data_set)), (0x1000, sop),
    ]  # fmt: skip
    body = command_set(values)
    return command_set([(0, struct.pack("<L", len(body)))]) + body


def pdv(context: int, header: int, payload: bytes) -> bytes:
    return struct.pack(">LBB", len(payload) + 2, context, header) + payload


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxL", kind, len(body)) + body


def cut(whole: bytes, sizes: list[int]) -> list[bytes]:
    """Cut into pieces of these sizes, again and again."""
    pieces, position, turn = [], 0, 0
    while position < len(whole):
        size = sizes[turn % len(sizes)]
        pieces.append(whole[position : position + size])
        position, turn = position + size, turn + 1
    return pieces


def feed(parser: Parser, pieces: list[bytes]) -> list[object]:
    """Feed pieces; return what came, fragments of one data set joined."""
    got: list[object] = []
    for piece in pieces:
        while piece:
            space = parser.space()
            assert len(space) > 0
            count = min(len(space), len(piece))
            space[:count] = piece[:count]
            parser.received(count)
            piece = piece[count:]
            for event in parser.events():
                if not isinstance(event, Fragment):
                    got.append(event)
                elif got and isinstance(got[-1], list) and not got[-1][1]:
                    got[-1] = [got[-1][0] + bytes(event.data), event.last]
                else:
                    got.append([bytes(event.data), event.last])
    return got


def established(buffer: int = 65536) -> Parser:
    parser = Parser(LIMITS)
    parser.establish(buffer)
    return parser


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[object]]:
    """A valid stream of an established association, and what it means."""
    values: list[tuple[int, int, bytes]] = []
    expected: list[object] = []
    for _ in range(draw(st.integers(0, 4))):
        context = draw(st.sampled_from([1, 3, 255]))
        data = draw(st.none() | st.binary(max_size=9000))
        encoded = store_command(data_set=0x0101 if data is None else 0x0102)
        expected.append(Command(context, 1, 7, SOP_CLASS, SOP, data is not None))
        messages = [(1, encoded)]
        if data is not None:
            messages.append((0, data))
            expected.append([data, True])
        for header, payload in messages:
            parts = cut(payload, draw(st.lists(st.integers(1, 4000), min_size=1, max_size=4))) or [b""]
            parts.insert(draw(st.integers(0, len(parts) - 1)), b"")
            values += [(context, header | (2 if n == len(parts) - 1 else 0), p) for n, p in enumerate(parts)]
    whole, open_pdu = b"", b""
    for context, header, payload in values:
        item = pdv(context, header, payload)
        if open_pdu and (len(open_pdu) + len(item) > LIMITS.pdu or draw(st.booleans())):
            whole, open_pdu = whole + pdu(4, open_pdu), b""
        open_pdu += item
    if open_pdu:
        whole += pdu(4, open_pdu)
    if draw(st.booleans()):
        whole += pdu(5, bytes(4))
        expected.append(Control(5, bytes(4)))
    return whole, expected


@given(streams(), st.lists(st.integers(1, 5000), min_size=1, max_size=5), BUFFERS)
@settings(max_examples=80, deadline=None)
def test_any_fragmentation_of_a_valid_stream_means_the_same(
    stream: tuple[bytes, list[object]], sizes: list[int], buffer: int
) -> None:
    whole, expected = stream
    parser = established(buffer)
    assert feed(parser, cut(whole, sizes)) == expected
    assert not parser.in_pdu
    assert not parser.in_message


def test_one_byte_at_a_time() -> None:
    whole = pdu(4, pdv(1, 3, store_command())) + pdu(4, pdv(1, 0, b"ab") + pdv(1, 2, b"cd"))
    assert feed(established(12), cut(whole, [1])) == [Command(1, 1, 7, SOP_CLASS, SOP, True), [b"abcd", True]]


@given(st.binary(max_size=600), st.booleans(), st.lists(st.integers(1, 50), min_size=1), BUFFERS)
@settings(max_examples=150, deadline=None)
@example(b"\x04\x00\xff\xff\xff\xff" + bytes(100), True, [7], 64)
@example(b"\x01\x00\xff\xff\xff\xff" + bytes(100), False, [7], 64)
def test_arbitrary_bytes_raise_nothing_but_the_named_error(
    garbage: bytes, is_established: bool, sizes: list[int], buffer: int
) -> None:
    parser = established(buffer) if is_established else Parser(LIMITS, buffer)
    with contextlib.suppress(ProtocolViolation):
        feed(parser, cut(garbage, sizes))
    assert len(parser._collected) <= pdata.MAX_ASSOCIATE_RQ
    assert len(parser._buffer) <= max(buffer, 12)


@given(streams(), st.data(), st.lists(st.integers(1, 999), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_a_damaged_stream_ends_in_events_or_the_named_error(
    stream: tuple[bytes, list[object]], data: st.DataObject, sizes: list[int]
) -> None:
    damaged = bytearray(stream[0])
    for _ in range(data.draw(st.integers(1, 3)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    results = []
    for pieces in ([bytes(damaged)], cut(bytes(damaged), sizes)):
        parser = established()
        try:
            results.append((feed(parser, pieces), ""))
        except ProtocolViolation as violation:
            results.append(([], violation.reason))
        assert len(parser._collected) <= LIMITS.command
    assert results[0] == results[1]


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_command_set_is_a_command_or_the_named_error(encoded: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        pdata.parse_command(1, encoded)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"\x04\x00\xff\xff\xff\xff", statuses.INVALID_PARAMETER),
        (b"\x04\x00\x00\x00\x00\x05", statuses.INVALID_PARAMETER),
        (pdu(4, pdv(1, 3, store_command()) + b"\0\0\0\2\1"), statuses.INVALID_PARAMETER),
        (b"\x08\x00\x00\x00\x00\x04", statuses.UNRECOGNISED_PDU),
        (b"\x01\x00\x00\x00\x00\x44", statuses.UNEXPECTED_PDU),
        (b"\x06\x00\x00\x00\x00\x04", statuses.UNEXPECTED_PDU),
        (b"\x05\x00\x00\x01\x00\x00", statuses.INVALID_PARAMETER),
        (pdu(4, struct.pack(">LBB", 0xFFFFFFFF, 1, 0)), statuses.INVALID_PARAMETER),
        (pdu(4, struct.pack(">LBB", 1, 1, 0)), statuses.INVALID_PARAMETER),
        (pdu(4, pdv(2, 3, store_command())), statuses.INVALID_PARAMETER),
        (pdu(4, pdv(1, 2, b"data")), statuses.UNEXPECTED_PARAMETER),
        (pdu(4, pdv(1, 3, store_command())) + pdu(4, pdv(3, 0, b"x")), statuses.UNEXPECTED_PARAMETER),
        (pdu(4, pdv(1, 3, store_command())) + pdu(4, pdv(1, 3, store_command())), statuses.UNEXPECTED_PARAMETER),
        (pdu(4, pdv(1, 3, store_command())) + pdu(5, bytes(4)), statuses.UNEXPECTED_PDU),
        (pdu(4, pdv(1, 1, bytes(513))), statuses.INVALID_PARAMETER),
        (pdu(4, pdv(1, 3, b"\0\0\0\1\2\0\0\0\1")), statuses.INVALID_PARAMETER),
        (pdu(4, pdv(1, 3, command_set([(0x0100, b"\1\0")]))), statuses.INVALID_PARAMETER),
        (pdu(4, pdv(1, 3, command_set([(0x0100, b"\1"), (0x0800, b"\0\0")]))), statuses.INVALID_PARAMETER),
        (pdu(4, pdv(1, 3, command_set([(0x0100, b"\1\0")] * 2))), statuses.INVALID_PARAMETER),
        (pdu(4, pdv(1, 3, struct.pack("<HHL", 8, 5, 0))), statuses.INVALID_PARAMETER),
    ],
)  # fmt: skip
def test_each_violation_has_its_abort_reason(bad: bytes, reason: int) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        feed(established(), [bad])
    assert caught.value.abort_reason == reason


def test_before_the_association_only_its_request_may_come() -> None:
    for bad in (b"\x04\x00\x00\x00\x00\x10", b"\x05\x00\x00\x00\x00\x04", b"\x01\x00\xff\xff\xff\xff"):
        with pytest.raises(ProtocolViolation):
            feed(Parser(LIMITS), [bad])
    assert feed(Parser(LIMITS), [pdu(1, bytes(68))]) == [Control(1, bytes(68))]
    assert feed(Parser(LIMITS), [pdu(7, bytes(4))]) == [Control(7, bytes(4))]


def test_what_we_encode_is_what_pynetdicom_encodes() -> None:
    request = C_STORE()
    request.MessageIDBeingRespondedTo, request.Status = 7, 0xA700
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = uid.MRImageStorage, SOP.decode()
    echo = C_ECHO()
    echo.MessageIDBeingRespondedTo, echo.Status = 9, 0
    echo.AffectedSOPClassUID = "1.2.840.10008.1.1"
    for primitive, kind, command in (
        (request, C_STORE_RSP, Command(5, 1, 7, SOP_CLASS, SOP, True)),
        (echo, C_ECHO_RSP, Command(5, 0x30, 9, b"1.2.840.10008.1.1\0", b"", False)),
    ):
        message = kind()
        message.primitive_to_message(primitive)
        whole = b"".join(P_DATA_TF(p).encode() for p in message.encode_msg(5, 0))
        assert answers.response(command, primitive.Status, 0) == whole
    assert answers.release_response() == A_RELEASE_RP().encode()
    rejected = A_ASSOCIATE_RJ()
    rejected.result, rejected.source, rejected.reason_diagnostic = statuses.LOCAL_LIMIT_EXCEEDED
    assert answers.rejection(*statuses.LOCAL_LIMIT_EXCEEDED) == rejected.encode()
    aborted = A_ABORT_RQ()
    aborted.source, aborted.reason_diagnostic = 2, 6
    assert answers.abort(6) == aborted.encode()


@given(st.integers(0, 300))
@settings(deadline=None)
def test_an_answer_keeps_to_the_peers_maximum(maximum: int) -> None:
    command = Command(1, 1, 7, SOP_CLASS, SOP, True)
    whole = answers.response(command, 0, maximum)
    position, payload = 0, b""
    while position < len(whole):
        kind, length = struct.unpack_from(">BxL", whole, position)
        assert kind == 4
        assert maximum == 0 or length <= max(maximum, 7)
        payload += whole[position + 12 : position + 6 + length]
        position += 6 + length
    assert payload == answers.response(command, 0, 0)[12:]
