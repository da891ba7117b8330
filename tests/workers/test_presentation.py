"""Presentation states: outlines that hold the mask, on every grid; valid, the same each time, and gated."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from pydicom import dcmread

from node.errors import InvalidResult
from node.forms import Form, Recipe
from node.records import RESEARCH_NOTICE
from node.settings import Seg
from tests.workers import made
from workers import presentation
from workers.capture import Pictures
from workers.case import Case
from workers.presentation import build_presentation, check_presentation
from workers.series import write_series
from workers.volume import read_series
from workers.writing import write

RECIPE = Recipe(Form.GSPS)
GRIDS = [(stored, enhanced) for stored in made.STORED for enhanced in (False, True)]


@pytest.fixture(params=GRIDS, ids=[f"{stored}-{'enhanced' if enhanced else 'classic'}" for stored, enhanced in GRIDS])
def case(request, tmp_path):
    return made.case(tmp_path, request.param[0], enhanced=request.param[1])


def built(case):
    return [write(state) for state in build_presentation(case, RECIPE, {})]


def drawn(state, case):
    """The mask that the outlines of a state hold, by the even-odd rule."""
    places = {}
    for frame in range(len(case.mask)):
        source = case.volume.sources[0 if case.volume.frame_numbers else frame]
        number = case.volume.frame_numbers[frame] if case.volume.frame_numbers else None
        places[str(source.SOPInstanceUID), number] = frame
    mask = np.zeros_like(case.mask)
    for annotation in state.GraphicAnnotationSequence:
        if annotation.GraphicLayer == "NOTICE":
            continue
        (image,) = annotation.ReferencedImageSequence
        frame = places[image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")]
        held = np.zeros(case.mask.shape[1:], bool)
        for graphic in annotation.GraphicObjectSequence:
            points = np.array(graphic.GraphicData, float).reshape(-1, 2)
            assert (points[0] == points[-1]).all()
            assert points.min() >= 0
            assert (points <= [case.mask.shape[2], case.mask.shape[1]]).all()
            held ^= made.inside(points[:-1, ::-1] - 0.5, held.shape)
        mask[frame][held] = int(annotation.GraphicLayer.rpartition("_")[2])
    return mask


def test_the_outlines_hold_the_mask_and_the_state_is_valid_and_the_same_each_time(case, dciodvfy, tmp_path):
    (data,) = built(case)
    check_presentation(data, case, RECIPE)
    assert np.array_equal(drawn(dcmread(io.BytesIO(data)), case), case.segments.mask)
    path = tmp_path / "state.dcm"
    path.write_bytes(data)
    assert [line for line in dciodvfy(path) if line.startswith("Error")] == []
    assert built(case) == [data]


def test_it_says_whose_it_is_and_that_it_is_for_research_on_every_image(tmp_path):
    case = made.case(tmp_path)
    state, source = dcmread(io.BytesIO(built(case)[0])), case.volume.sources[0]
    assert (state.PatientID, state.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
    assert state.ContentDescription == RESEARCH_NOTICE
    (notice,) = (one for one in state.GraphicAnnotationSequence if one.GraphicLayer == "NOTICE")
    assert len(notice.ReferencedImageSequence) == len(case.mask)
    assert [layer.GraphicLayerDescription for layer in state.GraphicLayerSequence][:4] == [
        "Vertebra", "Spinal canal", "Intervertebral disc", "Neoplasm 1",
    ]  # fmt: skip
    assert list(state.DisplayedAreaSelectionSequence[0].PresentationPixelSpacing) == [0.7, 0.5]
    assert (state.PresentationCreationDate, state.PresentationCreationTime) == case.when
    # What is drawn has the identity that the segment has in other objects.
    uids = {
        graphic.TrackingUID
        for one in state.GraphicAnnotationSequence
        for graphic in one.get("GraphicObjectSequence", ())
    }
    assert uids == {segment.tracking_uid for segment in case.segments.listed}


def test_stored_values_come_to_those_of_the_window_by_the_rescale_of_the_images(tmp_path):
    case = made.case(tmp_path, "oblique", enhanced=True)
    state = dcmread(io.BytesIO(built(case)[0]))
    assert (float(state.RescaleSlope), float(state.RescaleIntercept)) == (0.5, -20.0)
    voi = state.SoftcopyVOILUTSequence[0]
    low, high = np.percentile(case.volume.voxels, (1, 99.7))
    assert float(voi.WindowCenter) == pytest.approx((low + high) / 2, rel=0.05)
    assert float(voi.WindowWidth) == pytest.approx(high - low, rel=0.05)


def _white_is_least(ds):
    ds.PhotometricInterpretation = "MONOCHROME1"


def _white_is_least_without_window(ds):
    _white_is_least(ds)
    del ds.WindowCenter, ds.WindowWidth


def _small_numbers(ds):
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "0.00001", "-0.003", "US"


def _signed(ds):
    ds.PixelData = (ds.pixel_array.astype("<i2") - 900).tobytes()
    ds.PixelRepresentation = 1


@pytest.mark.parametrize(
    "change", [made.unchanged, _white_is_least, _white_is_least_without_window, _small_numbers, _signed]
)
def test_images_are_shown_in_the_greys_of_the_burnt_in_pictures(change, tmp_path, dciodvfy):
    case = made.case(tmp_path, change=change)
    (data,) = built(case)
    check_presentation(data, case, RECIPE)
    state, frame = dcmread(io.BytesIO(data)), 3
    name = case.volume.sources[frame].SOPInstanceUID
    (image,) = [
        image for path in sorted((tmp_path / "classic").iterdir()) if (image := dcmread(path)).SOPInstanceUID == name
    ]
    # PS3.4 N.2: modality LUT, VOI LUT (LINEAR, PS3.3 C.11.2.1.2.1), presentation LUT.
    voi = state.SoftcopyVOILUTSequence[0]
    values = image.pixel_array * float(state.RescaleSlope) + float(state.RescaleIntercept)
    grey = (values - (float(voi.WindowCenter) - 0.5)) / (float(voi.WindowWidth) - 1) + 0.5
    grey = 255 * np.clip(grey, 0, 1)
    if state.PresentationLUTShape == "INVERSE":
        grey = 255 - grey
    pictures = Pictures(case)
    burnt = pictures.draw(frame)[:: pictures.scale, :: pictures.scale][: grey.shape[0], : grey.shape[1]]
    shown = case.mask[frame] == 0
    assert np.abs(burnt[shown][:, 0] - grey[shown]).max() < 1.5
    assert np.ptp(grey) > 200
    path = tmp_path / "state.dcm"
    path.write_bytes(data)
    assert [line for line in dciodvfy(path) if line.startswith("Error")] == []


@pytest.mark.parametrize("window", [(500, 900), ([40, -10], [400, 80]), (40, 0), (None, None), ([1, 2], 400)])
def test_images_whose_least_value_is_white_are_shown_so_whatever_window_they_have(tmp_path, dciodvfy, window):
    paths = write_series(tmp_path / "series", made.image(), made.SPACING)
    stored = []
    for path in paths:
        source = dcmread(path)
        source.PhotometricInterpretation = "MONOCHROME1"
        source.WindowCenter, source.WindowWidth = window
        stored.append(source.pixel_array)
        source.save_as(path)
    volume = read_series(paths)
    case = Case(volume, made.placed(made.anatomy(), volume, "sagittal"), made.manifest(), made.ENGINE, "ab" * 32, Seg())
    (data,) = built(case)
    check_presentation(data, case, RECIPE)
    state = dcmread(io.BytesIO(data))
    assert state.PresentationLUTShape == "INVERSE"
    (voi,) = state.SoftcopyVOILUTSequence
    low, high = np.percentile(stored, (0.3, 99))  # what is black is the greatest value
    assert float(voi.WindowCenter) == pytest.approx((low + high) / 2, rel=0.05)
    assert float(voi.WindowWidth) == pytest.approx(high - low, rel=0.05)
    path = tmp_path / "state.dcm"
    path.write_bytes(data)
    assert [line for line in dciodvfy(path) if line.startswith("Error")] == []


@pytest.mark.parametrize("enhanced", [False, True])
def test_images_of_another_rescale_slope_have_a_state_of_their_own(tmp_path, dciodvfy, enhanced):
    case = made.case(tmp_path, enhanced=enhanced)
    rescales = tuple((1.0 + frame % 2, 0.0) for frame in range(len(case.mask)))
    case = dataclasses.replace(case, volume=dataclasses.replace(case.volume, rescales=rescales))
    objects = built(case)
    assert len(objects) == 2
    for number, data in enumerate(objects, 1):
        check_presentation(data, case, RECIPE)
        state = dcmread(io.BytesIO(data))
        assert (int(state.InstanceNumber), float(state.RescaleSlope)) == (number, float(number))
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(data)
        assert [line for line in dciodvfy(path) if line.startswith("Error")] == []
    states = [dcmread(io.BytesIO(data)) for data in objects]
    assert np.array_equal(sum(drawn(state, case) for state in states), case.segments.mask)
    assert states[0].SeriesInstanceUID == states[1].SeriesInstanceUID


def test_a_line_too_long_for_its_value_representation_goes_on_in_another(tmp_path, monkeypatch):
    monkeypatch.setattr(presentation, "MOST_POINTS", 5)
    case = made.case(tmp_path)
    (data,) = built(case)
    check_presentation(data, case, RECIPE)
    graphics = [
        graphic
        for one in dcmread(io.BytesIO(data)).GraphicAnnotationSequence
        for graphic in one.get("GraphicObjectSequence", ())
    ]
    assert max(int(graphic.NumberOfGraphicPoints) for graphic in graphics) <= 5


def _other_patient(ds):
    ds.PatientID = "SOMEBODY"


def _no_notice(ds):
    ds.GraphicAnnotationSequence[0].TextObjectSequence[0].UnformattedTextValue = "for diagnosis"


def _other_image(ds):
    ds.GraphicAnnotationSequence[1].ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _moved(ds):
    for annotation in ds.GraphicAnnotationSequence[1:]:
        for graphic in annotation.GraphicObjectSequence:
            graphic.GraphicData = [value + 1 for value in graphic.GraphicData]


def _other_colour(ds):
    ds.GraphicLayerSequence[0].GraphicLayerRecommendedDisplayCIELabValue = [1, 2, 3]


def _outline_lost(ds):
    del ds.GraphicAnnotationSequence[2]


def _image_missing(ds):
    del ds.ReferencedSeriesSequence[0].ReferencedImageSequence[0]


def _other_series(ds):
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


@pytest.mark.parametrize(
    "damage",
    [
        _other_patient,
        _no_notice,
        _other_image,
        _moved,
        _other_colour,
        _outline_lost,
        _image_missing,
        _other_series,
    ],
)
def test_the_gate_catches(damage, tmp_path):
    case = made.case(tmp_path)
    state = dcmread(io.BytesIO(built(case)[0]))
    damage(state)
    with pytest.raises(InvalidResult):
        check_presentation(write(state), case, RECIPE)
