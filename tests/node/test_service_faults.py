"""DIMSE-N byte by byte, with peers that behave badly on purpose; what is answered on both paths is read by hand."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from io import BytesIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from node import ingest, statuses
from node.commitment import SOP_CLASS_UID, SOP_INSTANCE_UID, StorageCommitment
from node.ledger import CommitmentState, Ledger
from node.listener import Door
from node.mpps import SOP_CLASS_UID as MPPS
from node.settings import Commitment, Listener
from node.spool import Spool
from tests import presend
from tests.node.making import SERIES, encoded, mr
from tests.node.test_commitment import good, request, way
from tests.presend import Sent, associate, pdu, pdv, read_pdu, status_of
from tests.waiting import until

MR, EXPLICIT, IMPLICIT = b"1.2.840.10008.5.1.4.1.1.4", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2"
CLASS, WELL_KNOWN = SOP_CLASS_UID.encode(), SOP_INSTANCE_UID.encode()
CONTEXTS = [(MR, EXPLICIT), (CLASS, EXPLICIT), (MPPS.encode(), IMPLICIT)]
STORE, ASK, STEP = 1, 3, 5  # presentation contexts
OTHER_STEP = b"1.2.3.9"

__all__ = ["way"]


@pytest.fixture
def opened(ledger: Ledger, spool: Spool) -> Iterator[Callable[..., int]]:
    """Opens doors and returns their ports."""
    doors: list[Door] = []

    def make(*, rules: dict[str, object] | None = None, **values: object) -> int:
        commitment = StorageCommitment(ledger, spool, Commitment(**{"pause_s": 0.1, **(rules or {})}))
        listener = Listener(**{"port": 0, "free_floor_mb": 0, "network_timeout_s": 10.0, **values})
        doors.append(Door(ledger, spool, listener, changed=lambda: None, commitment=commitment))
        return doors[-1].start()[1]

    yield make
    for door in doors:
        door.stop()


def data(ds: Dataset, *, implicit: bool = False) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, True
    write_dataset(buffer, ds)
    return buffer.getvalue()


def action(message_id: int = 7, *, has_data: bool = True) -> bytes:
    elements = {
        0x0003: CLASS, 0x0100: b"\x30\1", 0x0110: struct.pack("<H", message_id),
        0x0800: b"\0\0" if has_data else b"\1\1", 0x1001: WELL_KNOWN, 0x1008: b"\1\0",
    }  # fmt: skip
    return presend.command(list(elements.items()))


def step_command(field: bytes, *, has_data: bool = True) -> bytes:
    """An N-CREATE-RQ (Affected) or N-SET-RQ (Requested SOP Class and Instance UID)."""
    kind = 0 if field == b"\x40\1" else 1
    return presend.command([
        (0x0002 + kind, MPPS.encode()), (0x0100, field), (0x0110, b"\x09\0"),
        (0x0800, b"\0\0" if has_data else b"\1\1"), (0x1000 + kind, OTHER_STEP),
    ])  # fmt: skip


def response(message_id: int, status: int = 0, *, has_data: bool = False) -> bytes:
    """An N-EVENT-REPORT-RSP."""
    return presend.command([
        (0x0002, CLASS), (0x0100, b"\0\x81"), (0x0120, struct.pack("<H", message_id)),
        (0x0800, b"\0\0" if has_data else b"\1\1"), (0x0900, struct.pack("<H", status)), (0x1000, WELL_KNOWN),
        (0x1002, b"\1\0"),
    ])  # fmt: skip


def command_of(answer: bytes) -> dict[int, bytes]:
    """The elements of a command set in one P-DATA-TF, without padding."""
    found, rest = {}, answer[6:]
    while rest:
        _, element, length = struct.unpack_from("<HHL", rest)
        found[element], rest = rest[8 : 8 + length].rstrip(b"\0 "), rest[8 + length :]
    return found


def ask(peer: socket.socket, numbers: list[int], transaction: str = "1.2.3.77", message_id: int = 7) -> int:
    ds = data(request([good(n) for n in numbers], transaction))
    peer.sendall(pdu(4, pdv(ASK, 3, action(message_id))) + pdu(4, pdv(ASK, 2, ds)))
    return answered(peer)


def answered(peer: socket.socket) -> int:
    kind, answer = read_pdu(peer)
    assert kind == 4
    return status_of(answer)


def image(peer: socket.socket, number: int) -> int:
    peer.sendall(presend.message(Sent(MR, f"{SERIES}.{number}".encode(), EXPLICIT, encoded(mr(number))), STORE, 16384))
    return answered(peer)


def report(peer: socket.socket, lengths: list[int] | None = None) -> tuple[dict[int, bytes], Dataset]:
    """Read an N-EVENT-REPORT-RQ, its command and its data set, in as many PDUs as they come; note their lengths."""
    parts: dict[int, bytes] = {0: b"", 1: b""}
    header = 0
    while header != 2:
        kind, body = read_pdu(peer)
        assert kind == 4
        header = body[5]
        parts[header & 1] += body[6:]
        if lengths is not None:
            lengths.append(len(body))
    command = command_of(bytes(6) + parts[1])
    assert command[0x0100] == b"\0\1"
    assert (command[0x0002], command[0x1000]) == (CLASS, WELL_KNOWN)
    return command, read_dataset(BytesIO(parts[0]), is_implicit_VR=False, is_little_endian=True)


def message_id_of(command: dict[int, bytes]) -> int:
    return int.from_bytes(command[0x0110].ljust(2, b"\0"), "little")


def settled(ledger: Ledger) -> bool:
    return all(c.state is CommitmentState.REPORTED for c in ledger.commitments())


# -- what is answered


def test_an_answer_says_back_what_it_answers(opened: Callable[..., int], way: dict[str, bool]) -> None:
    with associate(opened(**way), CONTEXTS) as peer:
        peer.sendall(pdu(4, pdv(ASK, 3, action(message_id=513))) + pdu(4, pdv(ASK, 2, data(request([good(1)])))))
        found = command_of(read_pdu(peer)[1])
    assert found == {
        0x0000: found[0x0000], 0x0002: CLASS, 0x0100: b"\x30\x81", 0x0120: b"\1\2", 0x0800: b"\1\1", 0x0900: b"",
        0x1000: WELL_KNOWN, 0x1008: b"\1",
    }  # fmt: skip


def test_without_a_data_set_each_operation_says_what_is_missing(
    opened: Callable[..., int], way: dict[str, bool]
) -> None:
    with associate(opened(**way), CONTEXTS) as peer:
        for command, context, status in (
            (action(has_data=False), ASK, statuses.INVALID_ARGUMENT_VALUE),
            (step_command(b"\x40\1", has_data=False), STEP, statuses.MISSING_ATTRIBUTE),
            (step_command(b"\x20\1", has_data=False), STEP, statuses.MISSING_ATTRIBUTE),
        ):
            peer.sendall(pdu(4, pdv(context, 3, command)))
            assert answered(peer) == status
        assert image(peer, 1) == 0


@pytest.mark.parametrize("cut", [1, 7, 9, 40, 100, -1])
def test_a_data_set_that_is_cut_short_is_not_taken_for_a_shorter_one(
    cut: int, opened: Callable[..., int], way: dict[str, bool], ledger: Ledger
) -> None:
    whole = data(request([good(1), good(22)]))
    with associate(opened(**way), CONTEXTS) as peer:
        peer.sendall(pdu(4, pdv(ASK, 3, action())) + pdu(4, pdv(ASK, 2, whole[:cut])))
        assert answered(peer) in (statuses.PROCESSING_FAILURE, statuses.INVALID_ARGUMENT_VALUE)
        assert image(peer, 1) == 0
    assert ledger.commitments() == []


def test_a_data_set_over_the_limit_is_refused_and_the_association_goes_on(
    opened: Callable[..., int], way: dict[str, bool], ledger: Ledger
) -> None:
    with associate(opened(max_message_mb=1, **way), CONTEXTS) as peer:
        peer.sendall(pdu(4, pdv(ASK, 3, action())))
        for n in range(100):
            peer.sendall(pdu(4, pdv(ASK, 2 if n == 99 else 0, bytes(12000))))
        found = command_of(read_pdu(peer)[1])
        assert int.from_bytes(found[0x0900], "little") == statuses.RESOURCE_LIMITATION
        assert found[0x0902] == b"the data set is over listener.max_message_mb"
        assert ask(peer, [1]) == 0
    assert len(ledger.commitments()) == 1


def test_a_data_set_without_end_ends_the_association(
    opened: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_GRACE", 1_000_000)
    with associate(opened(max_message_mb=1), CONTEXTS) as peer:
        peer.sendall(pdu(4, pdv(ASK, 3, action())))
        with contextlib.suppress(OSError):
            for _ in range(400):
                peer.sendall(pdu(4, pdv(ASK, 0, bytes(16000))))
        assert read_pdu(peer) == (7, bytes([0, 0, 2, statuses.NOT_SPECIFIED]))


def test_one_byte_at_a_time_it_is_the_same_request(opened: Callable[..., int], ledger: Ledger) -> None:
    command, ds = action(), data(request([good(1)]))
    whole = b"".join(
        pdu(4, pdv(ASK, 3 if n == len(command) - 1 else 1, command[n : n + 1])) for n in range(len(command))
    )
    whole += b"".join(pdu(4, pdv(ASK, 2 if n == len(ds) - 1 else 0, ds[n : n + 1])) for n in range(len(ds)))
    with associate(opened(), CONTEXTS) as peer:
        for n in range(len(whole)):
            peer.send(whole[n : n + 1])
        assert answered(peer) == 0
        _, told = report(peer)
    assert told.TransactionUID == "1.2.3.77"
    assert [c.requested for c in ledger.commitments()] == [1]


def test_operations_of_another_class_or_kind_are_not_performed(opened: Callable[..., int], ledger: Ledger) -> None:
    with associate(opened(), CONTEXTS) as peer:
        for context, command in (
            (STEP, action()),  # its class is not that of its context
            (STORE, action()),
            (ASK, step_command(b"\x40\1")),
            (STEP, presend.command([(0x0003, MPPS.encode()), (0x0100, b"\x10\1"), (0x0800, b"\0\0")])),  # N-GET
        ):  # fmt: skip
            peer.sendall(pdu(4, pdv(context, 3, command)) + pdu(4, pdv(context, 2, data(request([good(1)])))))
            assert answered(peer) == statuses.UNRECOGNISED_OPERATION
        assert image(peer, 1) == 0
    assert (ledger.commitments(), ledger.steps()) == ([], [])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=300), is_step=st.booleans(), field=st.sampled_from([b"\x40\1", b"\x20\1"]))
def test_garbage_is_answered_with_a_failure_and_leaves_nothing(
    garbage: bytes, is_step: bool, field: bytes, garbage_port: int, ledger: Ledger
) -> None:
    context, command = (STEP, step_command(field)) if is_step else (ASK, action())
    with associate(garbage_port, CONTEXTS) as peer:
        peer.sendall(pdu(4, pdv(context, 3, command)) + pdu(4, pdv(context, 2, garbage)))
        assert answered(peer) in (0x0106, 0x0110, 0x0112, 0x0115, 0x0120, 0x0121)
        peer.sendall(
            pdu(4, pdv(context, 3, command)) + pdu(4, pdv(context, 2, data(request([good(1)]))[:-20] + garbage))
        )
        assert answered(peer) != 0
    assert (ledger.commitments(), ledger.steps()) == ([], [])


@pytest.fixture
def garbage_port(opened: Callable[..., int]) -> int:
    return opened()


# -- reports on the association of the request


def test_a_report_waits_for_its_answer_and_an_image_meanwhile_does_not(
    opened: Callable[..., int], ledger: Ledger
) -> None:
    with associate(opened(), CONTEXTS) as peer:
        assert ask(peer, [1], "1.2.3.1") == 0
        assert ask(peer, [2], "1.2.3.2") == 0
        command, told = report(peer)
        assert (told.TransactionUID, command[0x1002]) == ("1.2.3.1", b"\2")
        for number in (1, 2, 3):
            assert image(peer, number) == 0, "no second report before the first is answered"
        peer.settimeout(0.4)
        with pytest.raises(TimeoutError):
            read_pdu(peer)
        peer.settimeout(10)
        # An Event Reply is allowed (PS3.7 10.1.1.1.7) and means nothing to us.
        peer.sendall(
            pdu(4, pdv(ASK, 3, response(message_id_of(command), has_data=True))) + pdu(4, pdv(ASK, 2, b"abcd"))
        )
        command, told = report(peer)
        assert (told.TransactionUID, command[0x1002]) == ("1.2.3.2", b"\1"), "the second knows the image that came"
        peer.sendall(pdu(4, pdv(ASK, 3, response(message_id_of(command)))))
        assert image(peer, 4) == 0
        until(lambda: settled(ledger))


def test_a_response_to_no_report_of_ours_ends_the_association(opened: Callable[..., int]) -> None:
    port = opened()
    for message_id in (0, 1, 2, 99):
        with associate(port, CONTEXTS) as peer:
            assert ask(peer, [1], f"1.2.3.{message_id + 100}") == 0
            if message_id == 2:
                report(peer)
            peer.sendall(pdu(4, pdv(ASK, 3, response(message_id))))
            assert read_pdu(peer) == (7, bytes([0, 0, 2, statuses.UNEXPECTED_PARAMETER]))


def test_a_peer_that_does_not_answer_here_may_go_on_storing(opened: Callable[..., int], ledger: Ledger) -> None:
    with associate(opened(rules={"timeout_s": 0.3}), CONTEXTS) as peer:
        assert ask(peer, [1], "1.2.3.1") == 0
        assert ask(peer, [1], "1.2.3.2") == 0
        command, _ = report(peer)
        until(lambda: any("did not answer the report" in c.reason for c in ledger.commitments()))
        assert image(peer, 1) == 0
        peer.sendall(pdu(4, pdv(ASK, 3, response(message_id_of(command)))))  # too late, and no fault
        assert image(peer, 2) == 0
    assert {c.state for c in ledger.commitments()} == {CommitmentState.PENDING}


def test_a_large_report_keeps_to_the_longest_pdu_that_the_peer_takes(opened: Callable[..., int]) -> None:
    numbers = list(range(3000))
    with associate(opened(), CONTEXTS) as peer:
        assert image(peer, 7) == 0
        ds = data(request([good(n) for n in numbers]))
        peer.sendall(pdu(4, pdv(ASK, 3, action())))
        for n in range(0, len(ds), 16000):
            peer.sendall(pdu(4, pdv(ASK, 2 if n + 16000 >= len(ds) else 0, ds[n : n + 16000])))
        assert answered(peer) == 0
        lengths: list[int] = []
        _, told = report(peer, lengths)
    assert max(lengths) == 131072, "what the A-ASSOCIATE-RQ said"
    assert len(lengths) > 2
    assert [i.ReferencedSOPInstanceUID for i in told.ReferencedSOPSequence] == [f"{SERIES}.7"]
    assert len(told.FailedSOPSequence) == 2999


def test_an_image_that_comes_while_the_report_goes_out_is_stored(opened: Callable[..., int], ledger: Ledger) -> None:
    with associate(opened(rules={"pause_s": 0.0}), CONTEXTS) as peer:
        store = presend.message(Sent(MR, f"{SERIES}.1".encode(), EXPLICIT, encoded(mr(1))), STORE, 16384)
        ds = data(request([good(1)]))
        peer.sendall(pdu(4, pdv(ASK, 3, action())) + pdu(4, pdv(ASK, 2, ds)) + store[: len(store) // 2])
        assert answered(peer) == 0
        time.sleep(0.3)
        peer.sendall(store[len(store) // 2 :])
        assert answered(peer) == 0, "no report in the middle of a message"
        command, told = report(peer)
        assert "FailedSOPSequence" not in told
        peer.sendall(pdu(4, pdv(ASK, 3, response(message_id_of(command)))))
        until(lambda: settled(ledger))
