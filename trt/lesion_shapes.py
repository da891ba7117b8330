"""Where a simulated lesion grows and which form it has there, by its compartment.

Volumes are (Z, Y, X) and lengths in mm, as in `trt.lesions`. A place is chosen first, then a box about it, the site,
whose coordinates follow the canal; the form is drawn in these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, gaussian_filter1d, label
from scipy.spatial.distance import pdist

Image: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.uint8]
Where: TypeAlias = NDArray[np.bool_]
Spacing: TypeAlias = tuple[float, float, float]

Place: TypeAlias = tuple[float, float, float]
"""(z, y, x) in voxels of the volume, not always whole."""

VERTEBRA, CANAL, DISC = 1, 2, 3
TUMOUR = 4
"""Value of a mask inside a lesion."""

VOXELS = 8  # at least, of a lesion, and of its core or cyst
REACH = 9.0  # mm about a lesion within which tissue is pushed aside or swollen
UPPER = 0.45  # of the canal's rows: where a lumbar series shows the cord, conus and upper filum


class Kind(StrEnum):
    """The compartment a tumour grows in."""

    INTRAMEDULLARY = "intramedullary"
    INTRADURAL = "intradural-extramedullary"
    VERTEBRAL = "vertebral body"
    EPIDURAL = "epidural"


@dataclass(frozen=True)
class Canal:
    """The spinal canal by row: `rows` (N,) that have one; the others (Y,), mm: its middle, depth, width and slope."""

    rows: NDArray[np.intp]
    z: Image
    x: Image
    depth: Image  # from front to back, square to the canal
    width: Image
    slope: Image  # mm to the back per mm down


@dataclass(frozen=True)
class Site:
    """A box of the volume about a lesion to be: views of image and mask, and coordinates in mm that broadcast.

    `across` (1, Y, X) behind and `aside` (Z, Y, 1) beside the middle of the canal, `along` (1, Y, 1) down it.
    """

    box: tuple[slice, slice, slice]
    spacing: Spacing
    image: Image
    mask: Mask
    aside: Image
    along: Image
    across: Image

    def edge(self) -> tuple[float, float, float]:
        """Sigma in voxels of a border softened by partial volume."""
        return 0.65 * min(self.spacing[1] / self.spacing[0], 1.0), 0.65, 0.65


def find_canal(mask: Mask, spacing: Spacing) -> Canal:
    """The canal of `mask` (Z, Y, X) uint8, smoothed along it; rows that have none are as their neighbours."""
    inside = mask == CANAL
    lines, plane = inside.sum(axis=2), inside.sum(axis=0)  # voxels, (Z, Y) and (Y, X)
    voxels = lines.sum(axis=0)
    rows = np.flatnonzero(voxels)
    every = np.arange(mask.shape[1])

    def by_row(values: NDArray[np.floating]) -> Image:
        if not len(rows):
            return np.zeros(len(every), np.float32)
        filled = np.interp(every, rows, values[rows])
        return gaussian_filter1d(filled, 5.0 / spacing[1]).astype(np.float32)

    weight = np.maximum(voxels, 1)
    x = by_row(plane @ np.arange(mask.shape[2]) / weight * spacing[2])
    slope = np.gradient(x, spacing[1]).astype(np.float32) if len(every) > 1 else np.zeros_like(x)
    return Canal(
        rows,
        by_row(np.arange(mask.shape[0]) @ lines / weight * spacing[0]),
        x,
        np.asarray(by_row(lines.max(axis=0) * spacing[2]) / np.hypot(1, slope), np.float32),
        by_row((lines > 0).sum(axis=0) * spacing[0]),
        slope,
    )


def find_place(
    mask: Mask, spacing: Spacing, canal: Canal, kind: Kind, size: float, breaks: bool, random: np.random.Generator
) -> Place | None:
    """A place in `mask` (Z, Y, X) uint8 for a lesion of `kind`, `size` mm long; None if there is none.

    `breaks`: it is to be near the posterior wall of a vertebra.
    """
    if kind is Kind.VERTEBRAL:
        return _in_vertebra(mask, spacing, canal, size, breaks, random)
    rows = canal.rows[canal.depth[canal.rows] >= 5.0]
    if kind is Kind.INTRAMEDULLARY:
        rows = rows[: math.ceil(UPPER * len(rows))]
    if not len(rows):
        return None
    row = int(random.choice(rows))
    return canal.z[row] / spacing[0], row, canal.x[row] / spacing[2]


def _in_vertebra(
    mask: Mask, spacing: Spacing, canal: Canal, size: float, breaks: bool, random: np.random.Generator
) -> Place | None:
    """A voxel of a vertebra in front of the canal: the deepest in bone of a few, or one near the posterior wall."""
    z, y, x = np.nonzero(mask == VERTEBRA)
    if len(canal.rows):
        front = x * spacing[2] < canal.x[y] - canal.depth[y] / 2
        z, y, x = z[front], y[front], x[front]
    if breaks:
        wall = np.abs(canal.x[y] - canal.depth[y] / 2 - 3 - x * spacing[2] - 0.15 * size) < 2
        wall &= np.abs(canal.z[y] - z * spacing[0]) < 7
        z, y, x = z[wall], y[wall], x[wall]
    if not len(z):
        return None
    best, place = -1.0, None
    for index in random.integers(len(z), size=1 + int(size / 6)):
        about = tuple(
            slice(max(int(at[index] - size / 3 / step), 0), int(at[index] + size / 3 / step) + 1)
            for at, step in zip((z, y, x), spacing, strict=True)
        )
        share = float((mask[about] == VERTEBRA).mean())
        if share > best:
            best, place = share, (float(z[index]), float(y[index]), float(x[index]))
    return place


def make_site(image: Image, mask: Mask, spacing: Spacing, canal: Canal, place: Place, reach: float) -> Site:
    """The box of `image` and `mask` (Z, Y, X) that reaches `reach` mm about `place`, or to the end of the volume."""
    low = [max(int(at - reach / step), 0) for at, step in zip(place, spacing, strict=True)]
    high = [int(at + reach / step) + 2 for at, step in zip(place, spacing, strict=True)]
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    window = image[box]
    z, _, x = (
        (np.arange(length) + start).astype(np.float32) * np.float32(step)
        for length, start, step in zip(window.shape, low, spacing, strict=True)
    )
    slope = canal.slope[box[1]]
    stretch = np.hypot(1, slope).astype(np.float32)
    along = (np.cumsum(stretch) * spacing[1]).astype(np.float32)
    along -= along[int(place[1]) - low[1]]
    across = (x[None, :] - canal.x[box[1], None]) / stretch[:, None]
    aside = z[:, None] - canal.z[None, box[1]]
    return Site(box, spacing, window, mask[box], aside[:, :, None], along[None, :, None], across[None])


def draw_shape(
    site: Site, canal: Canal, kind: Kind, place: Place, size: float, breaks: bool, random: np.random.Generator
) -> Where:
    """A lesion of `kind` at `place`, about `size` mm long: one piece, bool of the site's shape; empty without room.

    `breaks`: it may leave its vertebra through the cortex.
    """
    row = int(place[1])
    depth, width = float(canal.depth[row]), float(canal.width[row])
    if kind is Kind.VERTEBRAL:
        inside = _vertebral(site, place, size, breaks, random)
    elif kind is Kind.EPIDURAL:
        inside = _epidural(site, size, depth, width, random)
    else:
        draw = _intramedullary if kind is Kind.INTRAMEDULLARY else _intradural
        inside = draw(site, size, depth, width, random)
    return _one_piece(site, inside & (site.mask != DISC))


def measure_diameter(inside: Where, spacing: Spacing) -> float:
    """The distance of the farthest two voxel centres of `inside` (Z, Y, X) bool and one pixel, mm."""
    ends = inside.copy()
    for axis in range(3):  # the farthest two are the first or last of their lines along every axis
        before, after = np.cumsum(inside, axis), np.cumsum(np.flip(inside, axis), axis)
        ends &= (before == 1) | (np.flip(after, axis) == 1)
    places = np.argwhere(ends) * np.array(spacing)
    return float(pdist(places).max(initial=0.0)) + spacing[1]


def cut_off(site: Site, voxels: NDArray[np.intp], shape: tuple[int, ...]) -> bool:
    """Whether the box ends, and the volume does not, where the lesion or what it pushes still goes on.

    `voxels` (N, 3) are the lesion's, counted in the box; `shape` (Z, Y, X) is the volume's.
    """
    lengths = zip(voxels.min(axis=0), voxels.max(axis=0), site.box, site.image.shape, shape, site.spacing, strict=True)
    return any(
        (part.start > 0 and low * step < REACH) or (part.stop < whole and (length - 1 - high) * step < REACH)
        for low, high, part, length, whole, step in lengths
    )


def _ellipsoid(site: Site, middle: tuple[float, float, float], half: tuple[float, float, float], power: float) -> Image:
    """0 at the centre, 1 on the surface; `middle` and `half` axes are (aside, along, across) in mm."""
    parts = zip((site.aside, site.along, site.across), middle, half, strict=True)
    z, y, x = (np.abs((axis - np.float32(at)) / np.float32(max(length, 0.5))) ** power for axis, at, length in parts)
    return np.asarray((z + y + x) ** (1 / power), np.float32)


def _intramedullary(site: Site, size: float, depth: float, width: float, random: np.random.Generator) -> Where:
    thick = min(float(random.uniform(0.24, 0.40)) * depth, 0.45 * size)
    wide = min(thick * float(random.uniform(0.9, 1.35)), 0.4 * width)
    radius = _ellipsoid(site, (0, 0, depth * float(random.normal(0.03, 0.04))), (wide, size / 2, thick), 1.8)
    deep = distance(site.mask == CANAL, site.spacing)
    radius += np.float32(0.13) * waves(random, site, max(size / 2, 5))
    return np.asarray((radius < 1) & (deep > 1.2 * site.spacing[2]))


def _intradural(site: Site, size: float, depth: float, width: float, random: np.random.Generator) -> Where:
    thick, wide = min(size / 2, 0.42 * depth), min(size / 2 * float(random.uniform(0.8, 1.2)), 0.42 * width)
    long = max(size / 2, min(thick, wide)) * float(random.uniform(0.9, 1.1))
    angle = float(random.uniform(0, 2 * math.pi))
    across, aside = (depth / 2 - thick) * math.cos(angle), (width / 2 - wide) * math.sin(angle)
    radius = _ellipsoid(site, (aside, 0, across), (wide, long, thick), float(random.uniform(1.9, 2.5)))
    allowed = site.mask == CANAL
    if size > 8 and random.random() < 0.25:  # a dumbbell: a second part in the foramen
        side = math.copysign(width / 2 + 0.35 * size, math.sin(angle))
        lobe = _ellipsoid(site, (side, 0, across), (0.45 * size, 0.4 * size, 0.35 * size), 2.0)
        radius, allowed = np.minimum(radius, lobe), allowed | (site.mask == 0)
    radius += np.float32(0.09) * waves(random, site, max(0.7 * size, 4))
    return np.asarray((radius < 1) & allowed)


def _epidural(site: Site, size: float, depth: float, width: float, random: np.random.Generator) -> Where:
    thick = float(random.uniform(2.5, max(0.45 * depth, 3.0)))
    angle = float(random.choice((0.0, math.pi))) + float(random.normal(0, 0.5))  # behind or in front, or to a side
    turn = np.arctan2(site.aside / np.float32(width / 2), site.across / np.float32(depth / 2)) - np.float32(angle)
    turn = np.abs((turn + math.pi) % (2 * math.pi) - math.pi) / np.float32(random.uniform(0.8, 1.5))
    profile = 1 - np.abs(2 * site.along / np.float32(size)) ** 2.5 - turn**2
    profile = np.clip(profile + 0.14 * waves(random, site, max(0.45 * size, 6)), 0, 1)
    canal = site.mask == CANAL
    deep = distance(canal, site.spacing)
    out = distance(~canal, site.spacing)
    outside = (site.mask == 0) & (out < 2.5 * profile) & (out > 0)
    return np.asarray((canal & (deep < thick * np.sqrt(profile))) | outside)


def _vertebral(site: Site, place: Place, size: float, breaks: bool, random: np.random.Generator) -> Where:
    z, y, x = (round(at) - part.start for at, part in zip(place, site.box, strict=True))
    middle = (float(site.aside[z, y, 0]), 0.0, float(site.across[0, y, x]))
    half = size / 2 * np.exp(random.normal(0, 0.14, 3))
    radius = _ellipsoid(site, middle, (half[0], half[1], half[2]), float(random.uniform(1.9, 2.6)))
    radius = radius + 0.15 * waves(random, site, max(0.7 * size, 4))
    bone = site.mask == VERTEBRA
    parts = _parts(bone)
    allowed = parts == parts[z, y, x]
    if breaks:
        beyond = distance(~allowed, site.spacing)
        allowed |= (beyond < random.uniform(2.5, 6.5) * np.clip(4 * (1.1 - radius), 0, 1)) & ~bone
    return np.asarray((radius < 1) & allowed)


def _one_piece(site: Site, inside: Where) -> Where:
    """The largest connected part, its surface smoothed."""
    if inside.sum() > 60:
        inside = (gaussian_filter(inside.astype(np.float32), site.edge()) > 0.5) & (site.mask != DISC)
    parts = _parts(inside)
    sizes = np.bincount(parts.ravel(), minlength=2)[1:]
    return np.asarray(parts == 1 + np.argmax(sizes))


def _parts(inside: Where) -> NDArray[np.int32]:
    return np.asarray(label(inside)[0], np.int32)


def waves(random: np.random.Generator, site: Site, length: float) -> Image:
    """A smooth field of the site's shape, float32, mean 0 and sd 1, that changes over about `length` mm."""
    total = np.zeros(site.image.shape, np.float32)
    for _ in range(6):
        step = random.normal(size=3)
        step *= 2 * math.pi / (length * random.uniform(0.8, 1.8) * np.linalg.norm(step))
        a, b, c = (np.float32(value) for value in step)
        total += np.cos(a * site.aside + (b * site.along + (c * site.across + np.float32(random.uniform(0, 6.3)))))
    return total / np.float32(math.sqrt(3))


def distance(inside: Where, spacing: Spacing) -> NDArray[np.float64]:
    """How far each voxel of `inside` (Z, Y, X) bool lies from the next outside, mm; 0 outside."""
    return np.asarray(distance_transform_edt(inside, spacing), np.float64)
