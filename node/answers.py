"""What we send as association acceptor, encoded without building data sets: responses, and the few short PDUs."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache

from node.pdata import (
    ABORT,
    ASSOCIATE_RJ,
    N_ACTION_RQ,
    N_EVENT_REPORT_RQ,
    NO_DATA_SET,
    P_DATA_TF,
    RELEASE_RP,
    RESPONSE,
    Command,
)

_PDATA_HEADER = struct.Struct(">BxLLBB")
_ELEMENT = struct.Struct("<HHL")
_SHORT = struct.Struct("<H")
_STATUS = struct.Struct("<" + 3 * "HHLH")
_PDV_HEADER_LENGTH = 6
_LONGEST_UID = 64
_LONGEST_COMMENT = 64
_COMMAND, _DATA, _LAST = 1, 0, 2


def response(
    command: Command, status: int, maximum: int, *, comment: str = "", error_id: int | None = None, made: str = ""
) -> bytes:
    """Encode the answer to a request as P-DATA-TF PDUs, each at most `maximum` bytes after its header (0: any).

    The elements are those of C-STORE-RSP, C-ECHO-RSP, N-EVENT-REPORT-RSP, N-SET-RSP, N-ACTION-RSP and N-CREATE-RSP
    (PS3.7 sections 9.3.1.2, 9.3.5.2, 10.3.1.2, 10.3.3.2, 10.3.4.2 and 10.3.5.2). A UID that is too long for one is not
    said back: the peer's own reader might stumble over it.

    Parameters
    ----------
    comment, error_id
        Error Comment (0000,0902), in ASCII and cut to 64 characters, and Error ID (0000,0903).
    made
        SOP Instance UID of what was created, where the request named none.
    """
    elements = []
    if comment:
        elements.append((0x0902, _padded(comment[:_LONGEST_COMMENT], " ")))
    if error_id is not None:
        elements.append((0x0903, _SHORT.pack(error_id)))
    instance = command.sop_instance or _padded(made, "\0")
    if 0 < len(instance) <= _LONGEST_UID:
        elements.append((0x1000, instance))
    if command.field == N_EVENT_REPORT_RQ and command.event_type is not None:
        elements.append((0x1002, _SHORT.pack(command.event_type)))
    if command.field == N_ACTION_RQ and command.action_type is not None:
        elements.append((0x1008, _SHORT.pack(command.action_type)))
    middle = _STATUS.pack(0, 0x0120, 2, command.message_id, 0, 0x0800, 2, NO_DATA_SET, 0, 0x0900, 2, status)
    body = b"%s%s%s" % (_beginning(command.sop_class, command.field), middle, _encoded(elements))
    return b"".join(_pdus(command.context_id, _COMMAND, _with_length(body), maximum))


def event_report(
    context_id: int, message_id: int, sop_class_uid: str, sop_uid: str, event_type: int, data: bytes, maximum: int
) -> bytes:
    """Encode an N-EVENT-REPORT-RQ (PS3.7 section 10.3.1.1) with its data set, in PDUs as `response` does."""
    elements = [
        (0x0002, _padded(sop_class_uid, "\0")),
        (0x0100, _SHORT.pack(N_EVENT_REPORT_RQ)),
        (0x0110, _SHORT.pack(message_id)),
        (0x0800, _SHORT.pack(NO_DATA_SET - 1)),
        (0x1000, _padded(sop_uid, "\0")),
        (0x1002, _SHORT.pack(event_type)),
    ]
    command = _pdus(context_id, _COMMAND, _with_length(_encoded(elements)), maximum)
    return b"".join((*command, *_pdus(context_id, _DATA, data, maximum)))


def _encoded(elements: Sequence[tuple[int, bytes]]) -> bytes:
    return b"".join(_ELEMENT.pack(0, element, len(value)) + value for element, value in elements)


def _with_length(body: bytes) -> bytes:
    return _ELEMENT.pack(0, 0, 4) + len(body).to_bytes(4, "little") + body


def _padded(text: str, padding: str) -> bytes:
    return (text + padding * (len(text) % 2)).encode("ascii", errors="replace")


def _pdus(context_id: int, kind: int, whole: bytes, maximum: int) -> Iterator[bytes]:
    step = max(maximum - _PDV_HEADER_LENGTH, 1) if maximum else len(whole)
    for start in range(0, len(whole), step):
        part = whole[start : start + step]
        header = kind | (_LAST if start + step >= len(whole) else 0)
        yield _PDATA_HEADER.pack(P_DATA_TF, len(part) + 6, len(part) + 2, context_id, header) + part


@lru_cache(maxsize=256)
def _beginning(sop_class: bytes, field: int) -> bytes:
    elements = [(0x0002, sop_class)] if 0 < len(sop_class) <= _LONGEST_UID else []
    elements.append((0x0100, _SHORT.pack(field | RESPONSE)))
    return _encoded(elements)


def abort(reason: int) -> bytes:
    """Encode an A-ABORT by the service provider (PS3.8 section 9.3.8) for one of the reasons in `node.statuses`."""
    return struct.pack(">BxLxxBB", ABORT, 4, 2, reason)


def release_response() -> bytes:
    """Encode an A-RELEASE-RP (PS3.8 section 9.3.7)."""
    return struct.pack(">BxLxxxx", RELEASE_RP, 4)


def rejection(result: int, source: int, reason: int) -> bytes:
    """Encode an A-ASSOCIATE-RJ (PS3.8 section 9.3.4) with a triple from `node.statuses`."""
    return struct.pack(">BxLxBBB", ASSOCIATE_RJ, 4, result, source, reason)
