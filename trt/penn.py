"""PENN: a 2-D convolution-deconvolution network on patches, the whole of it in this file.

PENN here is a reconstruction from the paper's abstract (Chen et al., J Bone Oncol 49:100649, 2024): a convolutional
encoder takes the features of a patch, transposed convolutions restore the feature maps to the patch's own size. Layer
counts, normalisation and skip connections are not documented there; they are this project's choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PennConfig:
    """Every hyper-parameter of the network.

    The sides of a patch must be multiples of `2 ** (levels - 1)`.
    """

    channels: int = 3  # neighbouring slices, the centre slice in the middle
    classes: int = 5  # background, vertebra, spinal canal, intervertebral disc, neoplasm
    width: int = 16  # feature maps at full size, doubled at each level down
    levels: int = 5  # resolutions, full size included
    skips: bool = True  # encoder features handed to the decoder; the abstract does not say
    side_heads: int = 0  # coarser decoder levels that are supervised too, in training only

    def __post_init__(self) -> None:
        if self.channels < 1 or self.channels % 2 == 0:
            raise ValueError(f"channels must be odd and positive, not {self.channels}")
        if not 0 <= self.side_heads < max(self.levels - 1, 1):
            raise ValueError(f"side_heads must be in 0..{max(self.levels - 2, 0)}, not {self.side_heads}")
        if min(self.classes - 1, self.width, self.levels) < 1:
            raise ValueError("classes must be at least 2, width and levels at least 1")

    @property
    def stride(self) -> int:
        """The number every side of a patch must be a multiple of."""
        return 1 << (self.levels - 1)


def convolve(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch normalisation (folded into it on export) and ReLU."""
    layers: list[nn.Module] = []
    for source in (inputs, outputs):
        layers += [nn.Conv2d(source, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Penn(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Patches (N, C, H, W) float32, about 0..1, to logits (N, K, H, W) float32; class 0 is background."""

    def __init__(self, config: PennConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PennConfig()
        widths = [config.width * 2**level for level in range(config.levels)]
        deeper = list(pairwise(widths))
        self.encoder = nn.ModuleList([convolve(config.channels, widths[0])])
        self.encoder.extend(convolve(fine, coarse) for fine, coarse in deeper)
        self.pool = nn.MaxPool2d(2)
        self.deconvolution = nn.ModuleList(nn.ConvTranspose2d(c, f, 2, stride=2) for f, c in reversed(deeper))
        self.decoder = nn.ModuleList(convolve(f * 2 if config.skips else f, f) for f, _ in reversed(deeper))
        self.head = nn.Conv2d(widths[0], config.classes, 1)
        self.side = nn.ModuleList(nn.Conv2d(w, config.classes, 1) for w in widths[1 : config.side_heads + 1])

    def forward(self, patches: Tensor) -> Tensor:
        """Logits of a batch of patches; both sides must be multiples of `config.stride`."""
        return self.head(self.features(patches)[-1])  # (N, K, H, W)

    def pyramid(self, patches: Tensor) -> list[Tensor]:
        """Logits at full size, then of each side head at a half, a quarter, ... of it; for training."""
        features = self.features(patches)
        sides = (head(features[-2 - level]) for level, head in enumerate(self.side))  # (N, K, H / 2^l, W / 2^l)
        return [self.head(features[-1]), *sides]

    def features(self, patches: Tensor) -> list[Tensor]:
        """Feature maps of every level of the decoder, the finest last: (N, width, H, W)."""
        features = patches  # (N, C, H, W)
        kept: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            features = block(features if level == 0 else self.pool(features))  # (N, width * 2^l, H / 2^l, W / 2^l)
            kept.append(features)
        restored = [kept.pop()]
        for deconvolve, block in zip(self.deconvolution, self.decoder, strict=True):
            features = deconvolve(features)  # (N, width * 2^l, H / 2^l, W / 2^l), one level up
            if self.config.skips:
                features = torch.cat((kept.pop(), features), dim=1)  # twice the maps
            features = block(features)  # (N, width * 2^l, H / 2^l, W / 2^l)
            restored.append(features)
        return restored
