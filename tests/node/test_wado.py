"""Archives by DICOMweb that answer oddly: each ends in words, and nothing half received stays."""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from node.fetching import Fetcher
from node.ledger import Fetch, FetchState, Ledger
from node.settings import Archive, Listener, Selection
from node.spool import Spool
from tests.authority import Authority
from tests.node.making import SERIES, STUDY, files_below, mr, write
from tests.node.test_fetching import OpenDoor

TOKEN = "an-archives-token"
LISTING = [
    {
        "0020000E": {"vr": "UI", "Value": [SERIES]}, "00080060": {"vr": "CS", "Value": ["MR"]},
        "0008103E": {"vr": "LO", "Value": ["t2_sag"]}, "00201209": {"vr": "IS", "Value": [2]},
    }
]  # fmt: skip
# A number of images beyond all numbers.
ENDLESS = json.dumps(LISTING).replace("[2]", "[1e999]").encode()


class Web:
    """An HTTP server that answers the query and the retrieval as it is told."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.listing: tuple[int, dict[str, str], bytes] = (200, {}, json.dumps(LISTING).encode())
        self.retrieval: tuple[int, dict[str, str], bytes] = (404, {}, b"")
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.delay_s = 0.0
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                time.sleep(web.delay_s)
                status, headers, body = web.listing if "/series?" in self.path else web.retrieval
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server.server_port}/dicom-web"

    @contextlib.contextmanager
    def running(self) -> Iterator[Web]:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    with Web().running() as found:
        yield found


def parts(folder: Path, *numbers: int, end: bytes = b"\r\n--b--\r\n") -> tuple[int, dict[str, str], bytes]:
    body = b""
    for number in numbers:
        file = write(mr(number), folder / f"{number}.dcm").read_bytes()
        body += b"\r\n--b\r\nContent-Type: application/dicom\r\n\r\n" + file
    return 200, {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}, body + end


@pytest.fixture
def fetched(web: Web, ledger: Ledger, open_door: OpenDoor) -> Callable[..., Fetch]:
    def work(**more: Any) -> Fetch:
        archive = Archive(name="web", url=web.url, timeout_s=1, **more)
        asked = ledger.ask_fetch("web", STUDY, (), "tester", time.time())
        Fetcher(archive, ledger, open_door()[0], Listener(), Selection()).tick(time.time())
        return ledger.fetch(asked.number)

    return work


def test_what_is_asked(web: Web, fetched: Callable[..., Fetch], ledger: Ledger, tmp_path: Path) -> None:
    web.retrieval = parts(tmp_path, 1, 2)
    found = fetched(token=TOKEN)
    assert (found.state, found.completed) == (FetchState.DONE, 2), found
    (query, headers), (retrieval, more) = web.asked
    assert query.startswith(f"/dicom-web/studies/{STUDY}/series?includefield=")
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert retrieval == f"/dicom-web/studies/{STUDY}/series/{SERIES}"
    assert more["accept"] == 'multipart/related; type="application/dicom"; transfer-syntax=*'
    assert [one.calling_ae for one in ledger.series_instances(SERIES)] == ["WADO", "WADO"]


def test_an_answer_that_is_cut_short(
    web: Web, fetched: Callable[..., Fetch], ledger: Ledger, spool: Spool, tmp_path: Path
) -> None:
    status, headers, body = parts(tmp_path, 1, 2, end=b"")
    web.retrieval = status, headers, body[:-100]
    found = fetched()
    assert found.state is FetchState.FAILED
    assert found.reason.startswith("web sent no whole answer: the body ends before its last boundary")
    assert [one.sop_uid for one in ledger.series_instances(SERIES)] == [f"{SERIES}.1"], "what came whole stays"
    assert len(list(files_below(spool.root / "series"))) == 1


def test_fewer_images_than_it_said(web: Web, fetched: Callable[..., Fetch], tmp_path: Path) -> None:
    web.retrieval = parts(tmp_path, 1)
    found = fetched()
    assert (found.state, found.reason) == (FetchState.FAILED, "1 of 2 images are here: web said that it had sent all")


@pytest.mark.parametrize(
    ("listing", "reason", "step"),
    [
        ((401, {}, b"no"), "web does not let us in (HTTP 401)", "check its token"),
        ((403, {}, b"no"), "web does not let us in (HTTP 403)", "check its token"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "web answers with HTTP 302", "check the archive's url"),
        ((500, {}, b"no"), "web fails (HTTP 500)", "look into its log"),
        ((404, {}, b""), "web has no study of this UID", "check it, and which archive holds the study"),
        ((204, {}, b""), "web has no study of this UID", "check it, and which archive holds the study"),
        ((200, {}, b"[]"), "web has no study of this UID", "check it, and which archive holds the study"),
        ((200, {}, b"<html>"), "web answers the query with what is no DICOM JSON", "look into its log"),
        ((200, {}, b'[{"0020000E": 5}]'), "web answers the query with what is no DICOM JSON", "look into its log"),
        ((200, {}, b'{"a": 1}'), "web answers the query with what is no DICOM JSON", "look into its log"),
        ((200, {}, b"[" * 100_000), "web answers the query with what is no DICOM JSON", "look into its log"),
        ((200, {}, ENDLESS), "web answers the query with what is no DICOM JSON", "look into its log"),
        ((200, {"Content-Encoding": "gzip"}, b"x"), "web encodes its answer", "switch that off there"),
    ],
)  # fmt: skip
def test_answers_to_the_query(
    web: Web, fetched: Callable[..., Fetch], listing: tuple[int, dict[str, str], bytes], reason: str, step: str
) -> None:
    web.listing = listing
    found = fetched()
    assert found.state is FetchState.FAILED
    assert found.reason.startswith(reason)
    assert found.next_step == step


@pytest.mark.parametrize(
    ("retrieval", "reason"),
    [
        ((404, {}, b""), f"web has no series {SERIES} any more"),
        ((200, {"Content-Type": "text/html"}, b"<html>"), "web sends no DICOM objects in parts"),
        ((200, {"Content-Type": "multipart/related"}, b"x"), "web sends no DICOM objects in parts"),
        ((200, {"Content-Type": "multipart/related; boundary=b"}, b"x" * 9000), "web sent no whole answer"),
        ((503, {}, b""), "web fails (HTTP 503)"),
    ],
)
def test_answers_to_the_retrieval(
    web: Web, fetched: Callable[..., Fetch], retrieval: tuple[int, dict[str, str], bytes], reason: str
) -> None:
    web.retrieval = retrieval
    found = fetched()
    assert found.state is FetchState.FAILED
    assert reason in found.reason
    assert found.next_step


def test_an_archive_that_hangs(web: Web, fetched: Callable[..., Fetch]) -> None:
    web.delay_s = 3
    found = fetched()
    assert (found.state, found.reason) == (FetchState.FAILED, "nothing was heard of web for 1 s")


def test_over_tls_both_sides_show_who_they_are(tmp_path: Path, ledger: Ledger, open_door: OpenDoor) -> None:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other", "Somebody")
    server, client = authority.issue("pacs.example"), authority.issue("node.example")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(server.certificate, server.key)
    tls.load_verify_locations(authority.certificate)
    tls.verify_mode = ssl.CERT_REQUIRED
    door, _ = open_door()
    good = {"tls_ca_file": authority.certificate, "tls_certificate": client.certificate, "tls_key": client.key}
    with Web(tls).running() as web:
        web.retrieval = parts(tmp_path, 1, 2)
        for more, reason in (
            ({**good, "tls_ca_file": stranger.certificate}, "web does not answer"),
            ({"tls_ca_file": authority.certificate}, "web ended the connection half way"),
            ({**good, "tls_server_name": "another.example"}, "web does not answer"),
            ({**good, "tls_server_name": "pacs.example"}, "2 images of 1 series are here"),
            (good, "2 images of 1 series are here"),
        ):
            archive = Archive(name="web", url=web.url, timeout_s=5, tls=True, **more)
            asked = ledger.ask_fetch("web", STUDY, (), "tester", time.time())
            Fetcher(archive, ledger, door, Listener(), Selection()).tick(time.time())
            assert ledger.fetch(asked.number).reason == reason


def test_a_series_that_is_refused_does_not_end_the_study(web: Web, fetched: Callable[..., Fetch]) -> None:
    other = LISTING[0] | {"0020000E": {"vr": "UI", "Value": [f"{SERIES}.7"]}}
    web.listing = (200, {}, json.dumps([*LISTING, other]).encode())
    found = fetched()
    assert found.state is FetchState.FAILED
    assert [path.rpartition("/")[2] for path, _ in web.asked[1:]] == [SERIES, f"{SERIES}.7"]
    assert "any more" in found.reason
