"""Does a screen show a mask where it belongs? Pixels of the screen are compared with the mask, projected onto them.

An overlay of colour c and opacity a on grey g is (1 - a) g + a c: what it has of colour, the pixel less its mean,
points where that of c does, whatever lies below and however opaque it is. By that direction pixels are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tests.viewers.browser import Screen
from workers.volume import Volume

Colour = tuple[int, int, int]

HUE_DEGREES = 8.0  # between a pixel's direction of colour and that of the colour it should have
LEAST_CHROMA = 12.0  # length of what a pixel has of colour, of 0..208; less is grey
BORDER = 3  # pixels of the screen to either side of a mask's border that may be of either side
COVERED = 0.98  # of the pixels within the border that have the colour
OVERLAP = 0.97  # Dice coefficient of shown and expected
SHIFT_VOXELS = 0.2  # between the centroids of shown and expected
STRAY = 4  # pixels of one colour, beyond the border, that are let pass
COLOUR = 2  # of 0..255, in each of red, green and blue: CIELab is rounded
OUTLINED = 0.95  # of the border's pixels that have a contour's within two of them


@dataclass(frozen=True, eq=False)
class Shown:
    """One slice on a screen, whose `pixels` are (rows, columns, RGB) uint8.

    `labels` (rows, columns) int16 are those expected of each pixel, -1 beside the slice; `colours` those seen: 0 grey,
    -1 a colour of no label. `grey` (rows, columns) float64 is what the voxels of the slice look like, NaN below an
    overlay; `zoom` is in pixels of the screen per voxel.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int16]
    colours: NDArray[np.int16]
    grey: NDArray[np.float64]
    zoom: float


def corners(volume: Volume, frame: int) -> list[list[float]]:
    """Return three places of a frame in LPS, mm: the centres of its first pixel, of the last in its row and column."""
    _, rows, columns = volume.voxels.shape
    steps = volume.affine[:3, :3].T
    first = volume.positions[frame]
    return [list(first), list(first + (columns - 1) * steps[2]), list(first + (rows - 1) * steps[1])]


def project(screen: Screen, plane: NDArray[np.uint8], palette: Mapping[int, Colour]) -> Shown:
    """Lay `plane` (rows, columns) uint8 of label values over a screen whose `points` are those of `corners`."""
    rows, columns = plane.shape
    origin, right, down = screen.points
    across, along = (right - origin) / (columns - 1), (down - origin) / (rows - 1)  # pixels of the screen per voxel
    to_voxels = np.linalg.inv(np.column_stack([across, along]))
    y, x = np.mgrid[: screen.pixels.shape[0], : screen.pixels.shape[1]] + 0.5
    column, row = np.tensordot(to_voxels, np.stack([x - origin[0], y - origin[1]]), axes=1)
    column, row = np.rint(column).astype(int), np.rint(row).astype(int)
    left, top, right_edge, bottom = screen.box
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    inside &= (x > left) & (x < right_edge) & (y > top) & (y < bottom)
    labels = np.full(inside.shape, -1, np.int16)
    labels[inside] = plane[row[inside], column[inside]]
    colours = classify(screen.pixels, palette)
    grey = np.full(plane.shape, np.nan)
    middle = origin + np.arange(columns)[None, :, None] * across + np.arange(rows)[:, None, None] * along
    at_x, at_y = np.floor(middle).astype(int).transpose(2, 0, 1)
    on = (at_x >= left) & (at_x < int(right_edge)) & (at_y >= top) & (at_y < int(bottom))
    seen = np.where(colours == 0, screen.pixels.mean(axis=2), np.nan)
    grey[on] = seen[at_y[on], at_x[on]]
    return Shown(
        screen.pixels, labels, colours, grey, float(np.sqrt(abs(np.linalg.det(np.column_stack([across, along])))))
    )


def classify(pixels: NDArray[np.uint8], palette: Mapping[int, Colour]) -> NDArray[np.int16]:
    """Return the label whose colour each pixel (rows, columns, RGB) uint8 has, 0 for grey, -1 for another colour."""
    chroma = _chroma(pixels.astype(float))
    length = np.linalg.norm(chroma, axis=2)
    values = np.array(list(palette), np.int16)
    directions = np.stack([_chroma(np.array(colour, float)) for colour in palette.values()])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    cosines = chroma @ directions.T / np.maximum(length, 1e-9)[..., None]
    found = np.where(cosines.max(axis=2) >= np.cos(np.radians(HUE_DEGREES)), values[cosines.argmax(axis=2)], -1)
    return np.where(length < LEAST_CHROMA, 0, found).astype(np.int16)


def _chroma(colour: NDArray[np.float64]) -> NDArray[np.float64]:
    return colour - colour.mean(axis=-1, keepdims=True)


def assert_overlaid(shown: Shown, value: int, name: str) -> None:
    """Fail unless the overlay of label `value` lies where the mask has it, all of it and nowhere else."""
    expected, seen = shown.labels == value, (shown.colours == value) & (shown.labels >= 0)
    allowed = ndimage.binary_dilation(expected, iterations=BORDER) if expected.any() else expected
    stray = seen & ~allowed
    assert stray.sum() <= STRAY, f"{name} is shown at {stray.sum()} pixels where it is not, {_middle(stray)}"
    if not expected.any():
        return
    core = ndimage.binary_erosion(expected, iterations=BORDER)
    if core.any():
        covered = float(seen[core].mean())
        assert covered >= COVERED, f"{name} covers {covered:.1%} of where it is"
    overlap = 2 * (seen & expected).sum() / (seen.sum() + expected.sum())
    assert overlap >= OVERLAP, f"{name} is shown over its mask with a Dice coefficient of {overlap:.3f} only"
    shift = float(np.linalg.norm(np.subtract(_middle(seen), _middle(expected)))) / shown.zoom
    assert shift <= SHIFT_VOXELS, f"{name} is shown {shift:.2f} voxels aside"


def assert_coloured(shown: Shown, value: int, colour: Colour, name: str) -> None:
    """Fail unless the colour that label `value` has most often, at its border, is the one that we recommend."""
    seen = shown.pixels[(shown.colours == value) & (shown.labels >= 0)]
    assert len(seen), f"{name} is not shown"
    colours, counts = np.unique(seen, axis=0, return_counts=True)
    most = colours[counts.argmax()].astype(int)
    assert np.abs(most - colour).max() <= COLOUR, f"{name} is shown in {most.tolist()} rather than {list(colour)}"


def assert_outlined(shown: Shown, value: int, name: str) -> None:
    """Fail unless the contour of label `value` runs along the border of the mask, all of it and nowhere else.

    Where contours of two labels meet, a picture that is scaled has mixtures of them, and nothing is asked.
    """
    expected, seen = shown.labels == value, (shown.colours == value) & (shown.labels >= 0)
    present = [ndimage.binary_dilation(shown.labels == other, iterations=BORDER) for other in _present(shown)]
    alone = np.sum(present, axis=0) < 2 if present else np.ones_like(seen)
    wide = ndimage.binary_dilation(expected, iterations=BORDER)
    stray = seen & alone & ~wide
    assert stray.sum() <= STRAY, f"{name} is outlined at {stray.sum()} pixels where it is not, {_middle(stray)}"
    if not expected.any():
        return
    rim = expected & ~ndimage.binary_erosion(expected) & alone
    reached = float(ndimage.binary_dilation(seen, iterations=2)[rim].mean()) if rim.any() else 1.0
    assert reached >= OUTLINED, f"{reached:.1%} of the border of {name} is outlined"
    core = ndimage.binary_erosion(expected, iterations=2 * BORDER)
    filled = float(seen[core].mean()) if core.any() else 0.0
    assert filled <= 1 - OUTLINED, f"{name} is filled rather than outlined, by {filled:.1%}"


def _present(shown: Shown) -> list[int]:
    return [int(value) for value in np.unique(shown.labels) if value > 0]


def assert_is_slice(shown: Shown, volume: Volume, frame: int) -> None:
    """Fail unless the grey picture is that frame of the series rather than any other, whatever the viewer calls it."""
    seen = ~np.isnan(shown.grey)
    assert seen.mean() > 0.3, f"{seen.mean():.0%} of the slice can be compared"
    likeness = [float(np.corrcoef(plane[seen], shown.grey[seen])[0, 1]) for plane in volume.voxels]
    best = int(np.argmax(likeness))
    assert best == frame, f"slice {best + 1} is shown instead of {frame + 1}"
    assert likeness[best] > 0.9, f"the picture is like slice {best + 1} by {likeness[best]:.2f} only"


def _middle(area: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the centroid of an area of the screen, x and y."""
    y, x = np.nonzero(area)
    return (float(x.mean()), float(y.mean())) if len(x) else (float("nan"), float("nan"))
