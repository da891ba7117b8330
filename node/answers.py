"""What we send as association acceptor, encoded without building data sets: responses, and the few short PDUs."""

from __future__ import annotations

import struct
from functools import lru_cache

from node.pdata import ABORT, ASSOCIATE_RJ, NO_DATA_SET, P_DATA_TF, RELEASE_RP, RESPONSE, Command

_PDATA_HEADER = struct.Struct(">BxLLBB")
_ELEMENT = struct.Struct("<HHL")
_SHORT = struct.Struct("<H")
_STATUS = struct.Struct("<" + 3 * "HHLH")
_PDV_HEADER_LENGTH = 6
_LONGEST_UID = 64


def response(command: Command, status: int, maximum: int) -> bytes:
    """Encode the answer to a request as P-DATA-TF PDUs, each at most `maximum` bytes after its header (0: any).

    The elements are those of C-STORE-RSP and C-ECHO-RSP (PS3.7 sections 9.3.1.2 and 9.3.5.2). A UID that is too long
    for one is not said back: the peer's own reader might stumble over it.
    """
    before = _beginning(command.sop_class, command.field)
    after = b""
    if 0 < len(command.sop_instance) <= _LONGEST_UID:
        after = _ELEMENT.pack(0, 0x1000, len(command.sop_instance)) + command.sop_instance
    middle = _STATUS.pack(0, 0x0120, 2, command.message_id, 0, 0x0800, 2, NO_DATA_SET, 0, 0x0900, 2, status)
    length = len(before) + len(middle) + len(after)
    whole = b"%s%s%s%s%s" % (_ELEMENT.pack(0, 0, 4), length.to_bytes(4, "little"), before, middle, after)
    step = max(maximum - _PDV_HEADER_LENGTH, 1) if maximum else len(whole)
    pdus = []
    for start in range(0, len(whole), step):
        part = whole[start : start + step]
        header = 3 if start + step >= len(whole) else 1
        pdus.append(_PDATA_HEADER.pack(P_DATA_TF, len(part) + 6, len(part) + 2, command.context_id, header) + part)
    return b"".join(pdus)


@lru_cache(maxsize=256)
def _beginning(sop_class: bytes, field: int) -> bytes:
    elements = [(0x0002, sop_class)] if 0 < len(sop_class) <= _LONGEST_UID else []
    elements.append((0x0100, _SHORT.pack(field | RESPONSE)))
    return b"".join(_ELEMENT.pack(0, element, len(value)) + value for element, value in elements)


def abort(reason: int) -> bytes:
    """Encode an A-ABORT by the service provider (PS3.8 section 9.3.8) for one of the reasons in `node.statuses`."""
    return struct.pack(">BxLxxBB", ABORT, 4, 2, reason)


def release_response() -> bytes:
    """Encode an A-RELEASE-RP (PS3.8 section 9.3.7)."""
    return struct.pack(">BxLxxxx", RELEASE_RP, 4)


def rejection(result: int, source: int, reason: int) -> bytes:
    """Encode an A-ASSOCIATE-RJ (PS3.8 section 9.3.4) with a triple from `node.statuses`."""
    return struct.pack(">BxLxBBB", ASSOCIATE_RJ, 4, result, source, reason)
