"""Outlines along the edges of pixels: what they go round is what was marked, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from tests.workers.made import inside
from workers.outlines import keyhole, regions


def area(line):
    rows, columns = line[:, 0], line[:, 1]
    return abs(rows @ np.roll(columns, -1) - columns @ np.roll(rows, -1)) / 2


def test_a_pixel_has_four_corners_half_a_pixel_from_its_centre():
    marked = np.zeros((5, 6), bool)
    marked[2, 3] = True
    (region,) = regions(marked)
    assert not region.holes
    assert sorted(map(tuple, region.outer)) == [(1.5, 2.5), (1.5, 3.5), (2.5, 2.5), (2.5, 3.5)]


def test_nothing_marked_has_no_outline():
    assert list(regions(np.zeros((5, 6), bool))) == []


def test_pixels_that_touch_by_a_corner_are_two_regions():
    assert len(list(regions(np.eye(2, dtype=bool)))) == 2


def test_a_straight_edge_has_no_corner_between():
    marked = np.zeros((20, 20), bool)
    marked[3:17, 0:20] = True
    (region,) = regions(marked)
    assert len(region.outer) == 4


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("density", [0.2, 0.5, 0.8, 1.0])
def test_what_is_drawn_back_is_what_was_marked(seed, density):
    marked = np.random.default_rng(seed).random((13, 17)) < density
    again, total = np.zeros(marked.shape, bool), 0.0
    for region in regions(marked):
        line = keyhole(region)
        filled = inside(line, marked.shape)
        assert not (again & filled).any()
        again |= filled
        total += area(region.outer) - sum(area(hole) for hole in region.holes)
        # The channels into holes hold nothing: one line has the area of its region.
        assert area(line) == pytest.approx(area(region.outer) - sum(area(hole) for hole in region.holes))
    assert np.array_equal(again, marked)
    assert total == marked.sum()


def test_holes_in_a_row_are_all_reached():
    marked = np.ones((9, 31), bool)
    marked[4, 2:30:3] = False
    (region,) = regions(marked)
    assert len(region.holes) == 10
    assert np.array_equal(inside(keyhole(region), marked.shape), marked)
