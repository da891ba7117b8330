"""Real peers that take no segmentation: storescp by its profile, dcmqrscp and Orthanc of the classes they know."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom import uid
from pynetdicom import AE, evt

from node.http import HttpServer
from node.ledger import Ledger
from node.settings import Destination
from node.spool import Spool
from node.states import DeliveryState, JobState
from node.web import Health, create_app
from tests import peers
from tests.harness import pennode
from tests.node.delivering import Couriers
from tests.node.making import data_set
from tests.node.results import result

D = DeliveryState
VERIFICATION = "1.2.840.10008.1.1"
SEG, LABELMAP = uid.SegmentationStorage, "1.2.840.10008.5.1.4.1.1.66.7"

# pynetdicom leaves the socket of a refused connection to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def destination(port: int, ae_title: str = "PACS", **values: object) -> Destination:
    values = {"forms": ("SEG",), **values}
    return Destination(name="PACS", ae_title=ae_title, host="127.0.0.1", port=port, **values)  # type: ignore[arg-type]


@contextmanager
def scp(answer: Callable[[str], int], *classes: str) -> Iterator[int]:
    """A peer that accepts contexts for `classes` and answers each C-STORE by its SOP class."""
    ae = AE(ae_title="PACS")
    for sop_class in classes:
        ae.add_supported_context(sop_class)

    def store(event: evt.Event) -> int:
        return answer(str(event.request.AffectedSOPClassUID))

    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()


def received(folder: Path) -> dict[str, str]:
    """SOP classes by SOP Instance UID of what a DCMTK peer has stored."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in ("index.dat",):
            ds = pydicom.dcmread(path, force=True)
            found[str(ds.SOPInstanceUID)] = str(ds.SOPClassUID)
    return found


def test_storescp_whose_profile_lacks_segmentations_gets_the_secondary_capture_visibly(
    ledger: Ledger, spool: Spool, tmp_path: Path
) -> None:
    classes = ["VerificationSOPClass", "SecondaryCaptureImageStorage", "Comprehensive3DSRStorage"]
    with peers.storescp(tmp_path / "scp", classes=classes) as port:
        site = Couriers(ledger, spool, destination(port, forms=("SEG", "SR"), instead=("SC", "GSPS")))
        job = site.segmented()
        site.tick()
        assert site.rows(job) == [
            ("SEG", D.REPLACED), ("SR:SEG", D.REPLACED), ("SC", D.PENDING), ("SR", D.PENDING)
        ]  # fmt: skip
        assert ledger.job(job).reason == "PACS takes no SEG: sends SC and SR instead"
        site.tick(1)
    uids = site.uids()
    assert received(tmp_path / "scp" / "received") == {
        uids["SC"]: uid.SecondaryCaptureImageStorage, uids["SR"]: uid.Comprehensive3DSRStorage
    }  # fmt: skip
    found = ledger.job(job)
    assert found.state is JobState.DELIVERED
    assert found.reason == "every destination has the results; PACS took SC and SR in place of SEG and SR"

    # Whoever asks is told: the journal, the JSON, the page, the command line.
    said = (
        "PACS takes no SEG: sends SC and SR instead; it accepts no presentation context for Segmentation Storage "
        "(let the destination accept its SOP class)"
    )
    assert said in [entry.text for entry in ledger.journal(job) if entry.after == "REPLACED"]
    pages = create_app(ledger, token="t", health=lambda: Health(()), now=lambda: site.now)
    server = HttpServer(pages, "127.0.0.1", 0, "web", pytest.fail)
    server.start()
    try:
        with httpx.Client(base_url=server.url, headers={"Origin": server.url}, timeout=20) as client:
            told = client.get(f"/api/jobs/{job}", headers={"Authorization": "Bearer t"}).json()
            client.post("/login", data={"token": "t"})
            page = html.unescape(client.get(f"/jobs/{job}").text)
    finally:
        server.stop()
    first, _, third, _ = told["deliveries"]
    assert (first["form"], first["what"], first["rung"], first["state"], first["reason"]) == (
        "SEG", "segmentation (BINARY)", 0, "REPLACED", said
    )  # fmt: skip
    assert (third["what"], third["rung"], third["state"]) == ("secondary capture", 1, "SENT")
    for words in ("segmentation (BINARY)", "REPLACED", "secondary capture", "rung 2", "PACS takes no SEG: sends SC"):
        assert words in page
    environment = {"PENNODE_LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.sqlite3'}"}
    shown = pennode("jobs", "show", job, environment=environment).stdout
    assert f"to PACS: segmentation (BINARY), rung 1: REPLACED after 1 attempt(s) {said}" in shown
    assert "to PACS: secondary capture, rung 2: SENT after 1 attempt(s) stored (0x0000)" in shown
    whole = json.loads(pennode("jobs", "show", job, "--json", environment=environment).stdout)
    assert [d["rung"] for d in whole["deliveries"]] == [0, 0, 1, 1]


def test_dcmqrscp_that_does_not_know_label_maps_gets_a_binary_segmentation(
    ledger: Ledger, spool: Spool, tmp_path: Path
) -> None:
    with peers.dcmqrscp(tmp_path / "scp") as port:
        site = Couriers(ledger, spool, destination(port, "DCMQRSCP", forms=("LABELMAP", "SR"), instead=("SEG", "SC")))
        job = site.segmented()
        site.tick()
        site.tick(1)
    assert site.rows(job) == [
        ("LABELMAP", D.REPLACED), ("SR:LABELMAP", D.REPLACED), ("SEG", D.SENT), ("SR:SEG", D.SENT)
    ]  # fmt: skip
    assert received(tmp_path / "scp" / "store") == {
        site.uids()["SEG"]: SEG, site.uids()["SR:SEG"]: uid.Comprehensive3DSRStorage
    }  # fmt: skip
    assert (
        ledger.job(job).reason == "every destination has the results; PACS took SEG and SR in place of LABELMAP and SR"
    )


def test_orthanc_that_takes_only_classes_it_knows_gets_a_binary_segmentation(
    ledger: Ledger, spool: Spool, tmp_path: Path
) -> None:
    with peers.orthanc(tmp_path / "orthanc", configured={"UnknownSopClassAccepted": False}) as orthanc:
        site = Couriers(
            ledger, spool, destination(orthanc.dicom_port, "ORTHANC", forms=("LABELMAP",), instead=("SEG",))
        )
        job = site.segmented()
        site.tick()
        site.tick(1)
        assert len(orthanc.instances(site.uids()["SEG"])) == 1
        assert orthanc.instances(site.uids()["LABELMAP"]) == []
    assert site.rows(job) == [("LABELMAP", D.REPLACED), ("SEG", D.SENT)]
    assert ledger.job(job).state is JobState.DELIVERED


def test_a_peer_that_takes_no_rung_refuses_as_before_and_gets_all_once_it_is_mended(
    ledger: Ledger, spool: Spool, tmp_path: Path
) -> None:
    with peers.storescp(tmp_path / "scp", classes=["VerificationSOPClass"]) as port:
        site = Couriers(ledger, spool, destination(port, forms=("SEG", "SR"), instead=("SC",)))
        job = site.segmented()
        for _ in range(4):
            site.tick(20)
    assert site.rows(job) == [("SEG", D.REPLACED), ("SR:SEG", D.REPLACED), ("SC", D.FAILED), ("SR", D.FAILED)]
    found = ledger.job(job)
    assert found.state is JobState.FAILED
    assert "PACS refused the result: " in found.reason
    assert "accepts none of the SOP classes that we propose" in found.reason
    ledger.retry(job, "admin", site.now)
    with peers.storescp(tmp_path / "whole") as port:
        site.peers |= Couriers(ledger, spool, destination(port, forms=("SEG", "SR"), instead=("SC",))).peers
        site.tick()
    assert site.rows(job) == [("SEG", D.SENT), ("SR:SEG", D.SENT)]
    assert set(received(tmp_path / "whole" / "received").values()) == {SEG, uid.Comprehensive3DSRStorage}
    assert ledger.job(job).reason == "every destination has the results"


@pytest.mark.parametrize("status", [0x0122, 0xA800, 0xA801])
def test_a_peer_that_accepts_the_context_and_then_not_the_class_gets_the_next_rung(
    status: int, ledger: Ledger, spool: Spool
) -> None:
    def answer(sop_class: str) -> int:
        return status if sop_class == SEG else 0x0000

    with scp(answer, SEG, uid.SecondaryCaptureImageStorage, uid.Comprehensive3DSRStorage) as port:
        site = Couriers(ledger, spool, destination(port, forms=("SEG", "SR"), instead=("SC",)))
        job = site.segmented()
        site.tick()
        site.tick(1)
    assert site.rows(job) == [("SEG", D.REPLACED), ("SR:SEG", D.REPLACED), ("SC", D.SENT), ("SR", D.SENT)]
    assert f"0x{status:04X}, SOP class not supported" in ledger.deliveries(job)[0].reason


@pytest.mark.parametrize("status", [0xA900, 0xC000, 0x0110, 0x0124])
def test_a_peer_that_finds_fault_with_one_object_is_no_reason_to_send_another(
    status: int, ledger: Ledger, spool: Spool
) -> None:
    """PS3.4 B.2.3: 0xA9xx and 0xCxxx judge this data set; the class was taken, and the object is to be looked into."""
    with scp(lambda _class: status, SEG, uid.SecondaryCaptureImageStorage) as port:
        site = Couriers(ledger, spool, destination(port, instead=("SC",)))
        job = site.segmented()
        site.tick()
        site.tick(6)
    assert site.rows(job) == [("SEG", D.FAILED)]
    assert f"the peer answered 0x{status:04X}" in ledger.job(job).reason


def test_a_peer_out_of_resources_keeps_its_rung(ledger: Ledger, spool: Spool) -> None:
    with scp(lambda _class: 0xA700, SEG, uid.SecondaryCaptureImageStorage) as port:
        site = Couriers(ledger, spool, destination(port, instead=("SC",)))
        job = site.segmented()
        for _ in range(4):
            site.tick(100)
    assert site.rows(job) == [("SEG", D.PENDING)]


def test_a_compression_that_is_refused_says_how_to_change_that(ledger: Ledger, spool: Spool) -> None:
    with scp(lambda _class: 0, LABELMAP, uid.SecondaryCaptureImageStorage) as port:
        to = destination(port, forms=("LABELMAP",), instead=("SC",), compression="rle")
        site = Couriers(ledger, spool, to)
        ds = pydicom.dcmread(pydicom.filebase.DicomBytesIO(result("LABELMAP", site.uids()["LABELMAP+rle"])))
        ds.file_meta.TransferSyntaxUID = uid.RLELossless
        whole = pydicom.filebase.DicomBytesIO()
        ds.save_as(whole)
        job = site.segmented(**{"LABELMAP+rle": whole.getvalue()})
        site.tick()
        site.tick(1)
    assert site.rows(job) == [("LABELMAP+rle", D.REPLACED), ("SC", D.SENT)]
    assert "none of the transfer syntaxes we propose (set compression to none)" in ledger.deliveries(job)[0].reason


def test_deflated_objects_reach_a_peer_that_inflates_nothing(ledger: Ledger, spool: Spool, tmp_path: Path) -> None:
    with peers.storescp(tmp_path / "scp", classes=["SegmentationStorage"]) as port:
        site = Couriers(ledger, spool, destination(port, compression="deflated"))
        sop = site.uids()["SEG+deflated"]
        job = site.segmented(**{"SEG+deflated": result("SEG", sop, syntax=uid.DeflatedExplicitVRLittleEndian)})
        site.tick()
    assert site.rows(job) == [("SEG+deflated", D.SENT)]
    (path,) = (tmp_path / "scp" / "received").iterdir()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
    assert data_set(path)[:200]
    assert pydicom.dcmread(path) == pydicom.dcmread(pydicom.filebase.DicomBytesIO(result("SEG", sop)))


def test_many_captures_go_without_a_pause(ledger: Ledger, spool: Spool) -> None:
    with scp(lambda _class: 0, SEG) as port:
        site = Couriers(ledger, spool, destination(port))
        jobs = [site.segmented(f"1.2.{n}") for n in range(70)]
        assert site.courier.tick(site.now) == 0.0
        assert site.courier.tick(site.now) > 0.0
    assert all(ledger.job(job).state is JobState.DELIVERED for job in jobs)
