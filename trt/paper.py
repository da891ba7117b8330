"""The figures of the paper, and those of a report beside them: over class-balanced patches, as the paper tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trt.markdown import bullets, flow, join, percent, table
from trt.metrics import FIGURES
from trt.scores import SPINE, TUMOUR_REAL
from trt.trials import FROM_TRUTH

PAPER = {"precision": 90.6, "recall": 91.1, "accuracy": 93.2, "f1": 91.3, "iou": 83.8, "dice": 91.1}
"""%, Chen et al., J Bone Oncol 49:100649 (2024), doi 10.1016/j.jbo.2024.100649, abstract."""
PAPER_FOREGROUND = 37
"""% of pixels, worked out: with precision P and recall R, 1 - accuracy is this share times (1 - R) + R (1 / P - 1)."""

SHORT = {
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "f1": "F1",
    "iou": "IoU",
    "dice": "Dice",
}
"""What the six figures are called in a table."""

_UNITS = {
    "pixels": "one pixel of each patch, that it was put about",
    "pooled": "all pixels pooled",
    "mean": "mean over patches",
}
_FOREGROUNDS = {
    SPINE: "spine, series as acquired",
    TUMOUR_REAL: "tumour, series as acquired",
}


def named(model: Mapping[str, Any]) -> str:
    """Name and version of a model of a report."""
    return f"{model['name']} {model['version']}"


def paper_table(report: Mapping[str, Any]) -> str:
    """The six figures over class-balanced patches, beside those of the paper."""
    rows: list[list[str]] = [
        ["Chen et al. 2024", "tumour and vertebrae, their patients", "not told", f"about {PAPER_FOREGROUND}"]
        + [f"{PAPER[name]:.1f}" for name in FIGURES]
    ]
    notes = []
    simulated = sorted({name for model in report["models"] for name in model["figures"]["patches"]} - set(_FOREGROUNDS))
    words_of = _FOREGROUNDS | {name: name.replace("simulated", "**simulated**") for name in simulated}
    for foreground, words in words_of.items():
        for model in report["models"]:
            figures = model["figures"]["patches"].get(foreground)
            if figures is None:
                continue
            left = figures["left_out"]
            notes.append(
                f"{named(model)}, {foreground}: {figures['patches']} patches of {figures['series']} series; undefined "
                f"and left out of the mean: precision {left['precision']}, recall {left['recall']}, Dice {left['dice']}"
            )
            for key, unit in _UNITS.items():
                shares = [percent(figures[key][name]) for name in FIGURES]
                foreground_share = percent(figures["foreground_of_pixels" if key == "pixels" else "foreground"])
                rows.append([named(model), words, unit, foreground_share, *shares])
    if len(rows) == 1:
        return ""
    head = ["model", "foreground", "averaged", "foreground %", *(SHORT[name] for name in FIGURES)]
    return join(
        flow(f"""In %. From each series {report["trials"]["patches"]} patches of the model's size, half about a pixel
        of the foreground, half about one outside, fixed by the series' name; cut from the result of the whole series.
        One pixel of each patch is how a classifier of patches is judged, as the patch-based networks before PENN were.
        Pooled, F1 and Dice are the same; over patches, F1 is the harmonic mean of
        the averaged precision and recall, Dice the average of each patch's. The paper's patients, its unit of averaging
        and its balance are not told in what is public: its row stands beside these for orientation, and none of them is
        a comparison. Where almost all pixels are background, accuracy is high whatever is found.
        {FROM_TRUTH if simulated else ""}"""),
        table(head, rows, left=3),
        bullets(notes),
    )
