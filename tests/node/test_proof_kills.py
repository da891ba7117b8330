"""Proof of delivery by real processes: nodes killed while they ask, on both of the listener's paths."""

from __future__ import annotations

import json
import random
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.ledger import Ledger
from node.records import Delivery, Result
from node.spool import Spool
from node.states import DeliveryState, JobState, Proof
from tests import harness
from tests.node.making import claim, sealed, seg
from tests.node.test_proof import SEG, Archive, D, introduce, lose, report, transactions, until
from tests.peers import free_port, orthanc, storescp

# pynetdicom leaves some sockets to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

QUICK = {
    "PENNODE_DELIVERY_BACKOFF_FIRST_S": "0.5", "PENNODE_DELIVERY_BACKOFF_MAX_S": "2",
    "PENNODE_DELIVERY_REPORT_PAUSE_S": "0.2", "PENNODE_DELIVERY_TIMEOUT_S": "5",
}  # fmt: skip


@contextmanager
def with_a_result(folder: Path, ae_title: str, port: int, way: dict[str, bool], **more: str) -> Iterator[harness.Site]:
    """A site whose ledger holds one segmented job for the destination `pacs`, and no node yet."""
    path = {"PENNODE_LISTENER_FAST_PATH": str(way["fast_path"]).lower()}
    with harness.site(folder, [("pacs", ae_title, port)], **QUICK, **path, **more) as site:
        site.state.mkdir(parents=True)
        ledger, spool = Ledger(f"sqlite:///{site.state / 'ledger.sqlite3'}"), Spool(site.state / "spool")
        ledger.migrate()
        spool.prepare()
        spool.belongs_to(ledger.identity())
        job = sealed(ledger)
        held = claim(ledger, job)
        source = spool.scratch() / "a.dcm"
        source.write_bytes(seg("2.25.7"))
        stored = spool.store_result(job, held.fence, "2.25.7", "0" * 64, source)
        ledger.finish(
            job, 1, [Result("2.25.7", SEG, job, stored, 10, "0" * 64)], {"pacs": ["SEG"]}, model="m", note="n",
            now=time.time(),
        )  # fmt: skip
        ledger.close()
        yield site


def only(ledger: Ledger) -> Delivery:
    (found,) = ledger.deliveries(ledger.jobs()[0].id)
    return found


def port_of(site: harness.Site) -> int:
    return int(site.start_node().rpartition(":")[2])


def until_state(ledger: Ledger, state: DeliveryState, seconds: float = 20.0) -> Delivery:
    return until(lambda: (found := only(ledger)).state is state and found, seconds)


def test_killed_between_request_and_report_it_takes_the_report_after_its_next_start(
    way: dict[str, bool], tmp_path: Path
) -> None:
    archive = Archive()
    with archive.listening() as port, with_a_result(tmp_path, "PACS", port, way) as site:
        site.start_node()
        until(lambda: archive.asked, 20)
        site.kill("node")
        ledger = site.ledger
        assert (only(ledger).state, only(ledger).asked_at > 0) == (D.SENT, True)
        assert archive.report(port_of(site)) == 0x0000
        item = only(ledger)
        assert (item.state, item.proof) == (D.COMMITTED, Proof.COMMITMENT), "it is in the ledger once it is answered"
        # killed once more: what it was told is not forgotten, and nothing is asked again
        site.kill("node")
        site.start_node()
        time.sleep(1.5)
        assert only(ledger) == item
        assert len(archive.asked) == 1
        ledger.close()


def test_a_report_that_was_lost_with_the_node_is_asked_for_again(way: dict[str, bool], tmp_path: Path) -> None:
    archive = Archive()
    more = {"PENNODE_DELIVERY_REPORT_TIMEOUT_S": "2"}
    with archive.listening() as port, with_a_result(tmp_path, "PACS", port, way, **more) as site:
        site.start_node()
        until(lambda: archive.asked, 20)
        site.kill("node")
        first = str(archive.asked[0].TransactionUID)
        at = port_of(site)
        until(lambda: len(archive.asked) == 2, 20)
        ledger = site.ledger
        assert "no report of storage commitment came within 2 s" in only(ledger).doubt
        assert "stand in [[peers]]" in only(ledger).doubt
        assert first not in transactions(ledger)
        assert report(at, first, ["2.25.7"]) == 0x0110, "that transaction is no more"
        assert only(ledger).state is D.SENT
        assert archive.report(at) == 0x0000
        assert only(ledger).state is D.COMMITTED
        ledger.close()


def test_orthanc_loses_it_again_and_again_while_the_node_is_killed_at_any_time(
    way: dict[str, bool], tmp_path: Path
) -> None:
    often = json.dumps([1.0 * n for n in range(1, 200)])
    port = free_port()
    more = {
        "PENNODE_DELIVERY_REPORT_TIMEOUT_S": "2", "PENNODE_DELIVERY_RECHECK_S": often,
        "PENNODE_DELIVERY_MAX_LOSSES": "20", "PENNODE_LISTENER_PORT": str(port),
    }  # fmt: skip
    chance = random.Random(9)
    with (
        orthanc(tmp_path / "orthanc") as pacs,
        with_a_result(tmp_path, "ORTHANC", pacs.dicom_port, way, **more) as site,
    ):
        introduce(pacs, port)
        site.start_node()
        ledger = site.ledger
        for round_ in range(3):
            # Known of the copy that there is now: the one before is gone.
            until(lambda: (d := only(ledger)).is_held and d.lost >= round_, 30)  # noqa: B023 - asked at once
            lose(pacs, "2.25.7")
            time.sleep(chance.uniform(0, 2))
            site.kill("node")
            site.start_node()
        until(lambda: (d := only(ledger)).is_held and d.lost >= 3 and pacs.instances("2.25.7"), 30)
        (job,) = ledger.jobs()
        until(lambda: ledger.jobs()[0].state is JobState.DELIVERED)
        lost = [e for e in ledger.journal(job.id) if (e.before, e.after) == ("DELIVERED", "SEGMENTED")]
        assert len(lost) == only(ledger).lost, "each loss is noticed once"
        ledger.close()


def test_a_pacs_that_hangs_holds_up_no_other(tmp_path: Path, hanging: int) -> None:
    archive = Archive(same_association=True)
    with archive.listening() as port, with_a_result(tmp_path, "PACS", port, {"fast_path": True}) as site:
        ledger = site.ledger
        (job,) = ledger.jobs()
        with ledger._db.write() as connection:  # as if another destination had taken it before
            connection.exec_driver_sql(
                "INSERT INTO delivery (job_id, sop_uid, destination, path, state, attempts, refusals, not_before, "
                "reason, updated_at, check_at) SELECT job_id, sop_uid, 'slow', path, 'SENT', 1, 0, 0, '', 1, 1 "
                "FROM delivery"
            )
        named = json.loads(site.environment["PENNODE_DESTINATIONS"])
        site.environment["PENNODE_DESTINATIONS"] = json.dumps([*named, {**named[0], "name": "slow", "port": hanging}])
        site.environment["PENNODE_DELIVERY_TIMEOUT_S"] = "30"
        site.start_node()
        until(lambda: {d.destination: d.state for d in ledger.deliveries(job.id)}["pacs"] is D.COMMITTED, 15)
        assert {d.destination: d.state for d in ledger.deliveries(job.id)}["slow"] is D.SENT
        ledger.close()


@pytest.fixture
def hanging() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        yield silent.getsockname()[1]


@pytest.mark.parametrize("retrieve", ["get", "move"])
def test_the_command_line_asks_the_running_node(retrieve: str, tmp_path: Path) -> None:
    port = free_port()
    with (
        orthanc(tmp_path / "orthanc") as pacs,
        with_a_result(
            tmp_path, "ORTHANC", pacs.dicom_port, {"fast_path": True}, PENNODE_LISTENER_PORT=str(port)
        ) as site,
    ):
        introduce(pacs, port)
        (named,) = json.loads(site.environment["PENNODE_DESTINATIONS"])
        site.environment["PENNODE_DESTINATIONS"] = json.dumps([{**named, "retrieve": retrieve}])
        ledger = site.ledger
        (job,) = ledger.jobs()

        def prove(*options: str) -> tuple[int, str]:
            done = harness.pennode("jobs", "prove", job.id[:8], *options, environment=site.environment)
            return done.returncode, done.stdout + done.stderr

        code, said = prove()
        assert code == 1
        assert "no destination has taken a result of this job" in said
        site.start_node()
        until_state(ledger, D.COMMITTED)
        code, said = prove()
        line = "pacs: segmentation (BINARY): holds the object"
        assert (code, said.startswith(f"{line}, known by storage commitment at ")) == (0, True), said
        code, said = prove("--read-back", "--json")
        (told,) = json.loads(said)["deliveries"]
        assert (code, told["read_back"], told["proof"]) == (0, "read back and found equal", "reading it back")
        shown = harness.pennode("jobs", "show", job.id, environment=site.environment).stdout
        assert "holds the object, known by reading it back at" in shown
        assert "every destination holds the results; last known 0 s ago" in re.sub(r"\d+ s ago", "0 s ago", shown)
        assert "proof     -          -> ASKED" in shown
        lose(pacs, "2.25.7")
        code, said = prove()
        assert code == 1
        assert "did not hold the object 1 time(s)" in said
        until_state(ledger, D.COMMITTED)
        if retrieve == "move":  # shown by where it fails
            introduce(pacs, free_port())
            _, said = prove("--read-back")
            assert "could not be read back: no copy by C-MOVE: it is unable to process the request (0xC000)" in said
        site.kill("node")
        code, said = prove("--wait", "0.5")
        assert code == 1
        assert "no answer for 1 object(s) within 0.5 s (pennode jobs show tells when it is there)" in said
        ledger.close()


def test_health_says_what_cannot_be_proved(tmp_path: Path) -> None:
    with storescp(tmp_path / "scp") as port, with_a_result(tmp_path, "PACS", port, {"fast_path": True}) as site:
        (named,) = json.loads(site.environment["PENNODE_DESTINATIONS"])
        site.environment["PENNODE_DESTINATIONS"] = json.dumps([{**named, "proof": "commitment"}])
        site.start_node()
        web = json.loads((site.state / "node.json").read_text())["web"]

        def parts() -> dict[str, str]:
            try:
                with urllib.request.urlopen(f"{web}/health", timeout=5) as answer:
                    return dict(json.load(answer)["components"])
            except urllib.error.HTTPError as error:
                with error:
                    return dict(json.load(error)["components"])

        assert parts()["proof at pacs"] == "ok"
        until(lambda: parts()["proof at pacs"] == "degraded", 20)
        assert parts()["delivery to pacs"] == "ok"
