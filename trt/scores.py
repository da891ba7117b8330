"""What one model made of one trial, and what comes of many such scores.

The masks judged are whole series as served; the class-balanced patches are cut out of them. So every table speaks of
one and the same result, only over other pixels.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from trt.dataset import Mask
from trt.lesions import TUMOUR
from trt.manifest import Label
from trt.metrics import (
    FIGURES,
    Counts,
    LesionScores,
    count,
    farthest,
    hd95,
    lesion_scores,
    over_units,
    spread,
    surface_dice,
    volume_error,
)
from trt.trials import Rendering, Trial, balanced_patches

NEOPLASM = "neoplasm"  # the name of a model's tumour label
SPINE, TUMOUR_REAL = "spine", "tumour, real"  # foregrounds of balanced patches; simulated tumours by weighting beside
SIZES = (3.0, 8.0, 15.0, 40.0)  # mm, bounds of the classes of lesions by longest diameter


@dataclass(frozen=True)
class LabelScore:
    """One label in one series; see `trt.metrics`. Figures of surfaces are of series as acquired and of tumours only."""

    dice: float
    surface_dice: float
    hd95_mm: float
    volume_error_percent: float


@dataclass(frozen=True)
class Score:
    """One series: figures by label name, pixels of the whole series and of balanced patches, lesions.

    `labels` leaves out the tumour where there is none in truth; `lesions` is None for a model without that label.
    """

    name: str
    patient: str
    rendering: Rendering
    group: str
    labels: dict[str, LabelScore]
    spine: Counts
    patches: dict[str, tuple[Counts, ...]]
    pixels: dict[str, Counts]  # those that the patches were put about: one decision for each patch
    lesions: LesionScores | None
    seconds: float  # from image to mask

    @property
    def tumour(self) -> bool:
        """Whether the truth holds a lesion, of a model that looks for them."""
        return self.lesions is not None and bool(self.lesions.lesions)

    @property
    def mean_dice(self) -> float:
        """Dice averaged over the labels that are there; NaN where none is."""
        return spread(label.dice for label in self.labels.values()).mean


def knows_tumours(labels: Iterable[Label]) -> bool:
    """Whether a model marks tumours, with the value that simulated ones have."""
    return any(label.name == NEOPLASM and label.value == TUMOUR for label in labels)


def measure(
    trial: Trial,
    found: Mask,
    labels: Sequence[Label],
    *,
    patch: tuple[int, int],
    patches: int,
    seconds: float,
    surfaces: bool = True,
) -> Score:
    """Score `found` (Z, Y, X) uint8 of label values against the trial's truth.

    `patches` of `patch` (y, x) pixels are drawn for the spine from series as acquired, and for the tumour from series
    that hold one; their places depend on the trial's name and truth alone. Without `surfaces`, which take as long as
    all the rest, what they tell is NaN.
    """
    looks, foregrounds = knows_tumours(labels), {}
    if trial.rendering is Rendering.ACQUIRED:
        foregrounds[SPINE] = (found > 0, trial.mask > 0)
    if looks and trial.tumour:
        kind = TUMOUR_REAL if trial.rendering is Rendering.ACQUIRED else f"tumour, {trial.group}"
        foregrounds[kind] = (found == TUMOUR, trial.mask == TUMOUR)
    seed = zlib.crc32(trial.name.encode())
    drawn, pixels = {}, {}
    for name, (ours, truth) in foregrounds.items():
        windows = balanced_patches(truth, patch, patches, seed)
        drawn[name] = tuple(count(ours[window.place], truth[window.place]) for window in windows)
        at = tuple(np.array([window.pixel for window in windows], np.intp).reshape(-1, 3).T)
        pixels[name] = count(ours[at], truth[at])
    scored = {}
    for label in labels:
        if label.value == TUMOUR and not trial.tumour:
            continue
        ours, truth = found == label.value, trial.mask == label.value
        told = surfaces and (trial.rendering is Rendering.ACQUIRED or label.value == TUMOUR)
        scored[label.name] = LabelScore(
            count(ours, truth).figures()["dice"],
            surface_dice(ours, truth, trial.spacing) if told else math.nan,
            hd95(ours, truth, trial.spacing) if told else math.nan,
            volume_error(ours, truth),
        )
    return Score(
        trial.name,
        trial.patient,
        trial.rendering,
        trial.group,
        scored,
        count(found > 0, trial.mask > 0),
        drawn,
        pixels,
        lesion_scores(found == TUMOUR, trial.mask == TUMOUR, trial.spacing) if looks else None,
        seconds,
    )


def summary(scores: Sequence[Score], labels: Sequence[Label]) -> dict[str, Any]:
    """All figures of one model as JSON holds them, unrounded NaN as None; parts without a series are left out.

    `patches`, `series`, `labels` and `patients` are of series as acquired, except for the tumour label; `renderings`
    holds Dice by group, and its difference to the same patients as acquired; `tumour` the lesion-wise figures of every
    group, those without any lesion too, for what is falsely found there.
    """
    acquired = [score for score in scores if score.rendering is Rendering.ACQUIRED]
    names = [label.name for label in labels]
    tissues = [name for name in names if name != NEOPLASM]
    groups = sorted(dict.fromkeys(score.group for score in scores), key=lambda group: group != Rendering.ACQUIRED)
    chosen = {group: [score for score in scores if score.group == group] for group in groups}
    figures: dict[str, Any] = {
        "patches": _patches(scores),
        "series": {name: _spread(value) for name, value in over_units([score.spine for score in acquired]).items()},
        "labels": {name: _label([s.labels[name] for s in acquired if name in s.labels]) for name in tissues},
        "mean_dice": _spread(spread(score.mean_dice for score in acquired)),
        "renderings": {group: _rendering(some, acquired, tissues) for group, some in chosen.items()},
        "seconds_per_series": _number(spread(score.seconds for score in scores).mean),
    }
    if knows_tumours(labels):
        figures["tumour"] = {group: tumour_figures(some) for group, some in chosen.items()}
    return figures


def tumour_figures(scores: Sequence[Score]) -> dict[str, Any]:
    """Lesion-wise figures of one group of series.

    `sizes` has sensitivity by longest diameter, the outer classes taking what is smaller or larger; Dice, HD95 and
    volume error are of the series that hold a lesion, `large` of those whose lesions all reach 8 mm.
    """
    known = [(score, score.lesions) for score in scores if score.lesions is not None]
    lesions = [lesion for _, each in known for lesion in each.lesions]
    classes = np.digitize([lesion.diameter_mm for lesion in lesions], SIZES[1:-1])
    sizes = []
    for index, (low, high) in enumerate(pairwise(SIZES)):
        hits = [lesion.found for lesion, where in zip(lesions, classes, strict=True) if where == index]
        share = _number(sum(hits) / len(hits)) if hits else None
        sizes.append({"from_mm": low, "to_mm": high, "lesions": len(hits), "found": sum(hits), "sensitivity": share})
    holding = [score for score, each in known if each.lesions]
    large = [s for s, each in known if each.lesions and min(x.diameter_mm for x in each.lesions) >= SIZES[1]]
    free = [each.false for _, each in known if not each.lesions]
    return {
        "series": len(known),
        "lesion_free_series": len(free),
        "sizes": sizes,
        "found": sum(lesion.found for lesion in lesions),
        "lesions": len(lesions),
        "false_per_series": _number(spread(each.false for _, each in known).mean),
        "false_per_lesion_free_series": _number(spread(free).mean),
        "lesion_free_series_with_false": sum(number > 0 for number in free),
        "label": _label([score.labels[NEOPLASM] for score in holding]),
        "large": _label([score.labels[NEOPLASM] for score in large]),
    }


def _patches(scores: Sequence[Score]) -> dict[str, Any]:
    figures = {}
    simulated = sorted({name for score in scores for name in score.patches} - {SPINE, TUMOUR_REAL})
    for name in (SPINE, TUMOUR_REAL, *simulated):
        units = [unit for score in scores for unit in score.patches.get(name, ())]
        if not units:
            continue
        total = sum(units, Counts(0, 0, 0, 0))
        middles = sum((score.pixels[name] for score in scores if name in score.pixels), Counts(0, 0, 0, 0))
        averaged = over_units(units)
        figures[name] = {
            "patches": len(units),
            "series": sum(bool(score.patches.get(name)) for score in scores),
            "foreground": _number(total.foreground),
            "foreground_of_pixels": _number(middles.foreground),
            "pooled": {figure: _number(value) for figure, value in total.figures().items()},
            "pixels": {figure: _number(value) for figure, value in middles.figures().items()},
            "mean": {figure: _number(averaged[figure].mean) for figure in FIGURES},
            "left_out": {figure: averaged[figure].left_out for figure in FIGURES},
        }
    return figures


def _label(scores: Sequence[LabelScore]) -> dict[str, Any]:
    worst: dict[str, Callable[[list[float]], float]] = {
        "dice": min,
        "surface_dice": min,
        "hd95_mm": max,
        "volume_error_percent": farthest,
    }
    return {name: _spread(spread((getattr(s, name) for s in scores), pick)) for name, pick in worst.items()}


def _rendering(scores: Sequence[Score], acquired: Sequence[Score], names: Sequence[str]) -> dict[str, Any]:
    """Mean Dice of one group by label, and the mean over patients of each one's difference to `acquired`."""
    figures: dict[str, Any] = {"series": len(scores)}
    difference = {}
    for name in names:
        ours, originals = _by_patient(scores, name), _by_patient(acquired, name)
        figures[name] = _number(spread(s.labels[name].dice for s in scores if name in s.labels).mean)
        pairs = (ours[patient] - originals[patient] for patient in ours if patient in originals)
        difference[name] = _number(spread(pairs).mean)
    return figures | {"difference": difference}


def _by_patient(scores: Sequence[Score], name: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for score in scores:
        if name in score.labels:
            values.setdefault(score.patient, []).append(score.labels[name].dice)
    return {patient: spread(dice).mean for patient, dice in values.items()}


def row(score: Score) -> dict[str, Any]:
    """One series as JSON holds it."""
    lesions = score.lesions
    return {
        "name": score.name,
        "patient": score.patient,
        "group": score.group,
        "labels": {name: _rounded(asdict(label)) for name, label in score.labels.items()},
        "spine": _rounded(score.spine.figures()),
        "lesions": None if lesions is None else [_rounded(asdict(lesion)) for lesion in lesions.lesions],
        "false_lesions": None if lesions is None else lesions.false,
        "seconds": _number(score.seconds),
    }


def _spread(value: Any) -> dict[str, Any]:
    return _rounded(asdict(value))


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: _number(value) if isinstance(value, float) else value for name, value in fields.items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
