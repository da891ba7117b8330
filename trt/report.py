"""The figures of `trt.evaluate` as tables in Markdown: on the screen, in a file, in the model card.

Every table says over what it averages, and calls simulated what is. Nothing is calculated here: a cell is a figure of
the report, in % where it is a share, or "-" where it is undefined or the model lacks the label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from trt.metrics import FIGURES, TOLERANCE_MM
from trt.scores import SPINE, TUMOUR_REAL
from trt.trials import Rendering

Report: TypeAlias = Mapping[str, Any]
"""What `trt.evaluate --json` writes."""

FIGURES_FILE = "figures.json"
NOTICE = "**For research, not for diagnosis.**"
PAPER = {"precision": 90.6, "recall": 91.1, "accuracy": 93.2, "f1": 91.3, "iou": 83.8, "dice": 91.1}
"""%, Chen et al., J Bone Oncol 49:100649 (2024), doi 10.1016/j.jbo.2024.100649, abstract."""
PAPER_FOREGROUND = 37
"""% of pixels, worked out: with precision P and recall R, 1 - accuracy is this share times (1 - R) + R (1 / P - 1)."""

_SHORT = {
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "f1": "F1",
    "iou": "IoU",
    "dice": "Dice",
}
FROM_TRUTH = (
    "T1-like series, and simulated ones of T1 after gadolinium, are calculated with the help of the true mask, and so "
    "are simulated lesions: **true borders become edges of the image, and figures on them flatter.** Of what is "
    "calculated, only 'inverted' is free of this."
)
"""What stands wherever figures of such series do."""

_UNITS = {
    "pixels": "one pixel of each patch, that it was put about",
    "pooled": "all pixels pooled",
    "mean": "mean over patches",
}
_FOREGROUNDS = {
    SPINE: "spine, series as acquired",
    TUMOUR_REAL: "tumour, series as acquired",
}
UNKNOWN: Mapping[str, float | None] = {"mean": None, "sd": None, "worst": None}
SCORED = {
    "held back": "held back from training",
    "not trained on": "not trained on",
    "not known by name": "not known to it by name, which does not tell whether it was trained on them",
    "trained on in part": "**some of whom it was trained on: these figures flatter and are not to be quoted**",
}


def markdown(report: Report) -> str:
    """The whole report, ending in a line break."""
    parts = [f"# {title(report)}", NOTICE, f"Patients: {', '.join(report['patients'])}."]
    for heading, text in sections(report).items():
        parts += [f"## {heading}", text]
    return "\n\n".join(parts) + "\n"


def title(report: Report) -> str:
    """The model, the number of patients and what they are to it."""
    count = len(report["patients"])
    people = f"{count} patient{'s' if count != 1 else ''}"
    return f"{_name(report['models'][0])} on {people} {SCORED[report['scored']]}"


def sections(report: Report) -> dict[str, str]:
    """Each table under its heading, with the words it needs; those without figures are left out."""
    parts = {
        "The paper's way: class-balanced patches": paper_table(report),
        "Whole series": series_table(report),
        "Labels in 3-D": label_table(report),
        "Patients": patient_table(report),
        "Lesions": lesion_table(report),
        "Renderings": rendering_table(report),
        "What ran": engine_table(report),
    }
    return {heading: text for heading, text in parts.items() if text}


def paper_table(report: Report) -> str:
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
                f"{_name(model)}, {foreground}: {figures['patches']} patches of {figures['series']} series; undefined "
                f"and left out of the mean: precision {left['precision']}, recall {left['recall']}, Dice {left['dice']}"
            )
            for key, unit in _UNITS.items():
                shares = [_percent(figures[key][name]) for name in FIGURES]
                foreground_share = _percent(figures["foreground_of_pixels" if key == "pixels" else "foreground"])
                rows.append([_name(model), words, unit, foreground_share, *shares])
    if len(rows) == 1:
        return ""
    head = ["model", "foreground", "averaged", "foreground %", *(_SHORT[name] for name in FIGURES)]
    return _join(
        _flow(f"""In %. From each series {report["trials"]["patches"]} patches of the model's size, half about a pixel
        of the foreground, half about one outside, fixed by the series' name; cut from the result of the whole series.
        One pixel of each patch is how a classifier of patches is judged, as the patch-based networks before PENN were.
        Pooled, F1 and Dice are the same; over patches, F1 is the harmonic mean of
        the averaged precision and recall, Dice the average of each patch's. The paper's patients, its unit of averaging
        and its balance are not told in what is public: its row stands beside these for orientation, and none of them is
        a comparison. Where almost all pixels are background, accuracy is high whatever is found.
        {FROM_TRUTH if simulated else ""}"""),
        _table(head, rows, left=3),
        _bullets(notes),
    )


def series_table(report: Report) -> str:
    """The six figures of the spine against the background, each series of real images as acquired weighing the same."""
    rows = []
    for model in report["models"]:
        series = model["figures"]["series"]
        for row, words in (("mean", "mean"), ("sd", "sd"), ("worst", "worst")):
            rows.append([_name(model), words, *(_percent(series[name][row]) for name in FIGURES)])
    return _join(
        _flow("""Series as acquired, all labels together against the background, every pixel of the series; in %,
        averaged over series, each weighing the same (F1 from the averaged precision and recall)."""),
        _table(["model", "over series", *(_SHORT[name] for name in FIGURES)], rows, left=2),
    )


def label_table(report: Report) -> str:
    """Dice, surface Dice, 95 % Hausdorff distance and volume error per series, label by label."""
    rows = []
    for model in report["models"]:
        for label, figures in model["figures"]["labels"].items():
            rows.append([label, _name(model), *_label_cells(figures)])
    groups = list(_holding(report))
    for group, model, figures in groups:
        rows.append([f"tumour, {_simulated(group)}", _name(model), *_label_cells(figures["label"])])
        rows.append([f"the same, all lesions at least 8 mm, {_simulated(group)}", _name(model)])
        rows[-1] += _label_cells(figures["large"])
    head = [
        "label",
        "model",
        "series",
        "Dice %",
        "worst",
        "surface Dice %",
        "worst",
        "HD95 mm",
        "worst",
        "volume error %",
        "worst",
        "left out",
    ]
    return _join(
        _flow(f"""Per series, mean ± sd over series; tissue of series as acquired, tumour of series that hold a lesion.
        Surface Dice is the share of both surfaces that lies within {TOLERANCE_MM:g} mm of the other.
        HD95 is the larger of both directions' 95th percentiles; volume error is signed, its worst the one farthest from
        0. Left out: series where HD95 is undefined, the label being absent from truth or result.
        {FROM_TRUTH if any(group != Rendering.ACQUIRED for group, _, _ in groups) else ""}"""),
        _table(head, rows, left=2),
    )


def patient_table(report: Report) -> str:
    """Dice of every series as acquired, of the first model."""
    model = report["models"][0]
    labels = list(model["figures"]["labels"])
    rows = [
        [entry["name"], *(_percent((entry["labels"].get(name) or {}).get("dice")) for name in labels)]
        for entry in model["series"]
        if entry["group"] == Rendering.ACQUIRED
    ]
    return _join(f"3-D Dice in %, real series as acquired, {_name(model)}.", _table(["series", *labels], rows))


def lesion_table(report: Report) -> str:
    """Sensitivity by size in series that hold lesions, and false lesions in all series."""
    rows = []
    for group, model, figures in _holding(report):
        for each in figures["sizes"]:
            size = f"{each['from_mm']:g} to {each['to_mm']:g} mm"
            rows.append([group, _name(model), size, f"{each['found']} of {each['lesions']}"])
            rows[-1].append(_percent(each["sensitivity"]))
    false = [
        [
            "as acquired, real" if group == Rendering.ACQUIRED else group,
            _name(model),
            str(figures["series"]),
            _plain(figures["false_per_series"]),
            str(figures["lesion_free_series"]),
            _plain(figures["false_per_lesion_free_series"]),
            str(figures["lesion_free_series_with_false"]),
        ]
        for group, model, figures in _tumours(report)
    ]
    if not false:
        return ""
    rules = report["rules"]
    real = any(group == Rendering.ACQUIRED for group, _, _ in _holding(report))
    return _join(
        _flow(f"""Simulated series hold lesions of a simulator, drawn into the patients above; the same simulator, with
        other seeds, draws those of training. {"" if real else "**No real tumour is among them.**"} A lesion is found
        when one found component (26-connected) overlaps it by an IoU of at least {rules["found_iou"]:g}; by longest
        diameter, the outer classes taking what is smaller or larger. A found component of
        {rules["min_volume_mm3"]:g} mm³ or more that touches no lesion is false; smaller ones are passed over. Series as
        acquired are the only real ones, and what is falsely found in them weighs most. {FROM_TRUTH}"""),
        _table(["series", "model", "longest diameter", "found", "sensitivity %"], rows, left=3) if rows else "",
        _table(
            [
                "series",
                "model",
                "series in all",
                "false lesions each",
                "without a lesion",
                "false lesions each",
                "of them with any",
            ],
            false,
            left=2,
        ),
    )


def rendering_table(report: Report) -> str:
    """Dice by rendering, and what it lacks to the series as acquired."""
    rows = []
    for model in report["models"]:
        for group, figures in model["figures"]["renderings"].items():
            cells = []
            for label in model["figures"]["labels"]:
                lost = figures["difference"].get(label)
                change = "" if lost is None or group == Rendering.ACQUIRED else f" ({100 * lost:+.1f})"
                cells.append(_percent(figures[label]) + change)
            rows.append([group, _name(model), str(figures["series"]), *cells])
    return _join(
        _flow(f"""Mean 3-D Dice over series in %, in brackets the difference to the same patients' series as acquired,
        averaged over patients. Only those are real; the others are calculated from them, and no scanner made them. Half
        of the simulated hold lesions. {FROM_TRUTH}"""),
        _table(["rendering", "model", "series", *report["models"][0]["figures"]["labels"]], rows, left=2),
    )


def engine_table(report: Report) -> str:
    """What the figures were measured with."""
    mirror = "yes" if report["rules"]["tta"] else "no"
    rows = [
        [
            _name(model),
            model["engine"],
            f"{model['overlap']:g}",
            model["extraction"],
            mirror,
            model["sha256"][:12],
        ]
        for model in report["models"]
    ]
    head = ["model", "engine", "overlap", "runs on", "mirrored too", "sha256 begins"]
    return _table(head, rows, left=2)


def _tumours(report: Report) -> Iterable[tuple[str, dict[str, Any], dict[str, Any]]]:
    for model in report["models"]:
        for group, figures in model["figures"].get("tumour", {}).items():
            yield group, model, figures


def _holding(report: Report) -> Iterable[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Those of `_tumours` where any series holds a lesion."""
    return (entry for entry in _tumours(report) if entry[2]["lesions"])


def _label_cells(figures: Mapping[str, Any]) -> list[str]:
    dice, surface = figures["dice"], figures.get("surface_dice", UNKNOWN)  # figures of before it was measured
    distance, volume = figures["hd95_mm"], figures["volume_error_percent"]
    return [
        str(dice["count"]),
        _pair(dice, 100),
        _percent(dice["worst"]),
        _pair(surface, 100),
        _percent(surface["worst"]),
        _pair(distance),
        _plain(distance["worst"]),
        _pair(volume),
        _plain(volume["worst"]),
        str(distance["left_out"]),
    ]


def _simulated(group: str) -> str:
    return group.replace(Rendering.SIMULATED, "**simulated**")


def _name(model: Mapping[str, Any]) -> str:
    return f"{model['name']} {model['version']}"


def _percent(value: float | None) -> str:
    return _plain(None if value is None else 100 * value)


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}".replace("-0.0", "0.0")


def _pair(spread: Mapping[str, float | None], factor: float = 1) -> str:
    mean, sd = spread["mean"], spread["sd"]
    if mean is None:
        return "-"
    return _plain(factor * mean) + ("" if sd is None else f" ± {factor * sd:.1f}")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first `left` columns stand to the left."""
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _flow(text: str) -> str:
    """One line of a text that is broken only for its source."""
    return " ".join(text.split())


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
