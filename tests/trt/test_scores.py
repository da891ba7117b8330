from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from trt.dataset import Case
from trt.lesions import TUMOUR, Weighting
from trt.manifest import Label
from trt.metrics import LesionScore, LesionScores
from trt.phantom import spine_phantom
from trt.scores import NEOPLASM, SPINE, TUMOUR_REAL, Score, knows_tumours, measure, row, summary
from trt.scores import tumour_figures as tumour
from trt.trials import Trial, plan

ANATOMY = (Label(1, "vertebra"), Label(2, "spinal canal"), Label(3, "intervertebral disc"))
ALL = (*ANATOMY, Label(TUMOUR, NEOPLASM))


@pytest.fixture(scope="module")
def trials() -> tuple[Trial, ...]:
    phantom = spine_phantom((8, 200, 160), (3.0, 0.9375, 0.9375), seed=4)
    case = Case("pt1", phantom.image.astype(np.float32), phantom.mask, (3.0, 0.9375, 0.9375))
    return tuple(planned.build() for planned in plan([case], 2, (Weighting.T1_GADOLINIUM,)))


def score(trial: Trial, found: np.ndarray | None = None, labels: tuple[Label, ...] = ALL) -> Score:
    return measure(trial, trial.mask if found is None else found, labels, patch=(64, 64), patches=8, seconds=1.0)


def test_the_truth_scores_full_marks(trials: tuple[Trial, ...]) -> None:
    figures = summary([score(trial) for trial in trials], ALL)
    json.dumps(figures, allow_nan=False)
    for foreground in (SPINE, "tumour, simulated, T1 after gadolinium"):
        assert set(figures["patches"][foreground]["pooled"].values()) == {1.0}
        assert set(figures["patches"][foreground]["mean"].values()) == {1.0}
        assert set(figures["patches"][foreground]["pixels"].values()) == {1.0}
    assert TUMOUR_REAL not in figures["patches"]
    assert {name: label["dice"]["mean"] for name, label in figures["labels"].items()} == {
        "vertebra": 1.0,
        "spinal canal": 1.0,
        "intervertebral disc": 1.0,
    }
    group = figures["tumour"]["simulated, T1 after gadolinium"]
    assert (group["series"], group["lesion_free_series"], group["found"]) == (4, 2, group["lesions"])
    assert group["false_per_series"] == group["lesion_free_series_with_false"] == 0
    assert group["label"]["hd95_mm"] == {"mean": 0.0, "sd": 0.0, "worst": 0.0, "count": 2, "left_out": 0}
    assert sum(each["lesions"] for each in group["sizes"]) == group["lesions"] > 0
    assert figures["patches"][SPINE]["foreground_of_pixels"] == 0.5
    assert figures["renderings"]["inverted"]["difference"] == dict.fromkeys(figures["labels"], 0.0)


def test_a_result_without_anything_is_missed_not_left_out(trials: tuple[Trial, ...]) -> None:
    scores = [score(trial, np.zeros_like(trial.mask)) for trial in trials]
    figures = summary(scores, ALL)
    assert figures["labels"]["vertebra"]["dice"]["mean"] == 0
    assert figures["labels"]["vertebra"]["hd95_mm"]["left_out"] == 1
    assert figures["labels"]["vertebra"]["volume_error_percent"]["worst"] == -100
    group = figures["tumour"]["simulated, T1 after gadolinium"]
    assert group["found"] == 0
    assert group["label"]["dice"]["mean"] == 0
    assert figures["patches"][SPINE]["left_out"]["precision"] > 0


def test_false_lesions_of_lesion_free_series_are_counted(trials: tuple[Trial, ...]) -> None:
    free = next(trial for trial in trials[3:] if not trial.tumour)
    found = free.mask.copy()
    found[2:4, 3:8, 3:8] = found[6, 150:156, 3:8] = TUMOUR
    one = score(free, found)
    assert one.lesions == LesionScores((), 2)
    assert NEOPLASM not in one.labels
    assert not one.patches
    assert tumour([one, score(free)])["false_per_lesion_free_series"] == 1


def test_false_lesions_of_every_rendering_are_kept_as_acquired_first(trials: tuple[Trial, ...]) -> None:
    found = trials[0].mask.copy()
    found[2:4, 3:8, 3:8] = TUMOUR
    scores = [score(trials[0], found), *(score(trial) for trial in trials[1:])]
    groups = summary(scores[::-1], ALL)["tumour"]
    assert next(iter(groups)) == "as acquired"
    assert set(groups) == {"as acquired", "inverted", "T1-like", "simulated, T1 after gadolinium"}
    assert (groups["as acquired"]["lesions"], groups["as acquired"]["false_per_lesion_free_series"]) == (0, 1)
    assert groups["inverted"]["lesion_free_series_with_false"] == 0


def test_renderings_differ_from_the_same_patients_as_acquired(trials: tuple[Trial, ...]) -> None:
    def of(trial: Trial, patient: str, dice: float) -> Score:
        base = score(trial)
        labels = {"vertebra": replace(base.labels["vertebra"], dice=dice)}
        return replace(base, patient=patient, labels=labels)

    acquired, inverted = trials[:2]
    scores = [of(acquired, "p1", 0.9), of(acquired, "real", 0.3), of(inverted, "p1", 0.8)]
    figures = summary(scores, ALL)["renderings"]
    assert figures["as acquired"]["vertebra"] == 0.6
    assert figures["inverted"]["vertebra"] == 0.8
    assert figures["inverted"]["difference"]["vertebra"] == -0.1
    assert figures["inverted"]["difference"]["spinal canal"] is None


def test_a_model_without_a_tumour_label_has_no_tumour_figures(trials: tuple[Trial, ...]) -> None:
    assert knows_tumours(ALL)
    assert not knows_tumours(ANATOMY)
    assert not knows_tumours((Label(1, NEOPLASM),))
    scores = [score(trial, labels=ANATOMY) for trial in trials]
    figures = summary(scores, ANATOMY)
    assert "tumour" not in figures
    assert list(figures["patches"]) == [SPINE]
    assert all(one.lesions is None for one in scores)
    assert row(scores[0])["lesions"] is None


def test_a_real_tumour_is_not_called_simulated(trials: tuple[Trial, ...]) -> None:
    mask = trials[0].mask.copy()
    mask[3:5, 100:110, 70:80] = TUMOUR
    figures = summary([score(replace(trials[0], mask=mask))], ALL)
    assert list(figures["tumour"]) == ["as acquired"]
    assert figures["tumour"]["as acquired"]["lesions"] == 1
    assert list(figures["patches"]) == [SPINE, TUMOUR_REAL]


def test_lesions_by_size_and_series_of_large_ones(trials: tuple[Trial, ...]) -> None:
    base = score(trials[3])
    sizes = ((2.0, True), (8.0, False), (20.0, True), (60.0, True))
    every = replace(base, lesions=LesionScores(tuple(LesionScore(*each) for each in sizes), 1))
    large = replace(base, lesions=LesionScores((LesionScore(9.0, True),), 0))
    figures = tumour([every, large])
    assert [(each["lesions"], each["found"]) for each in figures["sizes"]] == [(1, 1), (2, 1), (2, 2)]
    assert [each["sensitivity"] for each in figures["sizes"]] == [1.0, 0.5, 1.0]
    assert (figures["label"]["dice"]["count"], figures["large"]["dice"]["count"]) == (2, 1)
    assert figures["false_per_series"] == 0.5
    assert figures["false_per_lesion_free_series"] is None


def test_a_row_holds_one_series(trials: tuple[Trial, ...]) -> None:
    fields = row(score(trials[3]))
    json.dumps(fields, allow_nan=False)
    assert fields["group"] == "simulated, T1 after gadolinium"
    assert fields["labels"][NEOPLASM]["dice"] == 1.0
    assert all(lesion["found"] for lesion in fields["lesions"])


def test_an_absent_label_is_left_out(trials: tuple[Trial, ...]) -> None:
    trial = replace(trials[0], mask=np.where(trials[0].mask == 3, 0, trials[0].mask).astype(np.uint8))
    one = score(trial, labels=ANATOMY)
    assert math.isnan(one.labels["intervertebral disc"].dice)
    assert one.mean_dice == 1.0
    figures = summary([one], ANATOMY)
    assert figures["labels"]["intervertebral disc"]["dice"]["mean"] is None
