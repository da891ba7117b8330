"""Augmentation of training patches: what scanners, coils and postures vary, so that the network does not learn them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SCALE = 1.25  # in-plane zoom, drawn from 1/SCALE..SCALE
ROTATION = math.radians(15)


def margin(patch: int) -> int:
    """Side of the crop, in pixels, from which every rotated and scaled patch of side `patch` can be cut."""
    return 2 * math.ceil(patch * SCALE * (math.cos(ROTATION) + math.sin(ROTATION)) / 2)


def augment(images: Tensor, masks: Tensor, patch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches from crops: (N, C, S, S) float32 in 0..1 and (N, S, S) uint8 to sides of `patch`, masks as int64."""
    images, masks = deform(images, masks, patch, generator)
    flipped = torch.rand(len(images), generator=generator) < 0.5  # left for right: the order of the slices
    images[flipped] = images[flipped].flip(1)
    return recolour(images, generator), masks


def deform(images: Tensor, masks: Tensor, patch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rotate and scale in the plane; images bilinear, masks nearest."""
    count, size = len(images), images.shape[-1]
    draw = torch.rand(3, count, generator=generator) * 2 - 1  # (3, N), -1..1
    angle = torch.where(torch.rand(count, generator=generator) < 0.7, draw[0] * ROTATION, 0.0)
    height = SCALE ** draw[1]
    width = height * 1.1 ** draw[2]  # a little anisotropy
    width = width.clamp(1 / SCALE, SCALE)
    cosine, sine, zero = angle.cos() * patch / size, angle.sin() * patch / size, torch.zeros(count)
    rows = (cosine * width, -sine * height, zero, sine * width, cosine * height, zero)
    theta = torch.stack(rows, dim=1).reshape(count, 2, 3)  # (N, 2, 3), x before y
    grid = functional.affine_grid(theta, [count, 1, patch, patch], align_corners=False)  # (N, patch, patch, 2)
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    moved = functional.grid_sample(
        masks[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False
    )
    return images, moved[:, 0].long()


def recolour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Vary contrast, gamma, coil sensitivity, resolution and noise; (N, C, H, W) in 0..1 and back."""
    count, _, height, width = images.shape

    def uniform(low: float, high: float, probability: float, neutral: float) -> Tensor:
        value = torch.rand(count, generator=generator) * (high - low) + low
        used = torch.rand(count, generator=generator) < probability
        return torch.where(used, value, neutral)[:, None, None, None]  # (N, 1, 1, 1)

    images = images * uniform(math.log(0.6), math.log(1.7), 0.7, 0.0).exp() + uniform(-0.05, 0.08, 0.4, 0.0)
    images = images.clamp(1e-4, 1.0) ** uniform(math.log(0.6), math.log(1.6), 0.6, 0.0).exp()
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None, :]
    waves = torch.stack([(y + 0 * x), (x + 0 * y), y * x, y * y + 0 * x, x * x + 0 * y])  # (5, H, W)
    weights = torch.randn(count, 5, generator=generator) * 0.25
    weights[torch.rand(count, generator=generator) < 0.4] = 0.0
    images = images * torch.einsum("nk,khw->nhw", weights, waves).exp()[:, None]
    blurred = torch.rand(count, generator=generator) < 0.25
    if bool(blurred.any()):
        factor = 1 + float(torch.rand(1, generator=generator))
        small = functional.interpolate(images[blurred], scale_factor=1 / factor, mode="bilinear", antialias=True)
        images[blurred] = functional.interpolate(small, size=(height, width), mode="bilinear")
    noise = torch.randn(images.shape, generator=generator) * uniform(0.0, 0.07, 0.5, 0.0)
    return (images + noise).clamp(0.0, 1.0)
