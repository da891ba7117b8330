"""Pictures for a PACS that shows no segmentations: right slice, right colours, right place, and a legible legend."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pydicom import dcmread

from node.errors import InvalidResult
from node.forms import Form, Recipe
from node.records import RESEARCH_NOTICE
from tests.workers import made
from workers.capture import build_captures, check_capture, rim
from workers.legend import Entry, draw_band
from workers.writing import write

FORMS = [Form.SC, Form.SC_MULTIFRAME]
GRIDS = [(stored, enhanced) for stored in made.STORED for enhanced in (False, True)]


@pytest.fixture(params=GRIDS, ids=[f"{stored}-{'enhanced' if enhanced else 'classic'}" for stored, enhanced in GRIDS])
def case(request, tmp_path):
    return made.case(tmp_path, request.param[0], enhanced=request.param[1])


def built(case, form):
    return [write(dataset) for dataset in build_captures(case, Recipe(form), {})]


@pytest.mark.parametrize("form", FORMS)
def test_they_are_valid_and_the_same_each_time(case, form, dciodvfy, tmp_path):
    objects = built(case, form)
    for data in objects:
        check_capture(data, case, Recipe(form))
    path = tmp_path / "picture.dcm"
    path.write_bytes(objects[0])
    assert [line for line in dciodvfy(path) if line.startswith("Error")] == []
    assert built(case, form) == objects


def test_each_slice_has_its_picture_in_order_with_its_source_and_place(case):
    pictures = [dcmread(io.BytesIO(data)) for data in built(case, Form.SC)]
    assert [int(picture.InstanceNumber) for picture in pictures] == list(range(1, len(case.mask) + 1))
    assert len({picture.SOPInstanceUID for picture in pictures}) == len(pictures)
    for frame, picture in enumerate(pictures):
        source = case.volume.sources[0 if case.volume.frame_numbers else frame]
        named = picture.SourceImageSequence[0]
        assert named.ReferencedSOPInstanceUID == source.SOPInstanceUID
        if case.volume.frame_numbers:
            assert named.ReferencedFrameNumber == case.volume.frame_numbers[frame]
        # The picture's pixels cover the slice's: their corners meet, though centres differ.
        scale = case.volume.spacing[1] / float(picture.PixelSpacing[0])
        assert scale == pytest.approx(round(scale))
        corner = np.array(picture.ImagePositionPatient, float)
        axes = np.array(picture.ImageOrientationPatient, float).reshape(2, 3)
        corner -= axes[0] * float(picture.PixelSpacing[1]) / 2 + axes[1] * float(picture.PixelSpacing[0]) / 2
        expected = case.volume.positions[frame] - (case.volume.affine[:3, 1] + case.volume.affine[:3, 2]) / 2
        assert corner == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_segments_are_outlined_in_their_colours_and_nothing_else_is_coloured(tmp_path, form):
    case = made.case(tmp_path)
    planes = np.concatenate(
        [np.atleast_1d(dcmread(io.BytesIO(data)).pixel_array).reshape(-1, 794, 540, 3) for data in built(case, form)]
    )
    scale = 540 // case.mask.shape[2]
    area = planes[:, : case.mask.shape[1] * scale, : case.mask.shape[2] * scale]
    numbers = case.segments.mask.repeat(scale, axis=1).repeat(scale, axis=2)
    drawn = np.zeros(numbers.shape, bool)
    for segment in case.segments.listed:
        own = (area == segment.meaning.colour).all(axis=-1)
        drawn |= own & (numbers == segment.number)
        assert own[numbers == segment.number].any()
    grey = (area == area[..., :1]).all(axis=-1)
    assert np.array_equal(~grey, drawn)
    for frame in range(len(numbers)):
        assert np.array_equal(drawn[frame], rim(numbers[frame]))


def test_the_rim_is_what_erosion_takes_off():
    from scipy.ndimage import binary_erosion

    random = np.random.default_rng(2)
    numbers = random.integers(0, 4, (30, 40)).astype(np.uint8).repeat(3, axis=0).repeat(3, axis=1)
    expected = np.zeros(numbers.shape, bool)
    for number in (1, 2, 3):
        inside = numbers == number
        expected |= inside & ~binary_erosion(inside)
    assert np.array_equal(rim(numbers), expected)


def test_the_slice_shows_through_in_grey_whatever_the_photometric_interpretation(tmp_path):
    case = made.case(tmp_path)
    picture = dcmread(io.BytesIO(built(case, Form.SC)[3])).pixel_array
    scale = 540 // case.mask.shape[2]
    middle = picture[
        scale // 2 : case.mask.shape[1] * scale : scale, scale // 2 : case.mask.shape[2] * scale : scale, 0
    ]
    assert np.corrcoef(middle.ravel(), case.volume.voxels[3].ravel())[0, 1] > 0.99
    assert (middle.min(), middle.max()) == (0, 255)


@pytest.mark.parametrize("form", FORMS)
def test_it_says_what_it_is(tmp_path, form):
    case = made.case(tmp_path)
    picture = dcmread(io.BytesIO(built(case, form)[0]))
    assert picture.BurnedInAnnotation == "YES"
    assert list(picture.ImageType[:2]) == ["DERIVED", "SECONDARY"]
    assert "RecognizableVisualFeatures" not in picture  # a slice through a face may have them, and nobody looked
    assert picture.ImageComments == RESEARCH_NOTICE
    assert picture.FrameOfReferenceUID == case.volume.frame_of_reference_uid
    assert (picture.SeriesNumber, picture.Modality) == (case.series_number(form), "OT")


def test_the_legend_stands_below_the_slice_and_breaks_its_lines():
    entries = [Entry(f"Structure number {n}", (200, 10 * n, 0)) for n in range(20)]
    narrow, wide = draw_band(entries, RESEARCH_NOTICE, 512), draw_band(entries, RESEARCH_NOTICE, 768)
    assert narrow.shape[1:] == (512, 3)
    assert len(narrow) > len(wide)
    for entry in entries:  # a swatch of each
        assert (narrow == entry.colour).all(axis=-1).sum() >= 100
    assert not (narrow[:, -4:] != narrow[0, 0]).any()  # nothing is cut off


def test_the_legend_of_a_large_picture_has_letters_as_large_when_it_is_shown_smaller():
    entries = [Entry(f"Structure number {n}", (200, 10 * n, 0)) for n in range(20)]
    plain, large = draw_band(entries, RESEARCH_NOTICE, 768), draw_band(entries, RESEARCH_NOTICE, 1536)
    assert len(large) == 2 * len(plain)
    assert (large == entries[0].colour).all(axis=-1).sum() == pytest.approx(
        4 * (plain == entries[0].colour).all(axis=-1).sum(), rel=0.1
    )


def test_slices_are_as_thick_as_their_source_says_though_there_are_gaps(tmp_path):
    case = made.case(tmp_path, change=lambda dataset: setattr(dataset, "SliceThickness", "2.5"))
    assert {float(dcmread(io.BytesIO(data)).SliceThickness) for data in built(case, Form.SC)} == {2.5}
    (together,) = (dcmread(io.BytesIO(data)) for data in built(case, Form.SC_MULTIFRAME))
    measures = together.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (float(measures.SliceThickness), float(measures.SpacingBetweenSlices)) == (2.5, 3.0)


def _other_patient(ds):
    ds.PatientName = "Some^Body"


def _other_slice(ds):
    source = ds.SourceImageSequence if "SourceImageSequence" in ds else None
    if "PerFrameFunctionalGroupsSequence" in ds:
        source = ds.PerFrameFunctionalGroupsSequence[2].DerivationImageSequence[0].SourceImageSequence
    source[0].ReferencedSOPInstanceUID = "1.2.3"


def _elsewhere(ds):
    holder = ds
    if "PerFrameFunctionalGroupsSequence" in ds:
        holder = ds.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    holder.ImagePositionPatient = [float(v) + 1 for v in holder.ImagePositionPatient]


def _no_notice(ds):
    ds.ImageComments = ""


def _no_annotation(ds):
    ds.BurnedInAnnotation = "NO"


def _colour_outside(ds):
    pixels = np.array(ds.pixel_array).reshape(-1, ds.Rows, ds.Columns, 3)
    pixels[0, 0, 0] = (255, 0, 0)
    ds.PixelData = pixels.tobytes()


def _other_colour(ds):
    pixels = np.array(ds.pixel_array).reshape(-1, ds.Rows, ds.Columns, 3)
    coloured = (pixels[..., 0] != pixels[..., 1]) & (np.arange(ds.Rows)[:, None] < ds.Rows // 2)
    pixels[coloured] = (0, 255, 0)
    ds.PixelData = pixels.tobytes()


def _contours_lost(ds):
    pixels = np.array(ds.pixel_array).reshape(-1, ds.Rows, ds.Columns, 3)
    pixels[...] = pixels[..., :1]
    ds.PixelData = pixels.tobytes()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "damage",
    [
        _other_patient,
        _other_slice,
        _elsewhere,
        _no_notice,
        _no_annotation,
        _colour_outside,
        _other_colour,
        _contours_lost,
    ],
)
def test_the_gate_catches(damage, form, tmp_path):
    case = made.case(tmp_path)
    dataset = dcmread(io.BytesIO(built(case, form)[0]))
    damage(dataset)
    with pytest.raises(InvalidResult):
        check_capture(write(dataset), case, Recipe(form))
