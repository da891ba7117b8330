"""Train PENN on a folder of npz series: `python -m trt.train --data DIR --out DIR`; 20 minutes, on two CPU cores.

With `--steps` the run is fixed by the seed (on one kind of machine and number of threads), as long as the time limit
does not end it. Without, the learning rate follows the clock: the same patches in the same order, but as many as time
allows.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional

from trt.augment import augment, margin
from trt.dataset import IGNORED, Case, DatasetError, Sampler, make_split, read_folder, write_split
from trt.manifest import Normalisation
from trt.patches import normalise
from trt.penn import Penn, PennConfig

NORMALISATION = Normalisation(low=0.5, high=99.5, clip=(0.0, 1.0))
HELD_BACK = 6  # patients


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the run ends at `steps` or after `minutes`, whichever comes first."""

    network: PennConfig = field(default_factory=PennConfig)
    patch: int = 128  # pixels, both sides
    batch: int = 12
    learning_rate: float = 2e-3  # falls to zero along a cosine, after a warm-up
    warm_up: int = 50  # steps
    weight_decay: float = 1e-2
    decay: float = 0.995  # of the moving average of the weights, which is what is kept
    minutes: float = 20.0
    steps: int | None = None
    seed: int = 0
    bf16: bool = True  # convolutions in bfloat16; weights, losses and averages stay float32


@dataclass(frozen=True)
class Step:
    """Where a run stands. `fraction` 0..1 is the share done of the steps, or of the time where no steps are given."""

    step: int
    fraction: float
    loss: float
    seconds: float


def dice_and_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice over the foreground classes of the batch, plus cross-entropy; (N, K, H, W) and (N, H, W) int64."""
    entropy = functional.cross_entropy(logits, target, ignore_index=IGNORED)
    known = target != IGNORED  # (N, H, W)
    probability = logits.softmax(1)[:, 1:] * known[:, None]  # (N, K - 1, H, W)
    classes = torch.arange(1, logits.shape[1])[None, :, None, None]
    truth = (target[:, None] == classes).to(probability.dtype)  # (N, K - 1, H, W)
    overlap = (probability * truth).sum((0, 2, 3))  # (K - 1)
    total = probability.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    return entropy + 1 - ((2 * overlap + 1) / (total + 1)).mean()


def learning_rate(config: TrainConfig, step: int, fraction: float) -> float:
    """Rises over the warm-up, then falls along a cosine to zero at the end of the run."""
    return config.learning_rate * min(1.0, (step + 1) / config.warm_up) * 0.5 * (1 + math.cos(math.pi * fraction))


def train(
    cases: Sequence[Case],
    config: TrainConfig,
    report: Callable[[Step], None] = lambda step: None,
    keep: Callable[[Penn, int], None] = lambda network, step: None,
) -> tuple[Penn, int]:
    """Train on normalised `cases`; the averaged network in evaluation mode and the steps it took.

    `report` is told of every step; `keep` is given the network about once a minute.
    """
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    network = Penn(config.network).to(memory_format=torch.channels_last)
    average: Penn = copy.deepcopy(network).eval()
    labels = config.network.classes - 1
    sampler = Sampler(cases, labels, config.network.channels, config.patch, margin(config.patch), config.seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    began, step, fraction, seconds, kept = time.monotonic(), 0, 0.0, 0.0, 0.0
    while fraction < 1 and seconds < 60 * config.minutes:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step, fraction)
        images, masks = (torch.from_numpy(array) for array in sampler.draw(config.batch))
        patches, target = augment(images, masks, config.patch, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            logits = network(patches.contiguous(memory_format=torch.channels_last))
        loss = dice_and_cross_entropy(logits.float(), target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        step += 1
        _follow(average, network, min(config.decay, step / (step + 10)))
        seconds = time.monotonic() - began
        fraction = min(step / config.steps if config.steps else seconds / (60 * config.minutes), 1.0)
        report(Step(step, fraction, loss.item(), seconds))
        if seconds - kept > 60:
            kept = seconds
            keep(average, step)
    return average, step


def _follow(average: Penn, network: Penn, decay: float) -> None:
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if kept.dtype.is_floating_point:
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def prepare(cases: Sequence[Case]) -> tuple[Case, ...]:
    """The cases with their images normalised as the manifest will say."""
    return tuple(replace(case, image=normalise(case.image, NORMALISATION)) for case in cases)


def save(network: Penn, config: TrainConfig, step: int, path: Path) -> None:
    """Write weights and the configuration that made them; whole or not at all."""
    document: dict[str, Any] = {"config": asdict(config), "steps": step, "weights": network.state_dict()}
    partial = path.with_suffix(".partial")
    torch.save(document, partial)
    partial.replace(path)


def load_checkpoint(path: Path) -> tuple[Penn, TrainConfig, int]:
    """The network in evaluation mode, its configuration and the number of steps it was trained for."""
    document = torch.load(path, weights_only=True)
    fields = dict(document["config"])
    config = TrainConfig(**{**fields, "network": PennConfig(**fields["network"])})
    network = Penn(config.network)
    network.load_state_dict(document["weights"])
    return network.eval(), config, int(document["steps"])


def main(
    data: Annotated[Path, typer.Option(help="Folder of npz files with image and mask.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoint.pt and split.json.")],
    minutes: Annotated[float, typer.Option(help="Time limit.")] = TrainConfig.minutes,
    steps: Annotated[int | None, typer.Option(help="End after so many steps; makes the run reproducible.")] = None,
    seed: Annotated[int, typer.Option(help="Draws split, weights, patches and augmentation.")] = 0,
    bf16: Annotated[bool, typer.Option(help="Train in bfloat16: twice as fast where the CPU knows it.")] = True,
) -> None:
    """Train PENN; the split by patient and the weights are written to OUT."""
    console = Console()
    config = TrainConfig(minutes=minutes, steps=steps, seed=seed, bf16=bf16)
    labels = config.network.classes - 1
    try:
        cases = read_folder(data, labels)
        split = make_split((case.patient for case in cases), HELD_BACK, seed)
    except DatasetError as error:
        raise typer.BadParameter(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    write_split(split, out / "split.json")
    console.print(f"{len(split.train)} patients to train on, held back: {', '.join(split.validation)}")
    chosen = prepare([case for case in cases if case.patient in split.train])
    with Progress(
        TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.3f}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("train", total=1.0, step=0, loss=math.nan)
        recent: list[float] = []

        def report(at: Step) -> None:
            recent.append(at.loss)
            if at.step % 50 == 0 or at.fraction >= 1:
                loss = sum(recent) / len(recent)
                recent.clear()
                progress.update(task, completed=at.fraction, step=at.step, loss=loss)
                if not console.is_terminal:
                    console.print(f"step {at.step}  {at.fraction:.1%}  loss {loss:.4f}  {at.seconds:.0f} s")

        checkpoint = out / "checkpoint.pt"
        network, done = train(chosen, config, report, lambda average, step: save(average, config, step, checkpoint))
    save(network, config, done, checkpoint)
    console.print(f"wrote {checkpoint}")


if __name__ == "__main__":
    typer.run(main)
