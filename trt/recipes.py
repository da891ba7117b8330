"""The recipes that are compared: PENN with all its parts, and the plain U-Net it is to be better than."""

from __future__ import annotations

from dataclasses import replace

from trt.penn import PennConfig
from trt.renditions import Mixture
from trt.trainer import LABELS, TrainConfig

RATES = {"sgd": (TrainConfig.learning_rate, TrainConfig.weight_decay), "adamw": (2e-3, 1e-2)}
"""Learning rate and weight decay that suit each optimiser."""

PENN = TrainConfig(network=PennConfig(classes=len(LABELS) + 1, side_heads=2))

ADAMW = replace(PENN, optimiser="adamw", learning_rate=RATES["adamw"][0], weight_decay=RATES["adamw"][1])

PLAIN_UNET = replace(
    ADAMW,
    network=replace(PENN.network, channels=1, side_heads=0),
    balanced=False,
    pretrain=0.0,
    settle=0.0,
    average=0.0,
    mixture=Mixture(t1_like=0.25, synthetic=0.0),
)
"""A U-Net of the same width and depth, trained as one usually is: single slices, patches from anywhere, AdamW with a
cosine. It is shown T1-like series and simulated lesions too, without which it could not be judged on them."""
