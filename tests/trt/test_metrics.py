from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from sklearn import metrics as pixels

from trt.metrics import (
    Counts,
    count,
    dice,
    farthest,
    hd95,
    lesion_scores,
    longest_diameter,
    over_units,
    spread,
    surface_dice,
    volume_error,
)

SPACING = (2.0, 0.9375, 0.75)
SETTINGS = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)


def blob(seed: int, shape: tuple[int, int, int] = (8, 24, 20), share: float = 0.25) -> np.ndarray:
    """A smooth random mask about the middle, never empty."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5, mode="wrap")
    return np.asarray(noise > np.quantile(noise, 1 - share))


def ball(radius: float, shape: tuple[int, int, int], middle: tuple[float, float, float]) -> np.ndarray:
    """A ball, in mm of SPACING."""
    axes = np.ogrid[tuple(slice(length) for length in shape)]
    far = sum(((axis - at) * step) ** 2 for axis, at, step in zip(axes, middle, SPACING, strict=True))
    return np.asarray(far <= radius**2)


def itk(mask: np.ndarray) -> Any:
    image = SimpleITK.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
    image.SetSpacing(SPACING[::-1])
    return image


def itk_hd95(found: np.ndarray, truth: np.ndarray) -> float:
    """The recipe of SimpleITK's own notebooks: distance maps read at the other mask's contour."""
    worst = 0.0
    for one, other in ((found, truth), (truth, found)):
        contours = [SimpleITK.LabelContour(itk(mask), False) for mask in (one, other)]
        far = SimpleITK.GetArrayFromImage(
            SimpleITK.SignedMaurerDistanceMap(contours[1], squaredDistance=False, useImageSpacing=True)
        )
        worst = max(worst, float(np.percentile(np.abs(far)[SimpleITK.GetArrayFromImage(contours[0]) > 0], 95)))
    return worst


@SETTINGS
@given(seeds, seeds)
def test_the_six_figures_are_those_of_scikit_learn(one: int, other: int) -> None:
    found, truth = blob(one), blob(other, share=0.4)
    figures, pair = count(found, truth).figures(), (truth.ravel(), found.ravel())
    assert figures["precision"] == pytest.approx(pixels.precision_score(*pair))
    assert figures["recall"] == pytest.approx(pixels.recall_score(*pair))
    assert figures["accuracy"] == pytest.approx(pixels.accuracy_score(*pair))
    assert figures["f1"] == figures["dice"] == pytest.approx(pixels.f1_score(*pair))
    assert figures["iou"] == pytest.approx(pixels.jaccard_score(*pair))


@SETTINGS
@given(seeds, seeds)
def test_overlap_and_volume_are_those_of_simpleitk(one: int, other: int) -> None:
    found, truth = blob(one), blob(other, share=0.4)
    measures = SimpleITK.LabelOverlapMeasuresImageFilter()
    measures.Execute(itk(truth), itk(found))  # source and target, as ITK calls them
    assert count(found, truth).figures()["dice"] == pytest.approx(measures.GetDiceCoefficient())
    assert count(found, truth).figures()["iou"] == pytest.approx(measures.GetJaccardCoefficient())
    similarity = 2 * (truth.sum() - found.sum()) / (truth.sum() + found.sum())
    assert measures.GetVolumeSimilarity() == pytest.approx(similarity)
    assert volume_error(found, truth) == pytest.approx(100 * (found.sum() / truth.sum() - 1))


@SETTINGS
@given(seeds, seeds, st.integers(0, 2))
def test_hd95_is_that_of_simpleitk(one: int, other: int, moved: int) -> None:
    found, truth = np.roll(blob(one), moved, axis=1), blob(other, share=0.4)
    assert hd95(found, truth, SPACING) == pytest.approx(itk_hd95(found, truth), abs=1e-4)


@SETTINGS
@given(seeds, seeds, st.integers(0, 2), st.sampled_from([0.5, 1.0, 2.5]))
def test_surface_dice_is_that_of_simpleitk(one: int, other: int, moved: int, tolerance: float) -> None:
    found, truth = np.roll(blob(one), moved, axis=1), blob(other, share=0.4)
    near = every = 0
    for mine, its in ((found, truth), (truth, found)):
        contours = [SimpleITK.LabelContour(itk(mask), False) for mask in (mine, its)]
        far = SimpleITK.SignedMaurerDistanceMap(contours[1], squaredDistance=False, useImageSpacing=True)
        at = np.abs(SimpleITK.GetArrayFromImage(far))[SimpleITK.GetArrayFromImage(contours[0]) > 0]
        near, every = near + int((at <= tolerance).sum()), every + at.size
    assert surface_dice(found, truth, SPACING, tolerance) == pytest.approx(near / every)


def test_surface_dice_of_a_border_one_pixel_off_is_whole() -> None:
    mask = np.zeros((9, 20, 30), bool)
    mask[2:7, 5:15, 8:12] = True
    wider = np.zeros_like(mask)
    wider[2:7, 5:15, 7:13] = True
    assert dice(wider.astype(np.uint8), mask.astype(np.uint8), 1) == pytest.approx(0.8)
    assert surface_dice(wider, mask, SPACING) == 1.0
    assert surface_dice(np.roll(mask, 12, axis=2), mask, SPACING) < 0.01
    assert surface_dice(np.zeros_like(mask), mask, SPACING) == surface_dice(mask, np.zeros_like(mask), SPACING) == 0.0
    assert math.isnan(surface_dice(np.zeros_like(mask), np.zeros_like(mask), SPACING))


@SETTINGS
@given(seeds, seeds)
def test_figures_of_two_masks_swap_as_they_should(one: int, other: int) -> None:
    found, truth = blob(one), blob(other, share=0.4)
    there, back = count(found, truth).figures(), count(truth, found).figures()
    assert there["precision"] == back["recall"]
    assert [there[name] for name in ("dice", "iou", "accuracy")] == [back[n] for n in ("dice", "iou", "accuracy")]
    assert there["iou"] == pytest.approx(there["dice"] / (2 - there["dice"]))
    assert hd95(found, truth, SPACING) == hd95(truth, found, SPACING)


@SETTINGS
@given(seeds)
def test_a_mask_fits_itself(seed: int) -> None:
    mask = blob(seed)
    assert set(count(mask, mask).figures().values()) == {1.0}
    assert hd95(mask, mask, SPACING) == 0
    assert volume_error(mask, mask) == 0
    scores = lesion_scores(mask, mask, SPACING, min_volume=0)
    assert scores.lesions
    assert all(lesion.found for lesion in scores.lesions)
    assert scores.false == 0


@SETTINGS
@given(st.lists(st.tuples(*[st.integers(0, 50)] * 4), min_size=1, max_size=6))
def test_pooling_adds_pixels(units: list[tuple[int, int, int, int]]) -> None:
    total = sum((Counts(*unit) for unit in units), Counts(0, 0, 0, 0))
    assert (total.tp, total.fp, total.fn, total.tn) == tuple(np.sum(units, axis=0))


def test_a_cube_moved_by_two_pixels_is_two_pixels_away() -> None:
    truth = np.zeros((9, 30, 30), bool)
    truth[2:7, 5:20, 5:20] = True
    found = np.roll(truth, 2, axis=2)
    assert hd95(found, truth, SPACING) == pytest.approx(2 * SPACING[2])
    assert count(found, truth).figures()["dice"] == pytest.approx(13 / 15)
    assert volume_error(found, truth) == 0


def test_balls_about_one_centre_are_the_difference_of_their_radii_apart() -> None:
    shape, middle = (25, 60, 70), (12.0, 30.0, 35.0)
    large, small = ball(20, shape, middle), ball(15, shape, middle)
    assert hd95(large, small, SPACING) == pytest.approx(5.0, abs=1.0)  # a voxel is 2.0 x 0.9 x 0.75 mm
    assert volume_error(small, large) == pytest.approx(100 * ((15 / 20) ** 3 - 1), abs=1.0)
    assert count(small, large).figures()["dice"] == pytest.approx(2 * 15**3 / (15**3 + 20**3), abs=0.01)
    assert longest_diameter(large, SPACING) == pytest.approx(40, abs=1.5)


def test_what_is_undefined_is_nan_and_is_left_out_and_counted() -> None:
    some, none = blob(1), np.zeros((8, 24, 20), bool)
    assert math.isnan(hd95(some, none, SPACING))
    assert math.isnan(hd95(none, none, SPACING))
    assert math.isnan(volume_error(some, none))
    assert volume_error(none, some) == -100
    empty, missed, invented = count(none, none), count(none, some), count(some, none)
    assert empty.figures()["accuracy"] == 1
    assert all(math.isnan(empty.figures()[name]) for name in ("precision", "recall", "f1", "iou", "dice"))
    assert math.isnan(missed.figures()["precision"])
    assert (missed.figures()["recall"], missed.figures()["dice"]) == (0, 0)
    assert math.isnan(invented.figures()["recall"])
    assert (invented.figures()["precision"], invented.figures()["dice"]) == (0, 0)
    averaged = over_units([count(some, some), empty, missed])
    assert (averaged["dice"].mean, averaged["dice"].count, averaged["dice"].left_out) == (0.5, 2, 1)
    assert (averaged["precision"].mean, averaged["precision"].left_out) == (1.0, 2)
    assert math.isnan(over_units([])["f1"].mean)


def test_f1_over_units_is_the_harmonic_mean_of_precision_and_recall() -> None:
    units = [Counts(8, 2, 0, 0), Counts(2, 0, 2, 6)]  # precision 0.8 and 1, recall 1 and 0.5
    averaged = over_units(units)
    assert averaged["f1"].mean == pytest.approx(2 * 0.9 * 0.75 / (0.9 + 0.75))
    assert averaged["dice"].mean == pytest.approx((16 / 18 + 4 / 6) / 2)
    assert averaged["f1"].worst == averaged["dice"].worst == pytest.approx(4 / 6)


def test_the_share_of_foreground_of_the_paper_follows_from_its_figures() -> None:
    precision, recall, accuracy = 0.906, 0.911, 0.932
    assert (1 - accuracy) / (1 - recall + recall * (1 / precision - 1)) == pytest.approx(0.37, abs=0.005)


def test_masks_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        count(np.ones((2, 3), bool), np.ones((1, 3), bool))


def test_the_spread_of_values() -> None:
    values = spread([1.0, math.nan, -3.0], farthest)
    assert (values.mean, values.worst, values.count, values.left_out) == (-1.0, -3.0, 2, 1)
    assert math.isnan(spread([1.0]).sd)


def test_dice_by_hand() -> None:
    truth = np.array([[[0, 1, 1, 2]]], np.uint8)
    found = np.array([[[1, 1, 1, 0]]], np.uint8)
    assert dice(found, truth, 1) == pytest.approx(2 * 2 / (3 + 2))
    assert dice(found, truth, 2) == 0
    assert math.isnan(dice(found, truth, 3))


def lesions(*boxes: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros((6, 30, 30), bool)
    for box in boxes:
        mask[box] = True
    return mask


def cube(z: int, y: int, x: int, side: int = 3) -> tuple[slice, slice, slice]:
    return slice(z, z + side), slice(y, y + side), slice(x, x + side)


ONE = (1.0, 1.0, 1.0)


def test_lesions_found_missed_and_false() -> None:
    truth = lesions(cube(1, 2, 2), cube(1, 20, 20))
    found = lesions(cube(1, 2, 3), cube(1, 10, 20))
    scores = lesion_scores(found, truth, ONE)
    assert [lesion.found for lesion in scores.lesions] == [True, False]
    assert scores.false == 1
    assert [lesion.diameter_mm for lesion in scores.lesions] == [pytest.approx(math.sqrt(12) + 1)] * 2


def test_small_components_neither_find_nor_count() -> None:
    truth, found = lesions(cube(1, 2, 2)), lesions(cube(1, 2, 2, 2), cube(1, 20, 20, 2))
    assert lesion_scores(found, truth, ONE) == lesion_scores(lesions(), truth, ONE)
    scores = lesion_scores(found, truth, ONE, min_volume=8)
    assert (scores.lesions[0].found, scores.false) == (True, 1)


def test_a_component_over_everything_finds_nothing_and_is_not_false_either() -> None:
    truth = lesions(cube(1, 2, 2))
    scores = lesion_scores(np.ones_like(truth), truth, ONE)
    assert (scores.lesions[0].found, scores.false) == (False, 0)


def test_voxels_that_share_a_corner_are_one_lesion() -> None:
    truth = lesions(cube(0, 2, 2), cube(3, 5, 5))
    assert len(lesion_scores(truth, truth, ONE).lesions) == 1


def test_a_series_without_lesions() -> None:
    nothing = lesions()
    assert lesion_scores(nothing, nothing, ONE).lesions == ()
    assert lesion_scores(lesions(cube(1, 2, 2)), nothing, ONE).false == 1
    assert longest_diameter(nothing, ONE) == 0


def test_the_longest_diameter_of_rods_and_of_one_voxel() -> None:
    for axis, step in enumerate(SPACING):
        shape = [1, 1, 1]
        shape[axis] = 5
        assert longest_diameter(np.ones(shape, bool), SPACING) == pytest.approx(4 * step + SPACING[1])
    assert longest_diameter(np.ones((1, 1, 1), bool), SPACING) == SPACING[1]
