"""DICOM over TLS: with DCMTK, with what must be refused, with broken peers, and while certificates are replaced."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydicom import uid

from node import statuses
from node.errors import ConfigurationError, PeerUnavailable
from node.ledger import Ledger
from node.listener import Door
from node.outgoing import describe
from node.scu import Address, send_files
from node.settings import Destination, Listener, Secured
from node.spool import Spool
from tests import presend
from tests.authority import Authority, Certificate
from tests.node.making import SERIES, data_set, encoded, files_below, mr, open_below, write
from tests.peers import dcmtk, free_port, program, running, wait_for_port
from tests.presend import Sent, echo_request, pdu, pdv, read_pdu, status_of, store_request
from tests.waiting import until

MR, EXPLICIT = uid.MRImageStorage.encode(), b"1.2.840.10008.1.2.1"
CONTEXTS = [(MR, EXPLICIT), (b"1.2.840.10008.1.1", b"1.2.840.10008.1.2")]
GOOD, BAD = "127.0.0.2", "127.0.0.3"
QUICK = {"artim_s": 0.4, "pdu_timeout_s": 0.6, "network_timeout_s": 0.8, "min_rate": 4096}

# pynetdicom leaves some sockets to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "Somebody Else")


@pytest.fixture(scope="session")
def node(authority: Authority) -> Certificate:
    return authority.issue("node")


@pytest.fixture(scope="session")
def modality(authority: Authority) -> Certificate:
    return authority.issue("modality")


class Secure:
    """A door with a TLS port beside its plain one."""

    def __init__(self, door: Door, plain: int) -> None:
        assert door.tls_address is not None
        self.door, self.plain, self.port = door, plain, door.tls_address[1]


OpenSecure = Callable[..., Secure]


@pytest.fixture
def open_secure(open_door: Callable[..., tuple[Door, int]], authority: Authority, node: Certificate) -> OpenSecure:
    def make(**values: Any) -> Secure:
        files = {"tls_certificate": node.certificate, "tls_key": node.key, "tls_ca_file": authority.certificate}
        settings = {"tls_port": 0, **files, **values}
        if settings.get("tls_client") == "none":
            settings["tls_ca_file"] = None
        return Secure(*open_door(**settings))

    return make


@pytest.fixture
def ours(authority: Authority, modality: Certificate) -> ssl.SSLContext:
    """How a good peer connects."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(modality.certificate, modality.key)
    return context


def connect(port: int, context: ssl.SSLContext, source: str = GOOD, timeout: float = 10.0) -> ssl.SSLSocket:
    connection = presend.connect(port, source, timeout)
    try:
        return context.wrap_socket(connection, server_hostname="localhost")
    except BaseException:
        connection.close()
        raise


def associate(port: int, context: ssl.SSLContext, source: str = GOOD, timeout: float = 10.0) -> ssl.SSLSocket:
    connection = connect(port, context, source, timeout)
    connection.sendall(presend.association_request(CONTEXTS))
    assert read_pdu(connection)[0] == 2
    return connection


def echo(port: int, context: ssl.SSLContext) -> None:
    """A C-ECHO from another peer, with everything that belongs to it, within a second."""
    start = time.monotonic()
    with associate(port, context, timeout=1.0) as peer:
        peer.sendall(pdu(4, pdv(3, 3, echo_request())))
        kind, answer = read_pdu(peer)
        assert (kind, status_of(answer)) == (4, 0)
        peer.sendall(pdu(5, bytes(4)))
        assert read_pdu(peer)[0] == 6
    assert time.monotonic() - start < 1.0


def image(number: int = 1, **values: Any) -> Sent:
    return Sent(MR, f"{SERIES}.{number}".encode(), EXPLICIT, encoded(mr(number, **values)))


def store(peer: socket.socket, sent: Sent) -> int:
    peer.sendall(presend.message(sent, 1, 16384))
    kind, answer = read_pdu(peer)
    assert kind == 4
    return status_of(answer)


def ended(peer: socket.socket, seconds: float = 3.0) -> bytes:
    """What comes until the peer closes."""
    peer.settimeout(seconds)
    whole = b""
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        while more := peer.recv(65536):
            whole += more
    return whole


def said(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in r.getMessage() for r in caplog.records)


# -- with DCMTK, on both paths


def trusting(authority: Authority) -> list[str | Path]:
    return ["-aec", "PENNODE", "+cf", authority.certificate]


def shown(certificate: Certificate) -> list[str | Path]:
    return ["+tls", certificate.key, certificate.certificate]


@pytest.mark.parametrize("client", ["required", "optional", "none"])
@pytest.mark.parametrize("profile", ["+py", "+px", "+pz"])
def test_images_of_dcmtk_arrive_byte_for_byte(
    client: str, profile: str, way: dict[str, bool], open_secure: OpenSecure, authority: Authority,
    modality: Certificate, tmp_path: Path, spool: Spool,
) -> None:  # fmt: skip
    secure = open_secure(tls_client=client, **way)
    files = [write(mr(n, size=256), tmp_path / f"{n}.dcm") for n in range(1, 6)]
    identity = shown(modality) if client == "required" else ["+tla"]
    done = dcmtk("storescu", "-R", *identity, profile, *trusting(authority), "localhost", secure.port, *files)
    assert done.returncode == 0, done.stderr
    assert sorted(map(data_set, files_below(spool.root))) == sorted(map(data_set, files))
    plain = dcmtk("echoscu", "-aec", "PENNODE", "127.0.0.1", secure.plain)
    assert plain.returncode == 0, "the plain port serves on beside it"


@pytest.mark.parametrize(
    ("who", "says"),
    [
        ("nobody", "it shows no certificate"),
        ("stranger", "its certificate is not good"),
        ("expired", "its certificate is not good: certificate has expired"),
        ("server", "its certificate is not good: unsuitable certificate purpose"),
    ],
)
def test_who_shows_no_good_certificate_is_not_served(
    who: str, says: str, way: dict[str, bool], open_secure: OpenSecure, authority: Authority, stranger: Authority,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    secure = open_secure(**way)
    identity: list[str | Path] = ["+tla"]
    if who != "nobody":
        of = stranger if who == "stranger" else authority
        usage = "serverAuth" if who == "server" else "clientAuth"
        identity = shown(of.issue(f"bad-{who}", -1 if who == "expired" else 30, usage))
    done = dcmtk("echoscu", "-v", *identity, *trusting(authority), "localhost", secure.port)
    assert done.returncode != 0
    until(lambda: said(caplog, says))
    assert secure.door.associations() == 0


def test_a_certificate_that_is_not_good_is_refused_even_where_none_is_needed(
    open_secure: OpenSecure, authority: Authority, stranger: Authority
) -> None:
    secure = open_secure(tls_client="optional")
    assert dcmtk("echoscu", "+tla", *trusting(authority), "localhost", secure.port).returncode == 0
    bad = shown(stranger.issue("bad"))
    assert dcmtk("echoscu", *bad, *trusting(authority), "localhost", secure.port).returncode != 0


def test_a_revoked_certificate_is_refused(
    open_secure: OpenSecure, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = Authority(tmp_path / "revoking")
    revoked, good = own.issue("revoked"), own.issue("good")
    secure = open_secure(tls_ca_file=own.revoke(revoked))
    assert dcmtk("echoscu", *shown(good), *trusting(authority), "localhost", secure.port).returncode == 0
    assert dcmtk("echoscu", *shown(revoked), *trusting(authority), "localhost", secure.port).returncode != 0
    until(lambda: said(caplog, "its certificate is not good: certificate revoked"))


def test_dcmtk_does_not_take_a_node_that_its_authority_does_not_know(
    way: dict[str, bool], open_secure: OpenSecure, stranger: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    secure = open_secure(tls_client="none", **way)
    assert dcmtk("echoscu", "+tla", *trusting(stranger), "localhost", secure.port).returncode != 0
    until(lambda: said(caplog, "it does not know the authority of our certificate"))


@pytest.mark.parametrize(
    ("offer", "says"),
    [
        (["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "it offers neither TLS 1.2 nor 1.3"),
        (["-tls1", "-cipher", "ALL:@SECLEVEL=0"], "it offers neither TLS 1.2 nor 1.3"),
        (["-tls1_2", "-cipher", "AES256-GCM-SHA384"], "it offers no cipher suite of BCP 195"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA384"], "it offers no cipher suite of BCP 195"),
        (["-tls1_2"], ""),
        (["-tls1_3"], ""),
    ],
)
def test_old_protocols_and_weak_ciphers_are_refused(
    offer: list[str], says: str, way: dict[str, bool], open_secure: OpenSecure, caplog: pytest.LogCaptureFixture
) -> None:
    secure = open_secure(tls_client="none", **way)
    command = [program("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{secure.port}", *offer]
    done = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=30)
    assert (b"Cipher is (NONE)" in done.stdout) == bool(says)
    if says:
        until(lambda: said(caplog, says))


def test_a_client_cannot_renegotiate(open_secure: OpenSecure) -> None:
    secure = open_secure(tls_client="none")
    command = [program("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{secure.port}", "-tls1_2"]
    done = subprocess.run(command, input=b"R\n", capture_output=True, check=False, timeout=30)
    assert b"RENEGOTIATING" in done.stdout + done.stderr
    assert b"no renegotiation" in done.stderr


# -- one protocol at the port of the other


def test_plain_dicom_at_the_tls_port_is_closed_at_once_with_one_line(
    way: dict[str, bool], open_secure: OpenSecure, caplog: pytest.LogCaptureFixture
) -> None:
    secure = open_secure(**way)
    start = time.monotonic()
    with presend.connect(secure.port, BAD) as peer:
        peer.sendall(presend.association_request(CONTEXTS))
        assert b"\x02" not in ended(peer)[:1]
    assert time.monotonic() - start < 1
    until(lambda: sum("it does not speak TLS" in r.getMessage() for r in caplog.records) == 1)


def test_tls_at_the_plain_port_is_closed_at_once_with_one_line(
    open_secure: OpenSecure, ours: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    secure = open_secure()
    start = time.monotonic()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(secure.plain, ours)
    assert time.monotonic() - start < 1
    until(lambda: sum("TLS, on the port that is for plain DICOM?" in r.getMessage() for r in caplog.records) == 1)


def test_the_plain_port_may_be_closed(way: dict[str, bool], open_secure: OpenSecure, ours: ssl.SSLContext) -> None:
    port = free_port()
    secure = open_secure(plain=False, port=port, **way)
    with pytest.raises(ConnectionRefusedError):
        presend.connect(port)
    with associate(secure.port, ours):
        pass


def test_peers_are_judged_over_tls_as_without(open_secure: OpenSecure, ours: ssl.SSLContext) -> None:
    secure = open_secure(unknown_peers="reject")
    with connect(secure.port, ours) as peer:
        peer.sendall(presend.association_request(CONTEXTS))
        assert read_pdu(peer) == (3, bytes([0, *statuses.CALLING_AE_NOT_RECOGNISED]))
        assert ended(peer) == b"", "ended by close_notify: an SSLError would say that it was cut"


# -- peers that behave badly, on the fast path


@pytest.fixture
def secure(open_secure: OpenSecure, spool: Spool) -> Iterator[Secure]:
    """With short patience; after the test nothing half-received is left."""
    yield (opened := open_secure(**QUICK))
    until(lambda: opened.door.associations() == 0)
    until(lambda: list((spool.root / "tmp").iterdir()) == [])


def hello() -> bytes:
    """The first flight of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("first", [b"", hello()[:1], hello()[:100], hello()])
def test_silent_handshakes_cost_their_own_peer_its_places_and_end_by_artim(
    first: bytes, open_secure: OpenSecure, ours: ssl.SSLContext
) -> None:
    secure = open_secure(**QUICK, max_waiting=20, max_waiting_per_peer=8)
    silent = [presend.connect(secure.port, BAD) for _ in range(40)]
    for peer in silent:
        with contextlib.suppress(OSError):
            peer.sendall(first)
    echo(secure.port, ours)
    start = time.monotonic()
    for peer in silent:
        ended(peer)
        peer.close()
    assert time.monotonic() - start < 2


def test_a_handshake_that_drips_ends_by_artim(
    secure: Secure, ours: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    start = time.monotonic()
    with presend.connect(secure.port, BAD) as peer, contextlib.suppress(OSError):
        for n, byte in enumerate(hello()):
            peer.sendall(bytes([byte]))
            time.sleep(0.01)
            if n == 10:
                echo(secure.port, ours)
    assert time.monotonic() - start < 2
    until(lambda: said(caplog, "no TLS handshake within listener.artim_s"))


def test_one_byte_at_a_time_it_is_the_same_object(secure: Secure, ours: ssl.SSLContext, spool: Spool) -> None:
    sent = image()
    with associate(secure.port, ours) as peer:
        whole = presend.message(sent, 1, 16384)
        for n in range(len(whole)):
            peer.send(whole[n : n + 1])  # each a TLS record of its own
        assert status_of(read_pdu(peer)[1]) == statuses.SUCCESS
    (path,) = files_below(spool.root)
    assert data_set(path) == sent.data


def test_records_that_arrive_in_bytes_are_the_same_object(secure: Secure, ours: ssl.SSLContext, spool: Spool) -> None:
    """Whole TLS records, cut on their way: what is deciphered and what the kernel holds end at different places."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ours.wrap_bio(incoming, outgoing, server_hostname="localhost")
    sent = image(size=128)
    with presend.connect(secure.port, GOOD, 10) as raw:

        def through(step: int, what: Callable[..., Any], *arguments: Any) -> Any:
            """Do it, for as long as it wants to hear more, and send what it says in pieces of `step` bytes."""
            while True:
                try:
                    return what(*arguments)
                except ssl.SSLWantReadError:
                    flush(step)
                    incoming.write(raw.recv(65536))
                finally:
                    flush(step)

        def flush(step: int) -> None:
            data = outgoing.read()
            for n in range(0, len(data), step):
                raw.sendall(data[n : n + step])

        through(50, tls.do_handshake)
        through(7, tls.write, presend.association_request(CONTEXTS))
        assert through(1, tls.read, 65536)[0] == 2
        message = presend.message(sent, 1, 16384)
        for start in range(0, len(message), 5000):
            through(33, tls.write, message[start : start + 5000])
        assert status_of(through(1, tls.read, 65536)[6:]) == statuses.SUCCESS
    (path,) = files_below(spool.root)
    assert data_set(path) == sent.data


def test_large_records_and_many_in_one_flight_are_the_same_objects(
    open_secure: OpenSecure, ours: ssl.SSLContext, spool: Spool
) -> None:
    secure = open_secure()
    images = [image(n, size=700) for n in range(1, 9)]
    with associate(secure.port, ours) as peer:
        peer.sendall(b"".join(presend.message(sent, 1, 131072) for sent in images))  # answers come one by one
        for _ in images:
            assert status_of(read_pdu(peer)[1]) == statuses.SUCCESS
    assert sorted(map(data_set, files_below(spool.root))) == sorted(sent.data for sent in images)


@pytest.mark.parametrize("how", ["reset", "without close_notify", "half closed", "garbage"])
def test_ends_in_the_middle_of_an_object_leave_nothing(
    how: str, secure: Secure, ours: ssl.SSLContext, spool: Spool, ledger: Ledger
) -> None:
    for n in range(10):
        with associate(secure.port, ours, BAD) as peer:
            half = presend.message(image(n + 1, size=64), 1, 16384)
            peer.sendall(half[: len(half) // 2 + 7 * n])
            if how == "reset":
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "half closed":
                with contextlib.suppress(OSError):
                    peer.unwrap()
            elif how == "garbage":
                with contextlib.suppress(OSError):
                    os.write(peer.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
                    assert ended(peer) == b""
        if n % 5 == 0:
            echo(secure.port, ours)
    until(lambda: secure.door.associations() == 0)
    until(lambda: list(files_below(spool.root)) == [])
    assert ledger.receiving() == []


def test_an_idle_association_is_aborted_and_told_so(secure: Secure, ours: ssl.SSLContext) -> None:
    with associate(secure.port, ours, BAD) as idle:
        assert ended(idle) == struct.pack(">BxLxxBB", 7, 4, 2, 0)


def test_a_record_that_drips_ends_with_its_object(secure: Secure, ours: ssl.SSLContext) -> None:
    with associate(secure.port, ours, BAD) as peer:
        peer.sendall(pdu(4, pdv(1, 3, store_request(image()))))
        start = time.monotonic()
        with contextlib.suppress(OSError):
            os.write(peer.fileno(), b"\x17\x03\x03\x40\x00")
            for _ in range(300):
                os.write(peer.fileno(), b"x")
                time.sleep(0.01)
        assert time.monotonic() - start < 2


def test_closing_the_door_aborts_who_is_in_it(open_secure: OpenSecure, ours: ssl.SSLContext, spool: Spool) -> None:
    secure = open_secure()
    with associate(secure.port, ours) as peer, presend.connect(secure.port) as silent:
        half = presend.message(image(), 1, 16384)
        peer.sendall(half[: len(half) // 2])
        until(lambda: open_below(spool.root) != [])
        start = time.monotonic()
        secure.door.stop()
        assert time.monotonic() - start < 3.5
        assert ended(peer) == struct.pack(">BxLxxBB", 7, 4, 2, 0)
        assert ended(silent) == b""
    assert list(files_below(spool.root)) == []


# -- certificates that change


def serial(port: int, context: ssl.SSLContext) -> str:
    with connect(port, context) as peer:
        certificate = peer.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


def install(new: Certificate, at: Certificate) -> None:
    """Put a certificate in the place of another, as certbot and its like do."""
    for source, target in ((new.certificate, at.certificate), (new.key, at.key)):
        shutil.copy(source, target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)


def test_certificates_are_replaced_under_load_and_no_association_is_lost(
    way: dict[str, bool], open_secure: OpenSecure, authority: Authority, ours: ssl.SSLContext, tmp_path: Path,
    spool: Spool,
) -> None:  # fmt: skip
    used = Certificate(tmp_path / "used.pem", tmp_path / "used.key")
    install(authority.issue("first"), used)
    secure = open_secure(tls_certificate=used.certificate, tls_key=used.key, **way)
    first = serial(secure.port, ours)
    done, failures, stored = threading.Event(), [], [0]

    def long() -> None:
        with associate(secure.port, ours) as peer:
            while not done.is_set():
                assert store(peer, image(1)) == statuses.SUCCESS
                stored[0] += 1

    def short() -> None:
        while not done.is_set():
            try:
                with associate(secure.port, ours) as peer:
                    assert store(peer, image(2)) == statuses.SUCCESS
                    peer.sendall(pdu(5, bytes(4)))
                    assert read_pdu(peer)[0] == 6
            except (OSError, AssertionError) as error:
                failures.append(repr(error))

    lanes = [threading.Thread(target=long), *(threading.Thread(target=short) for _ in range(3))]
    for lane in lanes:
        lane.start()
    seen = {first}
    try:
        for turn in range(2):
            install(authority.issue(f"next-{turn}"), used)
            until(lambda: serial(secure.port, ours) not in seen, 10)
            seen.add(serial(secure.port, ours))
        before = stored[0]
        until(lambda: stored[0] > before + 3)
    finally:
        done.set()
        for lane in lanes:
            lane.join()
    assert failures == []
    assert len(seen) == 3
    assert secure.door.trouble == ""


@pytest.mark.parametrize("broken", ["empty", "missing", "other key", "expired"])
def test_a_broken_new_certificate_leaves_the_old_one_and_is_told(
    broken: str, open_secure: OpenSecure, authority: Authority, ours: ssl.SSLContext, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    used = Certificate(tmp_path / "used.pem", tmp_path / "used.key")
    install(authority.issue("first"), used)
    secure = open_secure(tls_certificate=used.certificate, tls_key=used.key)
    first = serial(secure.port, ours)
    if broken == "empty":
        used.certificate.write_bytes(b"")
    elif broken == "missing":
        used.key.unlink()
    elif broken == "other key":
        shutil.copy(authority.issue("second").key, used.key)
    else:
        install(authority.issue("late", -1), used)
    until(lambda: secure.door.trouble != "")
    assert any(r.levelno == logging.ERROR and "certificate" in r.getMessage() for r in caplog.records)
    if broken == "expired":
        assert "certificate has expired" in secure.door.trouble
    else:
        assert "the new TLS certificate is not used" in secure.door.trouble
        assert serial(secure.port, ours) == first
    install(authority.issue("second"), used)
    until(lambda: secure.door.trouble == "")
    assert serial(secure.port, ours) != first


def test_a_certificate_that_soon_expires_is_told(open_secure: OpenSecure, authority: Authority) -> None:
    soon = authority.issue("soon", 5)
    secure = open_secure(tls_certificate=soon.certificate, tls_key=soon.key)
    assert secure.door.trouble == ""
    assert secure.door.note == "the TLS certificate expires in 5 d"


def test_what_cannot_be_used_is_said_before_the_port_opens(
    open_secure: OpenSecure, node: Certificate, authority: Authority, tmp_path: Path
) -> None:
    other, locked = authority.issue("other"), tmp_path / "locked.key"
    subprocess.run(
        [program("openssl", "openssl"), "pkey", "-in", node.key, "-aes256", "-passout", "pass:x", "-out", locked],
        check=True,
    )
    empty = tmp_path / "empty.pem"
    empty.touch()
    for values, says in (
        ({"tls_key": tmp_path / "absent"}, "listener.tls_key .*absent cannot be read .No such file"),
        ({"tls_key": other.key}, "key values mismatch"),
        ({"tls_key": locked}, "listener.tls_certificate and tls_key cannot be used"),
        ({"tls_ca_file": empty}, "listener.tls_ca_file cannot be used"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            open_secure(**values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"plain": False}, "needs a tls_port"),
        ({"tls_certificate": "a"}, "do nothing without a tls_port"),
        ({"tls_port": 0}, "needs tls_certificate and tls_key"),
        ({"tls_port": 0, "tls_certificate": "a", "tls_key": "b"}, "whose certificates are good"),
        ({"tls_port": 0, "tls_certificate": "a", "tls_key": "b", "tls_ca_file": "c", "tls_client": "none"}, "whose"),
    ],
)
def test_settings_that_would_be_less_secure_than_they_read_are_errors(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Listener(**values)
    with pytest.raises(ValidationError, match="clear text"):
        Destination(name="a", ae_title="A", host="h", port=1, tls_ca_file="ca.pem")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="go together"):
        Destination(name="a", ae_title="A", host="h", port=1, tls=True, tls_key="k")  # type: ignore[arg-type]


# -- what we send


@contextlib.contextmanager
def secure_storescp(folder: Path, certificate: Certificate, authority: Authority) -> Iterator[int]:
    """DCMTK's storescp, which wants a certificate and writes what it gets bit by bit."""
    port, log = free_port(), folder / "storescp.log"
    (folder / "received").mkdir(parents=True)
    command = [
        program("storescp", "dcmtk"), "-v", "+B", "+uf", "-od", str(folder / "received"), "+tls", str(certificate.key),
        str(certificate.certificate), "+cf", str(authority.certificate), str(port),
    ]  # fmt: skip
    with running(command, log) as process:
        wait_for_port(port, process, log)
        yield port


def test_objects_are_sent_over_tls_and_arrive_byte_for_byte(
    authority: Authority, modality: Certificate, node: Certificate, tmp_path: Path
) -> None:
    sent = [describe(write(mr(n, size=256), tmp_path / f"{n}.dcm")) for n in range(1, 4)]
    security = Secured(tls=True, tls_ca_file=authority.certificate, tls_certificate=node.certificate, tls_key=node.key)
    with secure_storescp(tmp_path / "scp", modality, authority) as port:
        peer = Address("STORESCP", "localhost", port, "PENNODE", security)
        assert send_files(sent, peer, 10, lambda *_: None) == []
        received = (tmp_path / "scp" / "received").iterdir()
        assert sorted(map(data_set, received)) == sorted(data_set(one.path) for one in sent)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"tls_ca_file": "stranger"},
            "no TLS: its certificate is not good: self-signed certificate in certificate chain",
        ),
        ({"tls_server_name": "pacs.example"}, "no TLS: its certificate is not good: Hostname mismatch"),
        ({"tls_certificate": None, "tls_key": None}, "whether it takes our TLS certificate"),
    ],
)
def test_a_peer_that_is_not_who_it_should_be_is_sent_nothing(
    change: dict[str, Any], says: str, authority: Authority, stranger: Authority, modality: Certificate,
    node: Certificate, tmp_path: Path,
) -> None:  # fmt: skip
    sent = describe(write(mr(), tmp_path / "1.dcm"))
    files = {"tls_ca_file": authority.certificate, "tls_certificate": node.certificate, "tls_key": node.key, **change}
    if files["tls_ca_file"] == "stranger":
        files["tls_ca_file"] = stranger.certificate
    with secure_storescp(tmp_path / "scp", modality, authority) as port:
        peer = Address("STORESCP", "localhost", port, "PENNODE", Secured(tls=True, **files))
        with pytest.raises(PeerUnavailable, match=says):
            send_files([sent], peer, 5, lambda *_: None)
        assert list((tmp_path / "scp" / "received").iterdir()) == []


def test_our_own_two_sides_understand_each_other(
    way: dict[str, bool], open_secure: OpenSecure, authority: Authority, modality: Certificate, tmp_path: Path,
    spool: Spool,
) -> None:  # fmt: skip
    secure = open_secure(**way)
    sent = write(mr(size=512), tmp_path / "1.dcm")
    security = Secured(
        tls=True, tls_ca_file=authority.certificate, tls_certificate=modality.certificate, tls_key=modality.key,
        tls_server_name="node",
    )  # fmt: skip
    peer = Address("PENNODE", "127.0.0.1", secure.port, "SCANNER", security)
    assert send_files([describe(sent)], peer, 10, lambda *_: None) == []
    (path,) = files_below(spool.root)
    assert data_set(path) == data_set(sent)
