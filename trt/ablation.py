"""What each part of the method brings: `python -m trt.ablation --data DIR --out DIR`, a table with seeds and spread.

Every row is the whole recipe with one part left out, at the same number of steps of the same size, trained on the same
patients and judged on those held back. Runs that are done lie in OUT and are not repeated, so a killed table goes on.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from trt.contrast import invert, t1_like
from trt.dataset import Case, DatasetError, make_split, read_folder, read_split
from trt.lesions import Weighting, insert_lesions
from trt.penn import PennConfig
from trt.renditions import Mixture
from trt.train import HELD_BACK, LABELS, RATES
from trt.trainer import TrainConfig, prepare, train
from trt.validation import score

WHOLE = TrainConfig(network=PennConfig(classes=len(LABELS) + 1, side_heads=2))
ADAMW = replace(WHOLE, optimiser="adamw", learning_rate=RATES["adamw"][0], weight_decay=RATES["adamw"][1])

ROWS: dict[str, TrainConfig] = {
    "PENN, all parts": WHOLE,
    "patches anywhere, not balanced by label": replace(WHOLE, balanced=False),
    "no pre-training": replace(WHOLE, pretrain=0.0),
    "AdamW, cosine": ADAMW,
    "2-D, no neighbouring slices": replace(WHOLE, network=replace(WHOLE.network, channels=1)),
    "no synthetic contrast": replace(WHOLE, mixture=Mixture(t1_like=0.5, synthetic=0.0)),
    "acquired contrast only": replace(WHOLE, mixture=Mixture(t1_like=0.0, synthetic=0.0)),
    "no deep supervision": replace(WHOLE, network=replace(WHOLE.network, side_heads=0)),
    "no average of weights": replace(WHOLE, average=0.0),
    "no skips (encoder and decoder only)": replace(WHOLE, network=replace(WHOLE.network, skips=False)),
    "plain U-Net": replace(
        ADAMW,
        network=replace(WHOLE.network, channels=1, side_heads=0),
        balanced=False,
        pretrain=0.0,
        average=0.0,
        mixture=Mixture(t1_like=0.5, synthetic=0.0),
    ),
}

COLUMNS = ("vertebra", "spinal canal", "intervertebral disc", "inverted", "T1-like", "simulated tumour")
"""Dice on patients held back: by label as acquired, of all anatomy in other contrasts, and of simulated tumours."""


def judge(network: Any, cases: Sequence[Case]) -> dict[str, float]:
    """The figures of `COLUMNS` for a trained network on normalised cases."""
    anatomy = score(network, cases)[:3]
    inverted = score(network, [replace(case, image=invert(case.image)) for case in cases])[:3]
    plain = score(network, prepare([replace(case, image=t1_like(case.image, case.mask)) for case in cases]))[:3]
    tumours = score(network, [_with_lesions(number, case) for number, case in enumerate(cases)])[3]
    return dict(zip(COLUMNS, [*anatomy, statistics.fmean(inverted), statistics.fmean(plain), tumours], strict=True))


def _with_lesions(number: int, case: Case) -> Case:
    random = np.random.default_rng(number)
    drawn = insert_lesions(
        t1_like(case.image, case.mask), case.mask, case.spacing, random, count=2, weighting=Weighting.T1_GADOLINIUM
    )
    return prepare([replace(case, image=drawn.image, mask=drawn.mask)])[0]


def run(name: str, config: TrainConfig, trained: Sequence[Case], held_back: Sequence[Case], path: Path) -> None:
    """Train and judge one row with one seed, on one thread; the figures are written to `path`."""
    torch.set_num_threads(1)
    figures = judge(train(trained, config), held_back)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"row": name, "seed": config.seed, "steps": config.steps, "dice": figures}))
    partial.replace(path)


def table(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each name: every seed's figures, their mean, and their standard deviation (None of one seed)."""
    rows = []
    for name in dict.fromkeys(result["row"] for result in results):
        seeds = {str(result["seed"]): result["dice"] for result in results if result["row"] == name}
        columns = {column: [figures[column] for figures in seeds.values()] for column in COLUMNS}
        rows.append(
            {
                "row": name,
                "seeds": seeds,
                "mean": {column: round(statistics.fmean(values), 4) for column, values in columns.items()},
                "sd": {
                    column: round(statistics.stdev(values), 4) if len(values) > 1 else None
                    for column, values in columns.items()
                },
            }
        )
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, mean ± standard deviation over seeds."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * len(COLUMNS) + "|"]
    for row in rows:
        cells = [
            f"{row['mean'][column]:.3f}" + (f" ± {row['sd'][column]:.3f}" if row["sd"][column] is not None else "")
            for column in COLUMNS
        ]
        lines.append(f"| {row['row']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Option(help="Folder of the series.")],
    out: Annotated[Path, typer.Option(help="Folder for the figures of each run and for ablation.json.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of every run.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Patches at each step.")] = 6,
    seed: Annotated[list[int], typer.Option(help="Once for each.")] = [0, 1, 2],  # noqa: B006 - never changed
    split: Annotated[Path | None, typer.Option(help="split.json to keep to; drawn if not given.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only rows that begin so.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, on one core each.")] = 1,
) -> None:
    """Train every row with every seed, judge it on the patients held back, and print the table."""
    try:
        cases = read_folder(data, len(LABELS), names=LABELS)
        people = read_split(split) if split else make_split({case.patient for case in cases}, HELD_BACK, 1)
    except DatasetError as error:
        raise typer.BadParameter(str(error)) from error
    chosen = {name: config for name, config in ROWS.items() if not row or name.startswith(tuple(row))}
    prepared = prepare(cases)
    trained = [case for case in prepared if case.patient in people.train]
    judged = [case for case in prepared if case.patient in people.validation]
    out.mkdir(parents=True, exist_ok=True)
    epoch = min(TrainConfig.epoch, max(1, steps // 10))
    results = []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        under_way = []
        for number in seed:  # every row with the first seed first: an early table is a whole one
            for name, config in chosen.items():
                path = out / f"{'-'.join(name.replace(',', '').split())}-{steps}x{batch}-{number}.json"
                results.append(path)
                if not path.exists():
                    settings = replace(config, steps=steps, batch=batch, epoch=epoch, seed=number)
                    under_way.append(pool.submit(run, name, settings, trained, judged, path))
        for future in under_way:
            future.result()
    rows = table([json.loads(path.read_text(encoding="utf-8")) for path in results])
    document = {"steps": steps, "batch": batch, "patients held back": list(people.validation), "rows": rows}
    (out / "ablation.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    Console().print(markdown(rows), soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
