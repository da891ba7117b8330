"""Comparing with an earlier result: who is who, on whatever grid, and how they grew; nobody else's, ever."""

from __future__ import annotations

import dataclasses
import io
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom import dcmread

from node.errors import LeaseLost, NodeUnavailable
from node.forms import Form, Recipe
from tests.workers import made
from workers.case import Case
from workers.earlier import read_earlier
from workers.nodeclient import NodeClient
from workers.report import build_report
from workers.reportcheck import check_report
from workers.results import make_objects
from workers.seg import build_segmentation
from workers.series import Storage, write_series
from workers.volume import read_series
from workers.writing import write

SEG, SR = Recipe(Form.SEG), Recipe(Form.SR, of="SEG")


def result(folder, case, change=None, recipe=SEG):
    """The file of an earlier Segmentation, after `change`."""
    dataset = dcmread(io.BytesIO(write(build_segmentation(case, recipe))))
    if change is not None:
        change(dataset)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "earlier.dcm"
    path.write_bytes(write(dataset))
    return path


@pytest.fixture
def then(tmp_path):
    return made.case(tmp_path / "then")


def later(then, mask, earlier):
    return Case(then.volume, mask, then.manifest, made.ENGINE, "cd" * 32, then.settings, earlier)


def grown(case):
    """The mask with the larger lesion grown by a slice and the smaller gone, and a new one."""
    mask = case.mask.copy()
    mask[mask == 4] = 0
    mask[2:6, 9:12, 19:24] = 4
    mask[1:3, 34:36, 2:4] = 4
    return mask


def texts(report):
    def walk(items):
        for item in items:
            if item.ValueType == "TEXT":
                yield item.TextValue
            yield from walk(item.get("ContentSequence", ()))

    return list(walk(report.ContentSequence))


def test_a_lesion_that_was_there_keeps_its_identity_and_the_report_says_how_it_grew(tmp_path, then, dciodvfy):
    earlier = read_earlier(result(tmp_path, then), then.volume)
    now = later(then, grown(then), earlier)
    one, new = now.lesions
    assert (one.tracking_id, one.tracking_uid) == ("Neoplasm 1", then.lesions[0].tracking_uid)
    # The new one is not named as the one that is gone.
    assert new.tracking_id == "Neoplasm 3"
    assert new.tracking_uid not in {lesion.tracking_uid for lesion in then.lesions}
    segmentation = build_segmentation(now, SEG)
    assert [str(s.TrackingID) for s in segmentation.SegmentSequence][3:] == ["Neoplasm 1", "Neoplasm 3"]
    assert segmentation.SegmentSequence[3].TrackingUID == then.lesions[0].tracking_uid
    (report,) = build_report(now, SR, {"SEG": segmentation})
    data = write(report)
    check_report(data, now, SR)
    said = texts(dcmread(io.BytesIO(data)))
    voxel_ml = float(np.prod(then.volume.spacing)) / 1000
    assert (
        f"In the earlier result of 2026-03-14: {45 * voxel_ml:.2f} ml. Change: +{15 * voxel_ml:.2f} ml, +33 %." in said
    )
    words = "that may not cover this place, or it was part of another."
    assert f"No lesion of the earlier result of 2026-03-14 was matched with it: {words}" in said
    gone = f"Neoplasm 2 of the earlier result of 2026-03-14 ({4 * voxel_ml:.2f} ml) was matched with none here"
    assert any(words.startswith(gone) for words in said)
    figures = {
        item.ConceptNameCodeSequence[0].CodeValue: float(item.MeasuredValueSequence[0].NumericValue)
        for item in report.ContentSequence[-2].ContentSequence[0].ContentSequence
        if item.ValueType == "NUM"
    }
    assert figures["VOLUME_EARLIER"] == pytest.approx(45 * voxel_ml, rel=1e-3)
    assert figures["VOLUME_CHANGE"] == pytest.approx(15 * voxel_ml, rel=1e-3)
    assert figures["VOLUME_CHANGE_P"] == pytest.approx(100 / 3, rel=1e-3)
    path = tmp_path / "report.dcm"
    path.write_bytes(data)
    assert [line for line in dciodvfy(path) if line.startswith("Error")] == []


def test_results_compared_are_other_objects_and_the_same_each_time(tmp_path, then):
    path = result(tmp_path, then)
    alone, compared, again = (
        make_objects(later(then, grown(then), read_earlier(given, then.volume) if given else None), [SEG, SR])
        for given in (None, path, path)
    )
    assert [o.data for o in compared] == [o.data for o in again]
    assert not {o.sop_uid for o in alone} & {o.sop_uid for o in compared}


@pytest.mark.parametrize("key", ["SEG+all-frames", "SEG+deflated", "LABELMAP", "LABELMAP+all-frames+rle", "FRACTIONAL"])
def test_every_form_of_segmentation_can_be_compared_with(tmp_path, then, key):
    earlier = read_earlier(result(tmp_path, then, recipe=Recipe.parse(key)), then.volume)
    assert [(o.tracking_id, o.tracking_uid) for o in earlier.lesions] == [
        (o.tracking_id, o.tracking_uid) for o in then.lesions
    ]
    voxels = np.argwhere(np.ones(then.mask.shape, bool))
    points = then.volume.positions[voxels[:, 0]] + voxels[:, 1:] @ then.volume.affine[:3, 1:3].T
    for number, before in enumerate(earlier.lesions, 1):
        assert np.array_equal(before.holds(points).reshape(then.mask.shape), then.segments.mask == 3 + number)
        assert before.volume_ml == pytest.approx(then.lesions[number - 1].volume_ml)


def test_a_result_of_another_study_is_named_as_other_evidence(tmp_path, then, dciodvfy):
    def other_study(dataset):
        dataset.StudyInstanceUID = "1.2.3.4"

    now = later(then, grown(then), read_earlier(result(tmp_path, then, other_study), then.volume))
    (report,) = build_report(now, SR, {"SEG": build_segmentation(now, SEG)})
    check_report(write(report), now, SR)
    (current,), (other,) = report.CurrentRequestedProcedureEvidenceSequence, report.PertinentOtherEvidenceSequence
    assert current.StudyInstanceUID == then.volume.sources[0].StudyInstanceUID
    assert len(current.ReferencedSeriesSequence) == 2  # the images and the segmentation
    assert other.StudyInstanceUID == "1.2.3.4"
    path = tmp_path / "report.dcm"
    path.write_bytes(write(report))
    assert [line for line in dciodvfy(path) if line.startswith("Error")] == []


@pytest.mark.parametrize("stored", list(made.STORED))
@pytest.mark.parametrize("enhanced", [False, True])
def test_an_earlier_result_on_another_grid_lies_where_it_lay(tmp_path, then, stored, enhanced):
    other = made.case(tmp_path / "other", stored, enhanced=enhanced)
    earlier = read_earlier(result(tmp_path, other), then.volume)
    assert [before.volume_ml for before in earlier.lesions] == pytest.approx([o.volume_ml for o in other.lesions])
    now = later(then, then.mask, earlier)
    # In the tilted one the patient lay tilted, and the little lesion is elsewhere by more than its size.
    known = now.lesions[:1] if stored == "oblique" else now.lesions
    assert [o.tracking_uid for o in known] == [o.tracking_uid for o in other.lesions[: len(known)]]
    assert [o.before is not None for o in now.lesions] == [True, stored != "oblique"]
    voxels = np.argwhere(np.ones(then.mask.shape, bool))
    points = then.volume.positions[voxels[:, 0]] + voxels[:, 1:] @ then.volume.affine[:3, 1:3].T
    if stored != "oblique":
        for number, before in enumerate(earlier.lesions, 1):
            held = before.holds(points).reshape(then.mask.shape)
            assert np.array_equal(held, then.segments.mask == 3 + number)


def test_a_coarser_grid_covers_the_same_place(tmp_path, then):
    """Slices twice as thick and pixels twice as large: each voxel of now takes the value of the one it lies in."""
    series = write_series(tmp_path / "coarse", made.image()[:4, :20, :15], (6.0, 1.4, 1.0), storage=Storage())
    coarse = read_series(series)
    mask = np.zeros((4, 20, 15), np.uint8)
    mask[1:3, 4:7, 9:12] = 4
    mask[0, 0, 0] = 1
    earlier = read_earlier(
        result(tmp_path, Case(coarse, mask, then.manifest, made.ENGINE, made.DIGEST, then.settings)), then.volume
    )
    (before,) = earlier.lesions
    voxels = np.argwhere(np.ones(then.mask.shape, bool))
    points = then.volume.positions[voxels[:, 0]] + voxels[:, 1:] @ then.volume.affine[:3, 1:3].T
    held = before.holds(points)
    assert held.sum() == 8 * (mask == 4).sum()
    assert held.sum() * np.prod(then.volume.spacing) / 1000 == pytest.approx(before.volume_ml)


@pytest.mark.parametrize("key", ["SEG", "LABELMAP", "FRACTIONAL"])
def test_what_did_not_grow_between_uneven_slices_did_not_grow(tmp_path, then, key):
    """The larger lesion ends in a slice that lies 0.14 mm off."""

    def moved(dataset):
        if dataset.InstanceNumber == 5:
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [round(x + 0.14, 2), y, z]

    volume = read_series(made.images(tmp_path / "uneven", change=moved))
    mask = np.zeros_like(then.mask)
    mask[1:, 20:25, 2:9] = 1  # so that the object has slices beside the lesions
    mask[3:6, 9:12, 19:24] = mask[7, 33:35, 9:11] = 4
    uneven = dataclasses.replace(then, volume=volume, mask=mask)
    earlier = read_earlier(result(tmp_path, uneven, recipe=Recipe.parse(key)), volume)
    assert np.ptp(np.diff(volume.positions, axis=0)) > 0.1
    for before, lesion in zip(earlier.lesions, uneven.lesions, strict=True):
        assert before.volume_ml == pytest.approx(lesion.volume_ml, rel=1e-6)


def test_each_lesion_of_then_is_one_of_now_at_most_the_one_that_shares_most(tmp_path, then):
    mask = then.mask.copy()
    mask[3, 9:12, 19:24] = 0  # the lesion of slices 2 to 4 comes apart into two of one slice
    mask[2, 9, 19] = 0  # and the first is the smaller
    earlier = read_earlier(result(tmp_path, then), then.volume)
    now = later(then, mask, earlier)
    known = [lesion for lesion in now.lesions if lesion.before is not None]
    assert [lesion.tracking_id for lesion in known] == ["Neoplasm 1", "Neoplasm 2"]
    assert [lesion.frames for lesion in known] == [(4,), (1,)]
    assert sorted(lesion.tracking_id for lesion in now.lesions) == ["Neoplasm 1", "Neoplasm 2", "Neoplasm 3"]


def test_lesions_that_hardly_touch_are_not_one(tmp_path, then):
    mask = then.mask.copy()
    mask[mask == 4] = 0
    mask[5:8, 11:14, 19:24] = 4  # one voxel row of three in one slice of three is shared
    now = later(then, mask, read_earlier(result(tmp_path, then), then.volume))
    assert [lesion.before for lesion in now.lesions] == [None]


def _other_patient(ds):
    ds.PatientID = "SOMEBODY ELSE"


def _other_issuer(ds):
    ds.IssuerOfPatientID = "ANOTHER HOSPITAL"


def _other_frame_of_reference(ds):
    ds.FrameOfReferenceUID = "1.2.3"


def _later_series(ds):
    ds.SeriesDate = "20991231"


def _without_a_date(ds):
    for kind in ("Series", "Acquisition", "Content", "Study"):
        setattr(ds, f"{kind}Date", "")


def _not_ours(ds):
    ds.Manufacturer = "another"


def _no_segmentation(ds):
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"


def _damaged(ds):
    ds.PixelData = ds.PixelData[: len(ds.PixelData) // 2]


def _without_places(ds):
    del ds.PerFrameFunctionalGroupsSequence


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_patient, "another patient"),
        (_other_issuer, "another patient"),
        (_other_frame_of_reference, "another frame of reference"),
        (_later_series, "not known to be of an earlier series"),
        (_without_a_date, "not known to be of an earlier series"),
        (_not_ours, "not made here"),
        (_no_segmentation, "no segmentation"),
        (_damaged, "cannot be read"),
        (_without_places, "cannot be read"),
    ],
)
def test_what_is_of_no_use_is_left_alone_and_the_log_says_why_but_not_whose(tmp_path, then, caplog, change, reason):
    path = result(tmp_path, then, change)
    with caplog.at_level(logging.WARNING):
        assert read_earlier(path, then.volume) is None
    assert reason in caplog.text
    assert "SOMEBODY" not in caplog.text
    assert "PHANTOM" not in caplog.text


def test_bytes_that_are_no_dicom_are_left_alone(tmp_path, then):
    path = tmp_path / "earlier.dcm"
    path.write_bytes(b"no DICOM at all" * 40)
    assert read_earlier(path, then.volume) is None


def test_dates_of_older_writers_are_compared_as_dates(tmp_path, then):
    dotted = []
    for source in then.volume.sources:
        source.SeriesDate = "2026.05.06"
        dotted.append(source)
    path = result(tmp_path, then, lambda dataset: setattr(dataset, "SeriesDate", "20260304"))
    assert read_earlier(path, dataclasses.replace(then.volume, sources=tuple(dotted))) is not None


def test_a_series_of_nobody_in_particular_is_compared_with_nothing(tmp_path, then):
    nameless = dataclasses.replace(then.volume, sources=tuple(map(_nameless, then.volume.sources)))
    case = dataclasses.replace(then, volume=nameless)
    assert read_earlier(result(tmp_path, case), nameless) is None


def _nameless(source):
    source.PatientID = ""
    return source


def test_the_issuer_of_the_patients_id_is_kept_and_compared(tmp_path, then):
    for source in then.volume.sources:
        source.IssuerOfPatientID = "THIS HOSPITAL"
    assert read_earlier(result(tmp_path, dataclasses.replace(then)), then.volume) is not None


class _Node(BaseHTTPRequestHandler):
    status, content, asked = 204, b"", []

    def do_GET(self):
        type(self).asked.append(self.path)
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def node():
    handler = type("Handler", (_Node,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    client = NodeClient(f"http://127.0.0.1:{server.server_port}", "token", patience_s=0)
    yield SimpleNamespace(answers=handler, client=client)
    client.close()
    server.shutdown()
    server.server_close()
    thread.join()


CLAIM = SimpleNamespace(job_id="7", fence=3)


@pytest.mark.parametrize("status", [204, 404])
def test_a_node_that_has_none_gives_none(node, tmp_path, status):
    node.answers.status = status
    assert node.client.fetch_earlier(CLAIM, tmp_path) is None
    assert node.answers.asked == ["/v1/jobs/7/earlier?fence=3"]
    assert list(tmp_path.iterdir()) == []


def test_what_the_node_has_is_brought_whole(node, tmp_path):
    node.answers.status, node.answers.content = 200, bytes(range(256)) * 5000
    path = node.client.fetch_earlier(CLAIM, tmp_path)
    assert path.parent == tmp_path
    assert path.read_bytes() == node.answers.content


@pytest.mark.parametrize(("status", "error"), [(409, LeaseLost), (503, NodeUnavailable)])
def test_a_lost_lease_and_a_node_in_trouble_are_told(node, tmp_path, status, error):
    node.answers.status = status
    with pytest.raises(error):
        node.client.fetch_earlier(CLAIM, tmp_path)
