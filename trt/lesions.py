"""Simulated gadolinium-enhancing spinal tumours, put into sagittal spine MR volumes whose mask is known.

Shapes, places and signal are drawn after the radiology of spinal tumours by compartment: intramedullary, intradural
extramedullary, epidural, and of the vertebral body. No tumour of a patient is in them, and a figure measured on them
is to be called simulated. Volumes and masks are (Z, Y, X): Z across the patient, Y from superior to inferior, X from
anterior to posterior; lengths are in mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trt.lesion_shapes import (
    CANAL,
    DISC,
    REACH,
    TUMOUR,
    VERTEBRA,
    VOXELS,
    Canal,
    Image,
    Kind,
    Mask,
    Spacing,
    cut_off,
    distance,
    draw_shape,
    find_canal,
    find_place,
    make_site,
    measure_diameter,
)
from trt.lesion_signal import Weighting, paint, push_aside

__all__ = ["TUMOUR", "Kind", "Lesion", "Lesioned", "Weighting", "insert_lesions"]

DIAMETER = (3.0, 40.0)  # mm, shortest and longest of a lesion
GAP = 6.0  # mm of other tissue between two lesions, at least
ATTEMPTS = 6  # at finding a place for a lesion

SIZES = {  # mm, shortest and longest that are drawn
    Kind.INTRAMEDULLARY: (6, 38),
    Kind.INTRADURAL: (3.5, 22),
    Kind.VERTEBRAL: (5, 36),
    Kind.EPIDURAL: (14, 38),
}


@dataclass(frozen=True)
class Lesion:
    """One simulated tumour, as marked: `voxels` of the mask, `centre` (z, y, x) the one nearest their mean.

    `diameter_mm` is the distance of its farthest two voxel centres and one pixel. `rim`: a wall that enhances about a
    core; `necrotic`: a core or a cyst, which is marked as tumour too.
    """

    kind: Kind
    rim: bool
    necrotic: bool
    diameter_mm: float
    centre: tuple[int, int, int]
    voxels: int


@dataclass(frozen=True)
class Lesioned:
    """`image` and `mask` (Z, Y, X) with `lesions` in them, marked `TUMOUR`; image values may leave 0..1 a little."""

    image: Image
    mask: Mask
    lesions: tuple[Lesion, ...]


def insert_lesions(
    image: Image,
    mask: Mask,
    spacing: Spacing,
    random: np.random.Generator,
    *,
    count: int,
    weighting: Weighting,
    kinds: Sequence[Kind] = tuple(Kind),
) -> Lesioned:
    """Put up to `count` simulated tumours into copies of `image` (Z, Y, X) float32, about 0..1, and `mask` uint8.

    `mask` is 0 background, 1 vertebra, 2 spinal canal, 3 intervertebral disc; `spacing` is (z, y, x) in mm. Lesions
    are of 3 to 40 mm, of `kinds` by even chance, and at least 6 mm apart. One that finds no place, as in a canal that
    is not there, is left out. Equal generators draw equal lesions. Raises `ValueError` for other shapes, dtypes,
    labels, spacings or counts.
    """
    _check(image, mask, spacing, count, kinds)
    image, mask = image.copy(), mask.copy()
    lesions: list[Lesion] = []
    if count:
        canal = find_canal(mask, spacing)
        for _ in range(count):
            kind = kinds[int(random.integers(len(kinds)))]
            for _ in range(ATTEMPTS):
                lesion = _insert(image, mask, spacing, canal, kind, weighting, random)
                if lesion is not None:
                    lesions.append(lesion)
                    break
    return Lesioned(image, mask, tuple(lesions))


def _check(image: Image, mask: Mask, spacing: Sequence[float], count: int, kinds: Sequence[Kind]) -> None:
    if image.ndim != 3 or image.size == 0 or image.dtype.name != "float32":
        raise ValueError(f"image must be (Z, Y, X) float32 and not empty, not {image.shape} {image.dtype}")
    if mask.shape != image.shape or mask.dtype.name != "uint8":
        raise ValueError(f"mask must be uint8 of the image's shape {image.shape}, not {mask.shape} {mask.dtype}")
    if mask.max() > DISC:
        raise ValueError(f"mask must be of 0..{DISC}, found {mask.max()}")
    if len(spacing) != 3 or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(f"spacing must be three positive lengths in mm, not {spacing}")
    if count < 0 or not kinds:
        raise ValueError(f"count must be 0 or more and kinds not empty, not {count} and {tuple(kinds)}")


def _insert(
    image: Image,
    mask: Mask,
    spacing: Spacing,
    canal: Canal,
    kind: Kind,
    weighting: Weighting,
    random: np.random.Generator,
) -> Lesion | None:
    """Draw a lesion and put it into `image` and `mask`; None, and nothing changed, where it does not fit."""
    shortest, longest = SIZES[kind]
    size = float(np.exp(random.uniform(math.log(shortest), math.log(longest))))
    breaks = kind is Kind.VERTEBRAL and size > 12 and random.random() < 0.45  # through the cortex, towards the canal
    place = find_place(mask, spacing, canal, kind, size, breaks, random)
    if place is None:
        return None
    reach = (0.95 if kind is Kind.INTRADURAL else 0.68) * size + REACH + 1
    site = make_site(image, mask, spacing, canal, place, reach)
    inside = draw_shape(site, canal, kind, place, size, breaks, random)
    voxels = np.argwhere(inside)
    diameter = measure_diameter(inside, spacing)
    if len(voxels) < VOXELS or cut_off(site, voxels, mask.shape) or not DIAMETER[0] <= diameter <= DIAMETER[1]:
        return None
    others = site.mask == TUMOUR
    if others.any() and float(distance(~others, spacing)[inside].min()) < GAP:
        return None
    host = VERTEBRA if kind is Kind.VERTEBRAL else CANAL
    push_aside(site, inside, random)
    rim, necrotic = paint(site, inside, host, diameter, weighting, random)
    site.mask[inside] = TUMOUR
    middle = voxels[np.argmin((((voxels - voxels.mean(axis=0)) * spacing) ** 2).sum(axis=1))]
    z, y, x = (int(index) + part.start for index, part in zip(middle, site.box, strict=True))
    return Lesion(kind, rim, necrotic, diameter, (z, y, x), len(voxels))
