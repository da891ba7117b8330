"""The training loop: a run that can be killed at any moment and, started again, ends with the same weights.

All that is random derives from the seed and the number of the epoch, so a checkpoint needs no state of generators: an
epoch cut short is drawn again as it was.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trt.augment import cut
from trt.dataset import Case, DatasetError
from trt.losses import restored, spoil, supervised
from trt.manifest import Normalisation
from trt.patches import normalise
from trt.penn import Penn, PennConfig
from trt.renditions import Mixture, rendition
from trt.sampler import Sampler
from trt.sources import PIXELS

NORMALISATION = Normalisation(low=0.5, high=99.5, clip=(0.0, 1.0))
LABELS = ("vertebra", "spinal canal", "intervertebral disc", "neoplasm")
REFRESH = 3  # epochs after which a case is shown in another rendition; a third of them changes at each

PATCHES, RENDITIONS = 0, 1  # which of the streams of random numbers


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Each part of the method is a switch, so that what it brings can be measured."""

    network: PennConfig = field(default_factory=PennConfig)
    patch: int = 128  # pixels, both sides
    batch: int = 8  # patches, in every process
    steps: int = 7_000
    epoch: int = 100  # steps between two checkpoints
    optimiser: Literal["sgd", "adamw"] = "sgd"  # sgd: Nesterov momentum and polynomial decay, the "enhanced SGD"
    learning_rate: float = 0.05
    warm_up: int = 100  # steps
    weight_decay: float = 1e-4
    clip: float = 5.0  # largest norm of the gradients
    average: float = 0.998  # decay of the moving average of the weights, which is what is kept; 0: none
    balanced: bool = True  # patches drawn by label (PE), else anywhere
    pretrain: float = 0.05  # share of the steps spent on restoring spoilt patches
    settle: float = 0.4  # share of the steps, at the end, that show more series as they were acquired
    mixture: Mixture = field(default_factory=Mixture)
    seed: int = 0
    bf16: bool = True  # convolutions in bfloat16; weights, losses and averages stay float32
    labels: tuple[str, ...] = LABELS  # names of mask values 1, 2, ...
    pixels: tuple[float, float] = PIXELS  # mm (y, x), of the slices that are trained on
    neighbour_mm: float = 3.6  # across slices, from channel to channel, in use; training draws about it

    def __post_init__(self) -> None:
        if len(self.labels) != self.network.classes - 1:
            raise ValueError(
                f"{self.network.classes - 1} labels are to be told apart, but {len(self.labels)} are named"
            )
        if self.mixture.lesions and self.labels != LABELS:
            raise ValueError(
                f"lesions are drawn where the labels are {', '.join(LABELS)}; with others, give --lesions 0"
            )
        if (self.mixture.t1_like or self.mixture.synthetic) and self.labels[:3] != LABELS[:3]:
            known = ", ".join(LABELS[:3])
            raise ValueError(f"other contrasts are drawn where the labels begin {known}; else give --no-contrasts")


class Diverged(RuntimeError):
    """The weights cannot be trained any further; the last checkpoint is of before."""


@dataclass(frozen=True)
class Step:
    """Where a run stands: steps done, share of all done 0..1, the loss, and the learning rate that made it."""

    step: int
    fraction: float
    loss: float
    learning_rate: float
    pretraining: bool


class Run:
    """One training run over normalised `cases`. `train` goes on from where `state` or `restore` left it."""

    def __init__(self, cases: Sequence[Case], config: TrainConfig, device: str = "cpu") -> None:
        torch.manual_seed(config.seed)
        torch.backends.cudnn.deterministic = True
        self.config, self.device, self.epoch = config, torch.device(device), 0
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        penn = Penn(config.network).to(self.device, memory_format=torch.channels_last)
        head = nn.Conv2d(config.network.width, config.network.channels, 1).to(self.device)
        self.parts = nn.ModuleDict({"penn": penn, "restore": head})
        self.average: Penn = copy.deepcopy(penn).eval()
        self.optimiser = _optimiser(self.parts, config)
        self._cases = list(cases)
        network = config.network
        self._sampler = Sampler(cases, network.classes - 1, network.channels, config.patch, balanced=config.balanced)
        self.scores: list[float] = []  # of patients watched, in order
        self._shown = [-1] * len(self._cases)

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return -(-self.config.steps // self.config.epoch)

    @property
    def pretraining(self) -> int:
        """Epochs of pre-training, at the beginning."""
        return min(round(self.epochs * self.config.pretrain), self.epochs - 1)

    def mixture(self, epoch: int) -> Mixture:
        """What renditions are drawn from that begin with `epoch`: contrasts are learnt first, people's borders last."""
        settling = epoch >= round(self.epochs * (1 - self.config.settle))
        return self.config.mixture.settled if settling else self.config.mixture

    def train(self, report: Callable[[Step], None] = lambda step: None) -> None:
        """One epoch."""
        config, epoch = self.config, self.epoch
        if epoch == self.pretraining and epoch > 0:
            self.optimiser = _optimiser(self.parts, config)  # the moments of another loss are of no use
        random = np.random.default_rng((PATCHES, config.seed, epoch, self.rank))
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        self._render(epoch)
        first = epoch * config.epoch
        for step in range(first, min(first + config.epoch, config.steps)):
            rate = self._learning_rate(step)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            images, masks = cut([self._sampler.draw(random) for _ in range(config.batch)], config.patch, generator)
            loss = self._loss(images, masks, generator)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self._share()
            norm = float(nn.utils.clip_grad_norm_(self.parts.parameters(), config.clip))
            if not math.isfinite(norm):
                raise Diverged(f"gradients are no longer finite at step {step + 1}; try a lower --learning-rate")
            self.optimiser.step()
            self._follow(step)
            done = step + 1
            report(Step(done, done / config.steps, loss.item(), rate, epoch < self.pretraining))
        self.epoch += 1

    def _loss(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
        penn = self.parts["penn"]
        clean = images.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            if self.epoch < self.pretraining:
                return restored(self.parts["restore"](penn.features(spoil(clean, generator))[-1]), clean)
            pyramid = penn.pyramid(clean)
        return supervised(pyramid, masks.to(self.device))

    def _share(self) -> None:
        """Average the gradients over all processes."""
        if self.world == 1:
            return
        for parameter in self.parts.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= self.world

    def _render(self, epoch: int) -> None:
        """Show those cases anew whose turn it is; which rendition, follows from seed, epoch and case alone."""
        for number, case in enumerate(self._cases):
            turn = (epoch + number) // REFRESH
            if turn != self._shown[number]:
                random = np.random.default_rng((RENDITIONS, self.config.seed, turn, number, self.rank))
                mixture = self.mixture(turn * REFRESH - number)  # of its first epoch, wherever a run goes on
                self._sampler.replace(number, rendition(case, mixture, NORMALISATION, random))
                self._shown[number] = turn

    def _learning_rate(self, step: int) -> float:
        config, split = self.config, self.pretraining * self.config.epoch
        first, last = (0, split) if step < split else (split, config.steps)
        fraction = (step - first) / max(last - first, 1)
        decay = (1 - fraction) ** 0.9 if config.optimiser == "sgd" else 0.5 * (1 + math.cos(math.pi * fraction))
        return config.learning_rate * min(1.0, (step - first + 1) / config.warm_up) * decay

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed by the type checker
    def _follow(self, step: int) -> None:
        since = step + 1 - self.pretraining * self.config.epoch
        decay = min(self.config.average, max(since, 0) / (since + 10)) if since > 0 else 0.0
        pairs = zip(self.average.state_dict().values(), self.parts["penn"].state_dict().values(), strict=True)
        for kept, new in pairs:
            if kept.dtype.is_floating_point and decay:
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)

    def save(self, path: Path) -> None:
        """Write the state of the run; whole or not at all, even when the process is killed meanwhile."""
        document: dict[str, Any] = {
            "config": asdict(self.config),
            "data": fingerprint(self._cases),
            "processes": self.world,
            "epoch": self.epoch,
            "scores": self.scores,
            "weights": self.average.state_dict(),
            "parts": self.parts.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(document, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint. Raises `DatasetError` when it is of another run: other settings or other data."""
        document = _load(path)
        mine = {"config": asdict(self.config), "data": fingerprint(self._cases), "processes": self.world}
        for what, named in (("config", "settings"), ("data", "data"), ("processes", "numbers of processes")):
            if document[what] != mine[what]:
                raise DatasetError(f"{path}: is of a run with other {named}; give another --out, or remove the file")
        self.epoch, self.scores = int(document["epoch"]), list(document["scores"])
        self.average.load_state_dict(document["weights"])
        self.parts.load_state_dict(document["parts"])
        self.optimiser.load_state_dict(document["optimiser"])


def _optimiser(parts: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimiser == "adamw":
        return torch.optim.AdamW(parts.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parts.parameters(), lr=config.learning_rate, momentum=0.95, nesterov=True, weight_decay=config.weight_decay
    )


def fingerprint(cases: Sequence[Case]) -> str:
    """sha256 over names, patients, spacing, images and masks."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(f"{case.name} {case.patient} {case.spacing}".encode())
        digest.update(np.ascontiguousarray(case.image).data)
        digest.update(np.ascontiguousarray(case.mask).data)
    return digest.hexdigest()


def train(cases: Sequence[Case], config: TrainConfig, report: Callable[[Step], None] = lambda step: None) -> Penn:
    """A whole run on normalised `cases`, nothing written; the network in evaluation mode."""
    run = Run(cases, config)
    while run.epoch < run.epochs:
        run.train(report)
    return run.average


def prepare(cases: Sequence[Case]) -> tuple[Case, ...]:
    """The cases with their images normalised as the manifest will say."""
    return tuple(replace(case, image=normalise(case.image, NORMALISATION)) for case in cases)


def agreed(value: Any) -> Any:
    """The first process's value, in all of them."""
    if not torch.distributed.is_initialized():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


KEPT = frozenset({"config", "data", "processes", "epoch", "scores", "weights", "parts", "optimiser"})


# What torch's reader meets in a damaged file, it raises.
DAMAGE = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, UnpicklingError)


def _load(path: Path) -> dict[str, Any]:
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise DatasetError(f"{path}: cannot be read as a checkpoint: {error}") from error
    if not isinstance(document, dict) or not set(document) >= KEPT:
        raise DatasetError(f"{path}: is no checkpoint of trt.train, or one of another version")
    return document


def load_checkpoint(path: Path) -> tuple[Penn, TrainConfig, int]:
    """The network in evaluation mode, its configuration and the number of steps it was trained for.

    Raises `DatasetError` for a file that is no checkpoint, and for one that pre-training has not been through with.
    """
    document = _load(path)
    fields = dict(document["config"])
    parts = {"network": PennConfig(**fields["network"]), "mixture": Mixture(**fields["mixture"])}
    config = TrainConfig(**{**fields, **parts})
    epochs, epoch = -(-config.steps // config.epoch), int(document["epoch"])
    if epoch <= min(round(epochs * config.pretrain), epochs - 1):
        raise DatasetError(f"{path}: has not learnt any labels yet; let the run go on")
    network = Penn(config.network)
    network.load_state_dict(document["weights"])
    return network.eval(), config, min(epoch * config.epoch, config.steps)


def checkpoint_steps(path: Path) -> int:
    """Steps that the run of a checkpoint takes in all."""
    return int(_load(path)["config"]["steps"])


def time_per_step(cases: Sequence[Case], config: TrainConfig, device: str, steps: int = 20) -> float:
    """Seconds that one step takes here, measured on a run that is thrown away."""
    run = Run(cases, replace(config, steps=steps, epoch=steps, pretrain=0.0, mixture=Mixture(0, 0, 0)), device)
    began = time.monotonic()
    run.train()
    return (time.monotonic() - began) / steps
