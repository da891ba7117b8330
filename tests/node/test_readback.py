"""Reading results back from a PACS: what is the same, what a PACS may change, and what it may not."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import pack_bits

from node.errors import InvalidInstance
from node.readback import compare
from node.states import DeliveryState, JobState, Proof, Wanted
from tests.node.making import seg, write
from tests.node.test_proof import Archive, D, J, Site, emptied, introduce, lose, pacs, start
from tests.peers import Orthanc, free_port, program, running, storescp, wait_for_port

# pynetdicom leaves some sockets to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
__all__ = ["emptied", "pacs", "start"]

FRAMES = 6


def masked(sop_uid: str, series: str, *, bits: int = 1) -> bytes:
    """A segmentation with frames, their positions and their segments."""
    with pydicom.dcmread(BytesIO(seg(sop_uid, series=series))) as ds:
        ds.NumberOfFrames, ds.SegmentationType = FRAMES, "BINARY"
        ds.ContentLabel, ds.ContentDescription = "SEG", "For research use only. Not for diagnosis."
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
        frames = np.random.default_rng(7).integers(0, 2, (FRAMES, ds.Rows, ds.Columns), np.uint8)
        ds.PixelData = pack_bits(frames.ravel()) if bits == 1 else frames.tobytes()
        ds["PixelData"].VR = "OB"
        ds.PerFrameFunctionalGroupsSequence = []
        for number in range(FRAMES):
            plane, position, segment, group = Dataset(), Dataset(), Dataset(), Dataset()
            plane.ImagePositionPatient = [4.0 * number, -100.25, 100]
            segment.ReferencedSegmentNumber = 1 + number % 2
            group.PlanePositionSequence, group.SegmentIdentificationSequence = [plane], [segment]
            position.DimensionIndexValues = [number + 1]
            group.FrameContentSequence = [position]
            ds.PerFrameFunctionalGroupsSequence.append(group)
        buffer = BytesIO()
        write(ds, buffer)  # type: ignore[arg-type]
        return buffer.getvalue()


def read(content: bytes) -> Dataset:
    return pydicom.dcmread(BytesIO(content))


def change(there: Orthanc, sop_uid: str, how: Callable[[Dataset], None]) -> None:
    """Change an object in Orthanc's store."""
    (found,) = there.instances(sop_uid)
    ds = read(there.get(f"/instances/{found}/file"))
    how(ds)
    buffer = BytesIO()
    ds.save_as(buffer)
    request = urllib.request.Request(f"{there.url}/instances", buffer.getvalue())
    urllib.request.urlopen(request, timeout=20).close()


@contextmanager
def dcmqrscp(folder: Path, hosts: str = "") -> Iterator[int]:
    """Run DCMTK's archive, which answers C-FIND, C-GET and C-MOVE to `hosts`, and commits nothing."""
    binary, port, log = program("dcmqrscp", "dcmtk"), free_port(), folder / "dcmqrscp.log"
    (folder / "store").mkdir(parents=True)
    (folder / "dcmqrscp.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\nUserName = root\nGroupName = root\n"
        f"HostTable BEGIN\n{hosts}HostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nPACS {folder / 'store'} RW (200, 1024mb) ANY\nAETable END\n"
    )
    with running([binary, "-c", str(folder / "dcmqrscp.cfg")], log) as process:
        wait_for_port(port, process, log)
        yield port


def read_back(site: Site, job: str) -> None:
    site.ledger.want_proof(job, Wanted.READ_BACK, "test", site.clock())
    site.look()


# -- a PACS


def test_orthanc_gives_back_what_it_got_and_what_it_may_change_is_named(
    start: Callable[..., Site], pacs: Orthanc
) -> None:
    site = start(pacs.dicom_port, "query", title="ORTHANC")
    introduce(pacs, site.port)
    (job,) = site.segmented(content=masked)
    site.send()
    read_back(site, job)
    item = site.only()
    assert (item.state, item.read_back, item.proof) == (D.COMMITTED, "read back and found equal", Proof.READ_BACK)
    assert item.read_back_at == pytest.approx(site.clock(), abs=5)
    assert item.wanted == ""
    assert "pacs: holds the object, known by reading it back" in "\n".join(site.journal(job))

    def as_a_pacs_may(ds: Dataset) -> None:
        ds.PatientName, ds.AccessionNumber, ds.InstitutionName = "Other^Name", "A1", "Here"

    change(pacs, item.sop_uid, as_a_pacs_may)
    read_back(site, job)
    words = "read back and found equal; changed there, as a PACS may: AccessionNumber is new, InstitutionName is new"
    assert site.only().read_back == f"{words}, PatientName"
    assert "Other" not in "\n".join(site.journal(job))
    assert site.only().state is D.COMMITTED


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda ds: setattr(ds, "PixelData", bytes([ds.PixelData[0] ^ 0b101]) + ds.PixelData[1:]), "2 of 1536 voxels"),
        (
            lambda ds: setattr(
                ds.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0], "ImagePositionPatient", [8, -100, 100]
            ),
            "PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[1].ImagePositionPatient",
        ),
        (lambda ds: delattr(ds, "ContentDescription"), "ContentDescription is gone"),
    ],
)
def test_what_a_pacs_may_not_change_fails_the_job_until_it_is_sent_again(
    how: Callable[[Dataset], None], words: str, start: Callable[..., Site], pacs: Orthanc
) -> None:
    site = start(pacs.dicom_port, "query", title="ORTHANC")
    introduce(pacs, site.port)
    (job,) = site.segmented(content=masked)
    site.send()
    site.look()
    change(pacs, site.only().sop_uid, how)
    read_back(site, job)
    item, found = site.only(), site.ledger.job(job)
    assert (item.state, item.read_back) == (DeliveryState.FAILED, f"read back and found different: {words}")
    assert (found.state, found.stage, found.reason) == (J.FAILED, "delivery", f"pacs: {item.read_back}")
    assert found.next_step == "find out what changes objects there, then retry: it is sent again"
    assert f"job DELIVERED>FAILED: pacs: {item.read_back}" in site.journal(job)
    site.ledger.retry(job, "test", site.clock())
    site.send()
    read_back(site, job)
    assert (site.only().state, site.only().read_back) == (D.COMMITTED, "read back and found equal")
    assert site.ledger.job(job).state is JobState.DELIVERED


def test_what_is_not_there_to_be_read_back_is_sent_again(start: Callable[..., Site], pacs: Orthanc) -> None:
    site = start(pacs.dicom_port, "query", title="ORTHANC")
    introduce(pacs, site.port)
    (job,) = site.segmented(content=masked)
    site.send()
    site.look()
    lose(pacs, site.only().sop_uid)
    read_back(site, job)
    # Orthanc says by a failure that it does not have the object, as if there were another reason.
    assert "could not be read back: no copy by C-GET: it is unable to process" in site.only().read_back
    site.look()
    assert (site.only().state, site.only().lost) == (D.PENDING, 1)
    assert "lost the object that it held (not found by C-FIND)" in site.ledger.job(job).reason


def test_dcmqrscp_is_queried_and_read_back(start: Callable[..., Site], tmp_path: Path) -> None:
    with dcmqrscp(tmp_path / "archive") as port:
        site = start(port)
        (job,) = site.segmented(content=masked)
        site.send()
        site.look()
        assert (site.only().state, site.only().proof) == (D.COMMITTED, Proof.FIND), site.only()
        read_back(site, job)
        assert site.only().read_back == "read back and found equal"
        assert site.ledger.job(job).state is J.DELIVERED
        for file in (tmp_path / "archive" / "store").glob("*"):
            file.unlink()
        site.look(3700)
        assert site.only().state is D.PENDING


def test_who_offers_no_c_get_fails_nothing(start: Callable[..., Site], tmp_path: Path) -> None:
    with storescp(tmp_path / "scp") as port:
        site = start(port)
        (job,) = site.segmented(content=masked)
        site.send()
        site.look()
        read_back(site, job)
        assert (site.only().state, site.only().wanted) == (D.SENT, "")
        assert "offers no C-GET of this class (let it accept C-GET" in site.only().read_back
        assert site.ledger.job(job).state is J.DELIVERED


def test_a_destination_that_is_down_is_not_waited_for(start: Callable[..., Site]) -> None:
    archive = Archive()
    with archive.listening() as port:
        site = start(port)
        (job,) = site.segmented(content=masked)
        site.send()
    read_back(site, job)
    assert "could not be read back: PACS@127.0.0.1" in site.only().read_back
    assert site.only().state is D.SENT


# -- sent to our listener (C-MOVE)


def moving(start: Callable[..., Site], port: int, **how: object) -> tuple[Site, str]:
    """A site whose only result was taken at `port`, to be read back by C-MOVE."""
    site = start(port, retrieve="move", **{"proof": "query", "title": "ORTHANC", **how})
    (job,) = site.segmented(content=masked)
    site.send()
    return site, job


def assert_nothing_was_kept(site: Site) -> None:
    """What came back is neither a series nor a file."""
    assert (len(site.ledger.jobs()), site.ledger.receiving()) == (1, [])
    assert not list((site.spool.root / "series").glob("*/*"))
    assert not list((site.spool.root / "tmp").glob("*.dcm"))


def test_orthanc_sends_it_back_to_our_listener_and_it_stays_ours(start: Callable[..., Site], pacs: Orthanc) -> None:
    site, job = moving(start, pacs.dicom_port)
    introduce(pacs, site.port)
    read_back(site, job)
    item = site.only()
    assert (item.state, item.read_back, item.proof) == (D.COMMITTED, "read back and found equal", Proof.READ_BACK)
    assert_nothing_was_kept(site)
    # what was changed there is found out
    change(pacs, item.sop_uid, lambda ds: setattr(ds, "PixelData", bytes(len(ds.PixelData))))
    read_back(site, job)
    assert site.only().read_back.startswith("read back and found different: ")
    assert site.only().read_back.endswith("voxels")
    assert_nothing_was_kept(site)


def test_who_is_unable_to_send_it_is_told_of(start: Callable[..., Site], pacs: Orthanc) -> None:
    site, job = moving(start, pacs.dicom_port, to="NOBODY")
    introduce(pacs, site.port)
    read_back(site, job)
    words = (
        "no copy by C-MOVE: it is unable to process the request (0xC000) (look into its log, and try again; does it "
        "know our host and port, and is it let in (pennode peers list tells)?)"
    )
    assert words in site.only().read_back, "what Orthanc says of a destination that it does not know"
    assert (site.only().state, site.ledger.job(job).state) == (D.SENT, J.DELIVERED)


def test_an_unknown_move_destination_is_named(start: Callable[..., Site], tmp_path: Path) -> None:
    with dcmqrscp(tmp_path / "archive") as port:
        site, job = moving(start, port, title="PACS", to="NOBODY")
        read_back(site, job)
    assert site.only().read_back == (
        "could not be read back: no copy by C-MOVE: it does not know the move destination NOBODY (0xA801) (add that AE "
        "title with our host and port there, or set retrieve = 'get')"
    )
    assert (site.only().state, site.ledger.job(job).state) == (D.SENT, J.DELIVERED)


def test_who_sends_it_elsewhere_is_told_so(start: Callable[..., Site], pacs: Orthanc, tmp_path: Path) -> None:
    site, job = moving(start, pacs.dicom_port)
    with storescp(tmp_path / "elsewhere") as port:
        introduce(pacs, port)
        read_back(site, job)
    assert "says that it sent the object, and it did not come (does it know our host and port" in site.only().read_back
    introduce(pacs, free_port())
    read_back(site, job)
    assert "no copy by C-MOVE: it is unable to process the request (0xC000)" in site.only().read_back
    assert (site.only().state, site.only().lost) == (D.SENT, 0), "nothing was lost"


def test_dcmqrscp_sends_it_back_and_what_it_lost_is_sent_again(start: Callable[..., Site], tmp_path: Path) -> None:
    ours = free_port()
    with dcmqrscp(tmp_path / "archive", hosts=f"pennode = (PENNODE, 127.0.0.1, {ours})\n") as port:
        site, job = moving(start, port, proof="auto", title="PACS", at=ours)
        read_back(site, job)
        assert site.only().read_back == "read back and found equal"
        assert_nothing_was_kept(site)
        for file in (tmp_path / "archive" / "store").glob("*"):
            file.unlink()
        read_back(site, job)
        assert (site.only().state, site.only().lost) == (D.PENDING, 1)


# -- comparing


def test_the_encoding_is_nobodys_business(tmp_path: Path) -> None:
    ours = read(masked("2.25.1", "1.2.3.10", bits=8))
    for syntax in (uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian):
        path = write(read(masked("2.25.1", "1.2.3.10", bits=8)), tmp_path / "other.dcm", syntax)
        assert compare(ours, pydicom.dcmread(path)).words() == "read back and found equal"
    packed = read(masked("2.25.1", "1.2.3.10", bits=8))
    packed.compress(uid.RLELossless, generate_instance_uid=False)
    assert compare(ours, packed).words() == "read back and found equal"
    packed.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = [
        "0.0",
        "-100.250",
        "1e2",
    ]
    assert compare(ours, packed).is_equal, "a number may be written in another way"


def test_everything_that_differs_is_counted_and_the_first_are_named() -> None:
    ours, theirs = (read(masked("2.25.1", "1.2.3.10")) for _ in range(2))
    for group in theirs.PerFrameFunctionalGroupsSequence:
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9
    theirs.PixelData = bytes(len(theirs.PixelData))
    theirs.SeriesInstanceUID = "1.2.3"
    found = compare(ours, theirs)
    assert len(found.differences) == FRAMES + 2
    assert found.differences[0].endswith("of 1536 voxels")
    assert found.words().endswith("ReferencedSegmentNumber and 3 more")
    assert not found.is_equal


def test_frames_that_are_gone_differ() -> None:
    ours, theirs = (read(masked("2.25.1", "1.2.3.10", bits=8)) for _ in range(2))
    theirs.NumberOfFrames = FRAMES - 1
    theirs.PixelData = theirs.PixelData[: -16 * 16]
    del theirs.PerFrameFunctionalGroupsSequence[-1]
    words = compare(ours, theirs).differences
    assert words == [
        "the frames' shape is (5, 16, 16), not (6, 16, 16)",
        "NumberOfFrames",
        "PerFrameFunctionalGroupsSequence has 5 items, not 6",
    ]
    del theirs.PixelData
    assert compare(ours, theirs).differences[0] == "PixelData"


def test_pixels_that_cannot_be_decoded_are_no_difference_but_an_error() -> None:
    ours, theirs = (read(masked("2.25.1", "1.2.3.10", bits=8)) for _ in range(2))
    theirs.PixelData = b"short"
    with pytest.raises(InvalidInstance, match="what came back cannot be decoded"):
        compare(ours, theirs)
