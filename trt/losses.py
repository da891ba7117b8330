"""What training minimises: Dice and cross-entropy on labels, and the error of pixels restored from spoilt ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trt.dataset import IGNORED

SPOILT = 16  # pixels; side of the blocks that pre-training blanks


def dice_and_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice over the foreground classes of the batch, plus cross-entropy; (N, K, H, W) and (N, H, W) int64."""
    entropy = functional.cross_entropy(logits, target, ignore_index=IGNORED)
    known = target != IGNORED  # (N, H, W)
    probability = logits.softmax(1)[:, 1:] * known[:, None]  # (N, K - 1, H, W)
    classes = torch.arange(1, logits.shape[1], device=logits.device)[None, :, None, None]
    truth = (target[:, None] == classes).to(probability.dtype)  # (N, K - 1, H, W)
    overlap = (probability * truth).sum((0, 2, 3))  # (K - 1)
    total = probability.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    return entropy + 1 - ((2 * overlap + 1) / (total + 1)).mean()


def supervised(pyramid: list[Tensor], target: Tensor) -> Tensor:
    """The loss of every level of `Penn.pyramid`, each coarser one weighing half (deep supervision)."""
    loss = dice_and_cross_entropy(pyramid[0].float(), target)
    for level, logits in enumerate(pyramid[1:], start=1):
        loss = loss + dice_and_cross_entropy(logits.float(), target[:, :: 1 << level, :: 1 << level]) / (1 << level)
    return loss / sum(0.5**level for level in range(len(pyramid)))


def spoil(patches: Tensor, generator: torch.Generator) -> Tensor:
    """Patches (N, C, H, W) with noise all over and a quarter of their blocks blanked, in all channels alike."""
    count, _, height, width = patches.shape
    blank = torch.rand(count, 1, -(-height // SPOILT), -(-width // SPOILT), generator=generator) < 0.25
    blank = blank.repeat_interleave(SPOILT, 2)[:, :, :height].repeat_interleave(SPOILT, 3)[..., :width]
    noise = 0.1 * torch.randn(patches.shape, generator=generator)
    return torch.where(blank.to(patches.device), 0.0, patches + noise.to(patches.device))


def restored(found: Tensor, clean: Tensor) -> Tensor:
    """Mean absolute error of restored patches (N, C, H, W) against the clean ones."""
    return functional.l1_loss(found.float(), clean)
