from __future__ import annotations

import numpy as np
import pytest

from trt.dataset import Case
from trt.lesions import TUMOUR, Weighting
from trt.phantom import spine_phantom
from trt.trials import MOST_LESIONS, Rendering, balanced_patches, plan

WEIGHTINGS = (Weighting.T1_GADOLINIUM, Weighting.T2)


@pytest.fixture(scope="module")
def case() -> Case:
    phantom = spine_phantom((8, 200, 160), (3.0, 0.9375, 0.9375), seed=4)
    return Case("pt1_t2", phantom.image.astype(np.float32), phantom.mask, (3.0, 0.9375, 0.9375))


def test_every_patient_is_tried_in_every_rendering(case: Case) -> None:
    plans = plan([case], 2, WEIGHTINGS)
    assert [planned.rendering for planned in plans[:3]] == list(Rendering)[:3]
    assert len(plans) == 3 + 2 * 2 * 2
    assert len({planned.name for planned in plans}) == len(plans)
    assert {planned.group for planned in plans[3:]} == {"simulated, T1 after gadolinium", "simulated, T2"}
    assert len(plan([case])) == 3


def test_half_of_the_simulated_series_hold_lesions_and_none_is_like_another(case: Case) -> None:
    trials = [planned.build() for planned in plan([case], 2, WEIGHTINGS)[3:]]
    assert [trial.tumour for trial in trials] == [True, False] * 4
    assert all(np.array_equal(trial.mask == TUMOUR, trial.mask > 3) for trial in trials)
    images = [trial.image for trial in trials]
    assert not any(np.array_equal(one, other) for n, one in enumerate(images) for other in images[:n])
    assert all(image.dtype == np.float32 and np.isfinite(image).all() for image in images)
    assert MOST_LESIONS >= 1


def test_a_trial_is_the_same_each_time(case: Case) -> None:
    for planned in plan([case], 1, WEIGHTINGS):
        one, other = planned.build(), planned.build()
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.mask, other.mask)


def test_other_contrasts_leave_the_truth_as_it_is(case: Case) -> None:
    acquired, inverted, t1_like = (planned.build() for planned in plan([case]))
    assert acquired.image is case.image
    assert acquired.name == case.name
    assert np.corrcoef(acquired.image.ravel(), inverted.image.ravel())[0, 1] < -0.9
    assert not np.array_equal(t1_like.image, acquired.image)
    assert all(np.array_equal(trial.mask, case.mask) for trial in (acquired, inverted, t1_like))


def test_nothing_is_drawn_beside_a_real_tumour(case: Case) -> None:
    mask = case.mask.copy()
    mask[4, 90:100, 70:80] = TUMOUR
    (only,) = plan([Case("real", case.image, mask)], 4, WEIGHTINGS)
    assert only.rendering is Rendering.ACQUIRED
    assert only.build().tumour


def test_balanced_patches_lie_half_about_the_foreground() -> None:
    foreground = np.zeros((3, 100, 90), bool)
    foreground[1, 40:50, 40:45] = True
    windows = balanced_patches(foreground, (21, 21), 40, seed=1)
    assert sum(foreground[window.pixel] for window in windows) == 20
    within = [w for w in windows if 10 <= w.pixel[1] < 90 and 10 <= w.pixel[2] < 80]
    assert len(within) > 20
    assert all((w.z, w.rows.start + 10, w.columns.start + 10) == w.pixel for w in within)
    assert {foreground[window.place].shape for window in windows} == {(21, 21)}
    assert windows == balanced_patches(foreground, (21, 21), 40, seed=1)
    assert windows != balanced_patches(foreground, (21, 21), 40, seed=2)


def test_patches_lie_within_the_slice_and_are_cut_where_it_is_smaller() -> None:
    foreground = np.zeros((2, 30, 100), bool)
    foreground[0, 0, 0] = foreground[1, 29, 99] = True
    windows = balanced_patches(foreground, (64, 64), 20, seed=0)
    assert len(windows) == 20  # drawn again where voxels are fewer
    assert {foreground[window.place].shape for window in windows} == {(30, 64)}


@pytest.mark.parametrize("value", [False, True])
def test_there_are_no_balanced_patches_of_one_class(value: bool) -> None:
    assert balanced_patches(np.full((2, 9, 9), value), (3, 3), 8, seed=0) == []
