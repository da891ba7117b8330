"""What extraction, patch size and overlap cost, and what they are worth: `python -m trt.pareto --data DIR`.

Every combination segments every patient held back, in turn, and its cost is in CPU seconds, so that what else the
machine does falls on none of them. Prints one table as Markdown, or JSON; --record puts it into the model's card.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from trt.candidates import Candidate, open_precisions
from trt.card import PARETO_FILE, CardError, pareto_table, write_figures
from trt.dataset import Case, DatasetError, read_held_back
from trt.decision import decide
from trt.engine import EngineError, Precision
from trt.extraction import Extraction, select
from trt.fitting import fit
from trt.manifest import DEFAULT_MODEL, ManifestError, load
from trt.metrics import dice
from trt.patches import normalise

OVERLAPS = (0.0, 0.125, 0.25, 0.5)
EXTRACTIONS: tuple[Extraction, ...] = ("all", "tissue", "spine")

Choice: TypeAlias = tuple[Extraction, float, bool, Precision]
"""Where the model runs, the overlap, whether patches are fitted, and what it calculates in."""


@dataclass(frozen=True)
class Trial:
    """One series at one choice. `dice` by label name, NaN where the truth holds none; `kept` of the foreground, 0..1.

    Patches were the model's own, or `fitted` to the series; `pixels` of all of them were run.

    `cpu_s`, of all threads, run from the normalised volume to the mask; `select_s` of them before the first patch.
    """

    patient: str
    extraction: Extraction
    overlap: float
    fitted: bool
    precision: Precision
    patches: int
    pixels: int
    cpu_s: float
    select_s: float
    kept: float
    dice: dict[str, float]


@dataclass(frozen=True)
class Row:
    """A choice over all series: means, but `kept`, which is the worst patient's."""

    extraction: Extraction
    overlap: float
    fitted: bool
    precision: Precision
    patches: float
    pixels: float
    cpu_s: float
    select_s: float
    kept: float
    dice: dict[str, float]
    mean: float


def attempt(case: Case, candidate: Candidate, choice: Choice) -> Trial:
    """Segment a case, on the model's grid, and judge it."""
    extraction, overlap, fitted, precision = choice
    manifest = candidate.manifest
    image = normalise(case.image, manifest.normalisation)
    began = time.process_time()
    region = select(image, manifest, extraction, candidate.finder).region
    selected = time.process_time()
    found = fit(image.shape, region, manifest, flexible=fitted, overlap=overlap)
    slices = found.slices(image, candidate.predict, manifest, region)
    mask = decide(slices, image.shape, manifest.labels, math.prod(case.spacing))
    ended = time.process_time()
    spine = case.mask > 0
    inside = spine if region is None else spine & region
    return Trial(
        patient=case.name,
        extraction=extraction,
        overlap=overlap,
        fitted=fitted,
        precision=precision,
        patches=found.patches,
        pixels=found.pixels,
        cpu_s=ended - began,
        select_s=selected - began,
        kept=float(inside.sum() / spine.sum()) if spine.any() else 1.0,
        dice={
            label.name: dice(mask, case.mask, label.value) if (case.mask == label.value).any() else math.nan
            for label in manifest.labels
        },
    )


def summarise(trials: Iterable[Trial]) -> list[Row]:
    """One row for each choice, in the order in which they first come."""
    choices: dict[Choice, list[Trial]] = {}
    for trial in trials:
        choice = (trial.extraction, trial.overlap, trial.fitted, trial.precision)
        choices.setdefault(choice, []).append(trial)
    return [_row(group) for group in choices.values()]


def _row(trials: Sequence[Trial]) -> Row:
    columns = {name: [trial.dice[name] for trial in trials] for name in trials[0].dice}
    known = {name: [value for value in column if not math.isnan(value)] for name, column in columns.items()}
    means = {name: statistics.fmean(column) for name, column in known.items() if column}
    return Row(
        extraction=trials[0].extraction,
        overlap=trials[0].overlap,
        fitted=trials[0].fitted,
        precision=trials[0].precision,
        patches=statistics.fmean(trial.patches for trial in trials),
        pixels=statistics.fmean(trial.pixels for trial in trials),
        cpu_s=statistics.fmean(trial.cpu_s for trial in trials),
        select_s=statistics.fmean(trial.select_s for trial in trials),
        kept=min(trial.kept for trial in trials),
        dice=means,
        mean=statistics.fmean(means.values()) if means else math.nan,
    )


def main(
    data: Annotated[Path, typer.Option(help="Folder of series with image and mask.")],
    model: Annotated[str, typer.Option(help="Name or folder of the model; split.json beside it.")] = DEFAULT_MODEL,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, every series in it.")] = False,
    record: Annotated[bool, typer.Option(help=f"Write {PARETO_FILE} and MODEL_CARD.md of the model.")] = False,
) -> None:
    """Patches, CPU seconds, Dice and share kept for every choice of patches, on the patients held back."""
    with ExitStack() as stack:
        try:
            manifest = load(model)
            cases = read_held_back(data, manifest)
            candidates = open_precisions(stack, manifest, threads, lambda text: typer.echo(text, err=True))
        except (ManifestError, DatasetError, EngineError) as error:
            raise typer.BadParameter(str(error)) from error
        wanted = EXTRACTIONS if manifest.finder is not None else EXTRACTIONS[:-1]
        choices: list[Choice] = list(product(wanted, OVERLAPS, (False,), ("f32",)))
        if candidates["f32"].flexible:
            choices += product(wanted, (manifest.overlap,), (True,), candidates)
        trials = [attempt(case, candidates[choice[3]], choice) for case in cases for choice in choices]
    rows = summarise(trials)
    figures = {"sha256": manifest.digest, "series": len(cases), "rows": [asdict(row) for row in rows]}
    if record:
        try:
            write_figures(manifest, PARETO_FILE, figures)
        except CardError as error:
            raise typer.BadParameter(str(error)) from error
    if as_json:
        report = {"model": f"{manifest.name} {manifest.version}", "rows": rows, "trials": trials}
        typer.echo(json.dumps(report, indent=1, default=asdict))
    else:
        typer.echo(pareto_table(figures))


if __name__ == "__main__":
    typer.run(main)
