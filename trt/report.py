"""The figures of `trt.evaluate` as tables in Markdown: on the screen, in a file, in the model card.

Every table says over what it averages, and calls simulated what is. Nothing is calculated here: a cell is a figure of
the report, in % where it is a share, or "-" where it is undefined or the model lacks the label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from trt.markdown import flow, join, pair, percent, plain, table
from trt.metrics import FIGURES, TOLERANCE_MM
from trt.paper import SHORT, named, paper_table
from trt.trials import FROM_TRUTH, Rendering

Report: TypeAlias = Mapping[str, Any]
"""What `trt.evaluate --json` writes."""

FIGURES_FILE = "figures.json"
NOTICE = "**For research, not for diagnosis.**"
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
    return f"{named(report['models'][0])} on {people} {SCORED[report['scored']]}"


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


def series_table(report: Report) -> str:
    """The six figures of the spine against the background, each series of real images as acquired weighing the same."""
    rows = []
    for model in report["models"]:
        series = model["figures"]["series"]
        for row, words in (("mean", "mean"), ("sd", "sd"), ("worst", "worst")):
            rows.append([named(model), words, *(percent(series[name][row]) for name in FIGURES)])
    return join(
        flow("""Series as acquired, all labels together against the background, every pixel of the series; in %,
        averaged over series, each weighing the same (F1 from the averaged precision and recall)."""),
        table(["model", "over series", *(SHORT[name] for name in FIGURES)], rows, left=2),
    )


def label_table(report: Report) -> str:
    """Dice, surface Dice, 95 % Hausdorff distance and volume error per series, label by label."""
    rows = []
    for model in report["models"]:
        for label, figures in model["figures"]["labels"].items():
            rows.append([label, named(model), *_label_cells(figures)])
    groups = list(_holding(report))
    for group, model, figures in groups:
        rows.append([f"tumour, {_simulated(group)}", named(model), *_label_cells(figures["label"])])
        rows.append([f"the same, all lesions at least 8 mm, {_simulated(group)}", named(model)])
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
    return join(
        flow(f"""Per series, mean ± sd over series; tissue of series as acquired, tumour of series that hold a lesion.
        Surface Dice is the share of both surfaces that lies within {TOLERANCE_MM:g} mm of the other.
        HD95 is the larger of both directions' 95th percentiles; volume error is signed, its worst the one farthest from
        0. Left out: series where HD95 is undefined, the label being absent from truth or result.
        {FROM_TRUTH if any(group != Rendering.ACQUIRED for group, _, _ in groups) else ""}"""),
        table(head, rows, left=2),
    )


def patient_table(report: Report) -> str:
    """Dice of every series as acquired, of the first model."""
    model = report["models"][0]
    labels = list(model["figures"]["labels"])
    rows = [
        [entry["name"], *(percent((entry["labels"].get(name) or {}).get("dice")) for name in labels)]
        for entry in model["series"]
        if entry["group"] == Rendering.ACQUIRED
    ]
    return join(f"3-D Dice in %, real series as acquired, {named(model)}.", table(["series", *labels], rows))


def lesion_table(report: Report) -> str:
    """Sensitivity by size in series that hold lesions, and false lesions in all series."""
    rows = []
    for group, model, figures in _holding(report):
        for each in figures["sizes"]:
            size = f"{each['from_mm']:g} to {each['to_mm']:g} mm"
            rows.append([group, named(model), size, f"{each['found']} of {each['lesions']}"])
            rows[-1].append(percent(each["sensitivity"]))
    false = [
        [
            "as acquired, real" if group == Rendering.ACQUIRED else group,
            named(model),
            str(figures["series"]),
            plain(figures["false_per_series"]),
            str(figures["lesion_free_series"]),
            plain(figures["false_per_lesion_free_series"]),
            str(figures["lesion_free_series_with_false"]),
        ]
        for group, model, figures in _tumours(report)
    ]
    if not false:
        return ""
    rules = report["rules"]
    real = any(group == Rendering.ACQUIRED for group, _, _ in _holding(report))
    return join(
        flow(f"""Simulated series hold lesions of a simulator, drawn into the patients above; the same simulator, with
        other seeds, draws those of training. {"" if real else "**No real tumour is among them.**"} A lesion is found
        when one found component (26-connected) overlaps it by an IoU of at least {rules["found_iou"]:g}; by longest
        diameter, the outer classes taking what is smaller or larger. A found component of
        {rules["min_volume_mm3"]:g} mm³ or more that touches no lesion is false; smaller ones are passed over. Series as
        acquired are the only real ones, and what is falsely found in them weighs most. {FROM_TRUTH}"""),
        table(["series", "model", "longest diameter", "found", "sensitivity %"], rows, left=3) if rows else "",
        table(
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
                cells.append(percent(figures[label]) + change)
            rows.append([group, named(model), str(figures["series"]), *cells])
    return join(
        flow(f"""Mean 3-D Dice over series in %, in brackets the difference to the same patients' series as acquired,
        averaged over patients. Only those are real; the others are calculated from them, and no scanner made them. Half
        of the simulated hold lesions. {FROM_TRUTH}"""),
        table(["rendering", "model", "series", *report["models"][0]["figures"]["labels"]], rows, left=2),
    )


def engine_table(report: Report) -> str:
    """What the figures were measured with."""
    mirror = "yes" if report["rules"]["tta"] else "no"
    rows = [
        [
            named(model),
            model["engine"],
            f"{model['overlap']:g}",
            model["extraction"],
            mirror,
            model["sha256"][:12],
        ]
        for model in report["models"]
    ]
    head = ["model", "engine", "overlap", "runs on", "mirrored too", "sha256 begins"]
    return table(head, rows, left=2)


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
        pair(dice, 100),
        percent(dice["worst"]),
        pair(surface, 100),
        percent(surface["worst"]),
        pair(distance),
        plain(distance["worst"]),
        pair(volume),
        plain(volume["worst"]),
        str(distance["left_out"]),
    ]


def _simulated(group: str) -> str:
    return group.replace(Rendering.SIMULATED, "**simulated**")
