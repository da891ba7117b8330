"""Proof of delivery: Orthanc, DCMTK and unwilling peers are asked whether they hold what they took."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as StudyRootFind

from node.assurances import Assurances
from node.copies import get_copy, have_copy_sent
from node.delivery import Courier
from node.errors import Permanent
from node.ledger import Ledger
from node.listener import Door
from node.proof import Prover, dicom_destination
from node.records import Delivery, Result
from node.returns import Returns
from node.scu import Address
from node.services import report_taker
from node.settings import Delivery as Rules
from node.settings import Listener
from node.spool import Spool
from node.states import DeliveryState, JobState, Proof, Wanted
from tests.node.making import T0, claim, seal, sealed, seg
from tests.node.making import instance as image
from tests.peers import Orthanc, free_port, orthanc, storescp

SEG = str(uid.SegmentationStorage)
CLASS, WELL_KNOWN = str(StorageCommitmentPushModel), str(StorageCommitmentPushModelInstance)
D, J = DeliveryState, JobState
NO_SUCH = 0x0112

# pynetdicom leaves some sockets to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def until(probe: Callable[[], Any], seconds: float = 10.0) -> Any:
    give_up = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return found


class Site:
    """A door, a courier and a prover for one destination, whose clock a test may put forward."""

    def __init__(
        self, ledger: Ledger, spool: Spool, port: int, way: dict[str, bool], proof: str = "auto", title: str = "PACS",
        retrieve: str = "get", to: str = "PENNODE", at: int = 0, **rules: object,
    ) -> None:  # fmt: skip
        self.ledger, self.spool, self.ahead = ledger, spool, 0.0
        quick = {"timeout_s": 5, "backoff_first_s": 2, "report_pause_s": 0.5, "report_timeout_s": 30, **rules}
        self.rules = Rules(**quick)  # type: ignore[arg-type]
        assurances = Assurances(ledger, self.rules, self.clock)
        settings = Listener(port=at, free_floor_mb=0, network_timeout_s=10.0, **way)  # type: ignore[arg-type]
        returns = Returns()
        self.door = Door(ledger, spool, settings, changed=lambda: None, assurances=assurances, returns=returns)
        self.port = self.door.start()[1]
        peer = Address(title, "127.0.0.1", port, "PENNODE")
        self.courier = Courier(ledger, spool, {"pacs": peer}, self.rules, self.clock)
        fetch = partial(get_copy, peer, 5.0) if retrieve == "get" else partial(have_copy_sent, peer, to, returns, 5.0)
        asked = dicom_destination("pacs", proof, peer, 5.0, report_taker(assurances, 10**6), fetch)  # type: ignore[arg-type]
        self.prover = Prover(ledger, spool, asked, self.rules, self.clock)

    def clock(self) -> float:
        return time.time() + self.ahead

    def segmented(self, *series: str, content: Callable[[str, str], bytes] | None = None) -> list[str]:
        """Jobs with one result each in the spool, for `pacs`."""
        jobs = []
        for uid_ in series or ("1.2.3.10",):
            job = sealed(self.ledger, uid_)
            held = claim(self.ledger, job)
            sop_uid = f"2.25.7.{uid_.rpartition('.')[2]}"
            source = self.spool.scratch() / "a.dcm"
            source.write_bytes(content(sop_uid, uid_) if content else seg(sop_uid, series=uid_))
            path = self.spool.store_result(job, held.fence, sop_uid, "0" * 64, source)
            result = Result(sop_uid, SEG, job, path, 10, "0" * 64)
            self.ledger.finish(job, 1, [result], {"pacs": ["SEG"]}, model="m", note="n", now=T0)
            jobs.append(job)
        return jobs

    def send(self) -> None:
        self.courier.tick(self.clock())

    def look(self, seconds: float = 0.0) -> None:
        """Put the clock forward and let the prover have a round."""
        self.ahead += seconds
        self.prover.tick(self.clock())

    def only(self) -> Delivery:
        (found,) = [d for job in self.ledger.jobs() for d in self.ledger.deliveries(job.id)]
        return found

    def journal(self, job: str) -> list[str]:
        return [f"{e.subject} {e.before}>{e.after}: {e.text}" for e in self.ledger.journal(job)]

    def until(self, state: DeliveryState) -> Delivery:
        return until(lambda: (found := self.only()).state is state and found)


@pytest.fixture
def start(ledger: Ledger, spool: Spool, way: dict[str, bool]) -> Iterator[Callable[..., Site]]:
    """Starts sites that deliver to a port."""
    sites: list[Site] = []

    def make(port: int, proof: str = "auto", title: str = "PACS", **rules: object) -> Site:
        sites.append(Site(ledger, spool, port, way, proof, title, **rules))
        return sites[-1]

    yield make
    for site in sites:
        site.door.stop()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(autouse=True)
def emptied(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "pacs" in request.fixturenames:
        there = request.getfixturevalue("pacs")
        for found in json.loads(there.get("/studies")):
            delete(there, f"/studies/{found}")


def delete(there: Orthanc, path: str) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{there.url}{path}", method="DELETE"), timeout=20).close()


def introduce(there: Orthanc, port: int) -> None:
    """Have Orthanc know where the node listens."""
    there.send("/modalities/pennode", ["PENNODE", "127.0.0.1", port], "PUT")


def lose(there: Orthanc, sop_uid: str) -> None:
    (found,) = there.instances(sop_uid)
    delete(there, f"/instances/{found}")


# -- Orthanc


def test_orthanc_commits_on_an_association_of_its_own_and_what_it_loses_later_is_sent_again(
    start: Callable[..., Site], pacs: Orthanc, ledger: Ledger
) -> None:
    # given two objects that Orthanc has taken
    site = start(pacs.dicom_port, title="ORTHANC")
    introduce(pacs, site.port)
    first, second = site.segmented("1.2.3.10", "1.2.3.11")
    site.send()
    assert {d.state for job in (first, second) for d in ledger.deliveries(job)} == {D.SENT}
    assert ledger.job(first).state is J.DELIVERED
    # when it is asked, it reports on an association of its own
    site.look()
    states = lambda: [d.state for job in (first, second) for d in ledger.deliveries(job)]  # noqa: E731
    until(lambda: states() == [D.COMMITTED] * 2)
    (item,) = ledger.deliveries(first)
    (other,) = ledger.deliveries(second)
    assert (item.proof, item.asked_at, item.doubt, item.is_held) == (Proof.COMMITMENT, 0.0, "", True)
    assert abs(item.proved_at - site.clock()) < 10
    assert item.check_at == pytest.approx(item.proved_at + 60)
    assert "delivery SENT>COMMITTED: pacs: holds the object, known by storage commitment" in site.journal(first)
    assert site.prover.trouble == ""
    # then it loses one of them, and nothing is noticed before the next look
    lose(pacs, item.sop_uid)
    site.look(50)
    assert states() == [D.COMMITTED] * 2
    site.look(11)
    until(lambda: states() == [D.PENDING, D.COMMITTED])
    assert until(lambda: ledger.deliveries(second)[0].proved_at > other.proved_at), "the other one was looked at, too"
    job = ledger.job(first)
    assert (job.state, job.stage) == (J.SEGMENTED, "delivery")
    lost = "lost the object that it held (storage commitment failed with 0x0112, no such object instance); sent again"
    assert lost in job.reason
    assert "sent again by itself" in job.next_step
    assert "1 object(s) that it had taken were not there: sent again" in site.prover.trouble
    assert any(line.startswith(f"job DELIVERED>SEGMENTED: pacs {lost}") for line in site.journal(first))
    # and it is sent again, and proved again
    site.ahead += 5
    site.send()
    assert len(pacs.instances(item.sop_uid)) == 1
    assert ledger.job(first).state is J.DELIVERED
    site.look()
    until(lambda: states() == [D.COMMITTED] * 2)
    assert site.prover.trouble == ""
    assert ledger.deliveries(first)[0].lost == 1


def test_looks_become_rare_and_end(start: Callable[..., Site], pacs: Orthanc) -> None:
    site = start(pacs.dicom_port, "query", title="ORTHANC", recheck_s=(60, 3600))
    site.segmented()
    site.send()
    waits = []
    for _ in range(3):
        site.look(waits[-1] + 1 if waits else 0)
        waits.append(site.only().check_at - site.clock() if site.only().check_at else 0.0)
    assert waits == pytest.approx([60, 3540, 0], abs=3)
    proved_at = site.only().proved_at
    site.look(10**6)
    assert site.only().proved_at == proved_at


def test_a_query_finds_what_orthanc_holds_and_what_it_does_not(start: Callable[..., Site], pacs: Orthanc) -> None:
    site = start(pacs.dicom_port, "query", title="ORTHANC")
    (job,) = site.segmented()
    site.send()
    site.look()
    item = site.only()
    assert (item.state, item.proof) == (D.COMMITTED, Proof.FIND)
    lose(pacs, item.sop_uid)
    site.look(61)
    item = site.only()
    assert (item.state, item.lost, item.proof, item.proved_at) == (D.PENDING, 1, "", 0.0)
    assert "not found by C-FIND" in site.ledger.job(job).reason
    site.ahead += 5
    site.send()
    # a PACS that is slow to index what it took is given time
    lose(pacs, item.sop_uid)
    site.look()
    assert (site.only().state, site.only().doubt) == (D.SENT, "not found by C-FIND yet")
    site.look(61)
    assert (site.only().state, site.only().lost) == (D.PENDING, 2)
    assert "does not hold the object that it took" in site.only().reason


def test_a_report_that_never_comes_gives_way_to_a_query_and_counts_when_it_comes_late(
    start: Callable[..., Site], pacs: Orthanc, way: dict[str, bool]
) -> None:
    # given an Orthanc that looks for us where nobody listens
    site = start(pacs.dicom_port, title="ORTHANC")
    introduce(pacs, free_port())
    site.segmented()
    site.send()
    site.look()
    asked = site.only()
    assert asked.state is D.SENT
    assert asked.check_at == pytest.approx(site.clock() + 30, abs=5)
    site.look(10)
    assert site.only() == asked, "the report may still come"
    # when it has not come in time, a query answers
    site.look(25)
    found = site.only()
    assert (found.state, found.proof, found.unanswered) == (D.COMMITTED, Proof.FIND, 1)
    # and at the next look there is no waiting for another
    site.look(61)
    assert site.only().proof == Proof.FIND
    assert site.only().proved_at > found.proved_at
    # then the report comes after all
    (transaction,) = transactions(site.ledger)
    assert report(site.port, transaction, safe=[found.sop_uid]) == 0x0000
    assert (site.only().proof, site.only().unanswered, site.only().asked_at) == (Proof.COMMITMENT, 0, 0.0)


def test_an_operator_has_it_proved_or_read_back_now(start: Callable[..., Site], pacs: Orthanc) -> None:
    site = start(pacs.dicom_port, "query", title="ORTHANC")
    (job,) = site.segmented()
    with pytest.raises(Permanent, match="no destination has taken a result"):
        site.ledger.want_proof(job, Wanted.PROOF, "test", T0)
    site.send()
    site.look()
    before = site.only()
    site.look(20)
    assert site.only() == before
    site.ledger.want_proof(job, Wanted.PROOF, "test", site.clock())
    site.look()
    after = site.only()
    assert after.proved_at > before.proved_at
    assert (after.wanted, after.state) == ("", D.COMMITTED)
    assert after.check_at == pytest.approx(after.proved_at + 60, abs=1), "what was planned is not skipped"
    asked = [line for line in site.journal(job) if "operator" in line]
    assert asked == ["proof >ASKED: the operator asks for 1 object(s) at pacs"]


# -- peers that offer nothing, or little


def test_storescp_offers_no_proof_and_that_is_said(start: Callable[..., Site], tmp_path: Path) -> None:
    with storescp(tmp_path / "scp") as port:
        site = start(port)
        (job,) = site.segmented()
        site.send()
        site.look()
        item = site.only()
        assert (item.state, item.proof, item.doubt) == (D.SENT, Proof.NONE, "the peer offers no proof")
        assert item.check_at == 0.0
        assert not item.is_held
        assert site.ledger.job(job).state is J.DELIVERED
        assert site.prover.trouble == ""
        assert any(line.endswith("pacs: the peer offers no proof") for line in site.journal(job))


@pytest.mark.parametrize(("proof", "lacks"), [("commitment", "Storage Commitment"), ("query", "queries")])
def test_a_proof_that_is_demanded_and_not_offered_is_trouble(
    proof: str, lacks: str, start: Callable[..., Site], tmp_path: Path
) -> None:
    with storescp(tmp_path / "scp") as port:
        site = start(port, proof)
        site.segmented()
        site.send()
        for _ in range(3):
            assert site.prover.trouble == ""
            site.look(60)
        item = site.only()
        assert item.state is D.SENT
        assert item.doubt.startswith(f"it does not accept {lacks} (let it accept that from our AE title")
        assert item.check_at > site.clock()
        assert (
            f"of 1 object(s) it is not known whether it holds them: it does not accept {lacks}" in site.prover.trouble
        )


def test_none_asks_for_nothing(start: Callable[..., Site], pacs: Orthanc) -> None:
    site = start(pacs.dicom_port, "none", title="ORTHANC")
    site.segmented()
    site.send()
    site.look()
    item = site.only()
    assert (item.state, item.proof, item.doubt) == (D.SENT, Proof.NONE, 'no proof is asked for: proof = "none"')


# -- peers that do it wrong: no real one here does so at will


@dataclass
class Archive:
    """A PACS of pynetdicom that takes everything, and reports what a test says."""

    action_status: int = 0x0000
    failing: dict[str, int] = field(default_factory=dict)  # SOP Instance UID to Failure Reason
    left_out: set[str] = field(default_factory=set)
    same_association: bool = False
    finds: bool = False
    ignores: bool = False  # which object is asked for, of some
    answers: list[int] = field(default_factory=list)
    asked: list[Dataset] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)

    def _on_store(self, event: evt.Event) -> int:
        self.stored.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    def _on_action(self, event: evt.Event) -> tuple[int, None]:
        if self.action_status == 0x0000:
            self.asked.append(event.action_information)
        return self.action_status, None

    def _on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        match = event.identifier
        if match.SOPInstanceUID in self.stored:
            if self.ignores and match.SOPInstanceUID == self.stored[0]:
                match.SOPInstanceUID = "1.2.3.4"
            yield 0xFF00, match
        yield 0x0000, None

    def _on_released(self, event: evt.Event) -> None:
        pass

    @contextmanager
    def listening(self, port: int | None = None) -> Iterator[int]:
        ae = AE(ae_title="PACS")
        ae.add_supported_context(SEG)
        ae.add_supported_context("1.2.840.10008.1.1")
        ae.add_supported_context(CLASS)
        if self.finds:
            ae.add_supported_context(StudyRootFind)
        handlers = [
            (evt.EVT_C_STORE, self._on_store), (evt.EVT_N_ACTION, self._on_action), (evt.EVT_C_FIND, self._on_find),
            (evt.EVT_DIMSE_SENT, self._on_sent),
        ]  # fmt: skip
        server = ae.start_server(("127.0.0.1", port or 0), block=False, evt_handlers=handlers)
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()

    def _on_sent(self, event: evt.Event) -> None:
        """Report on the association of the request, once its answer is out."""
        if type(event.message).__name__ == "N_ACTION_RSP" and self.same_association:
            answer, _ = event.assoc.send_n_event_report(*self.report_of(self.asked[-1]), CLASS, WELL_KNOWN)
            self.answers.append(answer.Status)

    def report_of(self, asked: Dataset) -> tuple[Dataset, int]:
        named = [str(item.ReferencedSOPInstanceUID) for item in asked.ReferencedSOPSequence]
        failed = {name: self.failing[name] for name in named if name in self.failing}
        safe = [name for name in named if name not in failed and name not in self.left_out]
        return information(str(asked.TransactionUID), safe, failed), 2 if failed else 1

    def report(self, port: int) -> int:
        """Report the latest request on an association of its own; return how that is answered."""
        ds, kind = self.report_of(self.asked[-1])
        return send_report(port, ds, kind)


def information(transaction: str, safe: Sequence[str] = (), failed: dict[str, int] | None = None) -> Dataset:
    ds = Dataset()
    ds.TransactionUID = transaction

    def item(name: str, reason: int | None = None) -> Dataset:
        one = Dataset()
        one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = SEG, name
        if reason is not None:
            one.FailureReason = reason
        return one

    if safe:
        ds.ReferencedSOPSequence = [item(name) for name in safe]
    if failed:
        ds.FailedSOPSequence = [item(name, reason) for name, reason in failed.items()]
    return ds


def send_report(port: int, ds: Dataset, kind: int = 1, instance: str = WELL_KNOWN, *, as_scp: bool = True) -> int:
    ae = AE(ae_title="PACS")
    ae.add_requested_context(CLASS)
    ae.dimse_timeout = 10
    roles = [build_role(CLASS, scp_role=True)] if as_scp else []
    assoc = ae.associate("127.0.0.1", port, ae_title="PENNODE", ext_neg=roles)
    assert assoc.is_established
    try:
        if as_scp:
            assert assoc.acceptor.role_selection[uid.UID(CLASS)].scp_role, "we let it be the SCP"
        answer, _ = assoc.send_n_event_report(ds, kind, CLASS, instance)
        return int(answer.Status)
    finally:
        assoc.release()


def report(port: int, transaction: str, safe: Sequence[str] = (), failed: dict[str, int] | None = None) -> int:
    return send_report(port, information(transaction, safe, failed), 2 if failed else 1)


def transactions(ledger: Ledger) -> set[str]:
    with ledger._db.read() as connection:
        found = connection.exec_driver_sql("SELECT transaction_uid FROM delivery").scalars().all()
    return set(found) - {""}


@pytest.mark.parametrize("same_association", [False, True])
def test_one_request_is_for_many_objects_and_each_gets_what_the_report_says_of_it(
    same_association: bool, start: Callable[..., Site], ledger: Ledger
) -> None:
    archive = Archive(same_association=same_association)
    with archive.listening() as port:
        site = start(port)
        jobs = site.segmented(*(f"1.2.3.{n}" for n in range(10, 15)))
        archive.failing = {"2.25.7.11": NO_SUCH, "2.25.7.12": 0x0122}
        archive.left_out = {"2.25.7.13"}
        site.send()
        begun = time.monotonic()
        site.look()
        if same_association:
            assert time.monotonic() - begun < 5
            assert archive.answers == [0x0000]
        else:
            assert archive.report(site.port) == 0x0000
    (asked,) = archive.asked
    assert [str(i.ReferencedSOPInstanceUID) for i in asked.ReferencedSOPSequence] == [
        f"2.25.7.{n}" for n in range(10, 15)
    ]
    items = [ledger.deliveries(job)[0] for job in jobs]
    assert [i.state for i in items] == [D.COMMITTED, D.PENDING, D.SENT, D.SENT, D.COMMITTED]
    assert items[1].reason.startswith("does not hold the object that it took (storage commitment failed with 0x0112")
    assert items[2].doubt == "no answer by storage commitment: SOP class not supported"
    assert items[3].doubt == "no answer by storage commitment: it is not in the report"
    assert [ledger.job(job).state for job in jobs] == [J.DELIVERED, J.SEGMENTED, J.DELIVERED, J.DELIVERED, J.DELIVERED]


def test_an_object_that_is_never_held_is_sent_a_few_times_and_then_failed_until_an_operator_retries(
    start: Callable[..., Site], ledger: Ledger
) -> None:
    archive = Archive(failing={"2.25.7.10": 0x0110})
    with archive.listening() as port:
        site = start(port, max_losses=2)
        (job,) = site.segmented()
        for round_ in range(3):
            site.ahead += 100
            site.send()
            assert len(archive.stored) == round_ + 1
            site.look()
            assert archive.report(site.port) == 0x0000
        item, found = site.only(), ledger.job(job)
        assert (item.state, item.lost) == (D.FAILED, 3)
        assert (found.state, found.stage) == (J.FAILED, "delivery")
        assert "processing failure); given up after sending it 3 times" in found.reason
        assert found.next_step == "find out why the PACS drops it, then retry"
        assert archive.report(site.port) == 0x0000, "the same report again"
        assert site.only() == item
        ledger.retry(job, "test", site.clock())
        archive.failing = {}
        site.send()
        site.look()
        assert archive.report(site.port) == 0x0000
        assert (site.only().state, site.only().lost) == (D.COMMITTED, 0)
        assert ledger.job(job).state is J.DELIVERED


def test_what_is_no_report_of_ours_is_refused_and_changes_nothing(start: Callable[..., Site]) -> None:
    archive = Archive()
    with archive.listening() as port:
        site = start(port)
        site.segmented()
        site.send()
        site.look()
        before = site.only()
        good = archive.report_of(archive.asked[0])[0]
        assert report(site.port, "1.2.3.4.5", [before.sop_uid]) == 0x0110
        assert send_report(site.port, good, 3) == 0x0113
        assert send_report(site.port, good, 1, "1.2.3.4") == 0x0112
        nameless = information("", [before.sop_uid])
        del nameless.TransactionUID
        assert send_report(site.port, nameless) == 0x0115
        assert report(site.port, "") == 0x0115
        bad = information(str(good.TransactionUID), ["../../etc/passwd"])
        assert send_report(site.port, bad) == 0x0115
        assert site.only() == before
        assert send_report(site.port, good, as_scp=False) == 0x0000, "a PACS that negotiates no roles is heard, too"
        item = site.only()
        assert item.state is D.COMMITTED
        assert send_report(site.port, good) == 0x0000, "said twice"
        assert site.only() == item


def test_a_request_that_is_refused_gives_way_to_a_query_where_there_is_one(start: Callable[..., Site]) -> None:
    for finds in (False, True):
        archive = Archive(action_status=0x0213, finds=finds)
        with archive.listening() as port:
            site = start(port)
            site.segmented(f"1.2.3.{10 + finds}")
            site.send()
            site.look()
            item = site.ledger.deliveries(site.ledger.newest_job(f"1.2.3.{10 + finds}"))[0]
            if finds:
                assert (item.state, item.proof) == (D.COMMITTED, Proof.FIND)
            else:
                assert (item.state, item.asked_at) == (D.SENT, 0.0)
                assert "answered N-ACTION with 0x0213" in item.doubt
                assert item.check_at > site.clock()


def test_an_answer_about_another_object_is_no_loss_and_hides_no_other(start: Callable[..., Site]) -> None:
    archive = Archive(finds=True, ignores=True)
    with archive.listening() as port:
        site = start(port, "query", proof_patience_s=0)
        first, second = site.segmented("1.2.3.10", "1.2.3.11")
        site.send()
        site.look()
    (doubtful,), (held,) = site.ledger.deliveries(first), site.ledger.deliveries(second)
    assert (doubtful.state, held.state) == (D.SENT, D.COMMITTED)
    assert "answers C-FIND with other objects than asked for" in doubtful.doubt
    assert len(archive.stored) == 2, "nothing is sent again"


def test_a_destination_that_is_down_is_asked_again_later(start: Callable[..., Site]) -> None:
    archive = Archive(same_association=True)
    with archive.listening() as port:
        site = start(port)
        (job,) = site.segmented()
        site.send()
    waits = []
    for _ in range(4):
        site.look(waits[-1] if waits else 0)
        assert "does not answer" in site.only().doubt
        waits.append(site.only().check_at - site.clock())
    assert waits == pytest.approx([2, 4, 8, 16], abs=1)
    assert "does not answer" in site.prover.trouble
    assert site.ledger.job(job).state is J.DELIVERED
    with archive.listening(port):
        site.look(20)
        site.until(D.COMMITTED)
    assert site.prover.trouble == ""


def test_what_a_newer_revision_has_overtaken_is_not_sent_again(start: Callable[..., Site], ledger: Ledger) -> None:
    archive = Archive(failing={"2.25.7.10": NO_SUCH})
    with archive.listening() as port:
        site = start(port)
        (job,) = site.segmented()
        site.send()
        ledger.record(image(99, "1.2.3.10"))
        site.look()
        assert archive.asked == [], "the series grows: nobody knows what is to be kept"
        seal(ledger, "1.2.3.10")
        site.look()
        assert archive.asked == []
        assert ledger.job(job).state is J.DELIVERED
        assert site.only().state is D.SENT


def test_a_clock_that_was_set_back_stops_no_looks(start: Callable[..., Site]) -> None:
    archive = Archive(finds=True)
    with archive.listening() as port:
        site = start(port, "query")
        site.segmented()
        site.ahead = 10**9
        site.send()
        site.look()
        proved_at = site.only().proved_at
        site.ahead = 0.0
        site.ledger.clamp_times(site.clock(), 60)
        assert site.only().proved_at <= site.clock() < proved_at
        site.look()
        item = site.only()
        assert item.check_at < site.clock() + 7200
