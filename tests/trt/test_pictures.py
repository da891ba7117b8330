from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trt.dataset import Case
from trt.lesions import TUMOUR, Weighting
from trt.manifest import Label
from trt.metrics import Counts, LesionScore, LesionScores
from trt.phantom import spine_phantom
from trt.pictures import LIMIT, Pick, choose, draw_pictures, render
from trt.scores import LabelScore, Score, measure
from trt.trials import Plan, Rendering, Trial, plan

LABELS = (Label(1, "vertebra"), Label(2, "spinal canal"), Label(3, "disc"), Label(TUMOUR, "neoplasm"))


def scored(name: str, dice: float, rendering: Rendering = Rendering.ACQUIRED) -> Score:
    labels = {"vertebra": LabelScore(dice, 1.0, 0.0, 0.0)}
    return Score(name, name, rendering, str(rendering), labels, Counts(1, 0, 0, 0), {}, {}, None, 1.0)


def test_series_are_chosen_by_their_scores() -> None:
    scores = [scored(str(n), dice) for n, dice in enumerate((0.7, 0.9, 0.8, 0.95, 0.5))]
    assert {pick.name: pick.score.name for pick in choose(scores)} == {"good": "3", "typical": "2", "worst": "4"}
    assert [pick.name for pick in choose(scores[:1])] == ["good"]
    assert list(choose([])) == []


def test_lesions_are_chosen_by_size() -> None:
    found = [LesionScore(size, True) for size in (4.0, 30.0, 9.0)]
    missed = [LesionScore(size, False) for size in (3.0, 7.0)]
    simulated = [scored(name, 0.5, Rendering.SIMULATED) for name in ("a", "b")]
    scores = [
        replace(simulated[0], lesions=LesionScores((*found[:2], missed[1]), 0)),
        replace(simulated[1], lesions=LesionScores((missed[0], found[2]), 0)),
    ]
    picks = {pick.name: (pick.score.name, pick.lesion) for pick in choose(scores)}
    assert picks == {"simulated-found": ("b", 1), "simulated-missed": ("a", 2)}
    assert all("Simulated lesion" in pick.words for pick in choose(scores))


@pytest.fixture(scope="module")
def plans() -> tuple[Plan, ...]:
    cases = []
    for seed in range(2):
        phantom = spine_phantom((6, 200, 160), (3.0, 0.9375, 0.9375), seed)
        cases.append(Case(f"p{seed}", phantom.image.astype(np.float32), phantom.mask, (3.0, 0.9375, 0.9375)))
    return plan(cases, 1, (Weighting.T1_GADOLINIUM,))


def test_pictures_are_written_small_and_whole(plans: tuple[Plan, ...], tmp_path: Path) -> None:
    def blind(trial: Trial) -> np.ndarray:
        return np.where(trial.mask == TUMOUR, 0, trial.mask).astype(np.uint8)

    trials = [planned.build() for planned in plans]
    scores = [measure(trial, blind(trial), LABELS, patch=(64, 64), patches=2, seconds=1.0) for trial in trials]
    paths = draw_pictures(tmp_path / "pictures", plans, scores, LABELS, blind)
    assert [path.name for path in paths] == ["good.png", "worst.png", "simulated-missed.png"]
    for path in paths:
        assert path.stat().st_size < LIMIT
        with Image.open(path) as picture:
            picture.load()
            assert picture.width > 160


def test_the_found_side_shows_what_was_found(plans: tuple[Plan, ...]) -> None:
    trial = plans[0].build()
    pick = Pick("good", "Good", scored("p0", 1.0))
    full, empty = (render(trial, mask, LABELS, pick) for mask in (trial.mask, np.zeros_like(trial.mask)))
    with Image.open(io.BytesIO(full)) as one, Image.open(io.BytesIO(empty)) as other:
        left, right = np.asarray(one.convert("RGB"), int), np.asarray(other.convert("RGB"), int)
    differ = np.abs(left - right).max(axis=2) > 60  # palettes differ a little
    quarter = differ.shape[1] // 4
    assert differ[:, quarter : 2 * quarter].sum() > 100 * max(1, differ[:, : quarter - 10].sum())


def test_a_noisy_series_is_made_smaller_until_it_fits(plans: tuple[Plan, ...]) -> None:
    trial = plans[0].build()
    noise = np.random.default_rng(0).normal(size=(6, 400, 400)).astype(np.float32)
    mask = np.ones(noise.shape, np.uint8)
    trial = replace(trial, image=noise, mask=mask)
    assert len(render(trial, mask, LABELS, Pick("good", "Good", scored("p0", 1.0)))) < LIMIT


def test_every_label_keeps_its_colour(plans: tuple[Plan, ...]) -> None:
    trial = next(planned for planned in plans if planned.weighting).build()
    with Image.open(io.BytesIO(render(trial, trial.mask, LABELS, Pick("a", "A", scored("p0", 1.0), 0)))) as picture:
        seen = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(240, 200, 80), (60, 170, 255), (230, 40, 40)} <= seen
