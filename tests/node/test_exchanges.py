"""Exchanges by a grammar, right and wrong, against a reference decoder and against doors that listen.

The law of both paths: what was answered with success is in the ledger, and in the spool byte by byte; what is in the
ledger was sent whole; nothing else has left a file.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from node.ledger import Ledger
from node.listener import Door
from node.spool import Spool
from tests.fuzz import association, exchanges, grammar, reference, stream
from tests.node.making import data_set, files_below
from tests.presend import associate
from tests.waiting import until

OpenDoor = Callable[..., tuple[Door, int]]
# pynetdicom leaves sockets to the collector; pydicom warns of data sets that end early.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::UserWarning:pydicom")
LAWS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}


@given(grammar.streams(), st.integers(0, 4), st.integers(0, 255))
@settings(max_examples=150, **LAWS)
def test_the_parser_reads_what_the_reference_decoder_reads(sent: bytes, buffer: int, seed: int) -> None:
    stream.check(bytes([1, buffer, seed]) + sent)


@given(grammar.streams(), st.integers(0, 3))
@settings(max_examples=100, **LAWS)
def test_an_association_answers_each_message_once_and_keeps_what_it_acknowledged(sent: bytes, reads: int) -> None:
    association.check(bytes([0x80 | reads]) + sent)


@pytest.mark.long
@pytest.mark.timeout(3600)
@given(grammar.streams(), st.integers(0, 3), st.integers(0, 255))
@settings(max_examples=4000, **LAWS)
def test_both_for_long(sent: bytes, reads: int, seed: int) -> None:
    stream.check(bytes([1, reads, seed]) + sent)
    association.check(bytes([0x80 | reads]) + sent)


def converse(port: int, sent: bytes, expected: int) -> list[reference.Message]:
    """Send all of it, wait for so many responses or a moment without any, and close; return the responses."""
    answers, answered = b"", 0
    with associate(port, exchanges.CONTEXTS, timeout=10) as peer, contextlib.suppress(ConnectionError):
        peer.sendall(sent)
        while answered < expected and select.select([peer], [], [], 0.5)[0] and (more := peer.recv(65536)):
            answers += more
            answered = len(responses(answers))
    return responses(answers)


def responses(answers: bytes) -> list[reference.Message]:
    return reference.decode(answers, longest_pdu=1 << 20, longest_command=1 << 14, established=True).messages


# pynetdicom looks at neither contexts nor turns within a message: what comes wrong it may take for an object. And where
# a peer vanishes at certain moments, its threads never end.
@pytest.mark.parametrize(
    ("fast_path", "faults"), [(True, True), (False, False), (False, True)], ids=["fast", "stock", "stock-faults"]
)
@pytest.mark.parametrize("examples", [25, pytest.param(400, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_a_door_keeps_what_it_acknowledged_and_nothing_that_was_not_sent_whole(
    examples: int, fast_path: bool, faults: bool, open_door: OpenDoor, ledger: Ledger, spool: Spool
) -> None:
    door, port = open_door(fast_path=fast_path, max_associations=5000)
    offered: set[tuple[bytes, bytes | None]] = set()

    def is_quiet() -> bool:
        files = {str(f.relative_to(spool.root)) for f in files_below(spool.root)}
        ended = door.associations() == 0 or not fast_path
        return ended and files == {path for path, _ in association.held(ledger).values()}

    @given(grammar.streams(faults=faults, images=4 if fast_path else 400))
    @settings(max_examples=examples, **LAWS)
    def law(sent: bytes) -> None:
        whole = reference.decode(sent, longest_pdu=131072, longest_command=16384, established=True).messages
        if fast_path:  # else one of the last example may come yet: pynetdicom stores what it has when the peer is gone
            offered.clear()
            association.forget(ledger, spool)
        offered.update((m.text(0x1000).rstrip(b"\0 "), m.data) for m in whole if m.number(0x0100) == 1)
        acknowledged = [m for m in converse(port, sent, len(whole)) if m.elements[0x0100] == b"\1\x80"]
        stored_for = {m.text(0x1000).rstrip(b"\0 ") for m in acknowledged if m.elements[0x0900] == b"\0\0"}
        until(is_quiet)
        held = association.held(ledger)
        stored = {(uid, data_set(spool.path(path))) for uid, (path, _) in held.items()}
        event(f"{len(held)} stored, {len(stored_for)} acknowledged")
        assert stored_for <= set(held)
        assert stored <= offered or (faults and not fast_path)

    law()
