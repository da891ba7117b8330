"""Association requests, from their bytes to the answer.

Laws: they are refused by name, or answered so that each context asked for is answered once, with a transfer syntax
that was offered and that we take; nothing else is raised; the CPU time is bounded.
"""

from __future__ import annotations

import time

from node.errors import ProtocolViolation
from node.negotiation import Refused, agree, read_request, supported_contexts
from tests.fuzz import exchanges, reference

LONGEST = 8192
SECONDS = 1.0
_SUPPORTED = supported_contexts()
_TAKEN = {str(c.abstract_syntax): {str(t) for t in c.transfer_syntax} for c in _SUPPORTED}
_MAX_PDU = 16384


def check(data: bytes) -> None:
    """All of it is what follows the length field of an A-ASSOCIATE-RQ."""
    start = time.thread_time()
    try:
        request = read_request(data)
        agreement = agree(request, _SUPPORTED, _MAX_PDU)
    except (ProtocolViolation, Refused):
        assert time.thread_time() - start < SECONDS, "it takes too long"
        return
    assert time.thread_time() - start < SECONDS, "it takes too long"
    asked: dict[int, list[tuple[str, set[str]]]] = {}
    for context in request.primitive.presentation_context_definition_list:
        syntaxes = {str(t) for t in context.transfer_syntax}
        asked.setdefault(context.context_id, []).append((str(context.abstract_syntax), syntaxes))
    answer = agreement.answer
    assert answer[0] == reference.ASSOCIATE_AC
    assert int.from_bytes(answer[2:6], "big") == len(answer) - 6
    results = reference.accepted_contexts(answer[6:])
    assert set(results) == set(asked), "not each context is answered"
    assert {c for c, (result, _) in results.items() if result == 0} == set(agreement.contexts)
    for number, (abstract, transfer) in agreement.contexts.items():
        assert any(abstract == a and transfer in offered for a, offered in asked[number]), "it was not offered"
        assert transfer in _TAKEN[abstract], "it is not taken"
        assert results[number][1].rstrip(b"\0").decode() == transfer
    assert 0 <= request.maximum <= 0xFFFFFFFF
    assert request.wants_storage == any(a != "1.2.840.10008.1.1" for many in asked.values() for a, _ in many)


def seeds() -> dict[str, bytes]:
    """Requests as scanners, DCMTK and pynetdicom make them."""
    found = {name: pdu[6:] for name, pdu in exchanges.association_requests().items()}
    second = found["small"].index(b"1.2.840.10008.1.1@") - 8
    found["context-id-twice"] = found["small"][:second] + b"\1" + found["small"][second + 1 :]
    return found
