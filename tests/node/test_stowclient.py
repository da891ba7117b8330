"""STOW-RS destinations: Orthanc behind nginx with TLS, client certificates and a token, and services that misbehave."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydicom import uid

from node.errors import ClassRefused, ConfigurationError, PeerRefused, PeerUnavailable, PennodeError
from node.ledger import Ledger
from node.outgoing import Outgoing, describe
from node.settings import Destination, Secured
from node.spool import Spool
from node.states import DeliveryState, JobState
from node.storeanswer import LONGEST
from node.stowclient import StowService
from tests import peers
from tests.authority import Authority, Certificate
from tests.node.delivering import Couriers
from tests.node.making import data_set, mr
from tests.node.making import write as write_file
from tests.node.results import result

D = DeliveryState
TOKEN = "a.b-c_d~e+f/g=="
JSON = "application/dicom+json"


def stored(*sop_uids: str, **more: object) -> bytes:
    """The module of PS3.18 annex I.2.2 for objects that were stored."""
    items = [{"00081155": {"vr": "UI", "Value": [sop]}} for sop in sop_uids]
    return json.dumps({"00081199": {"vr": "SQ", "Value": items}, **more}).encode()


def failed(reason: int, sop: str = "2.25.77") -> bytes:
    item = {"00081155": {"vr": "UI", "Value": [sop]}, "00081197": {"vr": "US", "Value": [reason]}}
    return json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()


@dataclass
class Service:
    """A small HTTP server that answers each request alike, and remembers what it was asked."""

    status: int = 200
    body: bytes = b""
    media_type: str | None = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    drip_s: float = 0.0
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        asked = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append((handler.command, handler.path, asked, body))
        time.sleep(self.pause_s)
        handler.send_response(self.status)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        if self.media_type is not None:
            handler.send_header("Content-Type", self.media_type)
        handler.send_header("Content-Length", str(len(self.body)))
        handler.end_headers()
        pieces = [self.body[n : n + 1] for n in range(len(self.body))] if self.drip_s else [self.body]
        with contextlib.suppress(OSError):
            for piece in pieces:
                handler.wfile.write(piece)
                time.sleep(self.drip_s)


@contextlib.contextmanager
def serving(**values: object) -> Iterator[Service]:
    service = Service(**values)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            service.answer(self)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    service.url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def outgoing(tmp_path: Path) -> Outgoing:
    path = tmp_path / "seg.dcm"
    path.write_bytes(result("SEG", "2.25.77"))
    return describe(path)


def send(service: StowService, outgoing: Outgoing, timeout_s: float = 5.0) -> str:
    with service.opened([outgoing], timeout_s) as send_one:
        return send_one(outgoing)


# -- Orthanc behind nginx


@dataclass(frozen=True)
class Gate:
    """An Orthanc that is only reached over TLS, with a client certificate and a token."""

    url: str
    orthanc: peers.Orthanc
    authority: Authority
    ours: Certificate

    def service(self, **values: object) -> StowService:
        security = {
            "tls": True, "tls_ca_file": self.authority.certificate,
            "tls_certificate": self.ours.certificate, "tls_key": self.ours.key,
        }  # fmt: skip
        token = values.pop("token", TOKEN)
        known = {name: values.pop(name) for name in list(values) if name.startswith("tls")}
        return StowService(
            str(values.pop("url", self.url)),
            Secured(**{**security, **known}),
            SecretStr(str(token)),  # type: ignore[arg-type]
        )


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    folder = tmp_path_factory.mktemp("gate")
    authority = Authority(folder / "ca")
    own, ours = authority.issue("pacs.example"), authority.issue("pennode.example")
    port, log = peers.free_port(), folder / "nginx.log"
    with peers.orthanc(folder / "orthanc", dicomweb={}) as orthanc:
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off;"
            f" client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; client_max_body_size 3m;"
            f" server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {own.certificate};"
            f" ssl_certificate_key {own.key}; ssl_client_certificate {authority.certificate}; ssl_verify_client on;"
            f' location /dicom-web/ {{ if ($http_authorization != "Bearer {TOKEN}") {{ return 401; }}'
            f" proxy_pass {orthanc.url}; }}"
            f" location /moved/ {{ return 307 https://127.0.0.1:{port}/dicom-web/studies; }} }} }}"
        )
        command = [peers.program("nginx", "nginx-light"), "-c", str(folder / "nginx.conf")]
        with peers.running(command, log) as process:
            peers.wait_for_port(port, process, log)
            yield Gate(f"https://127.0.0.1:{port}/dicom-web", orthanc, authority, ours)


def test_orthanc_behind_tls_certificate_and_token_gets_every_form_as_it_lies_in_the_spool(
    gate: Gate, ledger: Ledger, spool: Spool, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    forms = ("SEG", "SR", "SC", "RTSTRUCT", "GSPS")
    to = Destination(
        name="archive", url=gate.url, token_file=tmp_path / "token", forms=forms,  # type: ignore[arg-type]
        tls_ca_file=gate.authority.certificate, tls_certificate=gate.ours.certificate, tls_key=gate.ours.key,
    )  # fmt: skip
    site = Couriers(ledger, spool, to)
    job = site.segmented()
    site.tick()
    assert ledger.job(job).state is JobState.DELIVERED, ledger.job(job).reason
    assert {d.reason for d in ledger.deliveries(job)} == {"stored (HTTP 200)"}
    for item in ledger.deliveries(job):
        (found,) = gate.orthanc.instances(item.sop_uid)
        assert data_set(gate.orthanc.get(f"/instances/{found}/file")) == data_set(spool.path(item.path))


def test_it_is_one_object_however_often_it_is_sent(gate: Gate, outgoing: Outgoing) -> None:
    with gate.service().opened([outgoing], 10) as send_one:
        assert {send_one(outgoing) for _ in range(3)} == {"stored (HTTP 200)"}
    assert len(gate.orthanc.instances("2.25.77")) == 1


@pytest.mark.parametrize(
    ("values", "kind", "says"),
    [
        ({"token": "wrong"}, PeerRefused, "does not know us (HTTP 401)"),
        ({"tls_certificate": None, "tls_key": None}, PeerRefused, "finds our request wrong (HTTP 400)"),
        ({"tls_server_name": "other.example"}, PeerUnavailable, "have no TLS: its certificate is not good: Hostname"),
        ({"tls_ca_file": None}, PeerUnavailable, "have no TLS: its certificate is not good"),
    ],
)
def test_who_is_not_let_in_or_does_not_trust_sends_nothing(
    values: dict[str, object], kind: type[PennodeError], says: str, gate: Gate, tmp_path: Path
) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(result("SEG", "2.25.78"))
    with pytest.raises(kind, match=re.escape(says)):
        send(gate.service(**values), describe(path))
    assert gate.orthanc.instances("2.25.78") == []


def test_the_name_in_the_certificate_may_be_another_than_the_host(gate: Gate, outgoing: Outgoing) -> None:
    assert send(gate.service(tls_server_name="pacs.example"), outgoing) == "stored (HTTP 200)"


def test_no_authority_but_ours_is_trusted(
    gate: Gate, outgoing: Outgoing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what the library brings nor what the environment names."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(gate.authority.certificate))
    stranger = Authority(tmp_path / "other", "Stranger")
    with pytest.raises(PeerUnavailable, match="its certificate is not good"):
        send(gate.service(tls_ca_file=stranger.certificate), outgoing)


def test_an_object_over_the_limit_of_nginx_is_refused_with_what_to_do(gate: Gate, tmp_path: Path) -> None:
    path = write_file(mr(1, size=2048), tmp_path / "large.dcm")
    with pytest.raises(PeerRefused, match=r"takes no object so large \(HTTP 413\) .*client_max_body_size"):
        send(gate.service(), describe(path))


def test_a_redirect_is_not_followed(gate: Gate, outgoing: Outgoing) -> None:
    with pytest.raises(PeerRefused, match=r"sends us to another address \(HTTP 307\)"):
        send(gate.service(url=gate.url.replace("/dicom-web", "/moved")), outgoing)


def test_orthanc_without_the_plugin_is_no_service(tmp_path: Path, outgoing: Outgoing) -> None:
    with peers.orthanc(tmp_path / "plain") as orthanc, pytest.raises(PeerRefused, match="has no STOW-RS service there"):
        send(StowService(f"{orthanc.url}/dicom-web"), outgoing)


# -- answers


XML = (
    '<?xml version="1.0" encoding="UTF-8"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">'
    '<DicomAttribute tag="{tag}" vr="SQ"><Item number="1"><DicomAttribute tag="00081155" vr="UI"><Value number="1">'
    '2.25.77</Value></DicomAttribute><DicomAttribute tag="00081197" vr="US"><Value number="1">290</Value>'
    "</DicomAttribute></Item></DicomAttribute></NativeDicomModel>"
)
WARNED = {"00081155": {"Value": ["2.25.77"]}, "00081196": {"Value": [0xB000]}}
STORED: dict[str, tuple[dict[str, object], str]] = {
    "JSON": ({"body": stored("2.25.77")}, "stored (HTTP 200)"),
    "JSON with parameters": ({"body": stored("2.25.77"), "media_type": f"{JSON}; charset=utf-8"}, "stored (HTTP 200)"),
    "JSON in a list": ({"body": b"[" + stored("2.25.77") + b"]"}, "stored (HTTP 200)"),
    "JSON of no type": ({"body": stored("2.25.77"), "media_type": None}, "stored (HTTP 200)"),
    "XML": (
        {"body": XML.format(tag="00081199").encode(), "media_type": "application/dicom+xml"}, "stored (HTTP 200)"
    ),
    "202 with a warning": (
        {"status": 202, "body": json.dumps({"00081199": {"Value": [WARNED]}}).encode()},
        "stored with a warning (0xB000)",
    ),
    "202 of which ours is stored": ({"status": 202, "body": stored("2.25.77")}, "stored (HTTP 202)"),
    "nothing": ({"body": b"", "media_type": None}, "stored (HTTP 200, without a word on the object)"),
    "there already": ({"status": 409, "body": failed(0x0111)}, "the peer had this object already (0x0111)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STORED)
def test_what_counts_as_stored(kind: str, outgoing: Outgoing) -> None:
    answer, note = STORED[kind]
    with serving(**answer) as service:
        assert send(StowService(service.url), outgoing) == note


REFUSED: dict[str, tuple[dict[str, object], type[PennodeError], str]] = {
    "class": ({"status": 409, "body": failed(0x0122)}, ClassRefused, "0x0122, HTTP 409: SOP class not supported"),
    "class, said with 200": ({"body": failed(0x0122)}, ClassRefused, "0x0122, HTTP 200"),
    "class, said in XML": (
        {"status": 409, "body": XML.format(tag="00081198").encode(), "media_type": "application/dicom+xml"},
        ClassRefused, "0x0122",
    ),
    "class, as text": (
        {"status": 409, "body": failed(0x0122).replace(b"290", b'"290"')}, ClassRefused, "0x0122, HTTP 409"
    ),
    "transfer syntax": ({"status": 409, "body": failed(0xC122)}, ClassRefused, "transfer syntax not supported"),
    "no object named": (
        {"status": 409, "body": json.dumps({"0008119A": {"Value": [{"00081197": {"Value": [290]}}]}}).encode()},
        ClassRefused, "0x0122",
    ),
    "another reason": ({"status": 409, "body": failed(0xC000)}, PeerRefused, "the peer answered 0xC000, HTTP 409"),
    "does not match": ({"status": 409, "body": failed(0xA900)}, PeerRefused, "the peer answered 0xA900, HTTP 409"),
    "a reason that is none": ({"status": 409, "body": failed(0).replace(b"[0]", b"[true, {}]")}, PeerRefused, "0x0001"),
    "a reason without end": (
        {"status": 409, "body": failed(0).replace(b"[0]", b'["%s"]' % (b"9" * 5000))}, PeerRefused, "answered 0x0110"
    ),
    "no reason": ({"status": 409, "body": failed(7).replace(b"[7]", b"[]")}, PeerRefused, "answered 0x0110"),
    "resources": ({"status": 409, "body": failed(0xA700)}, PeerUnavailable, "out of resources (0xA700, HTTP 409)"),
    "409 without a word": ({"status": 409}, PeerRefused, "answers HTTP 409 Conflict"),
    "400": ({"status": 400, "body": b"<html>Secretname^Zoe</html>"}, PeerRefused, "finds our request wrong (HTTP 400)"),
    "401": ({"status": 401}, PeerRefused, "does not know us (HTTP 401)"),
    "403": ({"status": 403}, PeerRefused, "does not let us store (HTTP 403)"),
    "404": ({"status": 404}, PeerRefused, "has no STOW-RS service there (HTTP 404)"),
    "413": ({"status": 413}, PeerRefused, "takes no object so large (HTTP 413)"),
    "415": ({"status": 415}, PeerRefused, "does not take the media type (HTTP 415)"),
    "500": ({"status": 500}, PeerRefused, "answers HTTP 500 Internal Server Error"),
    "599": ({"status": 599}, PeerRefused, "answers HTTP 599 (look"),
    "429": ({"status": 429}, PeerUnavailable, "is busy (HTTP 429)"),
    "503": ({"status": 503, "headers": {"Retry-After": "86400"}}, PeerUnavailable, "is busy (HTTP 503)"),
    "503 with the class": ({"status": 503, "body": failed(0x0122)}, ClassRefused, "0x0122, HTTP 503"),
    "a page to sign in": (
        {"body": b"<html>sign in</html>", "media_type": "text/html"}, PeerRefused, "is no DICOM JSON or XML"
    ),
    "a page to sign in, as XML": (
        {"body": b"<html/>", "media_type": "application/xhtml+xml"}, PeerRefused, "is no DICOM JSON or XML"
    ),
    "another object stored": ({"body": stored("2.25.78")}, PeerRefused, "not that it stored the object"),
    "202 and nothing": ({"status": 202, "media_type": None}, PeerRefused, "not that it stored the object"),
    "noise": ({"body": b"\xff\xfe\x00{"}, PeerRefused, "is no DICOM JSON or XML"),
    "nests for ever": ({"body": b"[" * 200_000}, PeerRefused, "is no DICOM JSON or XML"),
    "a list of lists": ({"body": b"[[1], 2]"}, PeerRefused, "is no DICOM JSON or XML"),
    "members of other kinds": (
        {"body": b'{"00081199": {"Value": [1, null, {"00081155": 5}, {"00081155": {"Value": {"a": 1}}}]}}'},
        PeerRefused, "not that it stored the object",
    ),
    "more than it may": ({"body": b" " * LONGEST + stored("2.25.77")}, PeerRefused, "is no DICOM JSON or XML"),
    "entities that grow": (
        {
            "body": b'<!DOCTYPE a [<!ENTITY a "' + b"x" * 1000 + b'"><!ENTITY b "' + b"&a;" * 1000
            + b'"><!ENTITY c "' + b"&b;" * 1000 + b'">]><NativeDicomModel>&c;</NativeDicomModel>',
            "media_type": "application/dicom+xml",
        },
        PeerRefused, "is no DICOM JSON or XML",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_every_refusal_is_named_and_quotes_nobody(kind: str, outgoing: Outgoing) -> None:
    answer, error, says = REFUSED[kind]
    with serving(**answer) as service, pytest.raises(error, match=re.escape(says)) as caught:
        send(StowService(service.url), outgoing)
    assert type(caught.value) is error
    assert "Secretname" not in str(caught.value)
    assert len(service.requests) == 1, "nothing is tried again behind our back"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_takes_the_token_anywhere(status: int, outgoing: Outgoing) -> None:
    says = re.escape(f"another address (HTTP {status})")
    with (
        serving() as other,
        serving(status=status, headers={"Location": other.url}) as service,
        pytest.raises(PeerRefused, match=says),
    ):
        send(StowService(service.url, token=SecretStr(TOKEN)), outgoing)
    assert len(service.requests) == 1
    assert other.requests == []


def test_what_a_service_is_asked(outgoing: Outgoing) -> None:
    with serving(body=stored("2.25.77")) as service:
        send(StowService(service.url, token=SecretStr(TOKEN)), outgoing)
    ((method, path, headers, body),) = service.requests
    assert (method, path) == ("POST", "/dicom-web/studies")
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["host"] == service.url.split("/")[2]
    assert headers["accept"] == "application/dicom+json"
    assert headers["content-type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert "transfer-encoding" not in headers
    assert data_set(outgoing.path) in body


# -- the way there


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_not_used(name: str, outgoing: Outgoing, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(body=stored("2.25.77")) as service, serving(status=502) as proxy:
        monkeypatch.setenv(name, proxy.url)
        assert send(StowService(service.url), outgoing) == "stored (HTTP 200)"
        assert proxy.requests == []


def test_a_proxy_that_is_set_is_used(outgoing: Outgoing) -> None:
    with serving(body=stored("2.25.77")) as proxy:
        to = StowService("http://pacs.invalid/dicom-web", proxy=proxy.url.removesuffix("/dicom-web"))
        assert send(to, outgoing) == "stored (HTTP 200)"
        assert proxy.requests[0][1] == "http://pacs.invalid/dicom-web/studies"
    with pytest.raises(PeerUnavailable, match="the proxy on the way to http://pacs"):
        send(to, outgoing)


def test_a_netrc_is_not_read(outgoing: Outgoing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password geheim\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(body=stored("2.25.77")) as service:
        send(StowService(service.url), outgoing)
    assert "authorization" not in service.requests[0][2]


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:{port}/x", "http://no.such.host.invalid/x", "http://[::1]:{port}/x", "https://127.0.0.1:{port}"],
)
def test_nobody_there_is_unavailable(url: str, outgoing: Outgoing) -> None:
    with pytest.raises(PeerUnavailable, match="does not answer"):
        send(StowService(url.format(port=peers.free_port())), outgoing)


def test_a_service_that_is_too_slow_is_given_up(outgoing: Outgoing) -> None:
    for values in ({"pause_s": 3.0}, {"drip_s": 0.05, "body": stored("2.25.77")}):
        start = time.monotonic()
        with serving(**values) as service, pytest.raises(PeerUnavailable, match=r"does not answer within 0\.5 s"):
            send(StowService(service.url), outgoing, timeout_s=0.5)
        assert time.monotonic() - start < 8


@pytest.mark.parametrize(
    "said", [b"", b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", b"\x16\x03\x01"]
)
def test_a_service_that_breaks_off_is_unavailable(said: bytes, outgoing: Outgoing) -> None:
    def rude(server: socket.socket) -> None:
        connection, _ = server.accept()
        connection.recv(100_000)
        connection.sendall(said)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=rude, args=[server])
        thread.start()
        with pytest.raises(PeerUnavailable, match="does not answer"):
            send(StowService(f"http://127.0.0.1:{server.getsockname()[1]}"), outgoing)
        thread.join()


def test_tls_to_who_speaks_none_is_named(outgoing: Outgoing, tmp_path: Path) -> None:
    with serving() as service:
        to = StowService(service.url.replace("http:", "https:"), Secured(tls=True))
        with pytest.raises(PeerUnavailable, match="have no TLS: it "):
            send(to, outgoing)


# -- tokens, and the courier


def test_a_token_file_is_read_anew_for_each_round(outgoing: Outgoing, tmp_path: Path) -> None:
    file = tmp_path / "token"
    with serving(body=stored("2.25.77")) as service:
        to = StowService(service.url, token_file=file)
        for token in ("one", "two"):
            file.write_text(f"{token}\n")
            send(to, outgoing)
        assert [headers["authorization"] for _, _, headers, _ in service.requests] == ["Bearer one", "Bearer two"]
        file.unlink()
        with pytest.raises(ConfigurationError, match="cannot be read"):
            send(to, outgoing)


@pytest.mark.parametrize("token", ["two words", "new\nline", "Ünsinn", "a\r\nX-Evil: 1"])
def test_a_token_that_no_header_may_hold_is_none(token: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds what no header may") as caught:
        StowService("https://h", token=SecretStr(token)).bearer()
    assert token not in str(caught.value)
    assert "two words" not in repr(StowService("https://h", token=SecretStr("two words")))


class TakesNoSegmentation(Service):
    """A service that knows all classes but one."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        sop_class, sop = (re.search(tag + rb"\x00UI..([0-9.]+)", body, re.DOTALL) for tag in (b"\2\0\2", b"\2\0\3"))
        assert sop_class
        assert sop
        refused = sop_class[1].decode() == uid.SegmentationStorage
        content = failed(0x0122, sop[1].decode()) if refused else stored(sop[1].decode())
        handler.send_response(409 if refused else 200)
        handler.send_header("Content-Type", JSON)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


@contextlib.contextmanager
def serving_as(kind: Service) -> Iterator[Service]:
    with serving() as service:
        service.answer = kind.answer  # type: ignore[method-assign]
        yield service


def test_a_service_that_is_down_is_tried_at_growing_intervals_until_it_is_back(ledger: Ledger, spool: Spool) -> None:
    with serving(status=503) as service:
        site = Couriers(ledger, spool, Destination(name="web", url=service.url, forms=("SEG",)))
        job = site.segmented()
        waits = []
        for _ in range(4):
            site.tick()
            waits.append(ledger.deliveries(job)[0].not_before - site.now)
            site.now += waits[-1] + 0.1
        assert waits == pytest.approx([5, 10, 20, 40])
        assert "is busy (HTTP 503)" in ledger.job(job).reason
        service.status, service.body = 200, stored(site.uids()["SEG"])
        site.tick()
    assert ledger.job(job).state is JobState.DELIVERED


def test_a_token_that_cannot_be_read_is_a_refusal_with_its_reason(ledger: Ledger, spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    with serving() as service:
        site = Couriers(
            ledger, spool, Destination(name="web", url=service.url, forms=("SEG",), token_file=tmp_path / "token")
        )
        (tmp_path / "token").unlink()
        job = site.segmented()
        site.tick()
        site.tick(6)
        assert service.requests == []
    assert "no token: " in ledger.job(job).reason
    assert site.rows(job) == [("SEG", D.FAILED)]
