"""Peers that behave badly on purpose: each costs itself something, and nobody else anything.

While each does its worst, another peer's C-ECHO is answered within a second; afterwards no file is left behind.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid

from node import ingest, selfcheck, statuses
from node.ledger import Ledger
from node.listener import Door
from node.settings import Listener
from node.spool import Spool
from tests import presend
from tests.node.making import SERIES, data_set, encoded, files_below, mr, open_below
from tests.presend import Sent, associate, connect, echo_request, pdu, pdv, read_pdu, status_of, store_request
from tests.waiting import read_only, until

OpenDoor = Callable[..., tuple[Door, int]]
ROOT = Path(__file__).resolve().parents[2]
EXPLICIT = b"1.2.840.10008.1.2.1"
MR = uid.MRImageStorage.encode()
CONTEXTS = [(MR, EXPLICIT), (b"1.2.840.10008.1.1", b"1.2.840.10008.1.2")]
GOOD, BAD = "127.0.0.2", "127.0.0.3"
QUICK = {"artim_s": 0.4, "pdu_timeout_s": 0.6, "network_timeout_s": 0.8, "min_rate": 4096}


def image(number: int = 1, **values: object) -> Sent:
    return Sent(MR, f"{SERIES}.{number}".encode(), EXPLICIT, encoded(mr(number, **values)))


def echo(port: int, source: str = GOOD) -> None:
    """A C-ECHO from another peer, with everything that belongs to it, within a second."""
    start = time.monotonic()
    with associate(port, CONTEXTS, source, timeout=1.0) as peer:
        peer.sendall(pdu(4, pdv(3, 3, echo_request())))
        kind, answer = read_pdu(peer)
        assert (kind, status_of(answer)) == (4, 0)
        peer.sendall(pdu(5, bytes(4)))
        assert read_pdu(peer)[0] == 6
    assert time.monotonic() - start < 1.0


def store(peer: socket.socket, sent: Sent, context: int = 1) -> int:
    peer.sendall(presend.message(sent, context, 16384))
    kind, answer = read_pdu(peer)
    assert kind == 4
    return status_of(answer)


def end_of(peer: socket.socket, seconds: float = 3.0) -> bytes:
    """What comes until the peer closes."""
    peer.settimeout(seconds)
    whole = b""
    with contextlib.suppress(ConnectionResetError):
        while more := peer.recv(65536):
            whole += more
    return whole


def aborted(reason: int) -> bytes:
    return struct.pack(">BxLxxBB", 7, 4, 2, reason)


@pytest.fixture
def door(open_door: OpenDoor, spool: Spool) -> Iterator[tuple[Door, int]]:
    """A door with short patience; after the test nothing half-received is left."""
    yield (opened := open_door(**QUICK))
    until(lambda: opened[0].associations() == 0)
    until(lambda: list((spool.root / "tmp").iterdir()) == [])


@pytest.fixture
def port(door: tuple[Door, int]) -> int:
    return door[1]


# -- peers that say nothing, or little


def test_silent_connections_cost_their_own_peer_its_places_and_end_by_artim(open_door: OpenDoor) -> None:
    _, port = open_door(**QUICK, max_waiting=20, max_waiting_per_peer=8)
    silent = [connect(port, BAD) for _ in range(40)]
    echo(port)
    echo(port, BAD)
    start = time.monotonic()
    for peer in silent:
        assert end_of(peer) == b"", "closed without a word: there is no association to abort"
        peer.close()
    assert time.monotonic() - start < 2


def test_a_flood_of_connections_shuts_nobody_out(port: int) -> None:
    ended = threading.Event()

    def flood() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError), connect(port, BAD, 1.0) as peer:
                peer.send(b"\x01\x00")

    floods = [threading.Thread(target=flood) for _ in range(3)]
    for thread in floods:
        thread.start()
    try:
        for _ in range(5):
            echo(port)
    finally:
        ended.set()
        for thread in floods:
            thread.join()


def test_more_associations_of_one_peer_than_it_may_have_are_its_own_trouble(open_door: OpenDoor) -> None:
    _, port = open_door(max_associations_per_peer=2)
    with associate(port, CONTEXTS, BAD), associate(port, CONTEXTS, BAD):
        with connect(port, BAD) as third:
            third.sendall(presend.association_request(CONTEXTS))
            assert read_pdu(third) == (3, bytes([0, *statuses.LOCAL_LIMIT_EXCEEDED]))
        echo(port)
    until_echo = time.monotonic() + 2
    while True:
        try:
            echo(port, BAD)
            break
        except ConnectionError:
            assert time.monotonic() < until_echo


SLOW = {
    "in the request": (b"", presend.association_request(CONTEXTS), b""),
    "in the header of a PDU": (b"A", b"\x04\x00\x00\x00", aborted(0)),
    "in a command": (b"A", pdu(4, pdv(1, 3, store_request(image()))), aborted(0)),
    "in a data set": (
        b"A" + pdu(4, pdv(1, 3, store_request(image()))), pdu(4, pdv(1, 0, bytes(10_000))), aborted(0),
    ),
    "between two PDVs": (
        b"A" + pdu(4, pdv(1, 3, store_request(image()))) + b"\4\0\0\0\1\0" + pdv(1, 0, bytes(100)),
        pdv(1, 0, bytes(144)), aborted(0),
    ),
    "in many small PDUs": (
        b"A" + pdu(4, pdv(1, 3, store_request(image()))), pdu(4, pdv(1, 0, b"ab")) * 500, aborted(0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("where", SLOW)
def test_a_peer_that_drips_is_cut_off_in_every_state(where: str, port: int, caplog: pytest.LogCaptureFixture) -> None:
    at_once, slowly, last_word = SLOW[where]
    with associate(port, CONTEXTS, BAD) if at_once else connect(port, BAD) as peer:
        peer.sendall(at_once[1:])
        start = time.monotonic()
        with contextlib.suppress(OSError):
            for n in range(0, len(slowly), 2):
                peer.sendall(slowly[n : n + 2])
                if select.select([peer], [], [], 0.02)[0]:
                    break
                if n == 20:
                    echo(port)
        assert end_of(peer) == last_word
        assert time.monotonic() - start < 3
    assert sum("ended the connection" in r.getMessage() for r in caplog.records) == 1


def test_an_idle_association_is_aborted_and_one_that_works_is_not(port: int) -> None:
    with associate(port, CONTEXTS, BAD) as idle, associate(port, CONTEXTS) as busy:
        for _ in range(6):
            busy.sendall(pdu(4, pdv(3, 3, echo_request())))
            assert read_pdu(busy)[0] == 4
            time.sleep(0.2)
        assert end_of(idle) == aborted(0)
        busy.sendall(pdu(5, bytes(4)))
        assert read_pdu(busy)[0] == 6


def test_a_peer_that_does_not_close_after_its_release_holds_no_place(open_door: OpenDoor) -> None:
    door, port = open_door(max_associations=1)
    with associate(port, CONTEXTS, BAD) as rude:
        rude.sendall(pdu(5, bytes(4)))
        assert read_pdu(rude)[0] == 6
        until(lambda: door.associations() == 0)
        echo(port)


# -- peers that say too much


@pytest.mark.parametrize(
    ("first", "bomb", "reason"),
    [
        (False, b"\x01\x00\xff\xff\xff\xff", statuses.INVALID_PARAMETER),
        (False, b"\x04\x00\xff\xff\xff\xff", statuses.UNEXPECTED_PDU),
        (False, b"GET / HTTP/1.1\r\n\r\n", statuses.UNRECOGNISED_PDU),
        (False, pdu(1, bytes(100)), statuses.INVALID_PARAMETER),
        (True, b"\x04\x00\xff\xff\xff\xff", statuses.INVALID_PARAMETER),
        (True, b"\x04\x00\x00\x00\x01\x00\xff\xff\xff\xff\x01\x03", statuses.INVALID_PARAMETER),
        (True, b"\x01\x00\x00\x00\x00\x44", statuses.UNEXPECTED_PDU),
        (True, b"\x09\x00\x00\x00\x00\x04", statuses.UNRECOGNISED_PDU),
        (True, pdu(4, pdv(1, 1, bytes(16000))) * 2, statuses.INVALID_PARAMETER),
        (True, pdu(4, pdv(5, 3, store_request(image()))), statuses.INVALID_PARAMETER),
        (True, pdu(4, pdv(1, 3, store_request(image())) + pdv(3, 0, b"x")), statuses.UNEXPECTED_PARAMETER),
        (True, pdu(4, pdv(1, 2, b"no command before")), statuses.UNEXPECTED_PARAMETER),
        (True, pdu(4, pdv(1, 3, b"\0\0\0\1")), statuses.INVALID_PARAMETER),
        (True, pdu(4, pdv(3, 3, presend.command([(0x0100, b"\x30\x80"), (0x0800, b"\1\1")]))),
         statuses.UNEXPECTED_PARAMETER),
    ],
)  # fmt: skip
def test_what_breaks_the_protocol_is_aborted_with_its_reason_and_one_line(
    first: bool, bomb: bytes, reason: int, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with associate(port, CONTEXTS, BAD) if first else connect(port, BAD) as peer:
        with contextlib.suppress(OSError):
            peer.sendall(bomb)
        assert read_pdu(peer) == (7, bytes([0, 0, 2, reason]))
        with contextlib.suppress(OSError):  # what a bomber sends on is thrown away
            for _ in range(200):
                peer.sendall(bytes(65536))
    echo(port)
    assert sum("ended the connection" in r.getMessage() for r in caplog.records) == 1


def test_a_data_set_without_end_is_refused_at_its_limit_and_then_aborted(
    open_door: OpenDoor, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_GRACE", 4_000_000)
    _, port = open_door(max_object_mb=1)
    with associate(port, CONTEXTS, BAD) as peer:
        large = Sent(MR, b"1.2.3.4", EXPLICIT, bytes(2_000_000))
        assert store(peer, large) == statuses.OUT_OF_RESOURCES
        assert store(peer, image()) == statuses.SUCCESS, "the association lives on"
        peer.sendall(pdu(4, pdv(1, 3, store_request(image(2)))))
        with contextlib.suppress(OSError):
            for _ in range(400):
                peer.sendall(pdu(4, pdv(1, 0, bytes(16000))))
        assert read_pdu(peer) == (7, bytes([0, 0, 2, statuses.NOT_SPECIFIED]))
    echo(port)
    until(lambda: list((spool.root / "tmp").iterdir()) == [])
    assert len(list(files_below(spool.root / "series"))) == 1


def test_a_series_takes_no_more_images_than_it_may(open_door: OpenDoor, spool: Spool, ledger: Ledger) -> None:
    _, port = open_door(max_series_instances=2)
    with associate(port, CONTEXTS) as peer:
        answers = [store(peer, image(n)) for n in (1, 2, 3, 1)]
    assert answers == [0, 0, statuses.OUT_OF_RESOURCES, 0]
    assert len(list(files_below(spool.root))) == len(ledger.series_instances(SERIES)) == 2


def test_a_large_object_takes_no_more_memory_than_a_small_one(tmp_path: Path, sqlite_url: str) -> None:
    length = 150_000_000
    small = encoded(mr(1, SOPClassUID=uid.EnhancedMRImageStorage, NumberOfFrames=10))
    head = small[: small.index(b"\xe0\x7f\x10\x00OW")] + b"\xe0\x7f\x10\x00OW\0\0" + length.to_bytes(4, "little")
    sent = Sent(uid.EnhancedMRImageStorage.encode(), f"{SERIES}.1".encode(), EXPLICIT, b"")
    command = [sys.executable, "-m", "tests.node.listening_child", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        echo(port)
        before = resident_mb(child.pid)
        with associate(port, [(sent.sop_class, EXPLICIT)]) as peer:
            peer.sendall(pdu(4, pdv(1, 3, store_request(sent))) + pdu(4, pdv(1, 0, head)))
            piece = pdu(4, pdv(1, 0, bytes(120_000)))
            for _ in range(length // 120_000):
                peer.sendall(piece)
            peer.sendall(pdu(4, pdv(1, 2, b"")))
            assert status_of(read_pdu(peer)[1]) == statuses.SUCCESS
        assert resident_mb(child.pid) - before < 20
        child.kill()
    ledger = Ledger(sqlite_url)
    (member,) = ledger.series_instances(SERIES)
    assert member.size == len(head) + length
    ledger.close()


def resident_mb(pid: int) -> float:
    """The largest resident memory of a process so far."""
    (line,) = (t for t in Path(f"/proc/{pid}/status").read_text().splitlines() if t.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_whatever_comes_over_a_connection_it_ends(garbage: bytes, is_associated: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        seen = selfcheck._Seen()
        selfcheck._serve_fast(Listener(**QUICK), theirs, seen)
        if is_associated:
            ours.sendall(presend.association_request(CONTEXTS))
            assert read_pdu(ours)[0] == 2
        ours.sendall(garbage)
        ours.shutdown(socket.SHUT_WR)
        end_of(ours)
    assert not seen.stored


# -- fragments, aborts, wrong contexts


def test_one_byte_at_a_time_it_is_the_same_object(port: int, spool: Spool) -> None:
    sent = image()
    whole = pdu(4, pdv(1, 3, store_request(sent)))
    whole += b"".join(
        pdu(4, b"".join(pdv(1, 2 if n + k == len(sent.data) - 1 else 0, sent.data[n + k : n + k + 1])
                        for k in range(min(10, len(sent.data) - n))))
        for n in range(0, len(sent.data), 10)
    )  # fmt: skip
    with associate(port, CONTEXTS) as peer:
        for n in range(3000):
            peer.send(whole[n : n + 1])
        peer.sendall(whole[3000:])
        assert status_of(read_pdu(peer)[1]) == statuses.SUCCESS
    (path,) = files_below(spool.root)
    assert data_set(path) == sent.data


def test_aborts_and_resets_in_the_middle_leave_nothing(door: tuple[Door, int], spool: Spool, ledger: Ledger) -> None:
    _, port = door
    for n in range(30):
        with associate(port, CONTEXTS, BAD) as peer:
            half = presend.message(image(n + 1), 1, 16384)
            peer.sendall(half[: len(half) // 2 + 7 * n])
            if n % 3 == 0:
                peer.sendall(pdu(7, bytes(4)))
            elif n % 3 == 1:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if n % 10 == 0:
            echo(port)
    until(lambda: door[0].associations() == 0)
    until(lambda: list(files_below(spool.root)) == [])
    assert ledger.receiving() == []


def test_operations_that_are_not_served_are_answered_so(port: int) -> None:
    find = presend.command([(0x0002, MR), (0x0100, b"\x20\0"), (0x0110, b"\5\0"), (0x0800, b"\0\0")])
    cancel = presend.command([(0x0100, b"\xff\x0f"), (0x0120, b"\5\0"), (0x0800, b"\1\1")])
    with associate(port, CONTEXTS) as peer:
        peer.sendall(pdu(4, pdv(1, 3, find)) + pdu(4, pdv(1, 2, b"identifier")))
        assert status_of(read_pdu(peer)[1]) == statuses.UNRECOGNISED_OPERATION
        peer.sendall(pdu(4, pdv(1, 3, cancel)))  # nothing to cancel, nothing to answer
        wrong_class = Sent(b"1.2.840.10008.5.1.4.1.1.2", b"1.2.3", EXPLICIT, b"abcd")
        assert store(peer, wrong_class) == statuses.SOP_CLASS_NOT_SUPPORTED
        peer.sendall(pdu(4, pdv(1, 3, store_request(image(), data_set_type=b"\1\1"))))
        assert status_of(read_pdu(peer)[1]) == statuses.CANNOT_UNDERSTAND
        assert store(peer, image()) == statuses.SUCCESS


def test_another_protocol_version_is_rejected(port: int) -> None:
    with connect(port) as peer:
        request = bytearray(presend.association_request(CONTEXTS))
        request[7] = 2
        peer.sendall(request)
        assert read_pdu(peer) == (3, bytes([0, *statuses.PROTOCOL_VERSION_NOT_SUPPORTED]))


def test_closing_the_door_aborts_who_is_in_it_and_leaves_no_file(open_door: OpenDoor, spool: Spool) -> None:
    door, port = open_door()
    with associate(port, CONTEXTS) as peer, connect(port) as silent:
        half = presend.message(image(), 1, 16384)
        peer.sendall(half[: len(half) // 2])
        until(lambda: open_below(spool.root) != [])
        start = time.monotonic()
        door.stop()
        assert time.monotonic() - start < 3.5
        assert end_of(peer) == aborted(0)
        assert end_of(silent) == b""
    assert open_below(spool.root) == list(files_below(spool.root)) == []


# -- disks and kills


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        reason = "a tmpfs cannot be mounted here (needs root)"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full_or_read_only_is_a700_and_nothing_is_left(small_disk: Path, ledger: Ledger) -> None:
    spool = Spool(small_disk)
    spool.prepare()
    door = Door(ledger, spool, Listener(port=0, free_floor_mb=0), changed=lambda: None)
    _, port = door.start()
    try:
        with associate(port, CONTEXTS) as peer:
            too_large = Sent(MR, b"1.2.3.4", EXPLICIT, bytes(5_000_000))
            assert store(peer, too_large) == statuses.OUT_OF_RESOURCES
            assert list(files_below(spool.root)) == []
            assert store(peer, image(1)) == statuses.SUCCESS
            until(lambda: open_below(spool.root) != [])
            read_only(small_disk, spool.unnamed.close_spares)
            assert store(peer, image(2)) == statuses.OUT_OF_RESOURCES
            echo(port)
            subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
            assert store(peer, image(2)) == statuses.SUCCESS
    finally:
        door.stop()
    assert len(list(files_below(spool.root))) == len(ledger.series_instances(SERIES)) == 2


def test_killed_in_the_middle_of_storing_it_has_what_it_acknowledged_and_no_more(
    tmp_path: Path, sqlite_url: str
) -> None:
    command = [sys.executable, "-m", "tests.node.listening_child", str(tmp_path)]
    acknowledged: set[str] = set()
    begun: dict[str, bytes] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())

        def send(lane: int) -> None:
            with contextlib.suppress(OSError), associate(port, CONTEXTS) as peer:
                for n in range(1000):
                    sent = image(1000 * lane + n, size=64)
                    begun[sent.sop_uid.decode()] = sent.data
                    if store(peer, sent) == 0:
                        acknowledged.add(sent.sop_uid.decode())

        lanes = [threading.Thread(target=send, args=(lane,)) for lane in range(1, 5)]
        for lane in lanes:
            lane.start()
        until(lambda: len(acknowledged) > 30, 20)
        child.send_signal(signal.SIGKILL)
        for lane in lanes:
            lane.join()
    ledger, spool = Ledger(sqlite_url), Spool(tmp_path / "spool")
    spool.prepare()
    spool.set_unknown_aside(ledger.known_paths, older_than=time.time() + 1)
    held = {m.sop_uid: m for m in ledger.series_instances(SERIES)}
    assert acknowledged <= set(held) <= set(begun)
    assert len(held) - len(acknowledged) <= 4, "at most what each association was just about to be told"
    for sop_uid, member in held.items():
        assert data_set(spool.path(member.path)) == begun[sop_uid]
    assert list((spool.root / "tmp").iterdir()) == []
    assert {str(f.relative_to(spool.root)) for f in files_below(spool.root / "series")} == {
        m.path for m in held.values()
    }
    ledger.close()


@pytest.mark.parametrize("is_fast", [True, False])
def test_when_files_run_out_it_waits_and_goes_on(is_fast: bool, tmp_path: Path, sqlite_url: str) -> None:
    values = {"files": 40, "fast_path": is_fast, "artim_s": 20.0}
    command = [sys.executable, "-m", "tests.node.listening_child", str(tmp_path), json.dumps(values)]
    log = tmp_path / "child.log"
    with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        try:
            with associate(port, CONTEXTS) as peer, contextlib.ExitStack() as flood:
                assert store(peer, image(1)) == statuses.SUCCESS
                open_files = Path(f"/proc/{child.pid}/fd")
                for n in range(60):
                    if len(list(open_files.iterdir())) >= values["files"]:
                        break
                    flood.enter_context(connect(port, f"127.0.0.{10 + n // 10}"))
                    time.sleep(0.02)
                assert len(list(open_files.iterdir())) == values["files"]
                flood.enter_context(connect(port, BAD))
                # Whether there is a file left for an object or not, its sender gets an answer.
                assert store(peer, image(2)) in (statuses.SUCCESS, statuses.OUT_OF_RESOURCES)
                flood.close()
                until(lambda: len(list(open_files.iterdir())) < values["files"] - 15, 10)
                assert store(peer, image(3)) == statuses.SUCCESS
            echo(port)
            assert child.poll() is None
        finally:
            child.kill()
    if is_fast:
        lines = log.read_text().splitlines()
        assert lines.count("no connection can be accepted for now: Too many open files") == 1
    ledger, spool = Ledger(sqlite_url), Spool(tmp_path / "spool")
    held = {m.sop_uid: spool.path(m.path) for m in ledger.series_instances(SERIES)}
    assert {f"{SERIES}.1", f"{SERIES}.3"} <= set(held)
    assert set(files_below(spool.root)) == set(held.values())
    ledger.close()


# -- the check at start


def test_the_fast_path_does_what_this_pynetdicom_does() -> None:
    assert selfcheck.difference(Listener()) == ""


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("agree", "the answer to A-ASSOCIATE is not pynetdicom's"),
        ("_text", "an object would be stored otherwise"),
    ],
)
def test_a_difference_is_found(broken: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(ingest, broken)

    def agree(request, supported, _max_pdu):
        return real(request, supported, 99999)

    monkeypatch.setattr(ingest, broken, agree if broken == "agree" else lambda value: real(value) + ".0")
    assert says in selfcheck.difference(Listener())


def test_where_they_differ_the_stock_path_serves_and_says_so(
    ledger: Ledger, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Listener(port=0, free_floor_mb=0)
    door = Door(ledger, spool, settings, changed=lambda: None, check=lambda _settings: "the answer is another")
    _, port = door.start()
    try:
        with associate(port, CONTEXTS) as peer:
            assert store(peer, image()) == statuses.SUCCESS
            peer.sendall(pdu(5, bytes(4)))
            assert read_pdu(peer)[0] == 6
    finally:
        door.stop()
    assert "the answer is another" in door.trouble
    assert [r.levelno for r in caplog.records if "fast path is off" in r.getMessage()] == [logging.ERROR]
