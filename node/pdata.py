"""What comes over an association, read as it comes: bytes go in, events come out; no socket, no file, no copy.

PDUs are those of PS3.8 section 9.3, presentation data values (PDVs) those of its annex E, command sets those of PS3.7
section 6.3. Payload is given out as views of the one buffer; only command sets and the few short PDUs are collected.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from node.errors import ProtocolViolation
from node.statuses import INVALID_PARAMETER, UNEXPECTED_PARAMETER, UNEXPECTED_PDU, UNRECOGNISED_PDU

# PDU types (PS3.8 section 9.3.1).
ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA_TF, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
# Command fields (PS3.7 table E.1-1) and "no data set" in Command Data Set Type.
C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ, RESPONSE = 0x0001, 0x0030, 0x0FFF, 0x8000
N_EVENT_REPORT_RQ, N_SET_RQ, N_ACTION_RQ, N_CREATE_RQ = 0x0100, 0x0120, 0x0130, 0x0140
NO_DATA_SET = 0x0101

# An A-ASSOCIATE-RQ with all 128 presentation contexts, each in two dozen transfer syntaxes, has about 100 kB.
MAX_ASSOCIATE_RQ = 131072
_TLS_HANDSHAKE = 0x16  # the first byte of a TLS connection (RFC 8446 section 5.1)
_PDU_HEADER = struct.Struct(">BxL")
_PDV_HEADER = struct.Struct(">LBB")
_ELEMENT = struct.Struct("<HHL")
_SHORT = struct.Struct("<H")
_HEADER_LENGTH = 6


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes: the variable field of one P-DATA-TF, and one whole command set."""

    pdu: int = 131072
    command: int = 16384


@dataclass(frozen=True, slots=True)
class Control:
    """A whole PDU other than P-DATA-TF; `body` is what follows its length field."""

    kind: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Command:
    """One command set. UIDs, Affected or Requested, are as encoded: padded, unchecked."""

    context_id: int
    field: int
    message_id: int
    sop_class: bytes
    sop_instance: bytes
    has_data: bool
    action_type: int | None = None
    # Of a response: Message ID Being Responded To, and Status.
    responded_id: int | None = None
    status: int | None = None
    # Of an N-EVENT-REPORT-RQ.
    event_type: int | None = None


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of the data set of the last `Command`; `data` is valid until the next call of `Parser.space`."""

    data: memoryview
    last: bool


Event = Control | Command | Fragment


class Parser:
    """Takes the bytes of one association in any fragmentation.

    Write into `space`, say `received`, then go through `events` to their end. What it holds is bounded: the buffer, one
    command set, one short PDU. A PDU is judged by its header, before its body is there.
    """

    def __init__(self, limits: Limits, buffer_size: int = 16384) -> None:
        self._limits = limits
        self._buffer = bytearray(max(buffer_size, 2 * _HEADER_LENGTH))
        self._view = memoryview(self._buffer)
        self._begin = self._end = 0
        self._established = False
        self.pdus = self.messages = 0  # that have ended
        self._kind = 0  # of the PDU we are in; 0 between PDUs
        self._pdu_left = 0
        self._pdv_left = 0
        self._is_command = self._is_last = False
        self._collected = bytearray()  # of a command set, or of a PDU other than P-DATA-TF
        self._context_id = 0  # of the message we are in; 0 between messages
        self._awaits_data = False

    def establish(self, buffer_size: int) -> None:
        """From now on expect P-DATA-TF, with room for `buffer_size` bytes at a time. No bytes may be pending."""
        self._established = True
        rest = bytes(self._view[self._begin : self._end])
        self._buffer = bytearray(max(buffer_size, len(rest) + 2 * _HEADER_LENGTH))
        self._view = memoryview(self._buffer)
        self._view[: len(rest)] = rest
        self._begin, self._end = 0, len(rest)

    @property
    def in_pdu(self) -> bool:
        """Whether a PDU has begun and not ended."""
        return self._kind != 0 or self._end > self._begin

    @property
    def in_message(self) -> bool:
        """Whether a command set, or the data set that it announced, has begun and not ended."""
        return self._context_id != 0

    def space(self) -> memoryview:
        """Return where the next bytes go. Fragments given out before are void."""
        rest = self._end - self._begin
        if self._begin:  # all events were taken, so that at most a part of a header is left
            self._buffer[:rest] = self._buffer[self._begin : self._end]
            self._begin, self._end = 0, rest
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """Say that `count` bytes were written into the last `space`."""
        self._end += count

    def events(self) -> Iterator[Event]:
        """Yield what the bytes so far mean.

        Raises
        ------
        ProtocolViolation
            They mean nothing, or more than the limits allow; the association cannot go on.
        """
        while True:
            if self._pdv_left:
                if self._begin == self._end:
                    return
                event = self._payload()
                if event is not None:
                    yield event
            elif self._kind == P_DATA_TF and self._pdu_left:
                if self._pdu_left < _HEADER_LENGTH:
                    raise ProtocolViolation("a P-DATA-TF ends within the header of a PDV", INVALID_PARAMETER)
                if self._end - self._begin < _HEADER_LENGTH:
                    return
                event = self._begin_pdv()
                if event is not None:
                    yield event
            elif self._kind and self._kind != P_DATA_TF:
                count = min(self._pdu_left, self._end - self._begin)
                self._collected += self._view[self._begin : self._begin + count]
                self._begin += count
                self._pdu_left -= count
                if self._pdu_left:
                    return
                kind, body = self._kind, bytes(self._collected)
                self._kind = 0
                self.pdus += 1
                self._collected.clear()
                yield Control(kind, body)
            else:
                if self._kind:
                    self._kind = 0
                    self.pdus += 1
                if self._end - self._begin < _HEADER_LENGTH:
                    return
                self._begin_pdu()

    def _begin_pdu(self) -> None:
        kind, length = _PDU_HEADER.unpack_from(self._buffer, self._begin)
        self._begin += _HEADER_LENGTH
        if not ASSOCIATE_RQ <= kind <= ABORT:
            guess = " (TLS, on the port that is for plain DICOM?)" if kind == _TLS_HANDSHAKE else ""
            raise ProtocolViolation(f"PDU type {kind:#04x} does not exist{guess}", UNRECOGNISED_PDU)
        if kind == P_DATA_TF and self._established:
            # Some peers leave the six bytes of a PDV's header out of the count.
            if not _HEADER_LENGTH <= length <= self._limits.pdu + _HEADER_LENGTH:
                raise ProtocolViolation(f"a P-DATA-TF of {length} bytes", INVALID_PARAMETER)
        elif kind in (RELEASE_RQ, ABORT) if self._established else kind in (ASSOCIATE_RQ, ABORT):
            longest = MAX_ASSOCIATE_RQ if kind == ASSOCIATE_RQ else 4
            if not 4 <= length <= longest:
                raise ProtocolViolation(f"PDU type {kind:#04x} of {length} bytes", INVALID_PARAMETER)
            if kind == RELEASE_RQ and self._context_id:
                raise ProtocolViolation("a release in the middle of a message", UNEXPECTED_PDU)
            if kind == ABORT:
                self._collected.clear()
        else:
            raise ProtocolViolation(f"PDU type {kind:#04x} is out of place", UNEXPECTED_PDU)
        self._kind, self._pdu_left = kind, length

    def _begin_pdv(self) -> Event | None:
        length, context_id, header = _PDV_HEADER.unpack_from(self._buffer, self._begin)
        if not 2 <= length <= self._pdu_left - 4:
            raise ProtocolViolation(f"a PDV of {length} bytes in {self._pdu_left} of its PDU", INVALID_PARAMETER)
        if not context_id & 1:  # PS3.8 section 9.3.2.2: odd from 1 to 255
            raise ProtocolViolation(f"presentation context {context_id}", INVALID_PARAMETER)
        self._is_command, self._is_last = bool(header & 1), bool(header & 2)
        if self._context_id not in (0, context_id):
            raise ProtocolViolation("a PDV of another context in the middle of a message", UNEXPECTED_PARAMETER)
        if self._is_command == self._awaits_data:
            what = "a command" if self._is_command else "a data set"
            raise ProtocolViolation(f"{what} out of turn", UNEXPECTED_PARAMETER)
        if self._is_command and len(self._collected) + length - 2 > self._limits.command:
            raise ProtocolViolation("a command set over the limit", INVALID_PARAMETER)
        self._begin += _HEADER_LENGTH
        self._pdu_left -= length + 4
        self._pdv_left = length - 2
        self._context_id = context_id
        return None if self._pdv_left else self._end_pdv(self._view[:0])

    def _payload(self) -> Event | None:
        count = min(self._pdv_left, self._end - self._begin)
        data = self._view[self._begin : self._begin + count]
        self._begin += count
        self._pdv_left -= count
        if self._is_command:
            self._collected += data
        return self._end_pdv(data)

    def _end_pdv(self, data: memoryview) -> Event | None:
        ends = self._is_last and not self._pdv_left
        if not self._is_command:
            if ends:
                self._end_message()
            return Fragment(data, ends) if ends or data else None
        if not ends:
            return None
        command = parse_command(self._context_id, self._collected)
        self._collected.clear()
        self._awaits_data = command.has_data
        if not command.has_data:
            self._end_message()
        return command

    def _end_message(self) -> None:
        self._context_id, self._awaits_data = 0, False
        self.messages += 1


def parse_command(context_id: int, encoded: bytes | bytearray) -> Command:
    """Read a command set: group 0000, Implicit VR Little Endian (PS3.7 section 6.3.1).

    Raises
    ------
    ProtocolViolation
        The bytes are none, or it lacks its Command Field or Command Data Set Type.
    """
    found: dict[int, bytes] = {}
    position, end = 0, len(encoded)
    while position < end:
        if end - position < _ELEMENT.size:
            raise ProtocolViolation("a command set ends within an element", INVALID_PARAMETER)
        group, element, length = _ELEMENT.unpack_from(encoded, position)
        position += _ELEMENT.size
        if group or length > end - position or element in found:
            raise ProtocolViolation("a command set with an impossible element", INVALID_PARAMETER)
        found[element] = bytes(encoded[position : position + length])
        position += length
    field, message_id, data_set = (_number(found, element) for element in (0x0100, 0x0110, 0x0800))
    if field is None or data_set is None:
        raise ProtocolViolation("a command set without its field or its data set type", INVALID_PARAMETER)
    return Command(
        context_id,
        field,
        message_id or 0,
        found.get(0x0002, found.get(0x0003, b"")),
        found.get(0x1000, found.get(0x1001, b"")),
        data_set != NO_DATA_SET,
        *(_number(found, element) for element in (0x1008, 0x0120, 0x0900, 0x1002)),
    )


def _number(found: dict[int, bytes], element: int) -> int | None:
    value = found.get(element)
    if value is not None and len(value) != _SHORT.size:
        raise ProtocolViolation(f"(0000,{element:04X}) is no number", INVALID_PARAMETER)
    return None if value is None else int.from_bytes(value, "little")
