"""What a stream of PDUs means, read in the plainest way: all of it at hand, in slices, once.

Written from PS3.8 section 9.3 and annex E and PS3.7 section 6.3.1 to be held against `node.pdata`, with which it shares
no code. Where the standard leaves a choice, what we chose is said beside it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

ASSOCIATE_RQ, ASSOCIATE_AC, P_DATA_TF, RELEASE_RQ, ABORT = 1, 2, 4, 5, 7
NO_DATA_SET = 0x0101
LONGEST_ASSOCIATE_RQ = 131072


@dataclass(frozen=True)
class Pdu:
    """A PDU other than P-DATA-TF: its type, and what follows its length."""

    kind: int
    body: bytes


@dataclass
class Message:
    """A message whose command set came whole; `data` is what came of its data set, or None where it has none."""

    context: int
    elements: dict[int, bytes]
    data: bytes | None
    whole: bool

    def number(self, element: int) -> int:
        """The value of an element of VR US; 0 where it is absent."""
        return int.from_bytes(self.elements.get(element, b""), "little")

    def text(self, *elements: int) -> bytes:
        """The value of the first of these elements that is there."""
        return next((self.elements[e] for e in elements if e in self.elements), b"")


@dataclass
class Meaning:
    """What came, in order, and whether it ends in something that no peer may send."""

    events: list[Pdu | Message] = field(default_factory=list)
    broken: bool = False

    @property
    def messages(self) -> list[Message]:
        """The messages that came whole."""
        return [e for e in self.events if isinstance(e, Message) and e.whole]


class _Broken(Exception):
    pass


def decode(stream: bytes, *, longest_pdu: int, longest_command: int, established: bool) -> Meaning:
    """Read what an acceptor is sent, up to a release or an abort; an A-ASSOCIATE-RQ counts as accepted."""
    meaning = Meaning()
    try:
        _decode(stream, longest_pdu, longest_command, established, meaning.events)
    except _Broken:
        meaning.broken = True
    return meaning


def _decode(
    stream: bytes, longest_pdu: int, longest_command: int, established: bool, events: list[Pdu | Message]
) -> None:
    at = 0
    context = 0  # of the message that has begun
    command = b""
    message: Message | None = None  # whose data set is awaited
    while len(stream) - at >= 6:
        kind, length = stream[at], int.from_bytes(stream[at + 2 : at + 6], "big")
        body = stream[at + 6 : at + 6 + length]
        at += 6 + length
        if kind != P_DATA_TF or not established:
            _insist(kind in ((RELEASE_RQ, ABORT) if established else (ASSOCIATE_RQ, ABORT)))
            _insist(4 <= length <= (LONGEST_ASSOCIATE_RQ if kind == ASSOCIATE_RQ else 4))
            _insist(kind != RELEASE_RQ or not context)
            if len(body) < length:
                return
            events.append(Pdu(kind, body))
            if kind != ASSOCIATE_RQ:  # nothing means anything after that
                return
            established = True
            continue
        # At least one PDV with its header; the limit may leave that header out of the count, as some peers do.
        _insist(6 <= length <= longest_pdu + 6)
        inner = 0
        while inner < length:
            _insist(length - inner >= 6)
            if len(body) - inner < 6:
                return
            size, of, control = struct.unpack(">LBB", body[inner : inner + 6])
            value = body[inner + 6 : inner + 4 + size]
            _insist(2 <= size <= length - inner - 4)
            _insist(of % 2 == 1 and of == (context or of))
            _insist(bool(control & 1) == (message is None))
            context = of
            ends = bool(control & 2) and len(value) == size - 2
            inner += 4 + size
            if message is not None:
                message.data = (message.data or b"") + value
                message.whole = ends
            else:
                _insist(len(command) + size - 2 <= longest_command)
                command += value
                if ends:
                    elements = read_command(command)
                    has_data = int.from_bytes(elements[0x0800], "little") != NO_DATA_SET
                    message = Message(context, elements, b"" if has_data else None, not has_data)
                    events.append(message)
                    command = b""
            if len(value) < size - 2:
                return
            if message is not None and message.whole:
                context, message = 0, None


def read_command(encoded: bytes) -> dict[int, bytes]:
    """Return element number to value: group 0000, implicit VR little endian, each element once."""
    elements: dict[int, bytes] = {}
    while encoded:
        _insist(len(encoded) >= 8)
        group, element, length = struct.unpack("<HHL", encoded[:8])
        _insist(group == 0 and element not in elements)
        _insist(length <= len(encoded) - 8)
        elements[element] = encoded[8 : 8 + length]
        encoded = encoded[8 + length :]
    _insist(0x0100 in elements and 0x0800 in elements)
    _insist(all(len(elements[e]) == 2 for e in (0x0100, 0x0110, 0x0120, 0x0800, 0x0900, 0x1008) if e in elements))
    return elements


def read_response(encoded: bytes) -> dict[int, bytes]:
    """Read a command set that must be one, with a Status, and with a group length that counts the rest."""
    elements = read_command(encoded)
    _insist(len(elements.get(0x0900, b"")) == 2 and encoded[:8] == struct.pack("<HHL", 0, 0, 4))
    _insist(int.from_bytes(elements[0], "little") == len(encoded) - 12)
    return elements


def command_or_none(encoded: bytes) -> dict[int, bytes] | None:
    """Return the elements of a command set, or None where it is none."""
    try:
        return read_command(encoded)
    except _Broken:
        return None


def accepted_contexts(body: bytes) -> dict[int, tuple[int, bytes]]:
    """Read the results of an A-ASSOCIATE-AC (PS3.8 section 9.3.3): context ID to result and transfer syntax."""
    found: dict[int, tuple[int, bytes]] = {}
    at = 68
    while at < len(body):
        kind, length = body[at], int.from_bytes(body[at + 2 : at + 4], "big")
        item = body[at + 4 : at + 4 + length]
        assert len(item) == length, "an item ends early"
        if kind == 0x21:
            assert item[0] not in found, "a context is answered twice"
            assert item[4] == 0x40
            assert int.from_bytes(item[6:8], "big") == len(item) - 8
            found[item[0]] = (item[2], item[8:])
        at += 4 + length
    return found


def asked_contexts(body: bytes) -> dict[int, bytes | None]:
    """Read what an A-ASSOCIATE-RQ asks for (PS3.8 section 9.3.2): context ID to abstract syntax, where it has one."""
    found: dict[int, bytes | None] = {}
    for kind, item in _items(body[68:]):
        if kind == 0x20 and item:
            abstract = [value for sub, value in _items(item[4:]) if sub == 0x30]
            found[item[0]] = abstract[0].rstrip(b"\0 ") if len(abstract) == 1 and item[0] not in found else None
    return found


def _items(encoded: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(encoded):
        length = int.from_bytes(encoded[at + 2 : at + 4], "big")
        yield encoded[at], encoded[at + 4 : at + 4 + length]
        at += 4 + length


def _insist(condition: bool) -> None:
    if not condition:
        raise _Broken
