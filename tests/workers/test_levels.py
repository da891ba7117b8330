"""Vertebrae one by one: levels are counted from a sacrum as far as there is no doubt, and otherwise not named."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from workers.levels import LEVELS, NAMES, name_levels

SPACING = (4.0, 1.0, 1.0)
# Sagittal slices: frames to the left, rows to the feet, columns to the back (LPS).
AFFINE = np.array([[4.0, 0, 0, -20], [0, 0, 1.0, -50], [0, -1.0, 0, 300], [0, 0, 0, 1]])
SHAPE = (10, 420, 100)
PITCH, HEIGHT = 36, 26


def spine(count, *, sacrum=True, shrink=0.98):
    """Masks of `count` vertebrae and a sacrum, bool (frames, rows, columns), and the box of each from L5 upwards."""
    vertebrae, ground = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    bottom = SHAPE[1] - 70
    if sacrum:
        ground[2:8, bottom:, 40:80] = True
    boxes, row, pitch = [], float(bottom - 8), float(PITCH)
    for _ in range(count):
        height = pitch * HEIGHT / PITCH
        box = (slice(2, 8), slice(max(0, round(row - height)), round(row)), slice(30, 70))
        vertebrae[box] = True
        boxes.append(box)
        row, pitch = row - pitch, pitch * shrink
    return vertebrae, ground, boxes


def names(vertebrae, sacrum, affine=AFFINE):
    return [level.name for level in name_levels(vertebrae, sacrum, affine)]


def test_levels_are_counted_from_the_sacrum_upwards():
    vertebrae, sacrum, boxes = spine(8)
    levels = name_levels(vertebrae, sacrum, AFFINE)
    assert [level.name for level in levels] == ["L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10"]
    for level, box in zip(levels, boxes, strict=True):
        alone = np.zeros(SHAPE, bool)
        alone[level.box] = level.inside
        expected = np.zeros(SHAPE, bool)
        expected[box] = True
        np.testing.assert_array_equal(alone, expected)


@pytest.mark.parametrize("axes", [*itertools.permutations(range(3))])
@pytest.mark.parametrize("flips", [(), (0,), (1,), (2,), (0, 1, 2)])
def test_however_the_series_is_stored(axes, flips):
    """The same anatomy with its axes exchanged and reversed, as other orientations have it, has the same names."""
    vertebrae, sacrum, _ = spine(4)
    affine = AFFINE.copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (SHAPE[axis] - 1)
        affine[:3, axis] *= -1
    affine[:3, :3] = affine[:3, list(axes)]
    turned = [np.flip(mask, flips).transpose(axes) for mask in (vertebrae, sacrum)]
    assert names(*turned, affine) == ["L5", "L4", "L3", "L2"]


def test_without_a_sacrum_nothing_is_named():
    vertebrae, sacrum, _ = spine(6, sacrum=False)
    assert names(vertebrae, sacrum) == []


def test_a_speck_called_sacrum_is_no_anchor():
    vertebrae, sacrum, _ = spine(6, sacrum=False)
    sacrum[4:6, 360:370, 50:60] = True  # 0.8 ml
    assert names(vertebrae, sacrum) == []


def test_from_two_vertebrae_grown_together_on_nothing_is_named():
    vertebrae, sacrum, boxes = spine(7)
    vertebrae[2:8, boxes[3][1].start : boxes[2][1].stop, 40:44] = True  # a bridge between L3 and L2
    assert names(vertebrae, sacrum) == ["L5", "L4"]


def test_where_the_lowest_two_are_grown_together_nothing_is_named():
    vertebrae, sacrum, boxes = spine(7)
    vertebrae[2:8, boxes[1][1].start : boxes[0][1].stop, 40:44] = True
    assert names(vertebrae, sacrum) == []


def test_neighbours_that_touch_by_edges_alone_are_two():
    vertebrae, sacrum, boxes = spine(5)
    row = boxes[1][1].start - 1
    vertebrae[2, boxes[2][1].stop : row + 1, 29] = False
    for step, r in enumerate(range(boxes[2][1].stop, boxes[1][1].start)):
        vertebrae[2, r, 10 + step] = True  # a diagonal: voxel touches voxel by an edge
    assert names(vertebrae, sacrum) == ["L5", "L4", "L3", "L2", "L1"]


def test_above_a_missing_vertebra_nothing_is_named():
    vertebrae, sacrum, boxes = spine(7)
    vertebrae[boxes[3]] = False
    assert names(vertebrae, sacrum) == ["L5", "L4", "L3"]


@pytest.mark.parametrize("missing", [0, 1])
def test_where_one_is_missing_near_the_sacrum_nothing_is_named(missing):
    vertebrae, sacrum, boxes = spine(7)
    vertebrae[boxes[missing]] = False
    assert names(vertebrae, sacrum) == []


def test_a_childs_vertebrae_are_held_to_each_other_not_to_an_adults():
    affine = AFFINE.copy()
    affine[:3, :3] *= 0.55
    vertebrae, sacrum, boxes = spine(6)
    assert names(vertebrae, sacrum, affine) == ["L5", "L4", "L3", "L2", "L1", "T12"]
    vertebrae[boxes[1]] = False  # 40 mm apart then, which in an adult would be neighbours
    assert names(vertebrae, sacrum, affine) == []


def test_the_top_one_may_be_cut_off_by_the_images_border():
    vertebrae, sacrum, boxes = spine(11)
    assert boxes[-1][1].start == 0
    assert boxes[-1][1].stop - boxes[-1][1].start < 15
    assert len(names(vertebrae, sacrum)) == 11


def test_crumbs_are_no_vertebrae():
    vertebrae, sacrum, boxes = spine(5)
    vertebrae[4, boxes[2][1].stop + 3, 80:90] = True
    assert names(vertebrae, sacrum) == ["L5", "L4", "L3", "L2", "L1"]


def test_a_part_of_odd_size_ends_the_names():
    vertebrae, sacrum, boxes = spine(6)
    vertebrae[boxes[2]] = False
    vertebrae[2:8, boxes[2][1], 30:45] = True  # the front alone
    assert names(vertebrae, sacrum) == ["L5", "L4"]


def test_a_vertebra_below_the_sacrum_is_a_reason_for_doubt():
    vertebrae, sacrum, _ = spine(5)
    sacrum[:, -20:] = False
    vertebrae[2:8, -15:, 40:80] = True
    assert names(vertebrae, sacrum) == []


def test_codes_are_those_of_the_dictionary():
    known = [getattr(codes.SCT, keyword) for keyword in dir(codes.SCT)]
    meanings = {code.value: code.meaning for code in known if isinstance(code, Code)}
    assert len(NAMES) == 24
    for name, value in LEVELS.items():
        assert meanings[value] == f"{name} vertebra"
