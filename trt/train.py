"""Train PENN: `python -m trt.train --data DIR --out DIR`; an hour on one core of a CPU.

Killed at any moment and started again with the same words, the run goes on from its last checkpoint and ends with the
weights that it would have had. On several GPUs: `torchrun --nproc-per-node N -m trt.train ...`, --batch being that of
each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from trt.checkpoint import checkpoint_steps, lineage, load_checkpoint
from trt.dataset import Case, DatasetError, Split, make_split, read_folder, read_split, write_split
from trt.penn import PennConfig
from trt.recipes import LABELS, PLAIN_UNET, RATES, TrainConfig
from trt.renditions import Mixture
from trt.trainer import Diverged, Run, Step, agreed, prepare, time_per_step
from trt.watch import Watch

HELD_BACK = 6  # patients
CURVE = 10  # steps between two points


class Optimiser(StrEnum):
    """How weights follow gradients."""

    SGD = "sgd"
    ADAMW = "adamw"


def main(
    data: Annotated[Path, typer.Option(help="Folder of npz files, NIfTI pairs, or DICOM series with DICOM SEG.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoint.pt, split.json and the curves.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of the whole run.")] = TrainConfig.steps,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="As many steps as this takes, by a short trial, instead.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws weights, patches, renditions and augmentation.")] = 0,
    label: Annotated[list[str] | None, typer.Option(help="Name of mask value 1, then of 2, ...")] = None,
    pixels: Annotated[
        tuple[float, float], typer.Option(metavar="Y X", help="Pixels to train on, in mm; other slices are resampled.")
    ] = TrainConfig.pixels,
    split: Annotated[Path | None, typer.Option(help="split.json to keep to; drawn if not given.")] = None,
    split_seed: Annotated[int, typer.Option(min=0, help="Draws the patients held back.")] = 1,
    held_back: Annotated[int, typer.Option(min=1, help="Patients held back for trt.evaluate.")] = HELD_BACK,
    watch: Annotated[int, typer.Option(min=0, help="Patients of the others kept for curves and early stopping.")] = 0,
    watch_every: Annotated[int, typer.Option(min=1, help="Epochs between two looks at them.")] = 5,
    patience: Annotated[int, typer.Option(min=0, help="Looks without a better one that end the run; 0: none.")] = 0,
    epoch: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = TrainConfig.epoch,
    batch: Annotated[int, typer.Option(min=1, help="Patches at each step, in every process.")] = TrainConfig.batch,
    start: Annotated[
        Path | None,
        typer.Option(help="Checkpoint of another run to begin with; give --pretrain 0 too."),
    ] = None,
    optimiser: Annotated[Optimiser, typer.Option(help="sgd: Nesterov, polynomial decay.")] = Optimiser.SGD,
    learning_rate: Annotated[float | None, typer.Option(min=1e-6, help="One that suits it, if not given.")] = None,
    pretrain: Annotated[float, typer.Option(min=0, max=0.9, help="Share of steps.")] = TrainConfig.pretrain,
    balanced: Annotated[bool, typer.Option(help="Draw patches by label.")] = True,
    contrasts: Annotated[bool, typer.Option(help="Show other contrasts too.")] = True,
    lesions: Annotated[
        float, typer.Option(min=0, max=1, help="Share of series with simulated ones.")
    ] = Mixture.lesions,
    channels: Annotated[int, typer.Option(help="Neighbouring slices; 1: plain 2-D.")] = PennConfig.channels,
    width: Annotated[int, typer.Option(min=1, help="Feature maps at full size.")] = PennConfig.width,
    plain_unet: Annotated[
        bool,
        typer.Option(
            "--plain-unet",
            help="The plain U-Net that PENN is compared with: AdamW at its own rate, one slice, no pre-training.",
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    bf16: Annotated[bool, typer.Option(help="Train in bfloat16: twice as fast where the processor knows it.")] = True,
) -> None:
    """Train PENN; split, checkpoint and curves are written to OUT."""
    console = Console()
    label = label or list(LABELS)
    try:
        if patience and not watch:
            raise DatasetError("--patience needs patients to look at; give --watch too")
        config = TrainConfig(
            network=PennConfig(channels=channels, classes=len(label) + 1, width=width, side_heads=2),
            batch=batch,
            steps=steps,
            epoch=epoch,
            optimiser=optimiser.value,
            learning_rate=learning_rate or RATES[optimiser.value][0],
            weight_decay=RATES[optimiser.value][1],
            balanced=balanced,
            pretrain=pretrain,
            mixture=Mixture(lesions=lesions) if contrasts else Mixture(0, 0, lesions),
            seed=seed,
            bf16=bf16,
            labels=tuple(label),
            pixels=pixels,
        )
        if plain_unet:
            network = replace(PLAIN_UNET.network, classes=len(label) + 1, width=width)
            kept = {
                name: getattr(config, name) for name in ("batch", "steps", "epoch", "seed", "bf16", "labels", "pixels")
            }
            mixture = replace(PLAIN_UNET.mixture, lesions=lesions) if contrasts else config.mixture
            config = replace(PLAIN_UNET, network=network, mixture=mixture, **kept)
        first = None
        if start is not None:
            first, earlier, done = load_checkpoint(start)
            config = replace(config, start=lineage(earlier, done, start))
        cases = read_folder(data, len(label), names=label, pixels=pixels)
        people = read_split(split) if split else make_split({c.patient for c in cases}, held_back, split_seed)
        trained, watched = _divide(cases, people, watch)
        out.mkdir(parents=True, exist_ok=True)
    except (DatasetError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    except OSError as error:
        raise typer.BadParameter(f"{out}: no folder to write to: {error}") from error
    with _team(device) as place:
        checkpoint = out / "checkpoint.pt"
        try:
            if minutes:
                begun = checkpoint.exists()
                known = checkpoint_steps(checkpoint) if begun else 60 * minutes / time_per_step(trained, config, place)
                config = replace(config, steps=max(1, int(agreed(known))))
            run = Run(trained, config, place, first)
            if checkpoint.exists():
                run.restore(checkpoint)
        except DatasetError as error:
            raise typer.BadParameter(str(error)) from error
        if run.rank == 0:
            write_split(people, out / "split.json")
            count, names = (
                len({case.patient for case in trained}),
                ", ".join(sorted({case.patient for case in watched})),
            )
            console.print(
                f"{count} patient{'s' if count > 1 else ''} to train on; held back: {', '.join(people.validation)}"
                + (f"; watched: {names}" if names else "")
            )
            console.print(f"{config.steps} steps on {place}, {run.epoch * config.epoch} of them done")
        try:
            _train(run, Watch(watched, label, watch_every, patience), out, console)
        except Diverged as error:
            console.print(f"[bold]{error}[/bold]")
            raise typer.Exit(1) from error


def _divide(cases: Sequence[Case], split: Split, watch: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Cases to train on and cases to watch, normalised; those held back are in neither."""
    there = {case.patient for case in cases}
    missing, unused = sorted(set(split.train) - there), sorted(there - set(split.train) - set(split.validation))
    if missing or unused:
        raise DatasetError(
            f"the split is of other data: to train on, but not there: {', '.join(missing) or 'none'}; "
            f"there, but not in the split: {', '.join(unused) or 'none'}"
        )
    people = list(split.train)
    if watch >= len(people):
        raise DatasetError(f"cannot watch {watch} of {len(people)} patients; at least one must be left to train on")
    watched = {people[round(n * len(people) / watch)] for n in range(watch)}
    chosen = prepare([case for case in cases if case.patient in people])
    return (
        tuple(case for case in chosen if case.patient not in watched),
        tuple(case for case in chosen if case.patient in watched),
    )


@contextmanager
def _team(device: str) -> Iterator[str]:
    """The device of this process; under torchrun, all processes train one network together."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device is to be had here; give --device cpu, or leave it at auto")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        torch.distributed.destroy_process_group()


def _train(run: Run, watch: Watch, out: Path, console: Console) -> None:
    """Epoch by epoch to the end, or until the patients watched become no better."""
    first = run.rank == 0
    columns = (TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.3f}"), BarColumn(), TimeRemainingColumn())
    written = run.epoch * run.config.epoch
    with (
        SummaryWriter(str(out / "curves"), purge_step=written + 1) if first else nullcontext() as curves,
        Progress(*columns, console=console, disable=not (first and console.is_terminal)) as progress,
    ):
        bar = progress.add_task("train", total=1.0, step=0, loss=math.nan)
        while run.epoch < run.epochs and not watch.exhausted(run.scores):
            losses: list[float] = []

            def report(at: Step, losses: list[float] = losses) -> None:
                losses.append(at.loss)
                progress.update(bar, completed=at.fraction, step=at.step, loss=at.loss)
                if curves and at.step % CURVE == 0:
                    name = "loss/restoring" if at.pretraining else "loss/labels"
                    curves.add_scalar(name, sum(losses[-CURVE:]) / len(losses[-CURVE:]), at.step)
                    curves.add_scalar("learning rate", at.learning_rate, at.step)

            run.train(report)
            done = min(run.epoch * run.config.epoch, run.config.steps)
            if watch.due(run):
                values = watch.look(run)
                for name, value in values.items():
                    if curves:
                        curves.add_scalar(f"Dice/{name}", value, done)
            if first:
                if watch.due(run) and watch.best(run):
                    run.save(out / "best.pt")  # before the checkpoint: a run killed in between looks again
                run.save(out / "checkpoint.pt")
                if not console.is_terminal:
                    console.print(f"step {done} of {run.config.steps}  loss {sum(losses) / len(losses):.4f}")
    if first:
        console.print(f"export {out / ('best.pt' if run.scores else 'checkpoint.pt')}")


if __name__ == "__main__":
    typer.run(main)
