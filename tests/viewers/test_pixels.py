"""The eyes of the viewers' tests: they see what is right, and every way in which an overlay can be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tests.viewers.browser import Screen
from tests.viewers.pixels import Shown, assert_coloured, assert_outlined, assert_overlaid, classify, project

PALETTE = {1: (240, 200, 80), 3: (240, 90, 140), 4: (230, 40, 40)}
ZOOM, LEFT, TOP = 2.5, 40.0, 30.0
ROWS, COLUMNS = 80, 60


def plane() -> NDArray[np.uint8]:
    made = np.zeros((ROWS, COLUMNS), np.uint8)
    made[20:50, 10:30] = 1
    made[30:42, 36:48] = 4
    return made


def screen(drawn: NDArray[np.uint8], opacity: float = 0.4) -> Screen:
    """A window with a noisy grey slice, and `drawn` over it as a viewer would."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:300, :260]
    row, column = np.floor((y - TOP) / ZOOM).astype(int), np.floor((x - LEFT) / ZOOM).astype(int)
    inside = (row >= 0) & (row < ROWS) & (column >= 0) & (column < COLUMNS)
    grey = random.integers(0, 256, (ROWS, COLUMNS))
    pixels = np.zeros((300, 260, 3))
    pixels[inside] = grey[row[inside], column[inside], None]
    for value, colour in PALETTE.items():
        over = inside.copy()
        over[inside] = drawn[row[inside], column[inside]] == value
        pixels[over] = (1 - opacity) * pixels[over] + opacity * np.array(colour)
    first = np.array([LEFT + ZOOM / 2, TOP + ZOOM / 2])
    points = first + ZOOM * np.array([[0, 0], [COLUMNS - 1, 0], [0, ROWS - 1]])
    return Screen(pixels.round().astype(np.uint8), (0, 0, 260, 300), points)


def shown(drawn: NDArray[np.uint8], opacity: float = 0.4) -> Shown:
    return project(screen(drawn, opacity), plane(), PALETTE)


@pytest.mark.parametrize("opacity", [0.25, 0.5, 1.0])
def test_an_overlay_in_its_place_is_seen_whatever_its_opacity(opacity: float) -> None:
    seen = shown(plane(), opacity)
    for value in PALETTE:
        assert_overlaid(seen, value, "it")
    assert seen.zoom == pytest.approx(ZOOM)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: np.roll(p, 4, axis=0), "where it is not"),
        (lambda p: np.roll(p, 1, axis=1), "only|aside"),
        (lambda p: p[::-1], "where it is not"),
        (lambda p: np.zeros_like(p), "covers 0.0%"),
        (lambda p: np.where(p == 4, 3, p), "covers 0.0%"),
        (lambda p: np.where((p == 4) & (np.arange(ROWS)[:, None] > 35), 0, p), "covers"),
    ],
    ids=["shifted", "one voxel aside", "upside down", "none", "another colour", "half of it"],
)
def test_an_overlay_that_is_wrong_is_refused(change, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        assert_overlaid(shown(change(plane()).astype(np.uint8)), 4, "the lesion")


def test_the_colour_itself_is_looked_at_too() -> None:
    seen = shown(plane(), opacity=1.0)
    assert_coloured(seen, 4, PALETTE[4], "the lesion")
    with pytest.raises(AssertionError, match="rather than"):
        assert_coloured(seen, 4, (230, 44, 40), "the lesion")
    with pytest.raises(AssertionError, match="not shown"):
        assert_coloured(seen, 3, PALETTE[3], "what nobody drew")


def outline(area: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inner rim, one voxel wide, of each label."""
    rim = np.zeros_like(area)
    for value in PALETTE:
        inside = area == value
        rim[inside & ~ndimage.binary_erosion(inside)] = value
    return rim


def test_a_contour_in_its_place_is_seen() -> None:
    seen = shown(outline(plane()), opacity=1.0)
    for value in PALETTE:
        assert_outlined(seen, value, "it")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: outline(np.roll(p, 4, axis=0)), "where it is not"),
        (lambda p: outline(p[::-1]), "where it is not"),
        (lambda p: p, "filled"),
        (lambda p: np.zeros_like(p), "0.0% of the border"),
        (lambda p: outline(np.where(p == 4, 3, p)), "0.0% of the border"),
    ],
    ids=["shifted", "upside down", "filled", "none", "another colour"],
)
def test_a_contour_that_is_wrong_is_refused(change, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        assert_outlined(shown(change(plane()).astype(np.uint8), opacity=1.0), 4, "the lesion")


def test_an_overlay_on_a_slice_that_has_none_is_refused() -> None:
    seen = project(screen(plane()), np.zeros((ROWS, COLUMNS), np.uint8), PALETTE)
    with pytest.raises(AssertionError, match="where it is not"):
        assert_overlaid(seen, 4, "the lesion")
    with pytest.raises(AssertionError, match="where it is not"):
        assert_outlined(seen, 4, "the lesion")
    assert_overlaid(seen, 3, "what nobody drew")


def test_colours_that_are_near_each_other_are_told_apart() -> None:
    patches = np.array([[PALETTE[3], PALETTE[4], (128, 128, 128), (80, 120, 255)]], np.uint8)
    assert classify(patches, PALETTE).tolist() == [[3, 4, 0, -1]]
