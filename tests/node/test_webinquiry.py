"""Proof at a DICOMweb service: Orthanc's plugin, and a service that answers badly."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from node.errors import InvalidInstance, PeerRefused, PeerUnavailable
from node.inquiry import Sent
from node.ledger import Ledger
from node.proof import Prover, web_destination
from node.spool import Spool
from node.states import Proof, Wanted
from node.webinquiry import web_inquiry
from node.webservice import WebService
from tests.node.test_proof import D, Site, lose
from tests.node.test_readback import change, masked
from tests.peers import free_port, orthanc

# pynetdicom leaves some sockets to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

SENT = Sent("1.2.840.10008.5.1.4.1.1.66.4", "2.25.7.10", "2.25.7", "1.2.3.1")


def test_orthancs_plugin_tells_what_it_holds_and_gives_it_back(ledger: Ledger, spool: Spool, tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc", {}) as there:
        # given an object that it has taken; how does not matter here
        site = Site(ledger, spool, there.dicom_port, {"fast_path": True}, title="ORTHANC")
        service = WebService(f"{there.url}/dicom-web/")
        site.prover = Prover(ledger, spool, web_destination("pacs", "auto", service, 5), site.rules, site.clock)
        (job,) = site.segmented(content=masked)
        site.send()
        site.look()
        assert (site.only().state, site.only().proof) == (D.COMMITTED, Proof.QIDO)
        assert "pacs: holds the object, known by QIDO-RS" in "\n".join(site.journal(job))
        # it is read back
        ledger.want_proof(job, Wanted.READ_BACK, "test", site.clock())
        site.look()
        assert site.only().read_back == "read back and found equal"
        # what it loses is sent again
        lose(there, site.only().sop_uid)
        site.look(3700)
        assert (site.only().state, site.only().lost) == (D.PENDING, 1)
        assert "not found by QIDO-RS" in ledger.job(job).reason
        site.ahead += 5
        site.send()
        site.look()
        assert site.only().state is D.COMMITTED
        # and what it changes is noticed
        change(there, site.only().sop_uid, lambda ds: setattr(ds, "Rows", 8) or setattr(ds, "NumberOfFrames", 12))
        ledger.want_proof(job, Wanted.READ_BACK, "test", site.clock())
        site.look()
        assert site.only().read_back.startswith("read back and found different: ")
        assert "Rows" in site.only().read_back
        site.door.stop()


@contextmanager
def answering(status: int, content_type: str, body: bytes) -> Iterator[WebService]:
    """A service that answers everything so; `asked` are the paths and tokens."""
    asked: list[tuple[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization", "")))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield WebService(f"http://127.0.0.1:{server.server_address[1]}", token=SecretStr("a-token"))
        server.shutdown()
        thread.join()
    assert all(token == "Bearer a-token" for _, token in asked)


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (200, b"[]", None, ""), (204, b"", None, ""),
        (200, json.dumps([{"00080018": {"vr": "UI", "Value": ["1.2.3"]}}]).encode(), PeerRefused, "other objects"),
        (404, b"", PeerRefused, "HTTP 404"), (401, b"", PeerRefused, "does not let us in"),
        (302, b"", PeerRefused, "HTTP 302"), (503, b"", PeerUnavailable, "fails"),
        (200, b"<html>", PeerRefused, "no DICOM JSON"), (200, b'[{"x": 1}]', PeerRefused, "no DICOM JSON"),
        (200, b"[" * 2_000_000, PeerRefused, "without end"), (200, b"[" * 100_000, PeerRefused, "no DICOM JSON"),
    ],
)  # fmt: skip
def test_what_is_no_answer_to_a_query_is_no_loss(
    status: int, body: bytes, error: type[Exception] | None, words: str
) -> None:
    with answering(status, "application/dicom+json", body) as service, web_inquiry(service, 5) as inquiry:
        if error is None:
            assert inquiry.holds(SENT) is False
        else:
            with pytest.raises(error, match=words):
                inquiry.holds(SENT)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "error", "words"),
    [
        (404, "text/plain", b"", PeerRefused, "HTTP 404"),
        (200, "text/html", b"<html>", PeerRefused, "no DICOM objects in parts"),
        (200, "multipart/related; boundary=x", b"--x\r\n\r\nhalf", PeerUnavailable, "no whole answer"),
        (200, "multipart/related; boundary=x", b"--x\r\n\r\nnothing\r\n--x--\r\n", InvalidInstance, "no DICOM file"),
    ],
)
def test_what_is_no_object_is_said(
    status: int, content_type: str, body: bytes, error: type[Exception], words: str
) -> None:
    with (
        answering(status, content_type, body) as service,
        web_inquiry(service, 5) as inquiry,
        pytest.raises(error, match=words),
    ):
        inquiry.fetch(SENT)


def test_a_service_that_is_down_is_named() -> None:
    service = WebService(f"http://127.0.0.1:{free_port()}")
    with web_inquiry(service, 2) as inquiry, pytest.raises(PeerUnavailable, match="does not answer"):
        inquiry.holds(SENT)
