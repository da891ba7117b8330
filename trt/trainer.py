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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trt.augment import cut
from trt.checkpoint import read_checkpoint
from trt.dataset import Case, DatasetError
from trt.losses import restored, spoil, supervised
from trt.patches import normalise
from trt.penn import Penn
from trt.recipes import NORMALISATION, TrainConfig
from trt.renditions import Mixture, rendition
from trt.sampler import Sampler

REFRESH = 3  # epochs after which a case is shown in another rendition; a third of them changes at each

PATCHES, RENDITIONS = 0, 1  # which of the streams of random numbers


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
    """One training run over normalised `cases`. `train` goes on from where `restore` left it.

    `start` gives the weights it begins with, which are drawn by the seed without. Raises `DatasetError` where they are
    of another network than `config` asks for.
    """

    def __init__(
        self, cases: Sequence[Case], config: TrainConfig, device: str = "cpu", start: Penn | None = None
    ) -> None:
        torch.manual_seed(config.seed)
        torch.backends.cudnn.deterministic = True
        self.config, self.device, self.epoch = config, torch.device(device), 0
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        penn = Penn(config.network)
        if start is not None:
            if start.config != config.network:
                raise DatasetError(f"the weights to start with are of {start.config}, asked for is {config.network}")
            penn.load_state_dict(start.state_dict())
        penn = penn.to(self.device, memory_format=torch.channels_last)
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
                self._sampler.replace(number, rendition(case, self.config.mixture, NORMALISATION, random))
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
        document = read_checkpoint(path)
        mine = {"config": asdict(self.config), "data": fingerprint(self._cases), "processes": self.world}
        for what, named in (("config", "settings"), ("data", "data"), ("processes", "numbers of processes")):
            told = {"start": ""} | document[what] if what == "config" else document[what]  # runs of before know none
            if told != mine[what]:
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


def time_per_step(cases: Sequence[Case], config: TrainConfig, device: str, steps: int = 20) -> float:
    """Seconds that one step takes here, measured on a run that is thrown away."""
    run = Run(cases, replace(config, steps=steps, epoch=steps, pretrain=0.0, mixture=Mixture(0, 0, 0)), device)
    began = time.monotonic()
    run.train()
    return (time.monotonic() - began) / steps
