"""What each part of the method brings: `python -m trt.ablation --data DIR --out DIR`, a table with seeds and spread.

Every row is the whole recipe with one part left out, at the same number of steps of the same size, trained on the same
patients and judged on those held back. Runs that are done lie in OUT and are not repeated, so a killed table goes on;
runs of other settings, data or patients held back are.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from trt.contrast import invert, t1_like
from trt.dataset import Case, DatasetError, make_split, read_folder, read_split
from trt.lesions import Weighting, insert_lesions
from trt.penn import Penn
from trt.recipes import ADAMW, LABELS, PENN, PLAIN_UNET, TrainConfig
from trt.renditions import Mixture
from trt.train import HELD_BACK
from trt.trainer import fingerprint, prepare, train
from trt.validation import score

ROWS: dict[str, TrainConfig] = {
    "PENN, all parts": PENN,
    "patches anywhere, not balanced by label": replace(PENN, balanced=False),
    "no pre-training": replace(PENN, pretrain=0.0),
    "AdamW, cosine": ADAMW,
    "2-D, no neighbouring slices": replace(PENN, network=replace(PENN.network, channels=1)),
    "no synthetic contrast": replace(PENN, mixture=Mixture(t1_like=0.5, synthetic=0.0)),
    "acquired contrast only": replace(PENN, mixture=Mixture(t1_like=0.0, synthetic=0.0)),
    "no deep supervision": replace(PENN, network=replace(PENN.network, side_heads=0)),
    "no average of weights": replace(PENN, average=0.0),
    "no skips (encoder and decoder only)": replace(PENN, network=replace(PENN.network, skips=False)),
    "half as wide": replace(PENN, network=replace(PENN.network, width=PENN.network.width // 2)),
    "half as wide again": replace(PENN, network=replace(PENN.network, width=PENN.network.width * 3 // 2)),
    "plain U-Net": PLAIN_UNET,
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


def patch_ms(network: Penn, config: TrainConfig, rounds: int = 15) -> float:
    """Milliseconds of one CPU core that a patch takes, the least of several batches; to be compared with other rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for one another, and their waiting counts as work
    patches = torch.rand(config.batch, network.config.channels, config.patch, config.patch)
    patches = patches.contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(rounds):
        began = time.process_time()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            network(patches)
        times.append(time.process_time() - began)
    torch.set_num_threads(threads)
    return 1000 * min(times) / config.batch


def _with_lesions(number: int, case: Case) -> Case:
    random = np.random.default_rng(number)
    drawn = insert_lesions(
        t1_like(case.image, case.mask), case.mask, case.spacing, random, count=2, weighting=Weighting.T1_GADOLINIUM
    )
    return prepare([replace(case, image=drawn.image, mask=drawn.mask)])[0]


def basis(trained: Sequence[Case], held_back: Sequence[Case]) -> dict[str, Any]:
    """What the figures of any run on these cases hang on, besides its settings."""
    split = {"train": trained, "held back": held_back}
    return {
        "data": fingerprint([*trained, *held_back]),
        "split": {side: sorted({case.patient for case in cases}) for side, cases in split.items()},
    }


def settled(path: Path, config: TrainConfig, ground: Mapping[str, Any]) -> bool:
    """Whether `path` holds the figures of a run with these settings and this `basis`."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    wanted = json.loads(json.dumps({"config": asdict(config), **ground}))
    return isinstance(known, dict) and all(known.get(key) == value for key, value in wanted.items())


def run(
    name: str,
    config: TrainConfig,
    trained: Sequence[Case],
    held_back: Sequence[Case],
    ground: Mapping[str, Any],
    path: Path,
) -> None:
    """Train and judge one row with one seed, on one thread; figures, null where there is none, go to `path`."""
    torch.set_num_threads(1)
    network = train(trained, config)
    figures = judge(network, held_back)
    document = {
        "row": name,
        "seed": config.seed,
        "steps": config.steps,
        "config": asdict(config),
        **ground,
        "dice": {column: None if math.isnan(value) else value for column, value in figures.items()},
        "patch_ms": patch_ms(network, config),
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
    partial.replace(path)


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however that was ended."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def table(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each name: every seed's figures, their mean, and their standard deviation (None of one seed).

    `patch_ms` is the median over the seeds.

    A figure that a seed lacks (None) is left out; the mean of none is None.
    """
    rows = []
    for name in dict.fromkeys(result["row"] for result in results):
        seeds = {
            str(result["seed"]): {column: value for column, value in result["dice"].items() if value is not None}
            for result in results
            if result["row"] == name
        }
        costs = [result["patch_ms"] for result in results if result["row"] == name]
        columns = {column: [figures[column] for figures in seeds.values() if column in figures] for column in COLUMNS}
        rows.append(
            {
                "row": name,
                "seeds": seeds,
                "patch_ms": round(statistics.median(costs), 2),
                "mean": {
                    column: round(statistics.fmean(values), 4) if values else None for column, values in columns.items()
                },
                "sd": {
                    column: round(statistics.stdev(values), 4) if len(values) > 1 else None
                    for column, values in columns.items()
                },
            }
        )
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, mean ± standard deviation over seeds; - where no seed has a figure."""
    head = [*COLUMNS, "ms a patch, one core"]
    lines = ["| | " + " | ".join(head) + " |", "|---" + "|---:" * len(head) + "|"]
    for row in rows:
        cells = [_cell(row["mean"][column], row["sd"][column]) for column in COLUMNS]
        lines.append(f"| {row['row']} | " + " | ".join([*cells, f"{row['patch_ms']:.1f}"]) + " |")
    return "\n".join(lines)


def _cell(mean: float | None, sd: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.3f}" + ("" if sd is None else f" ± {sd:.3f}")


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
    console = Console()
    try:
        cases = read_folder(data, len(LABELS), names=LABELS)
        people = read_split(split) if split else make_split({case.patient for case in cases}, HELD_BACK, 1)
        prepared = prepare(cases)
        trained = [case for case in prepared if case.patient in people.train]
        judged = [case for case in prepared if case.patient in people.validation]
        for some, what in ((trained, "trained on"), (judged, "held back")):
            if not some:
                raise DatasetError(
                    f"{data}: holds no patient that the split has as {what}; give the split of this data"
                )
    except DatasetError as error:
        raise typer.BadParameter(str(error)) from error
    chosen = {name: config for name, config in ROWS.items() if not row or name.startswith(tuple(row))}
    ground = basis(trained, judged)
    out.mkdir(parents=True, exist_ok=True)
    epoch = min(TrainConfig.epoch, max(1, steps // 10))
    results = []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=end_with_parent) as pool:
        under_way = []
        for number in seed:  # every row with the first seed first: an early table is a whole one
            for name, config in chosen.items():
                path = out / f"{'-'.join(name.replace(',', '').split())}-{steps}x{batch}-{number}.json"
                results.append(path)
                settings = replace(config, steps=steps, batch=batch, epoch=epoch, seed=number)
                if path.exists() and settled(path, settings, ground):
                    continue
                if path.exists():
                    console.print(f"{path.name}: of other settings, data or patients; done again", soft_wrap=True)
                    path.unlink()
                under_way.append(pool.submit(run, name, settings, trained, judged, ground, path))
        for future in under_way:
            future.result()
    rows = table([json.loads(path.read_text(encoding="utf-8")) for path in results])
    document = {"steps": steps, "batch": batch, "patients held back": ground["split"]["held back"], "rows": rows}
    (out / "ablation.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    console.print(markdown(rows), soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
