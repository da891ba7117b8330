"""Augmentation of training patches: what scanners, coils and postures vary, so that the network does not learn them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from trt.dataset import IGNORED
from trt.sampler import Place

SCALE = 1.25  # in-plane zoom, drawn from 1/SCALE..SCALE
ROTATION = math.radians(15)


def cut(places: Sequence[Place], patch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Augmented patches (N, C, patch, patch) float32 in 0..1 and their masks (N, patch, patch) int64."""
    images, masks = deform(places, patch, generator)
    flipped = torch.rand(len(images), generator=generator) < 0.5  # left for right: the order of the slices
    images[flipped] = images[flipped].flip(1)
    return recolour(images, generator), masks


def deform(places: Sequence[Place], patch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut patches out of their slices, turned and scaled in the plane; images bilinear, masks nearest.

    Over the edge of the slice the image repeats its edge and the mask is IGNORED.
    """
    count = len(places)
    draw = torch.rand(3, count, generator=generator) * 2 - 1  # (3, N), -1..1
    angle = torch.where(torch.rand(count, generator=generator) < 0.7, draw[0] * ROTATION, 0.0)
    height = SCALE ** draw[1]
    width = (height * 1.1 ** draw[2]).clamp(1 / SCALE, SCALE)  # a little anisotropy
    steps = torch.arange(patch) - (patch - 1) / 2  # pixels from the middle of the patch
    images = torch.empty(count, len(places[0].slices), patch, patch)
    masks = torch.empty(count, patch, patch, dtype=torch.int64)
    for n, place in enumerate(places):
        cosine, sine = math.cos(angle[n]), math.sin(angle[n])
        down, across = steps[:, None] * height[n], steps[None, :] * width[n]
        y = place.y + cosine * down + sine * across  # (patch, patch), in pixels of the slice
        x = place.x - sine * down + cosine * across
        rows, columns = place.mask.shape
        grid = torch.stack((_unit(x, columns), _unit(y, rows)), dim=-1)[None]  # (1, patch, patch, 2), x before y
        images[n] = functional.grid_sample(
            torch.from_numpy(place.slices)[None], grid, mode="bilinear", padding_mode="border", align_corners=True
        )[0]
        nearest_y, nearest_x = y.round().long(), x.round().long()
        outside = (nearest_y < 0) | (nearest_y >= rows) | (nearest_x < 0) | (nearest_x >= columns)
        at = nearest_y.clamp(0, rows - 1) * columns + nearest_x.clamp(0, columns - 1)
        masks[n] = torch.from_numpy(place.mask).reshape(-1)[at].long()
        masks[n][outside] = IGNORED
    return images, masks


def _unit(pixels: Tensor, length: int) -> Tensor:
    """Pixel numbers as grid_sample counts with aligned corners: -1 at the first, 1 at the last."""
    return pixels * (2 / max(length - 1, 1)) - 1


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
