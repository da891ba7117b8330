"""Storage commitment with Orthanc and pynetdicom as its users: reported is what the ledger and the spool hold."""

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
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from node import statuses
from node.commitment import StorageCommitment
from node.ledger import Commitment as Asked
from node.ledger import CommitmentState, Ledger, Reference
from node.listener import Door
from node.loops import Loop
from node.peers import Peers
from node.reporter import Reporter
from node.retention import Caretaker
from node.settings import Commitment, Listener, Peer, Retention
from node.spool import Spool
from tests import harness
from tests.node.making import SERIES, encoded, mr, write
from tests.node.test_listener import store
from tests.peers import Orthanc, free_port, orthanc
from tests.waiting import until

MR, CT = str(uid.MRImageStorage), str(uid.CTImageStorage)
CLASS, WELL_KNOWN = str(StorageCommitmentPushModel), str(StorageCommitmentPushModelInstance)
EXPLICIT = str(uid.ExplicitVRLittleEndian)
QUICK = {"pause_s": 0.1, "backoff_first_s": 0.2, "backoff_max_s": 0.4, "timeout_s": 2.0}
NO_SUCH, CONFLICT, DAMAGED = 0x0112, 0x0119, 0x0110

# pynetdicom leaves some sockets to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(params=["fast", "stock"])
def way(request: pytest.FixtureRequest) -> dict[str, bool]:
    return {"fast_path": request.param == "fast"}


@dataclass
class Node:
    """A door with the loop that reports, as `node.service` puts them together."""

    port: int
    door: Door
    commitment: StorageCommitment
    ledger: Ledger
    spool: Spool

    def only(self) -> Asked:
        (found,) = self.ledger.commitments()
        return found

    def until(self, state: CommitmentState, seconds: float = 10.0) -> Asked:
        return until(lambda: (found := self.only()).state is state and found, seconds)


@pytest.fixture
def start(ledger: Ledger, spool: Spool, way: dict[str, bool]) -> Iterator[Callable[..., Node]]:
    """Starts nodes whose known peers and settings a test chooses."""
    ending: list[Callable[[], None]] = []

    def make(peers: Sequence[Peer] = (), *, listener: dict[str, object] | None = None, **rules: object) -> Node:
        loops: list[Loop] = []
        commitment = StorageCommitment(
            ledger, spool, Commitment(**{**QUICK, **rules}), released=lambda: [loop.wake() for loop in loops]
        )
        broken: list[str] = []
        loops.append(
            Loop("storage commitment", Reporter(commitment, Peers(Listener(), peers), "PENNODE").tick, broken.append)
        )
        settings = Listener(**{"port": 0, "free_floor_mb": 0, "network_timeout_s": 10.0, **way, **(listener or {})})
        door = Door(ledger, spool, settings, changed=lambda: None, commitment=commitment)
        port = door.start()[1]
        loops[0].start()

        def end() -> None:
            door.stop()
            loops[0].stop()
            loops[0].join(10)
            assert broken == []

        ending.append(end)
        return Node(port, door, commitment, ledger, spool)

    yield make
    for end in ending:
        end()


@dataclass
class Scanner:
    """A pynetdicom SCU that stores, asks and is told, on its own associations and where it listens."""

    port: int  # of the node
    title: str = "SCANNER"
    status: int = 0x0000  # how it answers a report
    told: list[tuple[int, Dataset]] = field(default_factory=list)
    roles: list[tuple[bool | None, bool | None]] = field(default_factory=list)

    def _on_report(self, event: evt.Event) -> tuple[int, None]:
        assert (event.request.AffectedSOPClassUID, event.request.AffectedSOPInstanceUID) == (CLASS, WELL_KNOWN)
        self.told.append((event.request.EventTypeID, event.event_information))
        return self.status, None

    @contextmanager
    def associated(self):
        ae = AE(ae_title=self.title)
        ae.add_requested_context(MR, EXPLICIT)
        ae.add_requested_context(CLASS)
        ae.dimse_timeout = 10
        assoc = ae.associate(
            "127.0.0.1", self.port, ae_title="PENNODE", evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._on_report)]
        )
        assert assoc.is_established
        try:
            yield assoc
        finally:
            if assoc.is_established:
                assoc.release()

    @contextmanager
    def listening(self, port: int, *, scp_role: bool | None = True, title: str | None = None):
        """Listen for reports; `scp_role` is what the node is let be, None: roles are not negotiated."""
        ae = AE(ae_title=title or self.title)
        role = {} if scp_role is None else {"scu_role": not scp_role, "scp_role": scp_role}
        ae.add_supported_context(CLASS, **role)

        def on_accepted(event: evt.Event) -> None:
            asked = event.assoc.requestor.role_selection.get(StorageCommitmentPushModel)
            self.roles.append((asked.scu_role, asked.scp_role) if asked else (None, None))

        handlers = [(evt.EVT_N_EVENT_REPORT, self._on_report), (evt.EVT_ACCEPTED, on_accepted)]
        server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        try:
            yield
        finally:
            server.shutdown()

    def send(self, *numbers: int) -> list[Reference]:
        """Store images; return references to them."""
        with self.associated() as assoc:
            for number in numbers:
                assert store(assoc, encoded(mr(number)), f"{SERIES}.{number}") == 0
        return [good(number) for number in numbers]


def good(number: int) -> Reference:
    return Reference(MR, f"{SERIES}.{number}")


def request(references: Sequence[tuple[str, str]], transaction: str = "1.2.3.77") -> Dataset:
    ds = Dataset()
    ds.TransactionUID = transaction
    ds.ReferencedSOPSequence = []
    for sop_class, sop_uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_uid
        ds.ReferencedSOPSequence.append(item)
    return ds


def ask(assoc, references: Sequence[tuple[str, str]], transaction: str = "1.2.3.77") -> int:
    answer, _ = assoc.send_n_action(request(references, transaction), 1, CLASS, WELL_KNOWN)
    return int(answer.Status)


def said(told: tuple[int, Dataset]) -> tuple[int, str, set[Reference], dict[Reference, int]]:
    """Event type, transaction, what is safe, what is not and why."""
    kind, ds = told
    safe = {(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in ds.get("ReferencedSOPSequence") or []}
    failed = {
        (i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID): i.FailureReason
        for i in ds.get("FailedSOPSequence") or []
    }
    assert len(safe) + len(failed) > 0
    return kind, ds.TransactionUID, safe, failed


def peer(port: int, **values: object) -> Peer:
    return Peer(**{"name": "scanner", "ae_title": "SCANNER", "host": "127.0.0.1", "port": port, **values})


# -- what is reported is the truth


def test_on_its_own_association_a_peer_hears_of_every_image_what_became_of_it(start: Callable[..., Node]) -> None:
    node = start()
    scanner = Scanner(node.port)
    images = scanner.send(1, 2, 3, 4, 5)
    paths = {m.sop_uid: node.spool.path(m.path) for m in node.ledger.series_instances(SERIES)}
    with paths[images[2].sop_uid].open("r+b") as file:
        file.truncate(400)
    paths[images[3].sop_uid].unlink()
    paths[images[4].sop_uid].write_bytes(b"no DICOM file")
    unknown, other_class = Reference(MR, "1.2.3.4.5"), Reference(CT, images[1].sop_uid)
    with scanner.associated() as assoc:
        assert ask(assoc, [*images, unknown, other_class, images[0]]) == 0
        until(lambda: scanner.told)
        failed = {images[2]: DAMAGED, images[3]: NO_SUCH, images[4]: DAMAGED, unknown: NO_SUCH, other_class: CONFLICT}
        assert said(scanner.told[0]) == (2, "1.2.3.77", {images[0], images[1]}, failed)
        found = node.until(CommitmentState.REPORTED)
        assert (found.requested, found.failed, found.attempts) == (7, 5, 1)
        assert "on its own association" in found.reason
        assert ask(assoc, images[:2], "1.2.3.78") == 0
        until(lambda: len(scanner.told) == 2)
    assert said(scanner.told[1]) == (1, "1.2.3.78", set(images[:2]), {})
    assert len(scanner.told) == 2


def test_what_retention_has_removed_is_not_safe_any_more(
    start: Callable[..., Node], ledger: Ledger, spool: Spool
) -> None:
    node = start()
    scanner = Scanner(node.port)
    images = scanner.send(1, 2)
    with scanner.associated() as assoc:
        assert ask(assoc, images) == 0
        until(lambda: scanner.told)
        seen = next(s for s in ledger.receiving())
        ledger.seal(seen, ledger.series_instances(SERIES), "", wanted=False, verdict="", next_step="", now=time.time())
        Caretaker(ledger, spool, Retention(days=1, free_floor_mb=0)).tick(time.time() + 2 * 86400)
        assert ledger.commitments() == []
        assert ask(assoc, images) == 0
        until(lambda: len(scanner.told) == 2)
    assert said(scanner.told[0]) == (1, "1.2.3.77", set(images), {})
    assert said(scanner.told[1]) == (2, "1.2.3.77", set(), dict.fromkeys(images, NO_SUCH))


def test_the_report_is_of_when_it_is_made_not_of_when_it_was_asked_for(start: Callable[..., Node]) -> None:
    port = free_port()
    node = start([peer(port)])
    scanner = Scanner(node.port)
    with scanner.associated() as assoc:
        assert ask(assoc, [good(1)]) == 0
    until(lambda: "does not answer" in node.only().reason)
    scanner.send(1)
    with scanner.listening(port):
        until(lambda: scanner.told)
    assert said(scanner.told[0]) == (1, "1.2.3.77", {good(1)}, {})


# -- how it reaches the peer


def test_a_peer_that_closes_at_once_is_told_where_it_listens(start: Callable[..., Node]) -> None:
    port = free_port()
    node = start([peer(1, networks=["192.0.2.0/24"], name="elsewhere"), peer(port, networks=["127.0.0.0/8"])])
    scanner = Scanner(node.port)
    with scanner.listening(port):
        images = scanner.send(1)
        with scanner.associated() as assoc:
            assert ask(assoc, [*images, good(9)]) == 0
        found = node.until(CommitmentState.REPORTED)
    assert said(scanner.told[0]) == (2, "1.2.3.77", set(images), {good(9): NO_SUCH})
    assert scanner.roles == [(False, True)], "we propose to be the SCP, and no SCU"
    assert f"to SCANNER@127.0.0.1:{port}" in found.reason
    assert len(scanner.told) == 1


def test_own_associations_alone_where_that_is_set(start: Callable[..., Node]) -> None:
    port = free_port()
    node = start([peer(port)], same_association=False)
    scanner = Scanner(node.port)
    with scanner.listening(port), scanner.associated() as assoc:
        assert ask(assoc, [good(1)]) == 0
        node.until(CommitmentState.REPORTED)
        assert scanner.roles == [(False, True)]


def test_a_peer_that_negotiates_no_roles_is_told_all_the_same(start: Callable[..., Node]) -> None:
    port = free_port()
    node = start([peer(port)], same_association=False)
    scanner = Scanner(node.port)
    with scanner.listening(port, scp_role=None), scanner.associated() as assoc:
        assert ask(assoc, [good(1)]) == 0
        node.until(CommitmentState.REPORTED)


def test_a_peer_that_lets_us_be_no_scp_is_named_with_what_to_do(start: Callable[..., Node]) -> None:
    port = free_port()
    node = start([peer(port)], same_association=False)
    scanner = Scanner(node.port)
    with scanner.listening(port, scp_role=False), scanner.associated() as assoc:
        assert ask(assoc, [good(1)]) == 0
        found = until(lambda: node.only().attempts and node.only())
    assert found.state is CommitmentState.PENDING
    assert "Storage Commitment" in found.reason
    assert "from our AE title" in found.next_step
    assert scanner.told == []


def test_a_report_that_is_refused_is_made_again(start: Callable[..., Node]) -> None:
    port = free_port()
    node = start([peer(port)])
    scanner = Scanner(node.port, status=0x0110)
    with scanner.listening(port), scanner.associated() as assoc:
        assert ask(assoc, [good(1)]) == 0
        until(lambda: scanner.told)
        until(lambda: "answered 0x0110 to the report on its own association" in node.only().reason)
        until(lambda: len(scanner.told) > 1)
        scanner.status = 0x0000
        found = node.until(CommitmentState.REPORTED)
    assert found.attempts == len(scanner.told) >= 3
    assert len({tuple(map(str, said(t))) for t in scanner.told}) == 1


def test_without_an_address_the_admin_reads_the_line_to_add_until_it_is_given_up(start: Callable[..., Node]) -> None:
    node = start([peer(0, host="")], give_up_after_s=3.0)
    with Scanner(node.port).associated() as assoc:
        assert ask(assoc, [good(1)]) == 0
    found = until(lambda: node.only().reason and node.only())
    assert found.state is CommitmentState.PENDING
    assert found.reason == "it is not known where SCANNER listens, and its association is closed"
    assert '[[peers]] name = "scanner", ae_title = "SCANNER", host = "127.0.0.1"' in found.next_step
    found = node.until(CommitmentState.FAILED)
    assert found.reason.startswith("given up: it is not known where SCANNER listens")
    assert "[[peers]]" in found.next_step


def test_a_peer_that_is_down_is_tried_again_until_it_is_there(start: Callable[..., Node]) -> None:
    port = free_port()
    node = start([peer(port)])
    scanner = Scanner(node.port)
    with scanner.associated() as assoc:
        assert ask(assoc, [good(1)]) == 0
    until(lambda: node.only().attempts >= 2)
    assert "does not answer" in node.only().reason
    with scanner.listening(port):
        node.until(CommitmentState.REPORTED)
    assert len(scanner.told) == 1


# -- the association goes on


def test_images_that_follow_the_request_are_answered_before_the_report(start: Callable[..., Node]) -> None:
    node = start(pause_s=1.0)
    scanner = Scanner(node.port)
    with scanner.associated() as assoc:
        images = [good(n) for n in range(1, 31)]
        assert ask(assoc, images) == 0
        rests, last = [], time.monotonic()
        for number in range(1, 31):
            time.sleep(0.05)
            rests.append(time.monotonic() - last)
            assert store(assoc, encoded(mr(number)), f"{SERIES}.{number}") == 0
            last = time.monotonic()
        # A machine that is too busy to let the scanner work makes it look at rest.
        assert scanner.told == [] or max(rests) > 0.9, "nothing comes between while the peer is at work"
        until(lambda: scanner.told)
        assert store(assoc, encoded(mr(31)), f"{SERIES}.31") == 0
    if max(rests) < 0.9:
        assert said(scanner.told[0]) == (1, "1.2.3.77", set(images), {})


def test_without_a_pause_the_answer_still_comes_before_the_report(start: Callable[..., Node]) -> None:
    node = start(pause_s=0.0)
    scanner = Scanner(node.port)
    with scanner.associated() as assoc:
        for n in range(5):
            assert ask(assoc, [good(1)], f"1.2.3.{n}") == 0
            until(lambda: len(scanner.told) == n + 1)  # noqa: B023 - asked at once
    assert [said(told)[1] for told in scanner.told] == [f"1.2.3.{n}" for n in range(5)]


def test_the_same_transaction_again_is_one_row_and_reported_again(start: Callable[..., Node]) -> None:
    node = start()
    scanner = Scanner(node.port)
    with scanner.associated() as assoc:
        for count in (1, 2):
            assert ask(assoc, [good(1), good(2)]) == 0
            until(lambda: len(scanner.told) == count)  # noqa: B023 - asked at once
            node.until(CommitmentState.REPORTED)
        assert ask(assoc, [good(3)]) == statuses.INVALID_ARGUMENT_VALUE, "a Transaction UID names one set of images"
    assert len(node.ledger.commitments()) == 1
    other = Scanner(node.port, "OTHER")
    with other.associated() as assoc:
        assert ask(assoc, [good(3)]) == 0
        until(lambda: other.told)
    assert len(node.ledger.commitments()) == 2


def test_limits_of_one_request_and_of_one_peer(start: Callable[..., Node]) -> None:
    node = start(max_references=3, max_open_per_peer=2, pause_s=0.3)
    scanner = Scanner(node.port)
    with scanner.associated() as assoc:
        assert ask(assoc, [good(n) for n in range(4)], "1.2.1") == statuses.RESOURCE_LIMITATION
        assert [ask(assoc, [good(1)], f"1.2.{n}") for n in (2, 3, 4)] == [0, 0, statuses.RESOURCE_LIMITATION]
        with Scanner(node.port, "OTHER").associated() as other:
            assert ask(other, [good(1)], "1.2.4") == 0
        until(lambda: len(scanner.told) == 2)
        mine = [c.number for c in node.ledger.commitments() if c.calling_ae == "SCANNER"]
        until(lambda: all(c.state == "REPORTED" for c in node.ledger.commitments() if c.number in mine))
        assert ask(assoc, [good(1)], "1.2.4") == 0, "there is room again"
        until(lambda: len(scanner.told) == 3)


def bad(**values: object) -> Dataset:
    ds = request([good(1)])
    for name, value in values.items():
        setattr(ds, name, value)
        if value is None:
            delattr(ds, name)
    return ds


@pytest.mark.parametrize(
    ("ds", "action", "instance", "status", "comment"),
    [
        (bad(), 1, "1.2.3.4", 0x0112, "it is not the well-known SOP Instance"),
        (bad(), 2, WELL_KNOWN, 0x0123, "Action Type ID must be 1"),
        (bad(TransactionUID=None), 1, WELL_KNOWN, 0x0115, "TransactionUID is missing"),
        (bad(TransactionUID=""), 1, WELL_KNOWN, 0x0115, "TransactionUID is missing"),
        (bad(ReferencedSOPSequence=None), 1, WELL_KNOWN, 0x0115, "ReferencedSOPSequence is missing or empty"),
        (bad(ReferencedSOPSequence=[]), 1, WELL_KNOWN, 0x0115, "ReferencedSOPSequence is missing or empty"),
        (bad(ReferencedSOPSequence=[Dataset()]), 1, WELL_KNOWN, 0x0115, "ReferencedSOPClassUID is missing"),
        (None, 1, WELL_KNOWN, 0x0115, "TransactionUID is missing"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_answered_so_and_leaves_nothing(
    ds: Dataset | None, action: int, instance: str, status: int, comment: str, start: Callable[..., Node]
) -> None:
    node = start()
    scanner = Scanner(node.port)
    with scanner.associated() as assoc:
        answer, _ = assoc.send_n_action(ds, action, CLASS, instance)
        assert (answer.Status, answer.ErrorComment) == (status, comment)
        assert node.ledger.commitments() == []
        assert store(assoc, encoded(mr(1)), f"{SERIES}.1") == 0, "the association goes on"


# -- Orthanc


def test_orthanc_is_told_of_what_it_has_sent(
    start: Callable[..., Node], tmp_path: Path, spool: Spool, ledger: Ledger
) -> None:
    with orthanc(tmp_path / "orthanc") as there:
        node = start([peer(there.dicom_port, name="orthanc", ae_title="ORTHANC")])
        there.send("/modalities/pennode", ["PENNODE", "127.0.0.1", node.port], "PUT")
        for number in (1, 2, 3):
            path = write(mr(number), tmp_path / f"{number}.dcm")
            there.send("/modalities/pennode/store", json.loads(upload(there.url, path))["ID"])
        held = {m.sop_uid: m for m in ledger.series_instances(SERIES)}
        assert len(held) == 3
        for asked, status in (([1, 2, 3], "Success"), ([1, 2, 9], "Failure")):
            references = [{"SOPClassUID": MR, "SOPInstanceUID": f"{SERIES}.{n}"} for n in asked]
            transaction = json.loads(
                there.send("/modalities/pennode/storage-commitment", {"DicomInstances": references})
            )
            told = until(partial(answer_of, there, transaction["Path"]), 15)
            assert told["Status"] == status
            assert {i["SOPInstanceUID"] for i in told["Success"]} == {f"{SERIES}.{n}" for n in asked if n != 9}
            assert [(i["SOPInstanceUID"], i["FailureReason"]) for i in told["Failures"]] == [
                (f"{SERIES}.9", NO_SUCH) for n in asked if n == 9
            ]
        until(lambda: all(c.state is CommitmentState.REPORTED for c in ledger.commitments()))


def answer_of(there: Orthanc, path: str) -> dict[str, Any] | None:
    """What Orthanc has been told; None: nothing yet."""
    found: dict[str, Any] = json.loads(there.get(path))
    return None if found["Status"] == "Pending" else found


def upload(url: str, path: Path) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(f"{url}/instances", path.read_bytes()), timeout=20) as answer:
        return bytes(answer.read())


# -- kills


@pytest.mark.parametrize("round_", range(2))
def test_killed_between_answer_and_report_it_reports_after_its_next_start(
    round_: int, way: dict[str, bool], tmp_path: Path
) -> None:
    port = free_port()
    known = json.dumps([{"name": "scanner", "ae_title": "SCANNER", "host": "127.0.0.1", "port": port}])
    settings = {
        "PENNODE_PEERS": known, "PENNODE_LISTENER_FAST_PATH": str(way["fast_path"]).lower(),
        "PENNODE_COMMITMENT_PAUSE_S": "0.3",
    }  # fmt: skip
    with harness.site(tmp_path, **settings) as site:
        scanner = Scanner(int(site.start_node().rpartition(":")[2]))
        images = scanner.send(1, 2)
        with scanner.associated() as assoc:
            transactions = [f"1.2.3.{n}" for n in range(5)]
            for n, transaction in enumerate(transactions):
                assert ask(assoc, [*images, good(10 + n)], transaction) == 0
            site.kill("node")
        before = len(scanner.told)
        scanner.port = int(site.start_node().rpartition(":")[2])
        with scanner.listening(port):
            until(lambda: {said(t)[1] for t in scanner.told} == set(transactions), 20)
            until(lambda: all(c.state is CommitmentState.REPORTED for c in site.ledger.commitments()))
        assert before < len(transactions)
        for told in scanner.told:
            _, transaction, safe, failed = said(told)
            assert (safe, failed) == (set(images), {good(10 + transactions.index(transaction)): NO_SUCH})
