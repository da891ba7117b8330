"""Deadlines are the peer's, and what fails in the node itself ends no more than it must."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import selfcheck
from node.errors import InvalidInstance, OutOfDisk, ProtocolViolation
from node.header import read_identity
from node.incoming import Incoming, Origin
from node.negotiation import Refused, agree, read_request, supported_contexts
from node.pdata import Limits, Parser
from node.settings import Listener
from node.spool import Spool
from node.unnamed import Unnamed
from node.wire import Patience, Wire
from tests import presend
from tests.node.making import encoded, mr
from tests.presend import pdu, pdv

MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
ORIGIN = Origin(1, "PEER", "PENNODE", "127.0.0.1")


def test_a_write_that_stalls_is_not_held_against_the_peer() -> None:
    ours, theirs = socket.socketpair()
    now = [0.0]
    with ours, theirs:
        wire, parser = Wire(ours, Patience(10, 30, 60, 4096), lambda: now[0]), Parser(Limits())
        parser.establish(512 << 10)
        wire.established = True
        request = presend.store_request(presend.Sent(MR.encode(), b"1.2.3", b"", b""))
        large = pdu(4, pdv(1, 0, bytes(100000)))
        theirs.sendall(pdu(4, pdv(1, 3, request)) + large[:5000])
        wire.receive(parser)
        list(parser.events())
        for first, last in ((5000, 6000), (6000, 7000)):
            later = threading.Timer(0.1, theirs.sendall, [large[first:last]])
            later.start()
            wire.receive(parser)  # waits, so that deadlines are looked at
            later.join()
            list(parser.events())
            now[0] += 31  # more than a PDU may take, in our own write


def test_a_file_that_cannot_be_removed_is_dropped_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    spool.prepare()
    incoming = Incoming(ORIGIN, MR, "1.2.3", EXPLICIT)
    spool.unnamed = Unnamed(spool.root / "tmp")  # as on a file system where every file has a name
    incoming.open(spool)
    assert incoming.path

    def fail(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "unlink", fail)
    incoming.refuse(0xA700, "the disk failed")
    incoming.drop()
    assert (incoming.handle, incoming.path) == (-1, "")


def test_an_object_that_cannot_be_read_back_is_the_disks_fault(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.prepare()
    incoming = Incoming(ORIGIN, MR, "1.2.3", EXPLICIT)
    incoming.open(spool)
    incoming.drop()
    with pytest.raises(OutOfDisk):
        incoming.read_at(10, 0)


def test_a_number_of_a_wrong_length_is_refused_without_its_bytes() -> None:
    odd = struct.pack("<HH2sH", 0x0008, 0x1030, b"US", 15) + b"Doe^John spine."
    data = bytearray(encoded(mr(), EXPLICIT))
    at = data.index(struct.pack("<HH", 0x0020, 0x000D))  # StudyInstanceUID, the first of the next group
    data[at:at] = odd
    with pytest.raises(InvalidInstance) as raised:
        read_identity(bytes(data), EXPLICIT)
    assert "Doe" not in str(raised.value)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 40))
def test_a_request_with_any_byte_wrong_is_read_or_refused(at: int, value: int, cut: int) -> None:
    body = bytearray(selfcheck._association_request()[6:])
    body[at % len(body)] = value
    del body[len(body) - cut :]
    with contextlib.suppress(ProtocolViolation, Refused):
        agree(read_request(bytes(body)), supported_contexts(), 16384)


def test_two_presentation_contexts_of_one_id_are_no_request() -> None:
    contexts = [(MR.encode(), EXPLICIT.encode()), (b"1.2.840.10008.1.1", EXPLICIT.encode())]
    body = bytearray(presend.association_request(contexts)[6:])
    second = body.index(b"1.2.840.10008.1.1@") - 8
    assert body[second] == 3
    assert set(agree(read_request(bytes(body)), supported_contexts(), 16384).contexts) == {1, 3}
    body[second] = 1
    with pytest.raises(ProtocolViolation, match="one ID"):
        read_request(bytes(body))


@pytest.mark.parametrize("max_pdu", [4096, 16384, 1048576])
def test_the_check_at_start_passes_whatever_the_largest_pdu(max_pdu: int) -> None:
    assert selfcheck.difference(Listener(max_pdu=max_pdu)) == ""
