"""A synthetic lumbar spine: a sagittal T2-weighted MR volume whose mask is known. For demonstrations and tests.

It is drawn from shapes, lengths in millimetres, after the look of real T2 series. No patient is in it, and no figure
measured on it says anything about patients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from trt.spine import GAP, SACRUM, Body, Field, Spine, draw_spine

VERTEBRA, CANAL, DISC = 1, 2, 3
SLACK = 2.0  # mm by which shapes are bent at most


@dataclass(frozen=True)
class Phantom:
    """`image` uint16 and `mask` uint8 (0 background, 1 vertebra, 2 spinal canal, 3 disc), both (Z, Y, X).

    Slice 0 is the most right of the patient and Z runs to the left, Y from superior to inferior, X from anterior to
    posterior; `spacing` in mm along them. Image units are arbitrary, cerebrospinal fluid at about 1000.
    """

    image: NDArray[np.uint16]
    mask: NDArray[np.uint8]
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class Canvas:
    """A slice being drawn, or a window of it: all arrays are (Y, X), and a window's are views of the slice's.

    `x` to the back and `y` down in mm, bent a little so that nothing is straight; `w` mm to the left.
    """

    x: Field
    y: Field
    w: float
    pixel: float  # mm
    fine: Field  # textures, mean 0, sd 1
    coarse: Field
    fibre: Field
    image: Field
    mask: NDArray[np.uint8]

    def window(self, x: float, y: float, reach: float) -> Canvas:
        """The part within `reach` mm of a point; empty where the slice does not go."""
        rows = _run(np.abs(self.y[:, self.y.shape[1] // 2] - y) < reach + SLACK)
        part = (rows, _run(np.abs(self.x[self.x.shape[0] // 2] - x) < reach + SLACK))
        arrays = (self.x, self.y, self.fine, self.coarse, self.fibre, self.image)
        x_, y_, fine, coarse, fibre, image = (array[part] for array in arrays)
        return Canvas(x_, y_, self.w, self.pixel, fine, coarse, fibre, image, self.mask[part])

    def local(self, body: Body, u: float = 0.0, v: float = 0.0, turn: float = 0.0) -> tuple[Field, Field]:
        """Coordinates to the back and up about a point (u, v) of a body's own, turned forward by `turn` radians."""
        cosine, sine = math.cos(body.tilt), math.sin(body.tilt)
        dx = self.x - (body.x + u * cosine - v * sine)
        dy = self.y - (body.y - u * sine - v * cosine)
        cosine, sine = math.cos(body.tilt + turn), math.sin(body.tilt + turn)
        return dx * cosine - dy * sine, -dx * sine - dy * cosine

    def paint(self, distance: Field, value: Field | float, label: int | None = None) -> None:
        """Fill where the signed distance (mm) is negative, edges by partial volume; label what is inside."""
        share = np.clip(0.5 - distance / self.pixel, 0.0, 1.0)
        self.image[:] += share * (value - self.image)
        if label is not None:
            self.mask[distance < 0] = label


def spine_phantom(
    shape: tuple[int, int, int] = (20, 320, 256),
    spacing_mm: tuple[float, float, float] = (0.9, 0.9375, 0.9375),
    seed: int = 0,
) -> Phantom:
    """A lumbar spine in a volume of `shape` (Z, Y, X) and `spacing_mm`, the body of L3 near the middle.

    `seed` draws patient and noise; equal arguments give equal arrays. A volume smaller than the spine cuts it off.
    Raises `ValueError` unless lengths and spacings are positive.
    """
    if min(shape) < 1 or min(spacing_mm) <= 0:
        raise ValueError(f"shape and spacing_mm must be positive throughout, not {shape} and {spacing_mm}")
    random = np.random.default_rng(seed)
    spine = draw_spine(random)
    depth, height, width = shape
    dz, dy, dx = spacing_mm
    sizes = {"fine": (1, 0.8, 0.8), "coarse": (5, 5, 5), "fibre": (3, 6, 0.7), "bend_x": (8, 7, 7), "bend_y": (8, 7, 7)}
    noises = {name: _texture(random, shape, spacing_mm, size) for name, size in sizes.items()}
    straight_y = ((np.arange(height, dtype=np.float64) - (height - 1) / 2) * dy)[:, None]
    straight_x = ((np.arange(width, dtype=np.float64) - (width - 1) / 2) * dx)[None, :]
    y = straight_y + np.clip(0.7 * noises["bend_y"], -SLACK, SLACK)  # (Z, Y, X)
    x = straight_x + np.clip(0.7 * noises["bend_x"], -SLACK, SLACK)
    thin = max(1, round(dz / 1.5))  # a thick slice is the mean of thin ones
    image, mask = np.empty(shape), np.zeros(shape, np.uint8)
    for z in range(depth):
        fine, coarse, fibre = (noises[name][z] for name in ("fine", "coarse", "fibre"))
        layers = []
        for part in range(thin):
            w = (z - (depth - 1) / 2 + (part + 0.5) / thin - 0.5) * dz
            layer = np.zeros((height, width))
            labels = np.zeros((height, width), np.uint8)
            _draw(Canvas(x[z], y[z], w, (dx + dy) / 2, fine, coarse, fibre, layer, labels), spine)
            layers.append(layer)
            if part == thin // 2:
                mask[z] = labels
        image[z] = np.mean(layers, axis=0)
    image *= np.clip(np.exp((straight_x - spine.canal(straight_y)) / 70.0), 0.04, 1.6)  # a surface coil at the back
    image *= np.exp(0.1 * np.cos(straight_y / 60 + random.uniform(0, 6)))
    noise = random.normal(0.0, random.uniform(0.015, 0.03), (2, *shape))
    magnitude = np.hypot(image + noise[0], noise[1])  # Rician
    return Phantom(np.clip(np.rint(1000 * magnitude), 0, 4095).astype(np.uint16), mask, spacing_mm)


def _texture(
    random: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, ...], size: tuple[float, ...]
) -> Field:
    field = gaussian_filter(random.normal(size=shape), [mm / step for mm, step in zip(size, spacing, strict=True)])
    return np.asarray(field / max(float(field.std()), 1e-9))


def _run(wanted: NDArray[np.bool_]) -> slice:
    """From the first to the last that is wanted."""
    places = np.flatnonzero(wanted)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def _box(u: Field, v: Field, half: tuple[float, float], corner: float) -> Field:
    """Signed distance, mm, to a rectangle about the origin with rounded corners."""
    return _corner(np.abs(u) - half[0], np.abs(v) - half[1], corner)


def _corner(a: Field, b: Field, corner: float) -> Field:
    a, b = a + corner, b + corner
    return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - corner


def _draw(canvas: Canvas, spine: Spine) -> None:
    """Draw a slice from the back of the scene to its front."""
    _soft_tissue(canvas, spine)
    _column(canvas, spine)
    _canal(canvas, spine)
    for body in spine.bodies[SACRUM:]:
        _posterior_elements(canvas, spine, body)


def _soft_tissue(canvas: Canvas, spine: Spine) -> None:
    x, y, column = canvas.x, canvas.y, canvas.y[:, canvas.y.shape[1] // 2, None]
    skin, canal, fat = spine.skin(column), spine.canal(column), spine.fat(column)
    canvas.paint(x - skin, np.clip(0.12 + 0.07 * canvas.coarse, 0.02, 1))  # bowel and organs in front
    streaks = np.clip(canvas.fibre + 0.6 * canvas.coarse - 0.5, 0, 2)  # fat between muscle fibres
    canvas.paint(np.maximum(canal - x, x - skin), 0.10 + 0.22 * streaks)
    canvas.paint(np.maximum(skin - fat - 1.5 - x, x - skin), 0.03)  # fascia
    canvas.paint(np.maximum(skin - fat - x, x - skin), 0.62 + 0.05 * canvas.coarse)
    canvas.paint(np.maximum(skin - 2.0 - x, x - skin), 0.2)
    lower = spine.bodies[SACRUM + 1].y  # where the vessels divide
    for side, radius in ((10.0, 9.0), (-13.0, 10.0)):  # aorta on the left, vena cava on the right: no signal in flow
        reach = radius**2 - (canvas.w - side) ** 2
        if reach > 0:
            canvas.paint(np.maximum(np.abs(x - canal + 66) - math.sqrt(reach), y - lower), 0.02)


def _column(canvas: Canvas, spine: Spine) -> None:
    """Bodies and discs: first the fat and ligaments about all of them, then each."""
    frames = [_between(lower, upper) for lower, upper in pairwise(spine.bodies)]
    bodies = [(canvas.window(body.x, body.y, 40), body) for body in spine.bodies]
    gaps = [(canvas.window(frame.x, frame.y, 40), frame) for frame in frames]
    outlines = [_body(part, spine, body) for part, body in bodies]
    slabs = [_disc(part, spine, frame, i) for i, (part, frame) in enumerate(gaps)]
    parts = [part for part, _ in (*bodies, *gaps)]
    drawn = list(zip(parts, (*outlines, *slabs), strict=True))
    for part, distance in drawn:
        part.paint(distance - 5.0, 0.30 + 0.05 * part.coarse)
    for part, distance in drawn:
        part.paint(distance - 1.8, 0.05)
    for i, ((part, frame), distance) in enumerate(zip(gaps, slabs, strict=True)):
        part.paint(distance, 0.06 + 0.02 * part.fine, DISC if i >= SACRUM - 1 else None)
        u, v = part.local(frame, u=1.0)
        size = 0.3 * frame.depth, 0.32 * spine.discs[i] + 0.8
        lateral = (_aside(part, spine, frame.y) / (0.35 * frame.width)) ** 2
        nucleus = (np.sqrt((u / size[0]) ** 2 + (v / size[1]) ** 2 + lateral) - 1) * size[1]
        part.paint(np.maximum(nucleus, distance + 1.0), spine.nuclei[i] * (1 + 0.15 * part.fine))
    for i, ((part, body), distance) in enumerate(zip(bodies, outlines, strict=True)):
        part.paint(distance - 0.9, 0.04, 0)  # cortical bone and end plates
        part.paint(distance, spine.marrow * _trabeculae(part), VERTEBRA if i >= SACRUM else None)
        if i >= SACRUM and abs(_aside(part, spine, body.y)) < 4:  # the basivertebral vein
            u, v = part.local(body, u=body.depth / 2 - 3.5)
            part.paint(_box(u, v, (4.0, 1.3), 1.0), spine.marrow * 1.4)


def _aside(canvas: Canvas, spine: Spine, y: float) -> float:
    """How far left of the spine's own midline the slice lies at height y, mm."""
    return canvas.w - float(spine.sway(np.array(y)))


def _trabeculae(canvas: Canvas) -> Field:
    return 1 + 0.14 * canvas.fine + 0.08 * canvas.coarse


def _body(canvas: Canvas, spine: Spine, body: Body) -> Field:
    """Signed distance to a body: end plates and walls hollow, the front round, the back flat."""
    aside = abs(_aside(canvas, spine, body.y)) / (body.width / 2)
    if aside >= 1:
        return np.full(canvas.image.shape, np.inf)
    u, v = canvas.local(body)
    across, along = np.minimum((2 * u / body.depth) ** 2, 1), np.minimum((2 * v / body.height) ** 2, 1)
    front = body.depth / 2 * (1 - aside**2.4) ** (1 / 2.4)
    back = body.depth / 2 * (1 - aside**6) ** (1 / 6)
    wall = np.maximum(-u - front, u - back) + 1.4 * (1 - along)
    return _corner(wall, np.abs(v) - body.height / 2 + 1.0 * (1 - across) * (1 - aside**2), 2.5)


def _between(lower: Body, upper: Body) -> Body:
    """The frame of a disc: midway between the end plates of its neighbours."""
    x = (lower.x - math.sin(lower.tilt) * lower.height / 2 + upper.x + math.sin(upper.tilt) * upper.height / 2) / 2
    y = (lower.y - math.cos(lower.tilt) * lower.height / 2 + upper.y + math.cos(upper.tilt) * upper.height / 2) / 2
    depth, width = (lower.depth + upper.depth) / 2, (lower.width + upper.width) / 2
    return Body(x, y, (lower.tilt + upper.tilt) / 2, 0.0, depth, width)


def _disc(canvas: Canvas, spine: Spine, frame: Body, place: int) -> Field:
    """Signed distance to a disc, reaching into its neighbours, which are drawn over it."""
    aside = abs(_aside(canvas, spine, frame.y)) / (frame.width / 2 + 1)
    if aside >= 1:
        return np.full(canvas.image.shape, np.inf)
    u, v = canvas.local(frame)
    opening = spine.bodies[place].tilt - spine.bodies[place + 1].tilt  # to the front where the spine is lordotic
    half = (frame.depth / 2 + 1.0) * (1 - aside**2.6) ** (1 / 2.6)
    return _corner(np.abs(u) - half, np.abs(v) - spine.discs[place] / 2 - 1.2 + math.tan(opening / 2) * u, 2.0)


def _canal(canvas: Canvas, spine: Spine) -> None:
    """Fat, dura, fluid, cord and roots, along the canal's own curve."""
    x, y = canvas.x, canvas.y
    column = y[:, y.shape[1] // 2, None]  # the curves are taken in the middle column: bends are small
    aside = np.abs(canvas.w - spine.sway(column))  # (Y, 1)
    full, middle = spine.radius(column), spine.canal(column)
    rise = (spine.canal(column + 1) - spine.canal(column - 1)) / 2
    across = (x - middle) / np.hypot(1, rise)  # mm behind the middle of the canal

    def tube(half_depth: Field, half_width: Field | float) -> Field:
        half = half_depth * np.sqrt(np.clip(1 - (aside / np.maximum(half_width, 1e-6)) ** 2, 0, None))
        return np.where(half > 0.4, np.abs(across) - half, np.inf)

    inside = tube(full, 11.5)
    canvas.paint(tube(full + 3.0, 20.0), 0.45 + 0.1 * canvas.coarse)  # epidural fat, and the foramina's
    canvas.paint(inside - 1.0, 0.08)  # dura and ligament
    canvas.paint(inside, 1.0 + 0.03 * canvas.fine + 0.05 * canvas.coarse, CANAL)
    for strand in range(-2, 3):  # the cauda equina, roots sinking to the back
        offset = full * (0.35 + 0.16 * strand) + 0.7 * np.sin(y / 17 + strand + canvas.w / 3)
        root = np.abs(across - offset) - 0.4 - 0.2 * np.sin(y / 23 + canvas.w / 4 + 2 * strand)
        canvas.paint(np.maximum(np.maximum(root, inside + 1.2), spine.conus - 15 - y), 0.62)
    taper = np.clip((spine.conus - column) / 25, 0, 1) ** 0.5
    canvas.paint(np.maximum(tube(0.55 * full * taper, 6.0 * taper), inside + 0.5), 0.55)


def _posterior_elements(canvas: Canvas, spine: Spine, body: Body) -> None:
    aside = _aside(canvas, spine, body.y)
    back = body.depth / 2 + GAP + 2 * float(spine.radius(np.array(body.y))) + 1.5  # of the canal, in the body's frame
    canvas = canvas.window(body.x + back * math.cos(body.tilt), body.y - back * math.sin(body.tilt), 48)
    marrow = spine.marrow * _trabeculae(canvas) * 0.95

    def bone(u: float, v: float, turn: float, half: tuple[float, float], middle: float, width: float) -> None:
        lateral = abs(abs(aside) - middle) - width
        if lateral > 1:
            return
        along, up = canvas.local(body, u, v, turn)
        distance = np.maximum(_box(along, up, half, min(half) * 0.8), lateral)
        canvas.paint(distance - 0.9, 0.05, 0)
        canvas.paint(distance, marrow, VERTEBRA)

    if abs(aside) < 6:  # fat between the laminae, ligament and fat between the processes
        along, up = canvas.local(body, back + 16.0, 7.0)
        canvas.paint(_box(along, up, (12.0, 9.0), 4.0), np.clip(0.22 + 0.15 * canvas.fibre, 0.03, 1))
        along, up = canvas.local(body, back + 1.5, 7.0)
        canvas.paint(_box(along, up, (3.5, 9.0), 3.0), 0.8)
    bone(body.depth / 2 + 6, 6.0, 0.0, (10.0, 6.0), 13.0, 3.8)  # pedicle
    bone(back - 7, 12.0, 0.25, (4.5, 10.0), 16.0, 4.5)  # superior articular process
    bone(back - 1, -14.0, 0.25, (5.0, 12.0), 15.0, 4.5)  # inferior articular process
    bone(back + 4, -8.0, 0.5, (4.0, 9.5 + 0.1 * aside), 7.0, 5.5)  # lamina, longer on the left
    bone(back + 20, -12.0, -0.25, (16.0, 10.0), 0.0, 3.6)  # spinous process
