"""What a simulated lesion does to the image: tissue about it is pushed aside, and it gets a signal of its own."""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from trt.lesion_shapes import CANAL, TUMOUR, VERTEBRA, VOXELS, Site, Where, distance, waves


class Weighting(StrEnum):
    """The contrast of the image a lesion is put into; with `ANY` it is brighter or darker than its host, at random."""

    T1_GADOLINIUM = "T1 after gadolinium"
    T2 = "T2"
    ANY = "any"


def push_aside(site: Site, inside: Where, random: np.random.Generator) -> None:
    """Push tissue of the site away from the lesion, in place: what is in the canal fully, bone and disc little.

    `inside` is bool of the site's shape. Other lesions stay where they are.
    """
    softness = np.array([0.35, 0.12, 1.0, 0.12, 0.0], np.float32)
    sigma = [3.0 / step for step in site.spacing]
    field = gaussian_filter(inside.astype(np.float32), sigma, truncate=3.0)
    slopes = [
        np.gradient(field, step, axis=axis) if field.shape[axis] > 1 else np.zeros_like(field)
        for axis, step in enumerate(site.spacing)
    ]
    steepest = float(np.sqrt(sum(slope**2 for slope in slopes)).max())
    volume = float(inside.sum()) * math.prod(site.spacing)
    amount = min(0.25 * volume ** (1 / 3), 3.0) * float(random.uniform(0.6, 1.2)) / max(steepest, 1e-6)
    give = gaussian_filter(softness[site.mask], [0.8 / step for step in site.spacing])
    others = site.mask == TUMOUR
    give[others] = 0
    give *= amount
    places = [
        np.arange(length, dtype=np.float32).reshape([-1 if axis == i else 1 for i in range(3)]) + give * slope / step
        for axis, (length, slope, step) in enumerate(zip(field.shape, slopes, site.spacing, strict=True))
    ]
    moved = map_coordinates(site.mask, places, order=0, mode="nearest")
    site.mask[:] = np.where(others | (moved == TUMOUR), site.mask, moved)
    site.image[:] = map_coordinates(site.image, places, order=1, mode="nearest")


def paint(
    site: Site, inside: Where, host: int, diameter: float, weighting: Weighting, random: np.random.Generator
) -> tuple[bool, bool]:
    """Give the lesion its signal, in place, by partial volume at its border; whether it has a rim and a core or cyst.

    `inside` is bool of the site's shape, `host` the mask's value of the tissue it grows in, `diameter` in mm.
    """
    alpha = np.clip(1.25 * gaussian_filter(inside.astype(np.float32), site.edge()) - 0.08, 0, 1)
    near = site.image[site.mask == host]
    if near.size < VOXELS:
        near = site.image.ravel()
    low, middle, high = (float(value) for value in np.percentile(near, (12, 50, 90)))
    bright = max(float(np.percentile(site.image, 97)), high)
    smooth = gaussian_filter(site.image, (0, 1.2, 1.2))
    grain = site.image - smooth
    noise = float(np.median(np.abs(grain[site.mask == host]))) if (site.mask == host).any() else 0.02
    noise *= 1.5 if host == VERTEBRA else 0.7  # the borders of cord and roots are not noise
    if weighting is Weighting.T1_GADOLINIUM:
        level = max(middle + float(random.uniform(0.6, 1.0)) * (bright - middle), middle + 0.22, high + 0.08)
        core, swelling = 0.75 * min(middle, 0.5), -0.12
    elif weighting is Weighting.T2 and host == CANAL:
        level = low + float(random.uniform(0.15, 0.5)) * (high - low)
        core, swelling = 0.9 * high, 0.0
    elif weighting is Weighting.T2:
        level = middle + max(float(random.uniform(0.25, 0.7)) * (bright - middle), 0.18)
        core, swelling = bright, 0.25
    else:
        step = float(random.uniform(0.18, 0.5))
        rises = random.random() < (0.5 if step < middle < 1 - step else float(middle < 0.5))
        level, swelling = middle + (step if rises else -step), 0.0
        core = middle + float(random.uniform(-0.3, 0.3)) * step
    here = float(np.median(site.image[inside]))
    if weighting is Weighting.T2 and abs(level - here) < 0.12:
        level = here + (0.12 if level >= here or here < 0.15 else -0.12)  # to be seen against what it replaces
    about = site.image[(site.mask == 0) & (alpha > 0.02)]
    fat = float(np.percentile(about, 85)) if about.size else level + 1
    if weighting is Weighting.T1_GADOLINIUM and host == CANAL and abs(level - fat) < 0.18:
        level = fat + (0.18 if fat < 0.75 or fat < high + 0.3 else -0.18)  # it is not to vanish in epidural fat
    signal = level + (level - middle) * 0.07 * waves(random, site, 6.0)
    rim, necrotic = False, False
    deep = distance(inside, site.spacing)
    if diameter > 9 and random.random() < 0.4:
        rim = random.random() < 0.6
        wall = float(random.uniform(1.6, 3.0)) if rim else 1.5
        cyst = deep > wall
        if not rim:
            cyst &= waves(random, site, 0.6 * diameter) > 0.6
        necrotic = int(cyst.sum()) >= VOXELS
        rim = rim and necrotic
        if necrotic:
            share = gaussian_filter(cyst.astype(np.float32), site.edge())
            signal += share * (core - signal)
    signal += 0.8 * np.clip(grain, -2.5 * noise, 2.5 * noise)
    signal += np.float32(0.4 * noise) * random.normal(size=signal.shape).astype(np.float32)
    if swelling and random.random() < 0.6:
        halo = gaussian_filter(inside.astype(np.float32), [2.0 / step for step in site.spacing], truncate=3.0)
        site.image[:] += halo * (site.mask == host) * np.float32(swelling * middle)
    site.image[:] += alpha * (signal - site.image)
    return rim, necrotic
