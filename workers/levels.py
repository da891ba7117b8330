"""The vertebrae of a mask one by one, with the names of their levels as far as these can be known.

A level is counted, never guessed: upwards from the sacrum, which a mask must hold itself, and only as long as each
vertebra follows the one below as a neighbour does. From the first doubt on (two grown together, one missing, a part of
odd size) vertebrae stay without a name. A spine with four or six lumbar vertebrae, or with twelve ribs' worth of
others, looks the same in a mask: the first vertebra above the sacrum is called L5 whatever it is.

The end of the cervical spine is no anchor here: that C2 looks unlike the others would have to be recognised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from workers.box import Box, bounding_box, moved

# Code value (SCT) of each level from the sacrum upwards, PS3.16 CID 7151.
LEVELS: dict[str, str] = {
    "L5": "49668003", "L4": "11994002", "L3": "36470004", "L2": "14293000", "L1": "66794005",
    "T12": "23215003", "T11": "12989004", "T10": "7610001", "T9": "82687006", "T8": "11068009", "T7": "62487009",
    "T6": "45296009", "T5": "56401006", "T4": "73071006", "T3": "1626008", "T2": "53733008", "T1": "64864005",
    "C7": "87391001", "C6": "36054005", "C5": "36978003", "C4": "5329002", "C3": "113205007", "C2": "39976000",
    "C1": "14806007",
}  # fmt: skip
NAMES = tuple(LEVELS)

CRUMB_ML = 1.0  # smaller parts are no vertebra: C1, the smallest, has several ml
SACRUM_ML = 5.0  # a smaller part may be anything
# Vertebrae grow slowly downwards: from one to the next, pitch (from centre to centre) and volume change by less than a
# third. Two grown together have twice the volume and one and a half the pitch; a missing one doubles the pitch.
PITCH = (0.72, 1.38)
VOLUME = (0.62, 1.6)
# Of one that ends at the image's border less may be seen, but no more.
PITCH_CUT, VOLUME_CUT = (0.4, 1.12), (0.0, 1.2)
PITCH_MM = (12.0, 50.0)  # of any two vertebrae of children and adults
APART = 0.5  # of their pitch, at most between the nearest voxels of neighbours: a disc is about a third of it
TO_SACRUM = 0.75  # of a pitch, at most from L5's nearest voxel to the sacrum's: another vertebra would fit in more
_NEAR = 4000  # points of each surface that distances are measured between

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Level:
    """A vertebra with a name: `box` is where it lies in the mask, `inside` bool which voxels of that box it has."""

    name: str
    box: Box
    inside: Mask


@dataclass(frozen=True, eq=False)
class _Part:
    """A connected part: its number, volume in ml, and centre in mm (LPS); whether the image's border cuts it."""

    number: int
    ml: float
    centre: NDArray[np.float64]
    cut: bool


def name_levels(vertebrae: Mask, sacrum: Mask, affine: NDArray[np.float64]) -> tuple[Level, ...]:
    """Return the vertebrae whose level is known, from L5 upwards; none without a sacrum to count from.

    `vertebrae` and `sacrum` are bool (frames, rows, columns); `affine` (4, 4) maps (frame, row, column, 1) to mm in
    the patient's LPS system. What is in no level returned is vertebra all the same, of a level that is not known.
    """
    if not vertebrae.any() or not sacrum.any():
        return ()
    box = bounding_box(vertebrae)
    # Faces alone: the joints of neighbours touch by edges and corners.
    parts, count = ndimage.label(vertebrae[box])
    found = _parts(parts, count, box, vertebrae.shape, affine)
    ground = _ground(sacrum, affine)
    if ground is None:
        return ()
    chain = _chain([part for part in found if part.ml >= CRUMB_ML], ground, parts, box, affine)
    boxes = ndimage.find_objects(parts)
    return tuple(
        Level(name, moved(boxes[part.number - 1], box), parts[boxes[part.number - 1]] == part.number)
        for name, part in zip(NAMES, chain, strict=False)
    )


def _parts(
    parts: NDArray[np.integer], count: int, box: Box, shape: tuple[int, ...], affine: NDArray[np.float64]
) -> list[_Part]:
    where = np.nonzero(parts)
    numbers = parts[where]
    sizes = np.bincount(numbers, minlength=count + 1)
    sums = [np.bincount(numbers, weights=axis, minlength=count + 1) for axis in where]
    boxes = ndimage.find_objects(parts)
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    # The border that matters is the one that ends the spine; along the others every vertebra is cut alike.
    along = int(np.abs(affine[2, :3]).argmax())
    found = []
    for number in range(1, count + 1):
        index = np.array([s[number] / sizes[number] + b.start for s, b in zip(sums, box, strict=True)])
        first, last = (
            boxes[number - 1][along].start + box[along].start,
            boxes[number - 1][along].stop + box[along].start,
        )
        cut = first == 0 or last == shape[along]
        found.append(_Part(number, float(sizes[number]) * voxel_ml, affine[:3, :3] @ index + affine[:3, 3], cut))
    return found


def _ground(sacrum: Mask, affine: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return points (n, 3) mm of the largest part of the sacrum, or None if that is too small."""
    box = bounding_box(sacrum)
    parts, _ = ndimage.label(sacrum[box])
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    if sizes.max() * abs(float(np.linalg.det(affine[:3, :3]))) / 1000 < SACRUM_ML:
        return None
    return _points(parts == sizes.argmax(), box, affine)


def _chain(
    parts: list[_Part],
    ground: NDArray[np.float64],
    labels: NDArray[np.integer],
    box: Box,
    affine: NDArray[np.float64],
) -> list[_Part]:
    """Return the vertebrae from the sacrum upwards until the first that cannot be the next one."""
    rising = sorted(parts, key=lambda part: part.centre[2])  # z of LPS points to the head
    if not 2 <= len(rising) <= len(NAMES) or rising[0].centre[2] <= ground[:, 2].mean():
        return []
    surface = _points(labels == rising[0].number, box, affine)
    to_sacrum, chain, before = _distance(surface, ground), [rising[0]], 0.0
    for part in rising[1:]:
        below, pitch = chain[-1], float(np.linalg.norm(part.centre - chain[-1].centre))
        upper = _points(labels == part.number, box, affine)
        pitches, volumes = (PITCH_CUT, VOLUME_CUT) if part.cut else (PITCH, VOLUME)
        if (
            not PITCH_MM[0] <= pitch <= PITCH_MM[1]
            or not volumes[0] <= part.ml / below.ml <= volumes[1]
            or (before and not pitches[0] <= pitch / before <= pitches[1])
            or _distance(upper, surface) > APART * pitch
            or (len(chain) == 1 and to_sacrum > TO_SACRUM * pitch)
        ):
            break
        chain.append(part)
        surface, before = upper, pitch
    # The lowest alone is not held to anything: it might be two grown together.
    return chain if len(chain) > 1 else []


def _points(marked: Mask, box: Box, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return centres (n, 3) in mm of marked voxels, evenly chosen ones of the surface where there are many."""
    inner = ndimage.binary_erosion(marked)
    index = np.argwhere(marked & ~inner)
    index = index[:: max(1, len(index) // _NEAR)] + [b.start for b in box]
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])


def _distance(these: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    return float(np.min(KDTree(others).query(these)[0]))
