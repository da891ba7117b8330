"""Outlines along the edges of pixels: what they go round is what was marked, and nothing else."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.workers.made import inside
from workers.outlines import hold, keyhole, moments, regions


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


def test_noise_with_a_thousand_holes_is_drawn_in_bounded_time():
    marked = np.random.default_rng(1).random((150, 150)) < 0.85
    started = time.monotonic()
    lines = [keyhole(region) for region in regions(marked)]
    assert time.monotonic() - started < 20
    assert sum(len(region.holes) for region in regions(marked)) > 1000
    assert sum(map(area, lines)) == pytest.approx(marked.sum())


def test_holes_in_a_row_are_all_reached():
    marked = np.ones((9, 31), bool)
    marked[4, 2:30:3] = False
    (region,) = regions(marked)
    assert len(region.holes) == 10
    assert np.array_equal(inside(keyhole(region), marked.shape), marked)


def test_area_and_centre_tell_a_mask_from_others_of_its_size():
    mask = np.zeros((2, 12, 9), np.uint8)
    mask[0, 1:5, 2:7] = 1
    mask[0, 2, 3] = mask[0, 0, 0] = 2
    mask[1, 6:9, 1:8] = 3

    def found(numbers):
        sums = np.zeros((2, 4, 3))
        for frame in range(2):
            for number in range(1, 4):
                for region in regions(numbers[frame] == number):
                    sums[frame, number] += sum(moments(line) for line in (region.outer, *region.holes))
        return sums

    assert hold(found(mask), mask)
    assert hold(-found(mask), mask)  # whichever way lines run
    for other in (mask[::-1], np.roll(mask, 1, axis=1), mask[:, :, ::-1], np.where(mask == 2, 3, mask)):
        assert not hold(found(other), mask)
