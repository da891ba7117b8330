"""How a network is trained, and the recipes that are compared: PENN with all its parts, and a plain U-Net."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from trt.manifest import Normalisation
from trt.penn import PennConfig
from trt.renditions import Mixture
from trt.sources import PIXELS

NORMALISATION = Normalisation(low=0.5, high=99.5, clip=(0.0, 1.0))
LABELS = ("vertebra", "spinal canal", "intervertebral disc", "neoplasm")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Each part of the method is a switch, so that what it brings can be measured."""

    network: PennConfig = field(default_factory=PennConfig)
    patch: int = 128  # pixels, both sides
    batch: int = 12  # patches, in every process
    steps: int = 8_000
    epoch: int = 100  # steps between two checkpoints
    optimiser: Literal["sgd", "adamw"] = "sgd"  # sgd: Nesterov momentum and polynomial decay, the "enhanced SGD"
    learning_rate: float = 0.05
    warm_up: int = 100  # steps
    weight_decay: float = 1e-4
    clip: float = 5.0  # largest norm of the gradients
    average: float = 0.998  # decay of the moving average of the weights, which is what is kept; 0: none
    balanced: bool = True  # patches drawn by label (PE), else anywhere
    pretrain: float = 0.1  # share of the steps spent on restoring spoilt patches
    mixture: Mixture = field(default_factory=Mixture)
    seed: int = 0
    bf16: bool = True  # convolutions in bfloat16; weights, losses and averages stay float32
    labels: tuple[str, ...] = LABELS  # names of mask values 1, 2, ...
    pixels: tuple[float, float] = PIXELS  # mm (y, x), of the slices that are trained on
    start: str = ""  # how the weights it begins with were trained; empty: drawn by the seed

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


RATES = {"sgd": (TrainConfig.learning_rate, TrainConfig.weight_decay), "adamw": (2e-3, 1e-2)}
"""Learning rate and weight decay that suit each optimiser."""

PENN = TrainConfig(network=PennConfig(classes=len(LABELS) + 1, side_heads=2))

ADAMW = replace(PENN, optimiser="adamw", learning_rate=RATES["adamw"][0], weight_decay=RATES["adamw"][1])

PLAIN_UNET = replace(
    ADAMW,
    network=replace(PENN.network, channels=1, side_heads=0),
    balanced=False,
    pretrain=0.0,
    average=0.0,
    mixture=Mixture(t1_like=0.5, synthetic=0.0),
)
"""A U-Net of the same width and depth, trained as one usually is: single slices, patches from anywhere, AdamW with a
cosine. It is shown T1-like series and simulated lesions too, without which it could not be judged on them."""
