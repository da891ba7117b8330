"""The structure set: its contours drawn again are the mask, on every grid; it is valid, and its gate catches damage."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pydicom import dcmread

from node.errors import InvalidResult
from node.forms import Form, Recipe
from node.records import RESEARCH_NOTICE
from tests.workers import made
from workers.structures import build_structure_set, check_structure_set
from workers.writing import write

RECIPE = Recipe(Form.RTSTRUCT)
GRIDS = [(stored, enhanced) for stored in made.STORED for enhanced in (False, True)]


@pytest.fixture(params=GRIDS, ids=[f"{stored}-{'enhanced' if enhanced else 'classic'}" for stored, enhanced in GRIDS])
def case(request, tmp_path):
    return made.case(tmp_path, request.param[0], enhanced=request.param[1])


def built(case):
    (dataset,) = build_structure_set(case, RECIPE, {})
    return write(dataset)


def test_contours_drawn_again_are_the_mask_and_volumes_are_those_of_the_voxels(case):
    dataset = dcmread(io.BytesIO(built(case)))
    places = {}
    for frame in range(len(case.mask)):
        source = case.volume.sources[0 if case.volume.frame_numbers else frame]
        number = case.volume.frame_numbers[frame] if case.volume.frame_numbers else None
        places[str(source.SOPInstanceUID), number] = frame
    again = np.zeros_like(case.mask)
    inverse = np.linalg.inv(case.volume.affine)
    for roi, described in zip(dataset.ROIContourSequence, dataset.StructureSetROISequence, strict=True):
        number = int(roi.ReferencedROINumber)
        for contour in roi.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            index = np.c_[points, np.ones(len(points))] @ inverse.T
            image = contour.ContourImageSequence[0]
            frame = places[image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")]
            assert np.abs(index[:, 0] - frame).max() < 1e-3  # in the plane of its image
            filled = made.inside(index[:, 1:3], case.mask.shape[1:])
            assert not again[frame][filled].any()
            again[frame][filled] = number
        voxels = np.count_nonzero(case.segments.mask == number)
        assert float(described.ROIVolume) == pytest.approx(voxels * np.prod(case.volume.spacing) / 1000, rel=0.02)
    assert np.array_equal(again, case.segments.mask)


def test_it_is_valid_and_the_same_each_time(case, dciodvfy, tmp_path):
    data = built(case)
    check_structure_set(data, case, RECIPE)
    path = tmp_path / "set.dcm"
    path.write_bytes(data)
    assert [line for line in dciodvfy(path) if line.startswith("Error")] == []
    assert built(case) == data


def test_it_says_whose_it_is_what_it_shows_and_that_it_is_for_research(tmp_path):
    case = made.case(tmp_path)
    dataset, source = dcmread(io.BytesIO(built(case))), case.volume.sources[0]
    assert (dataset.PatientID, dataset.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
    assert dataset.StructureSetDescription == RESEARCH_NOTICE
    assert dataset.ApprovalStatus == "UNAPPROVED"
    assert [str(roi.ROIName) for roi in dataset.StructureSetROISequence] == [
        "Vertebra", "Spinal canal", "Intervertebral disc", "Neoplasm 1", "Neoplasm 2",
    ]  # fmt: skip
    assert [str(o.RTROIInterpretedType) for o in dataset.RTROIObservationsSequence] == ["ORGAN"] * 3 + [""] * 2
    assert list(dataset.ROIContourSequence[3].ROIDisplayColor) == [230, 40, 40]


def _other_patient(ds):
    ds.PatientID = "SOMEBODY"


def _moved(ds):
    contour = ds.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = [float(v) + 5 for v in contour.ContourData]


def _moved_in_its_plane(ds):
    for roi in ds.ROIContourSequence:
        for contour in roi.ContourSequence:
            moved = np.add(np.array(contour.ContourData, float).reshape(-1, 3), (0, 0.5, 0))
            contour.ContourData = [f"{value:.4f}" for value in moved.ravel()]


def _other_colour(ds):
    ds.ROIContourSequence[0].ROIDisplayColor = [1, 2, 3]


def _smaller(ds):
    del ds.ROIContourSequence[1].ContourSequence[0]


def _other_image(ds):
    ds.ROIContourSequence[0].ContourSequence[0].ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _other_frame_of_reference(ds):
    ds.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.2.3"


def _no_notice(ds):
    ds.StructureSetDescription = ""


def _renamed(ds):
    ds.StructureSetROISequence[0].ROIName = "Sacrum"


def _image_missing(ds):
    study = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    del study.RTReferencedSeriesSequence[0].ContourImageSequence[-1]


@pytest.mark.parametrize(
    "damage",
    [
        _other_patient,
        _moved,
        _moved_in_its_plane,
        _other_colour,
        _smaller,
        _other_image,
        _other_frame_of_reference,
        _no_notice,
        _renamed,
        _image_missing,
    ],
)
def test_the_gate_catches(damage, tmp_path):
    case = made.case(tmp_path)
    dataset = dcmread(io.BytesIO(built(case)))
    damage(dataset)
    with pytest.raises(InvalidResult):
        check_structure_set(write(dataset), case, RECIPE)
