"""The shape of one virtual spine, drawn by chance: where bodies, discs, canal and skin lie, in millimetres.

x runs from anterior to posterior, y from superior to inferior, w from the patient's right to the left, all from the
middle of the volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Field: TypeAlias = NDArray[np.float64]
Curve: TypeAlias = Callable[[Field], Field]

TILTS = (60.0, 50.0, 40.0, 23.0, 11.0, 2.0, -5.0, -9.0, -10.0, -9.0, -8.0, -6.0, -2.0, 3.0, 8.0, 12.0)
"""Degrees by which each body leans forward from its lower to its upper side: S3, S2, S1, then L5 up to T5."""
HEIGHTS = (20.0, 24.0, 29.0, 29.0, 29.5, 29.5, 29.0, 28.0, 27.0, 26.0, 25.0, 24.0, 23.0, 22.5, 22.0, 21.5)
DEPTHS = (15.0, 21.0, 32.0, 37.0, 37.5, 37.0, 36.0, 35.0, 34.0, 33.0, 32.0, 31.0, 30.0, 29.0, 28.0, 27.0)
DISCS = (1.5, 2.0, 10.0, 11.0, 10.5, 9.5, 8.5, 7.5, 6.5, 6.0, 5.5, 5.0, 5.0, 4.5, 4.5)  # above each of them, mm
SACRUM = 3  # of the bodies belong to the sacrum, which has no label, as in SPIDER
L3 = 5
GAP = 4.5  # from a body to the canal, mm: ligament, veins, fat


@dataclass(frozen=True)
class Body:
    """A vertebral body about its centre (x, y); `tilt` in radians, lengths in mm."""

    x: float
    y: float
    tilt: float
    height: float
    depth: float
    width: float


@dataclass(frozen=True)
class Spine:
    """One patient. Bodies from S3 upwards; curves take y; discs lie above the body of the same place."""

    bodies: tuple[Body, ...]
    discs: tuple[float, ...]  # heights
    nuclei: tuple[float, ...]  # brightness of the discs' middles, fluid is 1
    marrow: float  # brightness
    sway: Curve  # w of the midline: a slight scoliosis, never symmetric
    canal: Curve  # x of the canal's middle
    radius: Curve  # half the canal's depth, zero below its end
    conus: float  # y of the cord's end
    skin: Curve  # x of the back
    fat: Curve  # thickness under the skin


def draw_spine(random: np.random.Generator) -> Spine:
    """One patient: lordosis, sizes, disc heights and brightness, a slight scoliosis, fat and skin."""
    lordosis, scale = random.uniform(0.8, 1.15), random.uniform(0.94, 1.06)
    tilts = [math.radians(t * lordosis + random.normal(0, 1.0)) for t in TILTS]
    heights = [h * scale * random.normal(1, 0.02) for h in HEIGHTS]
    discs = [max(1.0, t * scale * random.uniform(0.75, 1.1)) for t in DISCS]
    px, py = 0.0, 0.0
    places = [(px, py)]
    for (low, high), (below, above), disc in zip(pairwise(tilts), pairwise(heights), discs, strict=True):
        for angle, length in ((low, below / 2), ((low + high) / 2, disc), (high, above / 2)):
            px, py = px - math.sin(angle) * length, py - math.cos(angle) * length
        places.append((px, py))
    ox, oy = random.uniform(2, 12) - places[L3][0], random.uniform(-4, 8) - places[L3][1]
    bodies = tuple(
        Body(px + ox, py + oy, tilt, height, depth * scale, (44 - i) * scale)
        for i, ((px, py), tilt, height, depth) in enumerate(zip(places, tilts, heights, DEPTHS, strict=True))
    )
    lean, bend = random.uniform(1.0, 3.0), random.uniform(40, 80)
    radii = [0.0, 4.5, 6.5, *(max(5.5, 6.8 + 0.25 * i + random.normal(0, 0.3)) for i in range(len(bodies) - SACRUM))]
    backs = [body.depth / 2 + GAP + max(radius, 2.0) for body, radius in zip(bodies, radii, strict=True)]
    ys = [body.y - back * math.sin(body.tilt) for body, back in zip(bodies, backs, strict=True)]
    xs = [body.x + back * math.cos(body.tilt) for body, back in zip(bodies, backs, strict=True)]
    middle = PchipInterpolator(ys[::-1], xs[::-1])
    half = PchipInterpolator(ys[::-1], radii[::-1])
    behind, thickness = random.uniform(40, 48), random.uniform(5, 14)

    def canal(y: Field) -> Field:
        return np.asarray(middle(np.clip(y, ys[-1], ys[0])))

    def radius(y: Field) -> Field:
        return np.where(y > ys[0], 0.0, half(np.clip(y, ys[-1], ys[0])))

    def fat(y: Field) -> Field:
        return np.asarray(thickness * (0.5 + np.exp(-(((y - 75) / 55) ** 2))))

    def skin(y: Field) -> Field:
        hollow = 12 * np.exp(-(((y - ys[1]) / 40) ** 2))
        return np.asarray(canal(np.minimum(y, ys[1])) + behind + fat(y) - hollow)

    return Spine(
        bodies=bodies,
        discs=tuple(discs),
        nuclei=tuple(random.uniform(0.06, 0.35) for _ in discs),
        marrow=random.uniform(0.3, 0.55),
        sway=lambda y: lean * np.sin(y / bend + 0.7),
        canal=canal,
        radius=radius,
        conus=bodies[L3 + 2].y + random.uniform(-10, 10),
        skin=skin,
        fat=fat,
    )
