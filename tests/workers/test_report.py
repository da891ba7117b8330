"""The measurement report: figures are those of the mask, references and identities those of the segmentation."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from highdicom.sr import srread
from pydicom import dcmread

from node.errors import InvalidResult
from node.forms import Form, Recipe
from node.records import RESEARCH_NOTICE
from tests.workers import made
from trt.manifest import Label
from workers.case import Case
from workers.report import build_report, level_of
from workers.reportcheck import check_report
from workers.seg import build_segmentation
from workers.writing import write

WITH_SEG, ALONE = Recipe(Form.SR, of="SEG"), Recipe(Form.SR)
GRIDS = [(stored, enhanced) for stored in made.STORED for enhanced in (False, True)]


@pytest.fixture(params=GRIDS, ids=[f"{stored}-{'enhanced' if enhanced else 'classic'}" for stored, enhanced in GRIDS])
def case(request, tmp_path):
    return made.case(tmp_path, request.param[0], enhanced=request.param[1])


def built(case, recipe=WITH_SEG):
    made_so_far = {"SEG": build_segmentation(case, Recipe(Form.SEG))} if recipe.of else {}
    (report,) = build_report(case, recipe, made_so_far)
    return write(report)


def groups(data):
    """The content items of each measurement group, by its tracking identifier."""
    found = {}
    for container in dcmread(io.BytesIO(data)).ContentSequence:
        if container.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurements":
            for group in container.ContentSequence:
                items = list(group.ContentSequence)
                found[next(i.TextValue for i in items if name(i) == "Tracking Identifier")] = items
    return found


def name(item):
    return item.ConceptNameCodeSequence[0].CodeMeaning


def number(items, meaning):
    return next(float(i.MeasuredValueSequence[0].NumericValue) for i in items if name(i) == meaning)


def comments(data):
    return [
        item.TextValue
        for container in dcmread(io.BytesIO(data)).ContentSequence
        if name(container) == "Qualitative Evaluations"
        for item in container.ContentSequence
        if item.ValueType == "TEXT"
    ]


@pytest.mark.parametrize("recipe", [WITH_SEG, ALONE], ids=["with segmentation", "alone"])
def test_it_is_valid_and_the_same_each_time(case, recipe, dciodvfy, tmp_path):
    data = built(case, recipe)
    check_report(data, case, recipe)
    path = tmp_path / "report.dcm"
    path.write_bytes(data)
    assert [line for line in dciodvfy(path) if line.startswith("Error")] == []
    assert built(case, recipe) == data


def test_figures_and_identities_are_those_of_the_segments(case):
    segmentation = build_segmentation(case, Recipe(Form.SEG))
    data = built(case)
    found = groups(data)
    assert list(found) == ["Neoplasm 1", "Neoplasm 2", "Vertebra", "Spinal canal", "Intervertebral disc"]
    voxel_ml = np.prod(case.volume.spacing) / 1000
    for segment in segmentation.SegmentSequence:
        items = found[segment.TrackingID]
        voxels = np.count_nonzero(case.segments.mask == segment.SegmentNumber)
        assert number(items, "Volume") == pytest.approx(voxels * voxel_ml, rel=1e-3)
        assert next(i.UID for i in items if name(i) == "Tracking Unique Identifier") == segment.TrackingUID
        reference = next(i for i in items if name(i) == "Referenced Segment").ReferencedSOPSequence[0]
        assert reference.ReferencedSOPInstanceUID == segmentation.SOPInstanceUID
        assert reference.ReferencedSegmentNumber == segment.SegmentNumber
    # The larger neoplasm is a block of 3 x 3 x 5 voxels (Z, Y, X).
    diagonal = np.linalg.norm(np.array([2, 2, 4]) * made.SPACING)
    assert number(found["Neoplasm 1"], "Long axis") == pytest.approx(diagonal, rel=1e-3)


def test_readers_find_groups_measurements_and_algorithm(tmp_path):
    path = tmp_path / "report.dcm"
    path.write_bytes(built(made.case(tmp_path)))
    report = srread(path)
    rois = report.content.get_volumetric_roi_measurement_groups()
    assert len(rois) == 5
    assert rois[0].finding_type.meaning == "Neoplasm"
    assert rois[0].finding_sites[0].value.meaning == "Spine"
    words = {str(item.TextValue) for item in rois[0][0].ContentSequence if item.ValueType == "TEXT"}
    assert "penn-spine" in words
    assert any(f"input_sha256={made.DIGEST}" in said for said in words)


def test_it_is_preliminary_unverified_and_for_research(tmp_path):
    data = built(made.case(tmp_path))
    report = dcmread(io.BytesIO(data))
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert RESEARCH_NOTICE in comments(data)


def test_without_a_segmentation_lesions_refer_to_the_images_that_show_them(case):
    items = groups(built(case, ALONE))["Neoplasm 1"]
    named = [i.ReferencedSOPSequence[0] for i in items if name(i) == "Source of Measurement"]
    lesion = case.lesions[0]
    if case.volume.frame_numbers:
        (only,) = named
        numbers = only.ReferencedFrameNumber
        assert sorted(numbers) == sorted(case.volume.frame_numbers[frame] for frame in lesion.frames)
    else:
        assert [n.ReferencedSOPInstanceUID for n in named] == [
            case.volume.sources[frame].SOPInstanceUID for frame in lesion.frames
        ]


@pytest.mark.parametrize("recipe", [WITH_SEG, ALONE], ids=["with segmentation", "alone"])
def test_that_there_is_no_lesion_is_said_and_that_this_shows_nothing(tmp_path, dciodvfy, recipe):
    case = made.case(tmp_path, lesions=False)
    data = built(case, recipe)
    check_report(data, case, recipe)
    words = "No neoplasm was segmented. This does not show that there is none."
    assert words in comments(data)
    items = groups(data)["No neoplasm"]
    assert words in [i.TextValue for i in items if name(i) == "Comment"]
    assert [
        i.ConceptCodeSequence[0].CodeMeaning for i in items if name(i) == "CAD Processing and Findings Summary"
    ] == ["All algorithms succeeded; without findings"]
    path = tmp_path / "report.dcm"
    path.write_bytes(data)
    assert [line for line in dciodvfy(path) if line.startswith("Error")] == []


def test_a_report_of_a_segmentation_that_was_not_made_is_refused(tmp_path):
    with pytest.raises(InvalidResult, match="not made"):
        build_report(made.case(tmp_path), WITH_SEG, {})


def with_sacrum(tmp_path):
    """Three vertebrae above a sacrum, and a lesion in the canal behind the second from below."""
    volume = made.volume(tmp_path)
    manifest = made.manifest()
    manifest = dataclasses.replace(manifest, labels=(*manifest.labels, Label(5, "sacrum")))
    volume = dataclasses.replace(
        volume,
        affine=volume.affine @ np.diag([4, 2, 2, 1]),
        spacing=(12.0, 1.4, 1.0),
        positions=volume.positions[0] + (volume.positions - volume.positions[0]) * 4,
    )
    mask = np.zeros(volume.voxels.shape, np.uint8)
    for row in (1, 11, 21):
        mask[1:6, row : row + 8, 3:25] = 1
    mask[1:6, 31:39, 3:25] = 5
    mask[2:4, 13:16, 27:29] = 4
    return Case(volume, mask, manifest, made.ENGINE, made.DIGEST, made.Seg())


def test_the_level_of_a_lesion_is_that_of_the_vertebra_nearest_to_it(tmp_path):
    case = with_sacrum(tmp_path)
    assert [segment.level for segment in case.segments.listed if segment.level] == ["L3", "L4", "L5"]
    assert level_of(case, case.lesions[0]).level == "L4"
    items = groups(built(case))["Neoplasm 1"]
    (site,) = (i for i in items if name(i) == "Finding Site")
    assert site.ConceptCodeSequence[0].CodeMeaning == "Spine"
    assert site.ContentSequence[0].ConceptCodeSequence[0].CodeValue == "11994002"


@pytest.mark.parametrize(
    "lesion",
    [(slice(2, 5), slice(32, 35), slice(10, 14)), (slice(1, 6), slice(1, 9), slice(3, 25))],
    ids=["within the sacrum", "a whole vertebra, the third from below"],
)
def test_a_lesion_of_no_named_vertebra_has_no_level(tmp_path, lesion):
    case = with_sacrum(tmp_path)
    mask = np.where(case.mask == 4, 0, case.mask).astype(np.uint8)
    mask[lesion] = 4
    case = dataclasses.replace(case, mask=mask)
    assert {"L4", "L5"} <= {segment.level for segment in case.segments.listed}
    assert level_of(case, case.lesions[0]) is None


def test_without_names_of_levels_there_is_none(tmp_path):
    case = made.case(tmp_path)
    assert level_of(case, case.lesions[0]) is None


def _walk(items):
    for item in items:
        yield item
        yield from _walk(item.get("ContentSequence", ()))


def _other_patient(ds):
    ds.PatientID = "SOMEBODY"


def _verified(ds):
    ds.VerificationFlag = "VERIFIED"


def _final(ds):
    ds.PreliminaryFlag = "FINAL"


def _no_notice(ds):
    for item in _walk(ds.ContentSequence):
        if item.get("TextValue") == RESEARCH_NOTICE:
            item.TextValue = "for diagnosis"


def _evidence_missing(ds):
    series = ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    del series[0].ReferencedSOPSequence[0]


def _other_volume(ds):
    item = next(i for i in _walk(ds.ContentSequence) if name(i) == "Volume")
    item.MeasuredValueSequence[0].NumericValue = 99


def _other_segment(ds):
    item = next(i for i in _walk(ds.ContentSequence) if name(i) == "Referenced Segment")
    item.ReferencedSOPSequence[0].ReferencedSegmentNumber = 1


def _other_lesion(ds):
    item = next(i for i in _walk(ds.ContentSequence) if name(i) == "Tracking Unique Identifier")
    item.UID = "1.2.3"


def _nothing_found(ds):
    for item in _walk(ds.ContentSequence):
        if name(item) == "CAD Processing and Findings Summary":
            item.ConceptCodeSequence[0].CodeValue = "111241"


@pytest.mark.parametrize(
    "damage",
    [
        _other_patient,
        _verified,
        _final,
        _no_notice,
        _evidence_missing,
        _other_volume,
        _other_segment,
        _other_lesion,
        _nothing_found,
    ],
)
def test_the_gate_catches(damage, tmp_path):
    case = made.case(tmp_path)
    report = dcmread(io.BytesIO(built(case)))
    damage(report)
    with pytest.raises(InvalidResult):
        check_report(write(report), case, WITH_SEG)
