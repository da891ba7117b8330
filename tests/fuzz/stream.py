"""The P-DATA parser against the reference decoder, in any fragmentation.

Laws: nothing but `ProtocolViolation` is raised; events are those of `tests.fuzz.reference`, however the bytes were cut;
what is held stays within the buffer, one command set and one short PDU.
"""

from __future__ import annotations

import random

from node.errors import ProtocolViolation
from node.pdata import ASSOCIATE_RQ, Control, Fragment, Limits, Parser
from tests.fuzz import exchanges, reference

LIMITS = Limits(pdu=4096, command=512)
LONGEST = 16384
_BUFFERS = (12, 13, 64, 1000, 16384)


def check(data: bytes) -> None:
    """Bytes 0 to 2 choose state, buffer and fragmentation; the rest is the stream."""
    if len(data) < 3:
        return
    established, buffer, seed, stream = bool(data[0] & 1), _BUFFERS[data[1] % len(_BUFFERS)], data[2], data[3:]
    at_once = _read(stream, [len(stream) or 1], established, 65536)
    generator = random.Random(seed)
    sizes = [generator.randint(1, generator.choice((1, 7, 300, 5000))) for _ in range(7)]
    events, reason = at_once
    assert reason[:1] in ("", "1", "2", "4", "5", "6"), "no reason of PS3.8 table 9-26"
    assert _read(stream, sizes, established, buffer) == at_once, "fragmentation matters"
    expected = reference.decode(stream, longest_pdu=LIMITS.pdu, longest_command=LIMITS.command, established=established)
    assert (events, bool(reason)) == (plain(expected), expected.broken)


def _read(stream: bytes, sizes: list[int], established: bool, buffer: int) -> tuple[list[object], str]:
    """Return what the parser makes of it, fragments of one data set joined, and the violation it ends in."""
    parser = Parser(LIMITS, buffer)
    if established:
        parser.establish(buffer)
    got: list[object] = []
    at = turn = 0
    try:
        while at < len(stream):
            piece = stream[at : at + sizes[turn % len(sizes)]]
            space = parser.space()
            assert len(space) > 0, "no room for the next byte"
            count = min(len(space), len(piece))
            space[:count] = piece[:count]
            parser.received(count)
            at, turn = at + count, turn + 1
            if _take(parser, got, buffer):
                break
            held = sum(len(v) for v in vars(parser).values() if isinstance(v, bytes | bytearray))
            assert held <= max(buffer, 65536) + reference.LONGEST_ASSOCIATE_RQ, "it holds more than it may"
            if established:
                assert held <= max(buffer, 12) + LIMITS.command, "it holds more than it may"
    except ProtocolViolation as violation:
        return got, f"{violation.abort_reason}: {violation.reason}"
    return got, ""


def _take(parser: Parser, got: list[object], buffer: int) -> bool:
    """Add what came to `got`; tell whether it ends the association."""
    for event in parser.events():
        if isinstance(event, Fragment):
            if got and isinstance(got[-1], list):
                assert not got[-1][1], "a fragment after the last"
                got[-1] = [got[-1][0] + bytes(event.data), event.last]
            else:
                got.append([bytes(event.data), event.last])
        elif isinstance(event, Control):
            got.append(event)
            if event.kind != ASSOCIATE_RQ:
                return True
            parser.establish(buffer)
            return _take(parser, got, buffer)
        else:
            got.append((
                event.context_id, event.field, event.message_id, event.sop_class, event.sop_instance, event.has_data
            ))  # fmt: skip
    return False


def plain(meaning: reference.Meaning) -> list[object]:
    """What the reference found, in the form of `_read`."""
    found: list[object] = []
    for event in meaning.events:
        if isinstance(event, reference.Pdu):
            found.append(Control(event.kind, event.body))
            continue
        found.append((
            event.context, event.number(0x0100), event.number(0x0110), event.text(0x0002, 0x0003),
            event.text(0x1000, 0x1001), event.data is not None,
        ))  # fmt: skip
        if event.data or (event.data is not None and event.whole):
            found.append([event.data, event.whole])
    return found


def seeds() -> dict[str, bytes]:
    """Valid streams, cut in several ways."""
    found = {f"{name}-{n}": bytes([1, n, 40 * n]) + s for name, s in exchanges.streams().items() for n in (0, 3)}
    found |= {f"with-association-{n}": bytes([0, n, n]) + exchanges.whole_exchange() for n in (0, 4)}
    return found


mutate = exchanges.mutate
HEADER = 3
