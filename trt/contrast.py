"""Other contrasts of a series whose mask is known, so that a network does not come to depend on one MR sequence.

After SynthSeg (Billot et al., Medical Image Analysis 86:102789, 2023), which draws an intensity for every label. Here
the tissues without a label keep their structure: intensities go through a random curve, and each label is moved by a
random amount on top, over borders softened as partial volume softens them.

Images are (Z, Y, X) float32 in 0..1, masks (Z, Y, X) uint8: 1 vertebra, 2 spinal canal, 3 intervertebral disc.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Image = NDArray[np.float32]
Mask = NDArray[np.uint8]

VERTEBRA, CANAL, DISC = 1, 2, 3
BORDER = (0.0, 0.7, 0.7)  # sigma in voxels over which one tissue turns into the next, within the slice
KNOTS = 6  # of a random curve


def invert(image: Image) -> Image:
    """Bright for dark."""
    return np.float32(1) - image


def t1_like(image: Image, mask: Mask, random: np.random.Generator | None = None) -> Image:
    """A T2-weighted series as T1 weighting would order its tissues; with `random`, about so.

    Fluid in the canal is dark and the cord and roots in it brighter than the fluid, discs are darker than marrow, fat
    stays bright. Textures are those of the T2 series: no scanner made this, and figures on it say so.
    """

    def about(value: float, spread: float) -> np.float32:
        return np.float32(value if random is None else value + random.uniform(-spread, spread))

    other = about(0.85, 0.15) * image ** about(0.5, 0.15)
    vertebra = about(0.40, 0.15) + about(0.30, 0.20) * image
    canal = about(0.42, 0.10) - about(0.30, 0.10) * image
    disc = about(0.26, 0.12) + about(0.12, 0.12) * image
    return _mix(_shares(mask, 3), (other, vertebra, canal, disc))


def synthesise(image: Image, mask: Mask, random: np.random.Generator) -> Image:
    """The same anatomy in a contrast that no scanner need have; equal generators draw equal contrasts.

    Intensities pass a random curve, rising, falling or neither; with even chance, labels are moved against each other
    and keep more or less of their own texture. Labels above 3 go with their surroundings.
    """
    curve = _curve(random)
    other = _through(curve, image)
    if random.random() < 0.5:
        return other
    tissues = [other]
    for label in (VERTEBRA, CANAL, DISC):
        inside = image[mask == label]
        middle = float(np.median(inside)) if inside.size else 0.5
        texture = float(random.uniform(0.2, 1.2)) * float(random.choice((-1.0, 1.0)))
        tissues.append(np.float32(random.uniform(0.05, 0.95)) + np.float32(texture) * (image - np.float32(middle)))
    return np.clip(_mix(_shares(mask, 3), tissues), 0.0, 1.0)


def _curve(random: np.random.Generator) -> NDArray[np.float32]:
    """256 values of a curve over 0..1: three in four are monotone, of which half fall."""
    values = random.uniform(0.0, 1.0, KNOTS)
    if random.random() < 0.75:
        values.sort()
        if random.random() < 0.5:
            values = values[::-1]
    span = values.max() - values.min()
    values = (values - values.min()) / max(span, 1e-3)
    knots = np.linspace(0.0, 1.0, KNOTS) ** 2  # most tissue of a T2 series lies low
    return np.asarray(np.interp(np.linspace(0.0, 1.0, 256), knots, values), np.float32)


def _through(curve: NDArray[np.float32], image: Image) -> Image:
    """Each intensity replaced by the curve's, interpolated between its 256 values."""
    place = np.clip(image, 0.0, 1.0) * np.float32(255)
    lower = np.minimum(place.astype(np.int16), 254)
    rest = place - lower
    return np.asarray(curve[lower] * (1 - rest) + curve[lower + 1] * rest, np.float32)


def _shares(mask: Mask, labels: int) -> list[Image]:
    """How much of each voxel is label 1..labels, 0..1, over softened borders."""
    shares: list[Image] = [gaussian_filter((mask == n).astype(np.float32), BORDER) for n in range(1, labels + 1)]
    return shares


def _mix(shares: list[Image], tissues: list[Image] | tuple[Image, ...]) -> Image:
    """`tissues[0]` where no label is, `tissues[n]` to the share of label n."""
    mixed = tissues[0].copy()
    for share, tissue in zip(shares, tissues[1:], strict=True):
        mixed += share * (tissue - tissues[0])
    return mixed.astype(np.float32, copy=False)
