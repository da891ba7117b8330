"""The box that something in a mask lies in, so that what is done with it takes the time of the box, not of the mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]
"""Frames, rows and columns."""


def bounding_box(marked: NDArray[np.bool_] | NDArray[np.uint8]) -> Box:
    """Return the smallest box that holds all that is not 0 (frames, rows, columns); something must be."""
    # Of bytes, the greatest is found several times faster than whether there is any.
    planes = np.flatnonzero(marked.max(axis=(1, 2)))
    flat = marked[planes[0] : planes[-1] + 1].max(axis=0)
    rows, columns = np.flatnonzero(flat.max(axis=1)), np.flatnonzero(flat.max(axis=0))
    return (
        slice(int(planes[0]), int(planes[-1]) + 1),
        slice(int(rows[0]), int(rows[-1]) + 1),
        slice(int(columns[0]), int(columns[-1]) + 1),
    )


def moved(inner: Sequence[slice], outer: Sequence[slice]) -> Box:
    """Return a box within another as a box of the whole."""
    frames, rows, columns = (slice(i.start + o.start, i.stop + o.start) for i, o in zip(inner, outer, strict=True))
    return frames, rows, columns
