"""Exchanges over an established association by a grammar: right, or wrong in one place that has a name."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import cache

from hypothesis import strategies as st

from tests.fuzz import exchanges
from tests.presend import Sent, command, echo_request, pdu, pdv, store_request

# Context IDs of `exchanges.CONTEXTS`: MR explicit, Verification, MR implicit; 7 is not accepted, 9 was not asked for.
_EXPLICIT, _ECHO, _IMPLICIT, _REFUSED, _UNKNOWN = 1, 3, 5, 7, 9


@dataclass(frozen=True)
class Value:
    """One PDV to be; `declared` is added to the length that it says it has."""

    context: int
    control: int
    payload: bytes
    declared: int = 0

    def encode(self) -> bytes:
        whole = pdv(self.context, self.control, self.payload)
        return struct.pack(">L", len(whole) - 4 + self.declared) + whole[4:]


@cache
def _image(number: int, context: int, variant: int) -> Sent:
    syntax = "1.2.840.10008.1.2" if context == _IMPLICIT else "1.2.840.10008.1.2.1"
    return exchanges.image(number, syntax, SeriesDescription=("t2_sag", "other")[variant])


def _cut(payload: bytes, sizes: list[int]) -> list[bytes]:
    parts, at, turn = [], 0, 0
    while at < len(payload):
        size = sizes[turn % len(sizes)]
        parts.append(payload[at : at + size])
        at, turn = at + size, turn + 1
    return parts or [b""]


def _values(context: int, flag: int, payload: bytes, sizes: list[int]) -> list[Value]:
    parts = _cut(payload, sizes)
    return [Value(context, flag | (2 if n == len(parts) else 0), part) for n, part in enumerate(parts, 1)]


COMMAND_FAULTS = [
    "extra element", "unknown element", "element twice", "element of another group", "odd length", "length too long",
    "no data set type", "field of one byte", "group length wrong", "UID of another object", "path for a UID",
    "class of another context", "says that no data set follows", "is a response",
]  # fmt: skip
VALUE_FAULTS = [
    "context wrong", "context even", "context not accepted", "last flag missing", "last flag early",
    "command flag flipped", "PDV too long by one", "PDV too short by one", "empty PDV before", "empty PDV after",
    "value lost", "value twice", "values swapped", "another message within", "data set cut short", "data set odd",
]  # fmt: skip
PDU_FAULTS = ["PDU too long by one", "PDU too short by one", "unknown type", "association again", "PDU without PDV"]


def _spoil_command(encoded: bytes, sent: Sent, fault: str) -> bytes:
    extra = {
        "extra element": command([(0x1030, b"PEER"), (0x1031, b"\7\0")])[12:],
        "unknown element": command([(0x7777, b"abcd")])[12:],
        "element twice": command([(0x0110, b"\1\0")])[12:],
        "element of another group": struct.pack("<HHL", 8, 0x18, 4) + b"1.2\0",
        "odd length": struct.pack("<HHL", 0, 0x7777, 3) + b"abc",
        "length too long": struct.pack("<HHL", 0, 0x7777, 5000) + b"abc",
    }
    if fault in extra:
        return encoded + extra[fault]
    data_set, field = struct.pack("<HHLH", 0, 0x0800, 2, 0), struct.pack("<HHLH", 0, 0x0100, 2, 1)
    other = {
        "no data set type": (data_set, b""),
        "field of one byte": (field, struct.pack("<HHLB", 0, 0x0100, 1, 1)),
        "group length wrong": (encoded[8:12], b"\0\0\0\0"),
        "UID of another object": (sent.sop_uid, sent.sop_uid[:-1] + b"9"),
        "path for a UID": (sent.sop_uid, b"../../../x"[: len(sent.sop_uid)].ljust(len(sent.sop_uid), b".")),
        "class of another context": (sent.sop_class, b"1.2.840.10008.5.1.4.1.1.2"),
        "says that no data set follows": (data_set, struct.pack("<HHLH", 0, 0x0800, 2, 0x0101)),
        "is a response": (field, struct.pack("<HHLH", 0, 0x0100, 2, 0x8001)),
    }  # fmt: skip
    before, after = other[fault]
    assert before in encoded
    return encoded.replace(before, after, 1)


def _spoil_values(values: list[Value], fault: str, at: int) -> list[Value]:
    one = values[at]
    changed = {
        "context wrong": replace(one, context=_IMPLICIT if one.context != _IMPLICIT else _EXPLICIT),
        "context even": replace(one, context=2),
        "context not accepted": replace(one, context=_REFUSED),
        "last flag missing": replace(one, control=one.control & 1),
        "last flag early": replace(one, control=one.control | 2),
        "command flag flipped": replace(one, control=one.control ^ 1),
        "PDV too long by one": replace(one, declared=1),
        "PDV too short by one": replace(one, declared=-1),
        "data set cut short": replace(one, payload=one.payload[: len(one.payload) // 2]),
        "data set odd": replace(one, payload=one.payload + b"\0"),
    }
    empty = replace(one, control=one.control & 1, payload=b"")
    several = {
        "empty PDV before": [empty, one],
        "empty PDV after": [one, empty],
        "value lost": [],
        "value twice": [one, one],
        "another message within": [one, Value(_ECHO, 3, echo_request())],
    }
    if fault == "values swapped":
        other = (at + 1) % len(values)
        values[at], values[other] = values[other], values[at]
        return values
    return values[:at] + several.get(fault, [changed.get(fault, one)]) + values[at + 1 :]


def _pack(values: list[Value], joined: list[bool]) -> list[bytes]:
    """Put PDVs into PDUs, one or several in each."""
    bodies: list[bytes] = []
    for number, value in enumerate(values):
        item = value.encode()
        if bodies and joined[number % len(joined)] and len(bodies[-1]) + len(item) < 4096:
            bodies[-1] += item
        else:
            bodies.append(item)
    return [pdu(4, body) for body in bodies]


def _spoil_pdus(pdus: list[bytes], fault: str, at: int) -> list[bytes]:
    one = pdus[at]
    length = len(one) - 6
    changed = {
        "PDU too long by one": b"\4\0" + struct.pack(">L", length + 1) + one[6:],
        "PDU too short by one": b"\4\0" + struct.pack(">L", length - 1) + one[6:],
        "unknown type": b"\x19" + one[1:],
        "association again": pdu(1, bytes(68)) + one,
        "PDU without PDV": pdu(4, b"") + one,
    }
    return [*pdus[:at], changed[fault], *pdus[at + 1 :]]


@st.composite
def messages(draw: st.DrawFn, faults: bool, images: int) -> list[bytes]:
    """The PDUs of one message, often a C-STORE, now and then wrong in one place."""
    kind = draw(st.sampled_from(["store"] * 6 + ["echo", "find", "cancel"]))
    sizes = draw(st.lists(st.sampled_from([1, 7, 50, 300, 2000]), min_size=1, max_size=3))
    fault = draw(st.sampled_from([""] * 30 + COMMAND_FAULTS + VALUE_FAULTS + PDU_FAULTS)) if faults else ""
    if kind == "store":
        context = draw(st.sampled_from([_EXPLICIT, _IMPLICIT]))
        sent = _image(draw(st.integers(1, images)), context, draw(st.sampled_from([0, 0, 0, 1])))
        encoded = store_request(sent, draw(st.integers(1, 65535)))
        if fault in COMMAND_FAULTS:
            encoded = _spoil_command(encoded, sent, fault)
        data_sizes = [max(size, len(sent.data) // 40) for size in sizes]
        values = _values(context, 1, encoded, [max(size, 8) for size in sizes]) + _values(
            context, 0, sent.data, data_sizes
        )
    elif kind == "echo":
        values = _values(draw(st.sampled_from([_ECHO, _EXPLICIT])), 1, echo_request(), sizes)
    elif kind == "find":
        find = command([(0x0002, sent_class()), (0x0100, b"\x20\0"), (0x0110, b"\5\0"), (0x0800, b"\0\0")])
        values = [*_values(_EXPLICIT, 1, find, [2000]), Value(_EXPLICIT, 2, b"\x08\0\x52\0\4\0\0\0IMAGE "[:12])]
    else:
        cancel = command([(0x0100, b"\xff\x0f"), (0x0120, b"\5\0"), (0x0800, b"\1\1")])
        values = _values(_EXPLICIT, 1, cancel, [2000])
    if fault in VALUE_FAULTS:
        values = _spoil_values(values, fault, draw(st.integers(0, len(values) - 1)))
    pdus = _pack(values, draw(st.lists(st.booleans(), min_size=1, max_size=4)))
    if fault in PDU_FAULTS and pdus:
        pdus = _spoil_pdus(pdus, fault, draw(st.integers(0, len(pdus) - 1)))
    return pdus


def sent_class() -> bytes:
    """The class of every image here."""
    return exchanges.MR


@st.composite
def streams(draw: st.DrawFn, *, faults: bool = True, images: int = 4) -> bytes:
    """What a peer sends over an association, all of it without waiting for answers."""
    pdus: list[bytes] = []
    for message in draw(st.lists(messages(faults, images), min_size=1, max_size=4)):
        pdus += message
    end = draw(st.sampled_from(["release"] * 6 + ["vanish", "abort", "release within", "abort within", "half a PDU"]))
    at = draw(st.integers(0, len(pdus))) if "within" in end else len(pdus)
    if end.startswith("release"):
        pdus.insert(at, exchanges.RELEASE)
    elif end.startswith("abort"):
        pdus.insert(at, exchanges.ABORT)
    elif end == "half a PDU" and pdus:
        pdus[-1] = pdus[-1][: len(pdus[-1]) // 2]
    return b"".join(pdus)
