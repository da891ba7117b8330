"""What costs the most CPU for its size: the time grows with the size at most, and has a bound."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable

import pytest

from node.errors import InvalidInstance, ProtocolViolation
from node.header import read_identity
from node.negotiation import agree, read_request, supported_contexts
from node.pdata import Limits, Parser, parse_command

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
_ITEM, _UNDEFINED = struct.pack("<HHL", 0xFFFE, 0xE000, 0), 0xFFFFFFFF
_SUPPORTED = supported_contexts()


def part(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(body)) + body


def request(items: bytes, users: bytes = b"") -> None:
    body = struct.pack(">HH16s16s32x", 1, 0, b"PENNODE".ljust(16), b"PEER".ljust(16)) + part(
        0x10, b"1.2.840.10008.3.1.1.1"
    )
    user = part(0x50, part(0x51, bytes(4)) + part(0x52, b"1.2") + users)
    agree(read_request(body + items + user), _SUPPORTED, 16384)


def context(number: int, syntaxes: bytes) -> bytes:
    return part(0x20, bytes([number, 0, 0, 0]) + part(0x30, b"1.2.840.10008.5.1.4.1.1.4") + syntaxes)


def element(group: int, number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", group, number, len(value)) + value


def implicit(data: bytes) -> None:
    read_identity(data, IMPLICIT)


def stream(data: bytes) -> None:
    parser = Parser(Limits())
    parser.establish(512 << 10)
    for at in range(0, len(data), 65536):
        piece = data[at : at + 65536]
        parser.space()[: len(piece)] = piece
        parser.received(len(piece))
        for _ in parser.events():
            pass


# Each takes about so many bytes; the largest request that is read at all has 131072.
SHAPES: dict[str, Callable[[int], None]] = {
    "a request of many contexts": lambda n: request(b"".join(context(1, b"") for _ in range(n // 37))),
    "a request of many transfer syntaxes": lambda n: request(context(1, part(0x40, b"1.2") * (min(n, 60000) // 7))),
    "a request of many roles": lambda n: request(
        context(1, part(0x40, b"1.2")), part(0x54, b"\0\3" + b"1.2" + b"\1\1") * (min(n, 60000) // 11)
    ),
    "a command set of many elements": lambda n: parse_command(1, b"".join(element(0, e, b"") for e in range(n // 8))),
    "empty values of a command": lambda n: stream((b"\4\0\0\0\x17\x70" + b"\0\0\0\2\1\1" * 1000) * (n // 6006)),
    "elements": lambda n: implicit(element(9, 0x10, b"") * (n // 8)),
    "one long number": lambda n: implicit(element(0x20, 0x32, b"1" * n)),
    "one long number and no end": lambda n: implicit(element(0x20, 0x32, b"1" * n + b"x")),
    "spaces for a number": lambda n: implicit(element(0x20, 0x32, b"1" + b" " * n + b"x")),
    "many numbers": lambda n: implicit(element(0x20, 0x32, b"1\\" * (n // 8))),
    "image types": lambda n: implicit(element(0x08, 0x08, b"A\\" * n)),
    "character sets": lambda n: implicit(element(8, 5, b"ISO_IR 6\\" * (n // 9)) + element(8, 0x70, b"A ")),
    "items": lambda n: implicit(struct.pack("<HHL", 0x18, 0x12, _UNDEFINED) + _ITEM * (n // 16)),
    "sequences in sequences": lambda n: implicit(
        struct.pack("<HHLHHL", 0x18, 0x12, _UNDEFINED, 0xFFFE, 0xE000, _UNDEFINED) * (n // 16)
    ),
    "fragments without end": lambda n: read_identity(
        b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\0\0\0\0" * (n // 8), EXPLICIT
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore")
def test_the_time_grows_with_the_size_and_no_faster(shape: str) -> None:
    small, large = (_seconds(SHAPES[shape], size) for size in (32_000, 128_000))
    assert large < 1.0
    assert large < 10 * small + 0.02, "four times the size, more than ten times the time"


def _seconds(run: Callable[[int], None], size: int) -> float:
    best = 9.0
    for _ in range(3):
        start = time.thread_time()
        with contextlib.suppress(ProtocolViolation, InvalidInstance):
            run(size)
        best = min(best, time.thread_time() - start)
    return best
