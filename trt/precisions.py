"""What each precision costs in Dice, and what it saves: `python -m trt.precisions --data DIR`; --record for the card.

The model runs in every precision that the CPU and its files offer, by the road that serves, on the same trials of the
patients held back: as acquired, inverted, T1-like, and, where it marks tumours, with **simulated** ones as T1 after
gadolinium would show them. Each is set beside float32, series by series. Precisions take turns on every trial, and the
cost is in CPU seconds, so that what else the machine does falls on none of them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from trt.candidates import Candidate, open_precisions
from trt.card import PRECISIONS_FILE, CardError, precision_table, write_figures
from trt.dataset import DatasetError, Mask, read_held_back
from trt.engine import EngineError, Precision, cores
from trt.lesions import Weighting
from trt.manifest import DEFAULT_MODEL, Manifest, ManifestError, load
from trt.metrics import spread
from trt.scores import NEOPLASM, Score, knows_tumours, measure, summary
from trt.trials import Plan, Rendering, plan

REFERENCE: Precision = "f32"


@dataclass(frozen=True)
class Outcome:
    """One trial in one precision: its score, and the shares of voxels, 0..1, that are labelled as in float32.

    `alike` of all voxels; `marked_alike` of those that either of the two marks, NaN where neither marks any.
    """

    score: Score
    cpu_s: float  # from image to mask, of all threads
    alike: float
    marked_alike: float


def try_all(plans: Sequence[Plan], candidates: Mapping[Precision, Candidate]) -> dict[Precision, list[Outcome]]:
    """The outcomes of every candidate, float32 among them, on every trial; a terminal is shown the progress."""
    outcomes: dict[Precision, list[Outcome]] = {precision: [] for precision in candidates}
    console = Console(stderr=True)
    for candidate in candidates.values():  # the first run of a shape makes its kernels
        candidate.segment(plans[0].build())
    for planned in track(plans, "trials", console=console, disable=not console.is_terminal):
        trial = planned.build()
        masks: dict[Precision, Mask] = {}
        seconds: dict[Precision, float] = {}
        for precision, candidate in candidates.items():
            began = time.process_time()
            masks[precision], _ = candidate.segment(trial)
            seconds[precision] = time.process_time() - began
        for precision, candidate in candidates.items():
            manifest, found, wanted = candidate.manifest, masks[precision], masks[REFERENCE]
            score = measure(
                trial,
                found,
                manifest.labels,
                patch=manifest.patch,
                patches=2,
                seconds=seconds[precision],
                surfaces=False,
            )
            outcomes[precision].append(Outcome(score, seconds[precision], *agreement(found, wanted)))
    return outcomes


def agreement(found: Mask, wanted: Mask) -> tuple[float, float]:
    """The share of voxels with one label in both masks, and of those that either marks, NaN where neither marks any."""
    same, marked = found == wanted, (found > 0) | (wanted > 0)
    return float(same.mean()), float(same[marked].mean()) if marked.any() else math.nan


def rows(outcomes: Mapping[Precision, Sequence[Outcome]], manifest: Manifest) -> list[dict[str, Any]]:
    """One row for each precision, as JSON holds it: Dice 0..1, null where there is none; see `row_of`."""
    return [row_of(precision, some, outcomes[REFERENCE], manifest) for precision, some in outcomes.items()]


def row_of(
    precision: Precision, outcomes: Sequence[Outcome], reference: Sequence[Outcome], manifest: Manifest
) -> dict[str, Any]:
    """The figures of one precision beside those of float32 on the same trials.

    `lost` is what mean Dice lacks to float32's over the series as acquired, `worst_lost` that of the series which lacks
    most; negative where there is more. `renderings` are mean Dice over anatomy and series, tumours left out.
    """
    figures = summary([outcome.score for outcome in outcomes], manifest.labels)
    real = [
        (ours, theirs)
        for ours, theirs in zip(outcomes, reference, strict=True)
        if ours.score.rendering is Rendering.ACQUIRED
    ]
    lost = spread((theirs.score.mean_dice - ours.score.mean_dice for ours, theirs in real), max)
    names = [label.name for label in manifest.labels if label.name != NEOPLASM]
    return {
        "precision": precision,
        "dice": {name: figures["labels"][name]["dice"]["mean"] for name in names},
        "mean": figures["mean_dice"]["mean"],
        "lost": _number(lost.mean),
        "worst_lost": _number(lost.worst),
        "renderings": {
            group: _number(spread(some[name] for name in names if some[name] is not None).mean)
            for group, some in figures["renderings"].items()
            if group != Rendering.ACQUIRED
        },
        "tumours": {
            group: {"dice": some["label"]["dice"]["mean"], "found": some["found"], "lesions": some["lesions"]}
            for group, some in figures.get("tumour", {}).items()
            if some["lesions"]
        },
        "false_per_real_series": figures.get("tumour", {}).get(str(Rendering.ACQUIRED), {}).get("false_per_series"),
        "alike": _number(spread(ours.alike for ours, _ in real).mean),
        "marked_alike": _number(spread(ours.marked_alike for ours, _ in real).mean),
        "least_marked_alike": _number(spread(outcome.marked_alike for outcome in outcomes).worst),
        "cpu_s": round(spread(ours.cpu_s for ours, _ in real).mean, 3),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)


def main(
    data: Annotated[Path, typer.Option(help="Folder of the series and their masks.")],
    model: Annotated[str, typer.Option(help="Name or folder of the model; split.json beside it.")] = DEFAULT_MODEL,
    simulated: Annotated[int, typer.Option(min=0, help="Series with lesions, and as many without, per patient.")] = 4,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    record: Annotated[bool, typer.Option(help=f"Write {PRECISIONS_FILE} and MODEL_CARD.md of the model.")] = False,
) -> None:
    """Dice, agreement with float32 and CPU seconds of each precision, on the patients held back."""
    with ExitStack() as stack:
        try:
            manifest = load(model)
            cases = read_held_back(data, manifest)
            candidates = open_precisions(stack, manifest, threads, lambda text: typer.echo(text, err=True))
        except (ManifestError, DatasetError, EngineError) as error:
            raise typer.BadParameter(str(error)) from error
        each = simulated if knows_tumours(manifest.labels) else 0
        outcomes = try_all(plan(cases, each, (Weighting.T1_GADOLINIUM,)), candidates)
    report = {
        "sha256": manifest.digest,
        "int8_sha256": manifest.quantised.digest if manifest.quantised else None,
        "patients": sorted({case.patient for case in cases}),
        "simulated_per_patient": each,
        "threads": threads or cores(),
        "rows": rows(outcomes, manifest),
    }
    typer.echo(json.dumps(report, indent=1) if as_json else precision_table(report))
    if record:
        try:
            write_figures(manifest, PRECISIONS_FILE, report)
        except CardError as error:
            raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(main)
