"""Delivery to real peers: DCMTK's storescp, Orthanc, and peers that refuse in every way there is."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom import uid
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import Verification

from node.delivery import Courier, addresses, backoff
from node.errors import InvalidInstance, PeerUnavailable
from node.ledger import Ledger
from node.outgoing import describe
from node.records import Result
from node.scu import Address, associate, contexts_for, send_files
from node.settings import Delivery, Destination, Settings
from node.spool import Spool
from node.states import DeliveryState, JobState
from tests import peers
from tests.node.making import T0, claim, data_set, mr, sealed, seg, write

RULES = Delivery(timeout_s=5, backoff_first_s=5, backoff_max_s=60, max_refusals=2)


# pynetdicom leaves the socket of a refused connection to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class Site:
    """A courier on a real ledger and spool, and its clock."""

    def __init__(self, ledger: Ledger, spool: Spool, **ports: int) -> None:
        self.ledger, self.spool, self.now = ledger, spool, T0 + 100
        self.peers = {name: Address(name.upper(), "127.0.0.1", port, "PENNODE") for name, port in ports.items()}
        self.courier = Courier(ledger, spool, self.peers, RULES, clock=lambda: self.now)

    def segmented(self, *destinations: str, content: bytes = b"", series: str = "1.2.3.10") -> str:
        """A job with one real result in the spool; its SOP Instance UID ends as its series' does."""
        job = sealed(self.ledger, series)
        held = claim(self.ledger, job)
        sop_uid = f"2.25.7.{series.rpartition('.')[2]}"
        source = self.spool.scratch() / "a.dcm"
        source.write_bytes(content or seg(sop_uid, series=series))
        path = self.spool.store_result(job, held.fence, sop_uid, "0" * 64, source)
        result = Result(sop_uid, uid.SegmentationStorage, job, path, 10, "0" * 64)
        self.ledger.finish(job, 1, [result], {name: ["SEG"] for name in destinations}, model="m", note="n", now=T0)
        return job

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.courier.tick(self.now)

    def states(self, job: str) -> list[DeliveryState]:
        return [d.state for d in self.ledger.deliveries(job)]


@contextmanager
def scp(
    status: int | Callable[[evt.Event], int] = 0x0000, classes=(uid.SegmentationStorage,), syntaxes=None, **options
):
    """A peer that answers every C-STORE with `status`."""
    ae = AE(ae_title="PACS")
    for name, value in options.items():
        setattr(ae, name, value)
    for sop_class in classes:
        ae.add_supported_context(sop_class, syntaxes or [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
    handler = status if callable(status) else lambda _event: status
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, handler)])
    assert server is not None
    try:
        yield server.socket.getsockname()[1]
    finally:
        threading.Thread(target=server.shutdown).start()  # it takes half a second to notice


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Orthanc]:
    with peers.orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def test_storescp_gets_the_object_as_it_lies_in_the_spool(ledger: Ledger, spool: Spool, tmp_path: Path) -> None:
    with peers.storescp(tmp_path / "scp") as port:
        site = Site(ledger, spool, storescp=port)
        job = site.segmented("storescp")
        site.tick()
    (received,) = (tmp_path / "scp" / "received").iterdir()
    (item,) = ledger.deliveries(job)
    assert data_set(received) == data_set(spool.path(item.path))
    assert (item.state, item.attempts, item.reason) == (DeliveryState.SENT, 1, "stored (0x0000)")
    assert ledger.job(job).state is JobState.DELIVERED


def test_orthanc_keeps_one_object_however_often_it_is_sent(
    ledger: Ledger, spool: Spool, orthanc: peers.Orthanc
) -> None:
    site = Site(ledger, spool, orthanc=orthanc.dicom_port)
    job = site.segmented("orthanc")
    site.tick()
    assert ledger.job(job).state is JobState.DELIVERED
    assert len(orthanc.instances("2.25.7.10")) == 1
    (item,) = ledger.deliveries(job)
    send_files([describe(spool.path(item.path))], site.peers["orthanc"], 5, lambda *_: None)
    (found,) = orthanc.instances("2.25.7.10")
    assert data_set(orthanc.get(f"/instances/{found}/file")) == data_set(spool.path(item.path))


def test_a_destination_that_is_down_is_tried_at_growing_intervals_until_it_is_back(
    ledger: Ledger, spool: Spool, orthanc: peers.Orthanc
) -> None:
    site = Site(ledger, spool, pacs=peers.free_port())
    job = site.segmented("pacs")
    waits = []
    for _ in range(6):
        site.tick()
        (item,) = ledger.deliveries(job)
        assert item.state is DeliveryState.PENDING
        assert "does not answer" in item.reason
        assert ledger.job(job).state is JobState.SEGMENTED
        assert ledger.job(job).reason == item.reason
        waits.append(item.not_before - site.now)
        attempts = item.attempts
        site.tick(waits[-1] - 0.1)
        assert ledger.deliveries(job)[0].attempts == attempts, "not before its time"
        site.now += 0.2
    assert waits == pytest.approx([5, 10, 20, 40, 60, 60])
    site.peers["pacs"] = Address("ORTHANC", "127.0.0.1", orthanc.dicom_port, "PENNODE")
    site.tick()
    assert site.states(job) == [DeliveryState.SENT]
    assert ledger.job(job).state is JobState.DELIVERED


def test_backoff_never_overflows() -> None:
    assert [backoff(n, RULES) for n in (0, 1, 2, 5, 1000)] == [5, 5, 10, 60, 60]


def test_one_destination_down_does_not_hold_up_another(ledger: Ledger, spool: Spool) -> None:
    with scp() as port:
        site = Site(ledger, spool, down=peers.free_port(), up=port)
        job = site.segmented("down", "up")
        site.tick()
    assert site.states(job) == [DeliveryState.PENDING, DeliveryState.SENT]
    assert ledger.job(job).state is JobState.SEGMENTED


def test_many_objects_go_over_one_association(ledger: Ledger, spool: Spool) -> None:
    callers: list[int] = []

    def store(event: evt.Event) -> int:
        callers.append(id(event.assoc))
        return 0x0000

    with scp(store) as port:
        site = Site(ledger, spool, pacs=port)
        jobs = [site.segmented("pacs", series=f"1.2.{n}") for n in range(5)]
        site.tick()
    assert len(callers) == 5
    assert len(set(callers)) == 1
    assert all(ledger.job(job).state is JobState.DELIVERED for job in jobs)


@pytest.mark.parametrize(
    ("status", "note"),
    [
        (0x0000, "stored (0x0000)"),
        (0x0111, "the peer had this object already (0x0111)"),
        (0xB000, "stored with a warning (0xB000)"),
        (0xB007, "stored with a warning (0xB007)"),
    ],
)
def test_what_counts_as_sent(status: int, note: str, ledger: Ledger, spool: Spool) -> None:
    with scp(status) as port:
        site = Site(ledger, spool, pacs=port)
        job = site.segmented("pacs")
        site.tick()
    assert ledger.deliveries(job)[0].reason == note
    assert ledger.job(job).state is JobState.DELIVERED


def test_a_peer_out_of_resources_is_tried_for_ever(ledger: Ledger, spool: Spool) -> None:
    with scp(0xA700) as port:
        site = Site(ledger, spool, pacs=port)
        job = site.segmented("pacs")
        for _ in range(4):
            site.tick(100)
    (item,) = ledger.deliveries(job)
    assert (item.state, item.attempts) == (DeliveryState.PENDING, 4)
    assert "out of resources (0xA700)" in item.reason


@contextmanager
def refusing(how: str) -> Iterator[int]:
    options = {
        "status": {"status": 0xC123},
        "classes": {"classes": (Verification,)},
        "calling": {"require_calling_aet": ["SOMEBODY"]},
        "called": {"require_called_aet": True},
    }[how]
    with scp(**options) as port:
        yield port


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("status", "the peer answered 0xC123 (look into the peer's log)"),
        ("classes", "accepts none of the SOP classes that we propose (let it accept them)"),
        ("calling", "rejects us: it does not know our AE title (add our AE title to the peer's configuration)"),
        ("called", "rejects us: it does not know the AE title we called (check its ae_title in the settings)"),
    ],
)
def test_refusals_fail_the_job_with_the_reason_and_a_retry_delivers(
    how: str, reason: str, ledger: Ledger, spool: Spool
) -> None:
    with refusing(how) as port:
        site = Site(ledger, spool, other=port)
        job = site.segmented("other")
        site.tick()
        assert site.states(job) == [DeliveryState.PENDING]
        site.tick(5.1)
    assert site.states(job) == [DeliveryState.FAILED]
    found = ledger.job(job)
    assert found.state is JobState.FAILED
    assert found.reason.startswith("other refused the result: ")
    assert reason in found.reason
    ledger.retry(job, "admin", site.now)
    with scp() as port:
        site.peers["other"] = Address("PACS", "127.0.0.1", port, "PENNODE")
        site.tick()
    assert ledger.job(job).state is JobState.DELIVERED


def test_one_class_refused_of_two_is_told_apart(tmp_path: Path) -> None:
    good, bad = write(mr(1), tmp_path / "mr.dcm"), tmp_path / "seg.dcm"
    bad.write_bytes(seg())
    notes: dict[str, str] = {}
    with scp(classes=(uid.MRImageStorage,)) as port:
        peer = Address("PACS", "127.0.0.1", port, "PENNODE")
        files = [describe(bad), describe(good)]
        refused = send_files(files, peer, 5, lambda o, note: notes.update({o.path.name: note}))
    assert [o.path.name for o, _ in refused] == ["seg.dcm"]
    assert "accepts no presentation context" in notes["seg.dcm"]
    assert notes["mr.dcm"] == "stored (0x0000)"


def test_a_peer_that_speaks_only_implicit_vr_is_served(ledger: Ledger, spool: Spool) -> None:
    with scp(syntaxes=[uid.ImplicitVRLittleEndian]) as port:
        site = Site(ledger, spool, pacs=port)
        job = site.segmented("pacs")
        site.tick()
    assert ledger.job(job).state is JobState.DELIVERED


def test_a_peer_that_hangs_up_in_the_middle_leaves_the_rest_pending(ledger: Ledger, spool: Spool) -> None:
    seen: list[str] = []

    def store(event: evt.Event) -> int:
        seen.append(event.request.AffectedSOPInstanceUID)
        if len(seen) == 2:
            event.assoc.abort()
        return 0x0000

    with scp(store) as port:
        site = Site(ledger, spool, pacs=port)
        jobs = [site.segmented("pacs", series=f"1.2.{n}") for n in range(4)]
        site.tick()
        assert [site.states(job)[0] for job in jobs] == [DeliveryState.SENT, *[DeliveryState.PENDING] * 3]
        site.tick(6)
    assert all(ledger.job(job).state is JobState.DELIVERED for job in jobs)


@contextmanager
def between(port: int, stops: Callable[[socket.socket, socket.socket], None]) -> Iterator[int]:
    """Connects one caller with the peer at `port`; `stops` gets both sockets and what it does is all that is done."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:

        def serve() -> None:
            caller = stack.enter_context(server.accept()[0])
            stops(caller, stack.enter_context(socket.create_connection(("127.0.0.1", port))))

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("length", [3, 9])
def test_a_peer_that_stops_within_its_answer_is_given_up(length: int) -> None:
    def stops(caller: socket.socket, peer: socket.socket) -> None:
        peer.sendall(caller.recv(1 << 16))
        caller.sendall(peer.recv(1 << 16)[:length])

    with scp() as port, between(port, stops) as at:
        began = time.monotonic()
        with (
            pytest.raises(PeerUnavailable, match="does not answer"),
            associate(Address("PACS", "127.0.0.1", at, "PENNODE"), [build_context(uid.SegmentationStorage)], 1),
        ):
            pass
        assert time.monotonic() - began < 10


def test_a_peer_that_reads_no_more_is_given_up(ledger: Ledger, spool: Spool) -> None:
    def stops(caller: socket.socket, peer: socket.socket) -> None:
        peer.sendall(caller.recv(1 << 16))
        caller.sendall(peer.recv(1 << 16))

    with pydicom.dcmread(BytesIO(seg("2.25.7.10"))) as ds:
        ds.add_new("PixelData", "OB", bytes(64_000_000))  # more than the sockets of loopback hold
        written = BytesIO()
        ds.save_as(written)
    with scp() as port, between(port, stops) as at:
        site = Site(ledger, spool, pacs=at)
        job = site.segmented("pacs", content=written.getvalue())
        courier = threading.Thread(target=site.tick, daemon=True)
        courier.start()
        courier.join(30)
        assert not courier.is_alive(), "the courier waits for ever"
    assert site.states(job) == [DeliveryState.PENDING]
    assert "the association broke" in ledger.job(job).reason or "no answer" in ledger.job(job).reason


@pytest.mark.parametrize("how", ["out of resources", "abort"])
def test_an_object_that_a_peer_never_takes_holds_up_no_other(how: str, ledger: Ledger, spool: Spool) -> None:
    # given a peer that fails over one object again and again
    def store(event: evt.Event) -> int:
        if event.request.AffectedSOPInstanceUID != "2.25.7.1":
            return 0x0000
        if how == "abort":
            event.assoc.abort()
        return 0xA700

    with scp(store) as port:
        site = Site(ledger, spool, pacs=port)
        first, *others = [site.segmented("pacs", series=f"1.2.{n}") for n in range(1, 5)]
        # when it is sent together with others, as after a night without a PACS
        for _ in range(20):
            site.tick(1)
    # then they go without it, and it goes on being tried
    assert [ledger.job(job).state for job in others] == [JobState.DELIVERED] * 3
    assert site.states(first) == [DeliveryState.PENDING]
    assert ledger.deliveries(first)[0].attempts == 3


def test_a_destination_that_is_configured_no_more_says_so(ledger: Ledger, spool: Spool) -> None:
    site = Site(ledger, spool)
    job = site.segmented("gone")
    site.tick()
    site.tick(6)
    assert "no destination is named 'gone' any more" in ledger.job(job).reason
    assert ledger.job(job).state is JobState.FAILED


@pytest.mark.parametrize("damage", ["absent", "empty", "text", "cut", "no SOP class"])
def test_a_result_damaged_on_disk_fails_its_job_and_no_other(damage: str, ledger: Ledger, spool: Spool) -> None:
    whole = seg("2.25.7.1", series="1.2.1")
    content = {"text": b"hello", "empty": b" ", "cut": whole[: len(whole) // 2]}.get(damage, whole)
    if damage == "no SOP class":
        content = whole.replace(b"\x08\x00\x16\x00UI", b"\x08\x00\x17\x00UI")
    with scp() as port:
        site = Site(ledger, spool, pacs=port)
        bad, good = site.segmented("pacs", content=content, series="1.2.1"), site.segmented("pacs", series="1.2.2")
        if damage == "absent":
            spool.path(ledger.deliveries(bad)[0].path).unlink()
        site.tick()
        site.tick(6)
    assert ledger.job(good).state is JobState.DELIVERED
    if damage != "cut":  # pydicom may still find a whole data set in it
        assert ledger.job(bad).state is JobState.FAILED


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.1.1.1", "::1"])
def test_a_host_that_cannot_be_found_is_unavailable(host: str, ledger: Ledger, spool: Spool) -> None:
    site = Site(ledger, spool)
    site.peers["pacs"] = Address("PACS", host, peers.free_port(), "PENNODE")
    job = site.segmented("pacs")
    site.tick()
    assert site.states(job) == [DeliveryState.PENDING]
    assert f"PACS@{host}" in ledger.job(job).reason


def test_a_port_that_accepts_and_says_nothing_is_given_up(tmp_path: Path) -> None:
    outgoing = describe(write(mr(), tmp_path / "a.dcm"))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        peer = Address("PACS", "127.0.0.1", mute.getsockname()[1], "PENNODE")
        with pytest.raises(PeerUnavailable, match="does not answer"), associate(peer, contexts_for([outgoing]), 0.5):
            pass


def test_addresses_name_each_destination_and_how_we_present_ourselves(tmp_path: Path) -> None:
    destinations = (
        Destination(name="a", ae_title="PACS", host="h", port=104),
        Destination(name="b", ae_title="VNA", host="i", port=11112, calling_ae_title="OTHER"),
    )
    found = addresses(Settings(state_dir=tmp_path, destinations=destinations))
    assert found == {"a": Address("PACS", "h", 104, "PENNODE"), "b": Address("VNA", "i", 11112, "OTHER")}
    assert str(found["a"]) == "PACS@h:104"


@pytest.mark.parametrize("content", [b"", b"x" * 200, b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\xff" * 60])
def test_what_is_no_dicom_file_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InvalidInstance):
        describe(path)
    with pytest.raises(InvalidInstance, match="cannot be read"):
        describe(tmp_path / "absent")


def test_describing_real_files(tmp_path: Path) -> None:
    path = write(mr(), tmp_path / "a.dcm", uid.ImplicitVRLittleEndian)
    found = describe(path)
    assert (found.sop_class_uid, found.sop_uid) == (uid.MRImageStorage, "1.2.3.10.1")
    assert found.transfer_syntax_uid == uid.ImplicitVRLittleEndian
    assert [c.transfer_syntax for c in contexts_for([found])] == [["1.2.840.10008.1.2"], ["1.2.840.10008.1.2.1"]]
    assert pydicom.dcmread(path).SOPInstanceUID == found.sop_uid
