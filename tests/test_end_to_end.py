"""A series goes in by C-STORE and comes back as a DICOM SEG, with real peers and real processes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pydicom
import pytest

from node.states import JobState
from tests.harness import pennode, site
from tests.peers import dciodvfy, orthanc, postgresql_server, program, real_data, redis_server, storescp
from workers.readback import read_segmentation
from workers.series import write_phantom
from workers.volume import read_series


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_phantom(tmp_path_factory.mktemp("phantom"), shape=(9, 160, 128))


def storescu(address: str, files: list[Path]) -> None:
    """Send with DCMTK, one association for all files."""
    title, _, rest = address.partition("@")
    host, port = rest.split(":")
    command = [program("storescu", "dcmtk"), "-aec", title, "-aet", "SCANNER", host, port, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def data_set(part10: bytes) -> bytes:
    """Return what follows the file meta information, which every system writes for itself."""
    length = int.from_bytes(part10[140:144], "little")
    return part10[144 + length :]


def assert_good_result(seg: Path, source: list[Path]) -> None:
    assert dciodvfy(seg) == []
    volume = read_series(source)
    mask, segments = read_segmentation(seg.read_bytes(), volume)
    assert {"Vertebra", "Spinal canal"} <= {s.label for s in segments}
    assert mask.any()
    ds = pydicom.dcmread(seg, stop_before_pixels=True)
    assert "research" in ds.ContentDescription.lower()
    assert ds.ReferencedSeriesSequence[0].SeriesInstanceUID == volume.series_uid
    assert all("DerivationImageSequence" in group for group in ds.PerFrameFunctionalGroupsSequence)


def test_dcmtk_sends_and_receives_on_embedded_defaults(tmp_path: Path, phantom: list[Path]) -> None:
    with storescp(tmp_path / "pacs") as port, site(tmp_path) as here:
        pacs = {"name": "pacs", "ae_title": "STORESCP", "host": "127.0.0.1", "port": port}
        here.environment["PENNODE_DESTINATIONS"] = json.dumps([pacs])
        storescu(here.start_node("up"), phantom)
        (job,) = here.wait_finished(1).values()
        assert job.state is JobState.DELIVERED, job.reason
        received = {pydicom.dcmread(f).SOPInstanceUID: f for f in (tmp_path / "pacs" / "received").iterdir()}
        deliveries = {d.form: d for d in here.ledger.deliveries(job.id)}
        assert set(deliveries) == {"SEG", "SR:SEG"}
        assert {d.sop_uid for d in deliveries.values()} == set(received)
        assert_good_result(received[deliveries["SEG"].sop_uid], phantom)
        for delivery in deliveries.values():
            kept = (here.state / "spool" / delivery.path).read_bytes()
            assert data_set(received[delivery.sop_uid].read_bytes()) == data_set(kept)
        report = pydicom.dcmread(received[deliveries["SR:SEG"].sop_uid])
        assert dciodvfy(received[deliveries["SR:SEG"].sop_uid]) == []
        evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        named = {item.ReferencedSOPInstanceUID for one in evidence for item in one.ReferencedSOPSequence}
        assert deliveries["SEG"].sop_uid in named


def test_redis_as_broker_and_orthanc_as_pacs(tmp_path: Path, phantom: list[Path]) -> None:
    with (
        redis_server(tmp_path / "redis") as (url, _),
        orthanc(tmp_path / "orthanc") as pacs,
        storescp(tmp_path / "archive") as second,
        site(
            tmp_path, [("orthanc", "ORTHANC", pacs.dicom_port), ("archive", "STORESCP", second)], PENNODE_BROKER_URL=url
        ) as here,
    ):
        storescu(here.start_node(), phantom)
        here.start("worker")
        (job,) = here.wait_finished(1).values()
        assert job.state is JobState.DELIVERED, job.reason
        deliveries = here.ledger.deliveries(job.id)
        assert {d.destination for d in deliveries} == {"orthanc", "archive"}
        (sop_uid,) = {d.sop_uid for d in deliveries}
        (held,) = pacs.instances(sop_uid)
        given_back = pacs.get(f"/instances/{held}/file")
        kept = (here.state / "spool" / deliveries[0].path).read_bytes()
        assert data_set(given_back) == data_set(kept)
        seg = tmp_path / "given_back.dcm"
        seg.write_bytes(given_back)
        assert_good_result(seg, phantom)


def run_demo(tmp_path: Path, *arguments: str, **environment: str) -> dict[str, object]:
    done = pennode("demo", *arguments, "--json", "--out", str(tmp_path / "out"), environment=environment)
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_the_demo_on_its_phantom(tmp_path: Path) -> None:
    told = run_demo(tmp_path)
    assert told["states"] == ["READY", "QUEUED", "RUNNING", "SEGMENTED", "DELIVERED"]
    assert dciodvfy(Path(str(told["seg"]))) == []
    assert Path(str(told["picture"])).read_bytes().startswith(b"\x89PNG")
    assert 0 < float(str(told["seconds_from_last_image_to_seg"])) < 60


def test_the_demo_on_a_real_spine_with_redis(tmp_path: Path) -> None:
    source = real_data("dicom", "spine_t2_pt041")
    with redis_server(tmp_path / "redis") as (url, process):
        told = run_demo(tmp_path, str(source), PENNODE_BROKER_URL=url)
        assert process.poll() is None
    assert_good_result(Path(str(told["seg"])), sorted(source.glob("*.dcm")))


def test_the_demo_with_postgresql_as_ledger(tmp_path: Path) -> None:
    with postgresql_server(tmp_path / "postgresql") as url:
        told = run_demo(tmp_path, PENNODE_LEDGER_URL=url)
    assert told["states"] == ["READY", "QUEUED", "RUNNING", "SEGMENTED", "DELIVERED"]


def test_the_demo_says_why_when_a_folder_is_no_spine(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no DICOM here")
    done = pennode("demo", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "no DICOM" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
