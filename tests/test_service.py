"""The node as a process: what it does when it stops, starts on the wrong things, or has odd neighbours."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.uid import MRImageStorage
from pynetdicom import AE
from pynetdicom.presentation import build_context

from node.errors import PeerUnavailable
from node.outgoing import describe
from node.scu import Address, send_files
from node.states import JobState
from tests.authority import Authority
from tests.harness import Site, pennode, site, until
from tests.node.making import data_set, mr, write
from tests.peers import free_port, orthanc, postgresql_server, program, redis_server, storescp
from workers.series import write_phantom


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_phantom(tmp_path_factory.mktemp("phantom"), shape=(8, 96, 96))


def address_of(text: str) -> Address:
    title, _, rest = text.partition("@")
    host, port = rest.split(":")
    return Address(title, host, int(port), "SCANNER")


def send(text: str, files: list[Path]) -> None:
    refused = send_files([describe(f) for f in files], address_of(text), 20, lambda _f, _n: None)
    assert refused == []


def images(here: Site) -> list[Path]:
    return sorted((here.state / "spool" / "series").rglob("*.dcm"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_though_peers_sit_still(tmp_path: Path, number: signal.Signals) -> None:
    """An idle connection, a PDU that never ends, an idle association: none keeps the process alive."""
    with site(tmp_path) as here:
        peer = address_of(here.start_node())
        with socket.create_connection((peer.host, peer.port)), socket.create_connection((peer.host, peer.port)) as half:
            half.sendall(b"\x01\x00\x00\x00\xff\xff")
            ae = AE("SCANNER")
            contexts = [build_context(MRImageStorage)]
            association = ae.associate(peer.host, peer.port, contexts=contexts, ae_title=peer.ae_title)
            assert association.is_established
            connection = association.dul.socket.socket
            begun = time.monotonic()
            here.processes["node"].send_signal(number)
            assert here.processes["node"].wait(30) == 0
            assert time.monotonic() - begun < 20
            association.abort()
            connection.close()
        assert not (here.state / "node.json").exists()


def test_nothing_acknowledged_is_lost_when_it_is_stopped_while_receiving(tmp_path: Path) -> None:
    files = write_phantom(tmp_path / "in", shape=(60, 64, 64))
    acknowledged: list[str] = []
    with site(tmp_path) as here:
        peer = address_of(here.start_node())

        def note(outgoing: object, _answer: str) -> None:
            acknowledged.append(outgoing.sop_uid)  # type: ignore[attr-defined]
            if len(acknowledged) == 10:
                here.processes["node"].terminate()

        refused: list[tuple[object, str]] = []
        with contextlib.suppress(PeerUnavailable):  # the node goes away in the middle
            refused = list(send_files([describe(f) for f in files], peer, 5, note))
        assert here.processes["node"].wait(30) == 0
        good = set(acknowledged) - {o.sop_uid for o, _ in refused}  # type: ignore[attr-defined]
        kept = {f.stem for f in images(here)}
        assert 10 <= len(good) < 60
        assert good <= kept


def test_another_ledger_never_costs_the_images(tmp_path: Path, phantom: list[Path]) -> None:
    with site(tmp_path) as here:
        send(here.start_node(), phantom)
        here.stop()
        before = images(here)
        assert len(before) == len(phantom)
        wrong = here.environment | {"PENNODE_LEDGER_URL": f"sqlite:///{tmp_path / 'other.sqlite3'}"}
        done = pennode("node", environment=wrong)
        assert done.returncode == 1
        assert "belong to another ledger" in done.stderr
        assert images(here) == before
        here.start_node()
        assert images(here) == before


def test_an_older_ledger_sets_aside_what_it_does_not_know(tmp_path: Path, phantom: list[Path]) -> None:
    """A ledger restored from a backup knows less than was acknowledged; the bytes stay."""
    with site(tmp_path) as here:
        here.start_node()
        here.stop()
        backup = (here.state / "ledger.sqlite3").read_bytes()
        send(here.start_node(), phantom)
        here.stop()
        for file in here.state.glob("ledger.sqlite3*"):
            file.unlink()
        (here.state / "ledger.sqlite3").write_bytes(backup)
        for file in images(here):
            os.utime(file, (0, 0))
        here.start_node()
        assert images(here) == []
        assert len(list((here.state / "spool" / "unknown").iterdir())) == len(phantom)


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_one_ledger_has_one_node(tmp_path: Path, backend: str) -> None:
    server = postgresql_server(tmp_path / "pg") if backend == "postgresql" else contextlib.nullcontext("")
    with server as url, site(tmp_path / "a") as one, site(tmp_path / "b") as two:
        for each in (one, two):
            each.environment["PENNODE_LEDGER_URL"] = url or f"sqlite:///{tmp_path / 'shared.sqlite3'}"
        one.start_node()
        done = pennode("node", environment=two.environment)
        assert done.returncode == 1
        assert "another node runs on this ledger" in done.stderr
        one.kill("node")
        two.start_node()


def test_the_worker_of_up_reads_the_same_settings_and_token(tmp_path: Path, phantom: list[Path]) -> None:
    with storescp(tmp_path / "pacs") as port, site(tmp_path) as here:
        settings = tmp_path / "pennode.toml"
        settings.write_text(
            f"""
            [api]
            token = "only in the file"
            [broker]
            queue = "of_this_site"
            [seg]
            series_description = "SAID IN THE FILE"
            [[destinations]]
            name = "pacs"
            ae_title = "STORESCP"
            host = "127.0.0.1"
            port = {port}
            """
        )
        del here.environment["PENNODE_DESTINATIONS"]
        here.environment["PENNODE_CONFIG"] = str(settings)
        send(here.start_node("up"), phantom)
        (job,) = here.wait_finished(1).values()
        assert job.state is JobState.DELIVERED, job.reason
        received = list((tmp_path / "pacs" / "received").iterdir())
        assert len(received) == 2
        assert all(b"SAID IN THE FILE" in one.read_bytes() for one in received)


def test_the_demo_leaves_a_configured_site_alone(tmp_path: Path) -> None:
    settings = tmp_path / "pennode.toml"
    settings.write_text(
        f'state_dir = "{tmp_path / "production"}"\n[ledger]\nurl = "sqlite:///{tmp_path / "p.sqlite3"}"\n'
    )
    done = pennode("demo", "--json", "--out", str(tmp_path / "out"), environment={"PENNODE_CONFIG": str(settings)})
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "production").exists()
    assert not (tmp_path / "p.sqlite3").exists()


def test_an_image_whose_file_was_lost_is_stored_again(tmp_path: Path, phantom: list[Path]) -> None:
    with site(tmp_path) as here:
        address = here.start_node()
        send(address, phantom)
        until(lambda: here.jobs() or None, "the series is sealed")
        victim = images(here)[3]
        content = victim.read_bytes()
        victim.unlink()
        send(address, phantom)
        assert len(images(here)) == len(phantom)
        assert content in [f.read_bytes() for f in images(here)]
        (job,) = here.jobs()
        known = here.ledger.known_paths({str(f.relative_to(here.state / "spool")) for f in images(here)})
        assert len(known) == len(phantom)
        assert job.revision == 1


def test_a_destination_that_hangs_holds_up_nobody_else(tmp_path: Path, phantom: list[Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, storescp(tmp_path / "pacs") as port:
        places = [("silent", "NOBODY", silent.getsockname()[1]), ("pacs", "STORESCP", port)]
        with site(tmp_path, places, PENNODE_DELIVERY_TIMEOUT_S="60") as here:
            send(here.start_node("up"), phantom)
            until(lambda: list((tmp_path / "pacs" / "received").iterdir()) or None, "the other PACS gets it", 40)
            assert here.jobs()[0].state is JobState.SEGMENTED


def test_a_peers_brackets_and_tabs_do_not_break_the_list(tmp_path: Path) -> None:
    import pydicom

    files = write_phantom(tmp_path / "in", shape=(3, 32, 32))
    for file in files:
        image = pydicom.dcmread(file)
        image.SeriesDescription = "T2 [/sag] <b> [red]"
        image.save_as(file)
    with site(tmp_path) as here:
        send(here.start_node(), files)
        until(lambda: here.jobs() or None, "the series is sealed")
        done = pennode("jobs", "list", environment=here.environment)
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        assert line.split("\t")[1] == "SKIPPED"
        assert "T2 [/sag] <b> [red]" in line


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, chain = folder / "key.pem", folder / "cert.pem"
    command = [
        program("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout", str(key), "-out", str(chain),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return chain, key


def test_worker_api_over_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    tls = {
        "PENNODE_API_TLS_CERTIFICATE": str(chain),
        "PENNODE_API_TLS_KEY": str(key),
        "PENNODE_WORKER_CA_FILE": str(chain),
    }
    with site(tmp_path, **tls) as here:
        here.start_node("up")
        assert json.loads((here.state / "node.json").read_text())["api"].startswith("https://")
        here.wait_for_worker()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PENNODE_API_TLS_CERTIFICATE": "/x.pem"}, "go together"),
        ({"PENNODE_API_TLS_CERTIFICATE": "/x.pem", "PENNODE_API_TLS_KEY": "/y.pem"}, "certificate or key of [api]"),
        ({"PENNODE_BROKER_URL": "redis://127.0.0.1:1/abc"}, "broker.url"),
        ({"PENNODE_BROKER_URL": "redis://h:notaport"}, "broker.url"),
        ({"PENNODE_BROKER_URL": "filesystem://localhost"}, "whole path"),
        ({"PENNODE_WEB_HOST": "192.0.2.1"}, "not of this machine"),
    ],
)
def test_what_cannot_work_is_said_at_the_start(tmp_path: Path, environment: dict[str, str], words: str) -> None:
    with site(tmp_path) as here:
        done = pennode("node", environment=here.environment | environment)
        assert done.returncode == 1
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_broken_ledger_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger.sqlite3").write_bytes(b"this is no database" * 100)
    for command in (["node"], ["jobs", "list"]):
        done = pennode(
            *command, environment={"PENNODE_STATE_DIR": str(tmp_path / "state"), "PENNODE_LISTENER_PORT": "0"}
        )
        assert done.returncode == 1
        assert "the ledger does not answer" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_series_that_comes_by_stow_is_sealed_when_its_request_ends(tmp_path: Path, phantom: list[Path]) -> None:
    with site(tmp_path, PENNODE_WEB_STOW="true") as here:
        here.start_node()
        url = json.loads((here.state / "node.json").read_text())["stow"]
        token = (here.state / "stow.token").read_text()
        assert (here.state / "stow.token").stat().st_mode & 0o777 == 0o600
        client = DICOMwebClient(url, headers={"Authorization": f"Bearer {token}"})
        client.store_instances([pydicom.dcmread(path) for path in phantom])
        (job,) = until(lambda: here.jobs() or None, "the series is sealed")
        reasons = [entry.text for entry in here.ledger.journal(job.id)]
        assert (job.calling_ae, job.instances) == ("STOW", len(phantom))
        assert any(reason.startswith(f"{len(phantom)} images: association released") for reason in reasons), reasons
        assert token not in here.log("node")


def test_redis_over_tls_is_verified(tmp_path: Path, certificate: tuple[Path, Path], phantom: list[Path]) -> None:
    chain, key = certificate
    port = free_port()
    options = ["--port", "0", "--tls-port", str(port), "--tls-cert-file", str(chain), "--tls-key-file", str(key),
               "--tls-auth-clients", "no"]  # fmt: skip
    with redis_server(tmp_path / "redis", port, options), site(tmp_path / "site") as here:
        here.environment["PENNODE_BROKER_URL"] = f"rediss://127.0.0.1:{port}/0"
        send(here.start_node(), phantom)
        until(lambda: "does not take messages" in here.log("node"), "an unknown authority is refused")
        here.stop()
        here.environment["PENNODE_BROKER_CA_FILE"] = str(chain)
        here.start_node()
        until(lambda: here.jobs()[0].state is JobState.QUEUED, "a known one is trusted")


def test_images_of_a_killed_worker_do_not_stay(tmp_path: Path) -> None:
    from workers.tasks import sweep

    gone = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    mine, theirs = (Path("/tmp") / f"pennode-worker-{pid}-test" for pid in (os.getpid(), gone))
    for folder in (mine, theirs):
        folder.mkdir(exist_ok=True)
        (folder / "image.dcm").write_bytes(b"x")
    try:
        sweep()
        assert mine.exists()
        assert not theirs.exists()
    finally:
        (mine / "image.dcm").unlink()
        mine.rmdir()


def test_a_node_serves_tls_and_tells_who_called(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    certificate = authority.issue("node")
    tls = {
        "PENNODE_LISTENER_PLAIN": "false",
        "PENNODE_LISTENER_TLS_PORT": "0",
        "PENNODE_LISTENER_TLS_CERTIFICATE": str(certificate.certificate),
        "PENNODE_LISTENER_TLS_KEY": str(certificate.key),
        "PENNODE_LISTENER_TLS_CA_FILE": str(authority.certificate),
        "PENNODE_PEERS": json.dumps([{"name": "mr1", "ae_title": "MR1"}]),
        "PENNODE_LISTENER_UNKNOWN_PEERS": "reject",
    }
    image = write(mr(), tmp_path / "image.dcm")
    with site(tmp_path / "site", **tls) as here:
        here.start("node")

        def address() -> str | None:
            with contextlib.suppress(OSError, ValueError):
                return str(json.loads((here.state / "node.json").read_text())["dicom_tls"])
            return None

        to = until(address, "the node starts", 30)
        secure = ["--tls-ca", str(authority.certificate)]
        shown = ["--tls-certificate", str(certificate.certificate), "--tls-key", str(certificate.key)]
        sent = pennode("send", str(image), "--to", to, "--calling", "MR1", *secure, *shown)
        assert sent.returncode == 0, sent.stderr
        refused = pennode("send", str(image), "--to", to, "--calling", "MR2", *secure, *shown)
        assert "it does not know our AE title" in refused.stderr
        assert pennode("send", str(image), "--to", to, "--calling", "MR1").returncode == 1, "without TLS"

        def told() -> str | None:
            said = pennode("peers", "list", environment=here.environment).stdout
            return said if "MR2 called PENNODE" in said else None

        said = until(told, "the caller is told of", 30)
        assert "mr1\tMR1\tlast seen" in said
        assert 'ae_title = "MR2"' in said


def test_a_destinations_authority_that_is_not_there_is_said_at_start(tmp_path: Path) -> None:
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "pacs", "port": 104, "tls": True, "tls_ca_file": "/absent.pem"}
    environment = {"PENNODE_STATE_DIR": str(tmp_path), "PENNODE_DESTINATIONS": json.dumps([pacs])}
    done = pennode("node", environment=environment)
    assert done.returncode == 1
    assert "destinations.pacs.tls_ca_file /absent.pem cannot be read (No such file or directory)" in done.stderr


def test_results_reach_a_dicomweb_service_as_they_reach_a_pacs(tmp_path: Path, phantom: list[Path]) -> None:
    with orthanc(tmp_path / "orthanc", dicomweb={}) as pacs, storescp(tmp_path / "pacs") as port:
        (tmp_path / "token").write_text("a-token")
        destinations = [
            {"name": "web", "url": f"{pacs.url}/dicom-web", "token_file": str(tmp_path / "token"), "forms": ["SEG"]},
            {"name": "pacs", "ae_title": "STORESCP", "host": "127.0.0.1", "port": port, "forms": ["SEG"]},
        ]
        with site(tmp_path, PENNODE_DESTINATIONS=json.dumps(destinations)) as here:
            send(here.start_node("up"), phantom)
            (job,) = here.wait_finished(1).values()
            assert (job.state, job.reason) == (JobState.DELIVERED, "every destination has the results")
            first, second = here.ledger.deliveries(job.id)
            assert (first.reason, second.reason) == ("stored (HTTP 200)", "stored (0x0000)")
            (found,) = pacs.instances(first.sop_uid)
            (received,) = (tmp_path / "pacs" / "received").iterdir()
            assert data_set(pacs.get(f"/instances/{found}/file")) == data_set(received)
            assert "a-token" not in here.log("up")


def test_a_destinations_token_that_is_not_there_is_said_at_start(tmp_path: Path) -> None:
    web = {"name": "web", "url": "https://pacs.example", "token_file": str(tmp_path / "absent")}
    environment = {"PENNODE_STATE_DIR": str(tmp_path), "PENNODE_DESTINATIONS": json.dumps([web])}
    done = pennode("node", environment=environment)
    assert done.returncode == 1
    assert "no token: " in done.stderr
    assert "absent cannot be read (No such file or directory)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
