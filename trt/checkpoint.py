"""What a run leaves on disk: its configuration, its weights, and all it needs to go on."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from trt.dataset import DatasetError
from trt.manifest import sha256
from trt.penn import Penn, PennConfig
from trt.recipes import TrainConfig
from trt.renditions import Mixture

KEPT = frozenset({"config", "data", "processes", "epoch", "scores", "weights", "parts", "optimiser"})

# What torch's reader meets in a damaged file, it raises.
DAMAGE = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, UnpicklingError)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `Run.save` wrote. Raises `DatasetError` for a file that is none, or of another version."""
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
    document = read_checkpoint(path)
    fields = dict(document["config"])
    parts = {"network": PennConfig(**fields["network"]), "mixture": Mixture(**fields["mixture"])}
    config = TrainConfig(**{**fields, **parts})
    epochs, epoch = -(-config.steps // config.epoch), int(document["epoch"])
    if epoch <= min(round(epochs * config.pretrain), epochs - 1):
        raise DatasetError(f"{path}: has not learnt any labels yet; let the run go on")
    network = Penn(config.network)
    network.load_state_dict(document["weights"])
    return network.eval(), config, min(epoch * config.epoch, config.steps)


def lineage(config: TrainConfig, steps: int, path: Path) -> str:
    """How the weights of a checkpoint came to be, in one line: every run that led to them, and the file's sha256."""
    before = f"{config.start}; then " if config.start else ""
    mixture = config.mixture
    return (
        f"{before}{steps} steps of {config.batch} patches with seed {config.seed}, pre-training {config.pretrain:.0%}, "
        f"{config.optimiser} at {config.learning_rate:g}, renditions "
        f"{mixture.t1_like:.0%} T1-like, {mixture.synthetic:.0%} synthetic, {mixture.lesions:.0%} with lesions "
        f"(sha256 {sha256(path)[:12]})"
    )


def checkpoint_steps(path: Path) -> int:
    """Steps that the run of a checkpoint takes in all."""
    return int(read_checkpoint(path)["config"]["steps"])
