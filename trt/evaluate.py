"""Judge a model on patients held back from training: `python -m trt.evaluate --data DIR`.

Runs the ONNX file by way of `trt.engine` and `trt.patches`, the road that serves, and prints 3-D Dice per patient:
whole series, averaged over patients. Figures on balanced patches or on training patients flatter and are not given.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from trt.dataset import Case, DatasetError, Mask, read_folder, read_split
from trt.engine import EngineError, open_engine
from trt.manifest import DEFAULT_MODEL, MAX_OVERLAP, Label, Manifest, ManifestError, load
from trt.patches import Predict, normalise, predict_slices


@dataclass(frozen=True)
class Score:
    """One series: Dice 0..1 by label value, NaN where neither mask holds the label; `seconds` from image to mask."""

    name: str
    dice: dict[int, float]
    seconds: float


def segment(
    image: NDArray[np.generic], manifest: Manifest, predict: Predict, *, overlap: float | None = None, batch: int = 8
) -> Mask:
    """Label values (Z, Y, X) uint8 of an image (Z, Y, X) on the model's grid, any real dtype and unit."""
    mask = np.empty(image.shape, np.uint8)
    slices = predict_slices(
        normalise(image, manifest.normalisation),
        predict,
        patch=manifest.patch,
        channels=manifest.channels,
        overlap=manifest.overlap if overlap is None else overlap,
        batch=batch,
    )
    for z, logits in slices:
        mask[z] = logits.argmax(0)
    return mask


def dice(found: Mask, truth: Mask, label: int) -> float:
    """Twice the overlap over the sum of both sizes; NaN where the label is in neither."""
    found, truth = found == label, truth == label
    total = int(np.count_nonzero(found)) + int(np.count_nonzero(truth))
    return 2 * int(np.count_nonzero(found & truth)) / total if total else float("nan")


def evaluate(
    cases: Sequence[Case],
    manifest: Manifest,
    predict: Predict,
    *,
    overlap: float | None = None,
    batch: int = 8,
) -> tuple[Score, ...]:
    """Score every case."""
    scores = []
    for case in cases:
        began = time.perf_counter()
        found = segment(case.image, manifest, predict, overlap=overlap, batch=batch)
        seconds = time.perf_counter() - began
        values = {label.value: dice(found, case.mask, label.value) for label in manifest.labels}
        scores.append(Score(case.name, values, seconds))
    return tuple(scores)


def summary(scores: Sequence[Score], labels: Sequence[Label]) -> dict[str, Any]:
    """Mean, standard deviation and worst of Dice over series, by label name and over labels ("mean").

    Labels in neither mask are left out; what cannot be told then is None.
    """
    columns = {label.name: [score.dice[label.value] for score in scores] for label in labels}
    present = [[value for value in score.dice.values() if not math.isnan(value)] for score in scores]
    columns["mean"] = [statistics.fmean(values) for values in present if values]
    return {name: _spread([value for value in column if not math.isnan(value)]) for name, column in columns.items()}


def _spread(values: list[float]) -> dict[str, float | None]:
    return {
        "mean": round(statistics.fmean(values), 4) if values else None,
        "sd": round(statistics.stdev(values), 4) if len(values) > 1 else None,
        "worst": round(min(values), 4) if values else None,
    }


def main(
    data: Annotated[Path, typer.Option(help="Folder of npz files.")],
    model: Annotated[str, typer.Option(help="Name or folder of the model.")] = DEFAULT_MODEL,
    backend: Annotated[str, typer.Option(help="Engine to run it on.")] = "openvino",
    precision: Annotated[str, typer.Option(help="f32 or bf16.")] = "f32",
    overlap: Annotated[
        float | None, typer.Option(min=0, max=MAX_OVERLAP, help="Share of a patch; the model's default if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    record: Annotated[bool, typer.Option(help="Write the figures into the model's manifest.")] = False,
) -> None:
    """Dice of the model on the patients of its split that were held back."""
    try:
        manifest = load(model)
        split = read_split(manifest.path.with_name("split.json"))
        cases = read_folder(data, len(manifest.labels), split.validation)
        opened = open_engine(manifest, backend, precision=precision)  # type: ignore[arg-type]  # checked inside
    except (ManifestError, DatasetError, EngineError) as error:
        raise typer.BadParameter(str(error)) from error
    with opened as engine:
        scores, runs = evaluate(cases, manifest, engine, overlap=overlap), engine.describe()
    figures = summary(scores, manifest.labels)
    report = {
        "measure": "3-D Dice per series, over patients held back from training",
        "patients": {
            score.name: {label.name: _rounded(score.dice[label.value]) for label in manifest.labels} for score in scores
        },
        "dice": figures,
        "overlap": manifest.overlap if overlap is None else overlap,
        "engine": f"{runs['backend']} {runs['precision']}",
    }
    if record:
        path = manifest.path.with_name("manifest.json")
        fields = json.loads(path.read_text(encoding="utf-8")) | {"validation": report}
        path.write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    console = Console()
    if as_json:
        seconds = {score.name: round(score.seconds, 3) for score in scores}
        console.print_json(data={"model": f"{manifest.name} {manifest.version}", **report, "seconds": seconds})
    else:
        console.print(_table(scores, manifest, figures))


def _table(scores: Sequence[Score], manifest: Manifest, figures: dict[str, Any]) -> Table:
    table = Table(title=f"{manifest.name} {manifest.version}: 3-D Dice on patients held back")
    for heading in ("patient", *(label.name for label in manifest.labels), "mean", "seconds"):
        table.add_column(heading, justify="left" if heading == "patient" else "right")
    for score in scores:
        values = [score.dice[label.value] for label in manifest.labels]
        table.add_row(score.name, *(f"{v:.3f}" for v in (*values, statistics.fmean(values))), f"{score.seconds:.2f}")
    table.add_section()
    for row in ("mean", "sd", "worst"):
        table.add_row(row, *(_text(column[row]) for column in figures.values()), "")
    return table


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    typer.run(main)
