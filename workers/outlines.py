"""The outlines of a segment in a slice, as lines along the edges of its pixels.

A line along edges holds exactly the pixels it goes round, neither half a pixel more nor less: what is drawn from it is
the mask again, and its area is theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

_FEW = 4

Line = NDArray[np.float64]
"""Corners (n, 2) of a closed line as (row, column); the centre of a slice's first pixel is (0, 0). None is repeated."""


@dataclass(frozen=True, eq=False)
class Region:
    """Pixels that touch by their edges: the line round them, and one round each hole, which runs the other way."""

    outer: Line
    holes: tuple[Line, ...]


def regions(marked: NDArray[np.bool_]) -> Iterator[Region]:
    """Yield the regions of what is marked in a slice (rows, columns) bool; pixels that touch by a corner are two."""
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    if not len(rows):
        return
    near = np.pad(marked[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1).astype(np.float64)
    origin = np.array([rows[0] - 1, columns[0] - 1], np.float64)
    generator = contour_generator(z=near, name="serial", fill_type=FillType.OuterOffset)
    for points, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
        lines = [
            _corners(points[start : stop - 1, ::-1]) + origin  # (x, y) is (column, row); the last point is the first
            for start, stop in pairwise(offsets)
        ]
        yield Region(lines[0], tuple(lines[1:]))


def _corners(middles: Line) -> Line:
    """Return where a line turns that goes through the `middles` (n, 2) of the edges of pixels, one after the other."""
    following = np.concatenate([middles[1:], middles[:1]])
    between_rows = middles[:, 0] % 1 != 0  # the edge lies between two rows, and runs along them
    turns = between_rows != (following[:, 0] % 1 != 0)
    rows = np.where(between_rows, middles[:, 0], following[:, 0])
    columns = np.where(between_rows, following[:, 1], middles[:, 1])
    return np.asarray(np.stack([rows, columns], axis=1)[turns])


def keyhole(region: Region) -> Line:
    """Return one closed line for a region with its holes (PS3.3 C.8.8.6.3).

    A channel of no width leads into each hole and back, from the corners that lie nearest to each other, so that area
    and inside stay the same by whatever rule a line is filled.
    """
    line, holes = region.outer, list(region.holes)
    while holes:
        # The nearest of the next few: of thousands, as noise has them, not all are compared again for each.
        found = [_nearest(line, hole) for hole in holes[:_FEW]]
        chosen = min(range(len(found)), key=lambda index: found[index][0])
        _, here, there = found[chosen]
        hole = holes.pop(chosen)
        line = np.concatenate([line[: here + 1], np.roll(hole, -there, axis=0), hole[there : there + 1], line[here:]])
    return line


def _nearest(line: Line, hole: Line) -> tuple[float, int, int]:
    squares = ((line[:, None] - hole[None]) ** 2).sum(axis=2)
    here, there = np.unravel_index(int(squares.argmin()), squares.shape)
    return float(squares[here, there]), int(here), int(there)


def in_mm(line: Line, position: Sequence[float] | Line, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return corners (n, 3) mm in LPS; `position` is that of the slice's first pixel, `affine` the volume's."""
    return np.asarray(np.asarray(position) + line @ affine[:3, 1:3].T)


def moments(line: Line) -> NDArray[np.float64]:
    """Return (3,): a closed line's area in pixels, and that times row and column of its centre.

    All have the other sign where it runs the other way, so that the sum over a region's lines is the region's.
    """
    following = np.concatenate([line[1:], line[:1]])
    crossed = line[:, 0] * following[:, 1] - following[:, 0] * line[:, 1]
    return np.array([crossed.sum() / 2, *(crossed @ (line + following) / 6)])


def hold(found: NDArray[np.float64], mask: NDArray[np.uint8]) -> bool:
    """Return whether `found` (frames, numbers, 3), sums of `moments`, are those of the pixels of a `mask`.

    The mask (frames, rows, columns) is of segment numbers. Area and centre tell lines that lie elsewhere or on another
    slice, that are turned over, or of another segment; a tenth of a pixel is left for decimal places of a mm.
    """
    numbers = found.shape[1]
    for plane, sums in zip(mask, found, strict=True):
        rows, columns = np.divmod(np.flatnonzero(plane != 0), plane.shape[1])  # much faster than of numbers at once
        values = plane[rows, columns]
        pixels, *middles = (np.bincount(values, weights, numbers) for weights in (None, rows, columns))
        if np.abs(np.abs(sums[:, 0]) - pixels).max() > _OFF_AREA:
            return False
        shown = pixels > 0
        centres = sums[shown, 1:] / sums[shown, :1]
        if (np.abs(centres - np.stack(middles, axis=1)[shown] / pixels[shown, None]) > _OFF_PIXELS).any():
            return False
    return True


_OFF_AREA, _OFF_PIXELS = 0.5, 0.1  # pixels
