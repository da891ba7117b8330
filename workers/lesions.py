"""The lesions of a mask, one by one: the connected parts of each abnormal label, with their size and identity.

What a segment, a line of the report and a contour speak of is found here once, so that all mean the same lesion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import cdist

from node.records import derived_uid
from trt.manifest import Label, Manifest
from workers.box import Box, bounding_box, moved
from workers.codes import meaning_of
from workers.suitability import MISSING
from workers.volume import Volume

if TYPE_CHECKING:
    from workers.earlier import Before

MOST = 20  # of one label: what a person can look through; the parts beyond are one lesion together
_ABNORMAL = "49755003"  # SCT, Morphologically Abnormal Structure (PS3.16 CID 7150)
_FLAT = 1e-6  # mm; points nearer to a line or plane than this lie on it
_DIRECTIONS = 8
_BLOCK = 512  # rows of the table of distances at a time

Points = NDArray[np.float64]
Ends = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Diameter:
    """The longest distance between two voxel centres, in mm, and these two in the patient's LPS system, in mm.

    A lesion of one voxel has 0 mm.
    """

    mm: float
    ends: Ends


@dataclass(frozen=True, eq=False)
class Lesion:
    """One connected part of an abnormal label, or the smallest parts together.

    `number` counts the lesions of one label from 1 by falling volume. `box` is where it lies in the mask (frames, rows,
    columns), and `inside` bool which voxels of that box it has. `diameter` is in space, `in_slice` the longest within
    one frame, `slice_frame`; both are None for `parts` above 1, that is, for the smallest ones together. `frames` are
    those that show it, from 0, in rising order. `before` is what it was in an earlier result.
    """

    label: Label
    number: int
    parts: int
    box: Box
    inside: NDArray[np.bool_]
    volume_ml: float
    diameter: Diameter | None
    in_slice: Diameter | None
    slice_frame: int | None
    frames: tuple[int, ...]
    tracking_id: str
    tracking_uid: str
    before: Before | None = None


def is_abnormal(label: Label) -> bool:
    """Tell whether a label is of the category Morphologically Abnormal Structure."""
    return meaning_of(label).category[0] == _ABNORMAL


def find_lesions(
    volume: Volume, mask: NDArray[np.uint8], manifest: Manifest, identity: Sequence[str]
) -> tuple[Lesion, ...]:
    """Return the lesions in `mask` (frames, rows, columns) uint8, label by label, the largest of each first.

    Voxels that touch by a face, an edge or a corner belong together (26 neighbours). Of one label at most `MOST` are
    returned; where there are more, the last is all the smallest together. `identity` is what the mask follows from:
    tracking UIDs are derived from it, since the second lesion of another mask may be another one.
    """
    found: list[Lesion] = []
    if mask.any():
        box = bounding_box(mask)
        for label in manifest.labels:
            if is_abnormal(label):
                found += _of_label(volume, mask[box] == label.value, box, label, identity)
    return tuple(found)


def frame_ml(volume: Volume) -> NDArray[np.float64]:
    """Return the volume (frames,) in ml of one voxel of each frame."""
    normal = volume.affine[:3, 0] / np.linalg.norm(volume.affine[:3, 0])
    heights = (volume.positions - volume.positions[0]) @ normal
    return depths(heights, volume.spacing[0]) * volume.spacing[1] * volume.spacing[2] / 1000


def depths(heights: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Return how many mm (frames,) of the patient frames at rising `heights` (frames,) in mm stand for.

    A frame reaches half way to each of its neighbours, so that unevenly spaced slices count for what they stand for.
    Where there is none, or the next is a slice and a half of `gap` off or more, one is taken to lie `gap` away.
    """
    gaps = np.diff(heights, prepend=-np.inf, append=np.inf)
    gaps[gaps >= MISSING * gap] = gap
    return np.asarray((gaps[:-1] + gaps[1:]) / 2)


def _of_label(
    volume: Volume, marked: NDArray[np.bool_], within: Box, label: Label, identity: Sequence[str]
) -> Iterator[Lesion]:
    """Yield the lesions of a label; `marked` is where it is in the box `within`."""
    if not marked.any():
        return
    near = bounding_box(marked)
    box = moved(near, within)
    parts, count = ndimage.label(marked[near], np.ones((3, 3, 3)))
    where = np.nonzero(parts)
    sizes = np.bincount(parts[where], weights=frame_ml(volume)[where[0] + box[0].start], minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable") + 1  # equal ones in the order of their first voxels
    alone = order if count <= MOST else order[: MOST - 1]
    boxes = ndimage.find_objects(parts)
    for number, part in enumerate(alone, 1):
        near = boxes[part - 1]
        yield _lesion(volume, label, number, 1, moved(near, box), parts[near] == part, float(sizes[part - 1]), identity)
    rest = order[len(alone) :]
    if len(rest):
        inside = np.isin(parts, rest)
        near = bounding_box(inside)
        size = float(sizes[rest - 1].sum())
        yield _lesion(volume, label, MOST, len(rest), moved(near, box), inside[near], size, identity)


def _lesion(
    volume: Volume,
    label: Label,
    number: int,
    parts: int,
    box: Box,
    inside: NDArray[np.bool_],
    volume_ml: float,
    identity: Sequence[str],
) -> Lesion:
    frames = tuple(int(frame) + box[0].start for frame in np.flatnonzero(inside.any(axis=(1, 2))))
    diameter, in_slice, slice_frame = None, None, None
    if parts == 1:
        edge, points = _edge(volume, box, inside)
        diameter = longest(points)
        planes = [(frame, longest(points[edge == frame])) for frame in _widest(volume, edge, points)]
        slice_frame, in_slice = max(planes, key=lambda plane: plane[1].mm)
    words = meaning_of(label).words
    return Lesion(
        label=label,
        number=number,
        parts=parts,
        box=box,
        inside=inside,
        volume_ml=volume_ml,
        diameter=diameter,
        in_slice=in_slice,
        slice_frame=slice_frame,
        frames=frames,
        tracking_id=f"{words} {number}" if parts == 1 else f"{words}, {parts} smaller",
        tracking_uid=derived_uid("tracking lesion", *identity, label.name, str(number)),
    )


def longest(points: Points) -> Diameter:
    """Return the two of `points` (n, 3) mm that lie farthest apart.

    They are corners of the convex hull, and only these are compared with each other; the first pair wins a tie.
    """
    corners = points[_hull(points)]
    best = (-1.0, 0, 0)
    for start in range(0, len(corners), _BLOCK):
        block = corners[start : start + _BLOCK]
        squares = cdist(block, corners, "sqeuclidean")
        first, second = np.unravel_index(int(squares.argmax()), squares.shape)
        if squares[first, second] > best[0]:
            best = (float(squares[first, second]), start + int(first), int(second))
    return Diameter(best[0] ** 0.5, (_point(corners[best[1]]), _point(corners[best[2]])))


def _widest(volume: Volume, frames: NDArray[np.intp], points: Points) -> list[int]:
    """Return the frames, rising, of which one has the longest distance within it: most can be told to have none.

    Seen along one of several directions the points of a frame are as wide as their longest distance, but for the cosine
    of the greatest angle between it and the nearest direction.
    """
    angles = np.arange(_DIRECTIONS) * (np.pi / _DIRECTIONS)
    rows, columns = (volume.affine[:3, axis] / np.linalg.norm(volume.affine[:3, axis]) for axis in (1, 2))
    columns = columns - (columns @ rows) * rows  # a source's directions are at a right angle to a thousandth only
    columns /= np.linalg.norm(columns)
    seen = points @ (np.outer(rows, np.cos(angles)) + np.outer(columns, np.sin(angles)))
    order = np.argsort(frames, kind="stable")
    there, starts = np.unique(frames[order], return_index=True)
    seen = seen[order]
    widths = (np.maximum.reduceat(seen, starts) - np.minimum.reduceat(seen, starts)).max(axis=1)
    least = np.cos(np.pi / (2 * _DIRECTIONS)) * widths.max()
    return [int(frame) for frame in there[widths >= least - _FLAT]]


def _point(values: Points) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _hull(points: Points) -> NDArray[np.intp]:
    """Return the indices of points among which the corners of the convex hull are, whatever it spans, rising."""
    centred = points - points.mean(axis=0)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    rank = int((lengths > _FLAT).sum())
    if len(points) <= 4 or rank == 0:
        return np.arange(len(points))
    along = centred @ axes[:rank].T
    if rank == 1:
        return np.unique([int(along.argmin()), int(along.argmax())])
    try:
        return np.sort(ConvexHull(along).vertices)
    except QhullError:  # as good as flat, by Qhull's own measure: rows' ends are few enough to compare
        return np.arange(len(points))


def _edge(volume: Volume, box: Box, inside: NDArray[np.bool_]) -> tuple[NDArray[np.intp], Points]:
    """Return frames (n,) and centres (n, 3) mm of the first and last voxel of each row: no other is a hull's corner."""
    frames, rows = np.nonzero(inside.any(axis=2))
    lines = inside[frames, rows]
    first, last = lines.argmax(axis=1), lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
    frames, rows = np.tile(frames, 2) + box[0].start, np.tile(rows, 2) + box[1].start
    columns = np.concatenate([first, last]) + box[2].start
    steps = volume.affine[:3, 1:3]
    return frames, volume.positions[frames] + np.stack([rows, columns], axis=1) @ steps.T
