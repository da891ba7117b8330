"""STOW-RS clients that behave badly, disks that fill and processes that die: nothing is lost, and nothing is left."""

from __future__ import annotations

import contextlib
import gzip
import json
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
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import uid

from node import http as node_http
from node import statuses
from node.ledger import Ledger
from node.spool import Spool
from tests.node.making import SERIES, data_set, files_below, mr
from tests.node.stowing import BOUNDARY, PART, TOKEN, TYPE, Site, file, reasons, references, related, served
from tests.presend import associate
from tests.waiting import read_only, until

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"pdu_timeout_s": 0.5, "min_rate": 10_000}
Serve = Callable[..., Site]
ONE, TWO = file(mr(1)), file(mr(2))
HEAD = (
    f"POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: {TYPE}\r\n"
).encode()


@pytest.fixture
def serve(ledger: Ledger, spool: Spool) -> Iterator[Serve]:
    """Serves with given limits; after the test nothing half-received is left, and nobody is served any more."""
    with contextlib.ExitStack() as stack:
        sites: list[Site] = []

        def start(web: dict[str, Any] | None = None, **listener: object) -> Site:
            sites.append(stack.enter_context(served(ledger, spool, web, **listener)))
            return sites[-1]

        yield start
        for site in sites:
            until(lambda site=site: site.door.associations() == 0)  # type: ignore[misc]
            until(lambda site=site: site.begun() == [])  # type: ignore[misc]


@contextlib.contextmanager
def raw(site: Site, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", site.port), 20) as peer:
        peer.sendall(sent)
        yield peer


def sized(body: bytes, length: int | None = None) -> bytes:
    return HEAD + f"Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def chunked(body: bytes, size: int, last: bytes = b"0\r\n\r\n") -> bytes:
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + last


def answer(peer: socket.socket) -> tuple[int, Any]:
    found = HTTPResponse(peer)
    found.begin()
    content = found.read().decode()
    is_json = found.headers["content-type"] == "application/dicom+json"
    return found.status, json.loads(content) if is_json else content


def ends(peer: socket.socket) -> bool:
    """Whether the other side closes, whatever it says before."""
    with contextlib.suppress(ConnectionResetError):
        while peer.recv(65536):
            pass
    return True


# -- bodies


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_chunks_of_any_size_bring_the_same_objects(size: int, serve: Serve) -> None:
    site = serve()
    with raw(site, chunked(related([ONE, TWO]), size)) as peer:
        status, module = answer(peer)
    assert (status, references(module)) == (200, [f"{SERIES}.1", f"{SERIES}.2"])
    assert site.held() == {f"{SERIES}.1": data_set(ONE), f"{SERIES}.2": data_set(TWO)}


def test_a_boundary_within_an_object_is_no_boundary_unless_it_is_a_line_of_its_own(serve: Serve) -> None:
    site = serve()
    inner = f"\r\n--{BOUNDARY}x\r\n--{BOUNDARY[:-1]}\r\n--{BOUNDARY} --\r\n".encode()
    one = file(mr(1, ImageComments="x" + inner.decode() + "y"))
    assert inner in one
    status, module, _ = site.post(related([one]))
    assert (status, references(module)) == (200, [f"{SERIES}.1"])
    assert site.held() == {f"{SERIES}.1": data_set(one)}
    split = file(mr(2, ImageComments=f"x\r\n--{BOUNDARY}\r\ny"))
    assert site.post(related([split]))[0] == 400
    assert f"{SERIES}.2" not in site.held(), "half an object is none"


@pytest.mark.parametrize("end", [b"", b"\r\n", b"--x", b"--"[:1]])
def test_without_the_last_boundary_the_last_object_is_not_taken(end: bytes, serve: Serve) -> None:
    site = serve()
    body = related([ONE, TWO])
    cut = body[: body.rindex(f"\r\n--{BOUNDARY}--".encode())]
    status, module, _ = site.post(cut + end if end != b"-" else cut + f"\r\n--{BOUNDARY}-".encode())
    assert (status, references(module), reasons(module)) == (202, [f"{SERIES}.1"], [statuses.CANNOT_UNDERSTAND])
    status, text, _ = site.post(related([TWO])[:-10])
    assert status == 400
    assert "it was cut short" in str(text)
    assert site.held() == {f"{SERIES}.1": data_set(ONE)}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "cut short"),
        (f"--{BOUNDARY}--".encode(), "no parts"),
        (b"GET / HTTP/1.1\r\n" * 1000, "does not begin with its boundary"),
        (f"--{BOUNDARY}\r\n".encode() + b"X-Long: " + b"y" * 100_000, "longer than"),
        (f"--{BOUNDARY}\r\n".encode() + b"no field\r\n\r\n", "cannot be read"),
    ],
)
def test_a_body_that_is_none_is_a_bad_request(body: bytes, says: str, serve: Serve) -> None:
    status, text, _ = serve().post(body)
    assert status == 400
    assert says in str(text)


def test_an_empty_single_object_is_a_failure_of_its_own(serve: Serve) -> None:
    status, module, _ = serve().post(b"", content_type="application/dicom")
    assert (status, reasons(module)) == (409, [statuses.CANNOT_UNDERSTAND])


@pytest.mark.parametrize("coding", ["gzip", "deflate, br", "GZIP"])
def test_an_encoded_body_is_not_taken(coding: str, serve: Serve) -> None:
    site = serve()
    status, text, head = site.post(gzip.compress(related([ONE])), Content_Encoding=coding)
    assert (status, head.headers["accept-encoding"]) == (415, "identity")
    assert "Content-Encoding" in str(text)
    assert site.post(related([ONE]), Content_Encoding="identity")[0] == 200


def test_a_client_that_vanishes_leaves_what_was_whole_and_nothing_else(serve: Serve) -> None:
    site = serve()
    body = related([ONE, file(mr(2, size=1024))])
    for abrupt in (True, False):
        with raw(site, sized(body)[: -(1 << 20)]) as peer:
            until(lambda: site.begun() != [])
            if abrupt:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until(lambda: site.door.associations() == 0)
        until(lambda: site.begun() == [])
    assert site.held() == {f"{SERIES}.1": data_set(ONE)}


def test_a_length_that_is_wrong_costs_what_it_cuts(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_http, "HEAD_S", 0.5)
    site = serve(**QUICK)
    body = related([ONE, TWO])
    with raw(site, sized(body, len(body) - 200)) as peer:
        status, module = answer(peer)
        assert (status, references(module)) == (202, [f"{SERIES}.1"])
        assert ends(peer), "the rest is no request"
    with raw(site, sized(body, len(body) + 200)) as peer:
        assert answer(peer)[0] == 408, "told when the time for the rest is over"
        assert ends(peer)
    for length in ("-1", "1e3", "9" * 30, "1, 2"):
        with raw(site, HEAD + f"Content-Length: {length}\r\n\r\n".encode() + body) as peer:
            assert answer(peer)[0] == 400, length
    assert site.held() == {f"{SERIES}.1": data_set(ONE)}


@pytest.mark.parametrize("last", [b"zz\r\nx\r\n", b"-1\r\n", b"5\r\nabc\r\n0\r\n\r\n"])
def test_chunks_that_are_malformed_end_the_request(last: bytes, serve: Serve) -> None:
    site = serve()
    with raw(site, chunked(related([ONE])[:-20], 100, last)) as peer:
        assert ends(peer)
    assert site.held() == {}


# -- slowness and size


def test_a_body_that_drips_is_cut_off_and_a_slow_disk_is_not_blamed_on_it(
    serve: Serve, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = serve(**QUICK)
    start = time.monotonic()
    with raw(site, sized(related([ONE]), 1 << 20)[:-50]) as peer:
        with contextlib.suppress(OSError):
            for _ in range(100):
                peer.sendall(b"x")
                time.sleep(0.02)
        status, text = answer(peer)
        assert (status, "listener.min_rate" in text) == (408, True)
        assert ends(peer)
    assert time.monotonic() - start < 5
    flush_folder = spool.flush_folder
    monkeypatch.setattr(spool, "flush_folder", lambda path: (time.sleep(1.2), flush_folder(path)))
    large = [file(mr(n, size=512)) for n in (1, 2, 3)]
    assert site.post(related(large))[0] == 200


def test_a_request_without_a_head_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_http, "HEAD_S", 0.4)
    site = serve()
    with raw(site) as silent, raw(site, HEAD) as slow, raw(site, sized(related([ONE]))) as good:
        assert answer(good)[0] == 200
        start = time.monotonic()
        assert ends(silent)
        assert ends(slow)
        assert time.monotonic() - start < 3
        good.settimeout(3)
        assert ends(good), "nor may a second request of a connection take its time"


def test_a_request_may_take_longer_than_its_head_may(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_http, "HEAD_S", 0.3)
    site = serve()
    whole = sized(related([ONE]))
    with raw(site, whole[:500]) as peer:
        for at in range(500, len(whole), len(whole) // 5):
            time.sleep(0.2)
            peer.sendall(whole[at : at + len(whole) // 5])
        assert answer(peer)[0] == 200


def test_connections_beyond_the_limit_are_closed_at_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    site = serve()
    monkeypatch.setattr(node_http, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(node_http, "_SHARE", 1)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(raw(site)) for _ in range(8)]

        def alive() -> list[socket.socket]:
            ended = select.select(peers, [], [], 0)[0]
            return [peer for peer in peers if peer not in ended]

        until(lambda: 0 < len(alive()) <= 3)
        peer = alive()[0]
        peer.sendall(sized(related([ONE])))
        assert answer(peer)[0] == 200

    def stores() -> bool:
        with contextlib.suppress(OSError):  # until it has noticed that the others are gone
            return site.post(related([TWO]))[0] == 200
        return False

    until(stores)


def test_one_address_has_a_quarter_of_the_connections(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    site = serve()
    monkeypatch.setattr(node_http, "MAX_CONNECTIONS", 16)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(raw(site)) for _ in range(8)]
        until(lambda: len(select.select(peers, [], [], 0)[0]) >= 4)
        time.sleep(0.2)
        assert len(select.select(peers, [], [], 0)[0]) in (4, 5), "four stay, one less if it still had the fixture's"
        other = socket.create_connection(("127.0.0.1", site.port), 20, source_address=("127.0.0.9", 0))
        with stack.enter_context(other) as peer:
            peer.sendall(sized(related([ONE])))
            assert answer(peer)[0] == 200


def test_a_head_that_is_too_long_is_refused(serve: Serve) -> None:
    # Little more than the limit of 16 KiB: who closes with much unread resets the line, and takes the answer back.
    with raw(serve(), HEAD + b"X-Long: " + b"y" * 17_000) as peer:
        assert answer(peer)[0] == 400
        assert ends(peer)


def test_what_is_too_large_is_refused_before_it_comes_or_where_it_grows_so(serve: Serve) -> None:
    site = serve({"max_stow_mb": 1})
    body = related([ONE, file(mr(2, size=1024))])
    with raw(site, sized(b"", len(body))) as peer:
        assert answer(peer)[0] == 413, "not a byte of the body is waited for"
    assert site.held() == {}
    status, module, _ = site.post(iter([body[:900_000], body[900_000:]]))
    assert (status, references(module), reasons(module)) == (202, [f"{SERIES}.1"], [statuses.OUT_OF_RESOURCES])
    assert site.held() == {f"{SERIES}.1": data_set(ONE)}


def test_an_object_that_is_too_large_costs_itself(serve: Serve) -> None:
    site = serve(max_object_mb=1)
    large = file(mr(2, size=1024))
    status, module, _ = site.post(related([large]))
    assert (status, reasons(module)) == (413, [statuses.OUT_OF_RESOURCES])
    status, module, _ = site.post(related([large, ONE]))
    assert (status, references(module), references(module, "00081198")) == (202, [f"{SERIES}.1"], [f"{SERIES}.2"])


def test_a_request_has_no_more_parts_than_it_may(serve: Serve) -> None:
    site = serve({"max_stow_parts": 1})
    status, module, _ = site.post(related([ONE, TWO]))
    assert (status, references(module), reasons(module)) == (202, [f"{SERIES}.1"], [statuses.OUT_OF_RESOURCES])
    assert "max_stow_parts" in json.dumps(module)
    status, text, _ = site.post(related([b"x", ONE]))
    assert (status, "max_stow_parts" in str(text)) == (413, True)


def test_more_requests_than_may_be_served_are_told_to_come_again(serve: Serve) -> None:
    site = serve({"max_stow_requests": 1})
    whole = sized(related([ONE]))
    with raw(site, whole[:-10]) as first:
        until(lambda: site.door.associations() == 1)
        status, text, head = site.post(related([TWO]))
        assert (status, head.headers["retry-after"], "max_stow_requests" in str(text)) == (503, "30", True)
        assert httpx.get(f"{site.url}/health").status_code == 200, "the admin page is served all the same"
        with associate(site.dicom_port, [(uid.MRImageStorage.encode(), b"1.2.840.10008.1.2.1")]):
            pass
        first.sendall(whole[-10:])
        assert answer(first)[0] == 200
    assert site.post(related([TWO]))[0] == 200


def test_who_has_no_token_is_heard_no_further(serve: Serve) -> None:
    site = serve()
    head = HEAD.replace(TOKEN.encode(), b"wrong")
    with raw(site, head + b"Content-Length: 1000000000\r\n\r\n") as peer:
        assert answer(peer)[0] == 401
        start, sent = time.monotonic(), 0
        with contextlib.suppress(OSError):
            while time.monotonic() - start < 10:
                sent += peer.send(bytes(65536))
        assert time.monotonic() - start < 5, "the connection is closed under it"
        assert sent < 20_000_000
    with raw(site, head + b"Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n") as peer:
        assert answer(peer)[0] == 401
        assert ends(peer)


def test_large_objects_take_no_more_memory_than_small_ones(tmp_path: Path, sqlite_url: str) -> None:
    length, piece = 300_000_000, bytes(1_000_000)
    files = [file(mr(n, SOPClassUID=uid.EnhancedMRImageStorage, NumberOfFrames=10)) for n in (1, 2, 3)]
    heads = [one[: one.index(b"\xe0\x7f\x10\x00OW")] + b"\xe0\x7f\x10\x00OW\0\0" for one in files]

    def body() -> Iterator[bytes]:
        for head in heads:
            yield f"--{BOUNDARY}".encode() + PART + head + length.to_bytes(4, "little")
            for _ in range(length // len(piece)):
                yield piece
            yield b"\r\n"
        yield f"--{BOUNDARY}--".encode()

    with child(tmp_path) as (process, site):
        assert site.post(related([file(mr(9))]))[0] == 200
        before = resident_mb(process.pid)
        status, module, _ = site.post(body())
        assert (status, references(module)) == (200, [f"{SERIES}.{n}" for n in (1, 2, 3)])
        grown = resident_mb(process.pid) - before
        assert grown < 20, f"{grown:.0f} MB for {3 * length / 1e6:.0f} MB"
    ledger = Ledger(sqlite_url)
    sizes = sorted(member.size for member in ledger.series_instances(SERIES))
    assert sizes[1:] == sorted(len(data_set(head)) + 4 + length for head in heads)
    ledger.close()


@contextlib.contextmanager
def child(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Site]]:
    """A process that serves, and is killed in the end."""
    command = [sys.executable, "-m", "tests.node.stowing_child", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            yield process, Site(url, None, 0, None, None)  # type: ignore[arg-type]
        finally:
            process.kill()


def resident_mb(pid: int) -> float:
    """The largest resident memory of a process so far."""
    (line,) = (t for t in Path(f"/proc/{pid}/status").read_text().splitlines() if t.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


# -- disks, stops and kills


def test_below_the_floor_nothing_is_read(serve: Serve) -> None:
    site = serve(free_floor_mb=10**9)
    with raw(site, sized(b"", 1000)) as peer:
        status, text = answer(peer)
        assert (status, "listener.free_floor_mb" in text) == (503, True)
    assert site.post(related([ONE]))[2].headers["retry-after"] == "30"


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


def test_a_disk_that_is_full_or_read_only_is_told_and_nothing_is_left(small_disk: Path, ledger: Ledger) -> None:
    spool = Spool(small_disk)
    spool.prepare()
    with served(ledger, spool) as site:
        large = file(mr(5, size=2048))
        status, module, head = site.post(related([large]))
        assert (status, reasons(module), head.headers["retry-after"]) == (503, [statuses.OUT_OF_RESOURCES], "30")
        assert list(files_below(spool.root)) == []
        status, module, _ = site.post(related([ONE, large]))
        assert (status, references(module), references(module, "00081198")) == (202, [f"{SERIES}.1"], [f"{SERIES}.5"])
        read_only(small_disk, spool.unnamed.close_spares)
        assert site.post(related([TWO]))[0] == 503
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        assert site.post(related([TWO]))[0] == 200
        assert site.held() == {f"{SERIES}.1": data_set(ONE), f"{SERIES}.2": data_set(TWO)}
    assert len(list(files_below(spool.root))) == 2


def test_a_door_that_is_shut_takes_nothing_more(serve: Serve) -> None:
    site = serve()
    whole = sized(related([ONE]))
    with raw(site, whole[:-10]) as peer:
        until(lambda: site.door.associations() == 1)
        site.door.stop()
        peer.sendall(whole[-10:])
        status, module = answer(peer)
        assert (status, reasons(module)) == (503, [statuses.OUT_OF_RESOURCES])
    status, text, _ = site.post(related([ONE]))
    assert (status, "starts or stops" in str(text)) == (503, True)
    assert list(files_below(site.spool.root)) == []


def test_a_server_that_stops_in_the_middle_leaves_no_file(ledger: Ledger, spool: Spool) -> None:
    with contextlib.ExitStack() as clients:
        with served(ledger, spool) as site:
            clients.enter_context(raw(site, sized(related([file(mr(1, size=1024))]))[:1_500_000]))
            until(lambda: site.begun() != [])
            start = time.monotonic()
        assert time.monotonic() - start < 15
        assert list(files_below(spool.root)) == []
        assert site.door.associations() == 0


def test_killed_in_the_middle_of_storing_it_has_what_it_acknowledged(tmp_path: Path, sqlite_url: str) -> None:
    acknowledged: set[str] = set()
    begun: dict[str, bytes] = {}
    with child(tmp_path) as (process, site):

        def send(lane: int) -> None:
            with contextlib.suppress(OSError, HTTPException):
                for n in range(0, 3000, 3):
                    files = {
                        f"{SERIES}.{k}": file(mr(k, size=64)) for k in range(10_000 * lane + n, 10_000 * lane + n + 3)
                    }
                    begun.update({name: data_set(one) for name, one in files.items()})
                    status, module, _ = site.post(related(list(files.values())))
                    assert status == 200
                    assert references(module) == list(files)
                    acknowledged.update(files)

        lanes = [threading.Thread(target=send, args=(lane,)) for lane in range(1, 5)]
        for lane in lanes:
            lane.start()
        until(lambda: len(acknowledged) > 60, 30)
        process.send_signal(signal.SIGKILL)
        for lane in lanes:
            lane.join()
    ledger, spool = Ledger(sqlite_url), Spool(tmp_path / "spool")
    spool.prepare()
    spool.set_unknown_aside(ledger.known_paths, older_than=time.time() + 1)
    held = {member.sop_uid: member for member in ledger.series_instances(SERIES)}
    assert acknowledged <= set(held) <= set(begun)
    assert len(held) - len(acknowledged) <= 4 * 3, "at most what each request was just about to be told"
    for sop_uid, member in held.items():
        assert data_set(spool.path(member.path)) == begun[sop_uid]
    assert list((spool.root / "tmp").iterdir()) == []
    ledger.close()
