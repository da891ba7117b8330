"""Lesions one by one: what belongs together, how large it is, and who it is."""

from __future__ import annotations

import dataclasses
import itertools
import time

import numpy as np
import pytest

from trt.manifest import load
from workers.lesions import MOST, depths, find_lesions, frame_ml, is_abnormal, longest
from workers.series import Storage, write_series
from workers.volume import read_series

SHAPE, SPACING = (14, 60, 50), (3.0, 0.7, 0.5)


@pytest.fixture(scope="module")
def volume(tmp_path_factory, small):
    return read_series(write_series(tmp_path_factory.mktemp("series"), small.lopsided(SHAPE), SPACING))


@pytest.fixture(scope="module")
def tumour():
    return next(label for label in load().labels if is_abnormal(label))


def find(volume, mask):
    return find_lesions(volume, mask, load(), ("a", "b"))


def test_only_the_abnormal_label_has_lesions():
    assert [label.name for label in load().labels if is_abnormal(label)] == ["neoplasm"]


def test_parts_that_touch_by_a_corner_are_one_and_the_largest_is_first(volume, tumour):
    mask = np.zeros(SHAPE, np.uint8)
    mask[2, 10, 10] = mask[3, 11, 11] = tumour.value  # a corner
    mask[8:10, 30:34, 20:30] = tumour.value
    mask[:, :5, :5] = 1  # no tumour
    large, little = find(volume, mask)
    voxel = 3.0 * 0.7 * 0.5 / 1000
    assert (large.tracking_id, little.tracking_id) == ("Neoplasm 1", "Neoplasm 2")
    assert (large.number, large.parts, large.frames) == (1, 1, (8, 9))
    assert large.volume_ml == pytest.approx(80 * voxel)
    assert little.frames == (2, 3)
    assert little.volume_ml == pytest.approx(2 * voxel)
    again = np.zeros(SHAPE, bool)
    for lesion in (large, little):
        again[lesion.box] |= lesion.inside
    assert np.array_equal(again, mask == tumour.value)


def test_the_diameters_of_a_block_are_its_diagonals_and_end_on_its_corners(volume, tumour):
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:10, 30:34, 20:30] = tumour.value
    (block,) = find(volume, mask)
    assert block.diameter.mm == pytest.approx(np.sqrt((1 * 3.0) ** 2 + (3 * 0.7) ** 2 + (9 * 0.5) ** 2))
    assert block.in_slice.mm == pytest.approx(np.hypot(3 * 0.7, 9 * 0.5))
    assert block.slice_frame == 8
    corners = [
        (volume.affine @ [*corner, 1])[:3] for corner in itertools.product((8, 9), (30, 33), (20, 29))
    ]  # opposite ones
    for end in block.diameter.ends:
        assert min(np.abs(corner - end).max() for corner in corners) < 1e-6
    assert np.linalg.norm(np.subtract(*block.diameter.ends)) == pytest.approx(block.diameter.mm)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_one_body_has_one_size_however_it_was_scanned(tmp_path, small, tumour, axes):
    random = np.random.default_rng(3)
    body = np.zeros(SHAPE, np.uint8)
    body[4:9, 20:40, 10:30] = (random.random((5, 20, 20)) > 0.4) * tumour.value
    storage = Storage(axes=axes, flips=(0, 2), rotation=(0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
    turned = read_series(write_series(tmp_path, small.lopsided(SHAPE), SPACING, storage=storage))
    mask = np.flip(body, storage.flips).transpose(storage.axes)
    if np.linalg.norm(turned.positions[0] - (turned.affine @ [0, 0, 0, 1])[:3]) > 1e-6:
        pytest.fail("the first frame is not at the origin")
    stored = [float(v) for v in turned.sources[0].ImagePositionPatient]
    mask = mask if np.allclose(stored, turned.positions[0]) else mask[::-1]
    found = find(turned, np.ascontiguousarray(mask))
    points = np.argwhere(body) * SPACING
    assert sum(lesion.volume_ml for lesion in found) == pytest.approx(len(points) * np.prod(SPACING) / 1000)
    # A body of noise has one large part; it is measured anew, pair by pair.
    inside = found[0].inside
    near = np.argwhere(inside) * turned.spacing
    far = max(np.linalg.norm(near - point, axis=1).max() for point in near)
    assert found[0].diameter.mm == pytest.approx(far)


def test_more_lesions_than_one_looks_through_end_in_one(volume, tumour):
    mask = np.zeros(SHAPE, np.uint8)
    for n, (frame, row, column) in enumerate(itertools.product(range(0, 14, 3), range(0, 20, 4), (5,))):
        mask[frame, row, column : column + 1 + n] = tumour.value
    found = find(volume, mask)
    assert len(found) == MOST
    last = found[-1]
    assert (last.parts, last.tracking_id, last.diameter) == (6, "Neoplasm, 6 smaller", None)
    assert int(last.inside.sum()) == 1 + 2 + 3 + 4 + 5 + 6
    assert [lesion.volume_ml for lesion in found[:-1]] == sorted((o.volume_ml for o in found[:-1]), reverse=True)
    assert len({lesion.tracking_uid for lesion in found}) == MOST


def test_identity_follows_from_what_the_mask_follows_from(volume, tumour):
    mask = np.zeros(SHAPE, np.uint8)
    mask[3, 4, 5] = tumour.value
    (one,) = find_lesions(volume, mask, load(), ("a", "b"))
    (same,) = find_lesions(volume, mask, load(), ("a", "b"))
    (other,) = find_lesions(volume, mask, load(), ("a", "c"))
    assert one.tracking_uid == same.tracking_uid != other.tracking_uid
    assert one.diameter.mm == 0


def test_uneven_slices_count_for_what_they_stand_for(volume, tumour):
    positions = volume.positions.copy()
    normal = volume.affine[:3, 0] / 3.0
    positions[5:] += 0.15 * normal  # a gap of 3.15 mm between frames 4 and 5
    uneven = dataclasses.replace(volume, positions=positions)
    area = 0.7 * 0.5 / 1000
    assert frame_ml(uneven)[[0, 3, 4, 5, 6, 13]] == pytest.approx(np.array([3.0, 3.0, 3.075, 3.075, 3.0, 3.0]) * area)
    assert frame_ml(volume) == pytest.approx(np.full(14, 3.0 * area))
    # Slices that are not there are taken to lie where they should.
    assert depths(np.array([0.0, 3.0, 6.15, 30.0, 33.0]), 3.0) == pytest.approx([3.0, 3.075, 3.075, 3.0, 3.0])
    assert depths(np.array([6.0]), 3.0) == pytest.approx([3.0])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_longest_distance_is_that_of_all_pairs_in_whatever_they_span(count, rank):
    random = np.random.default_rng(count)
    points = random.normal(size=(count, rank)) @ random.normal(size=(rank, 3))
    expected = max(np.linalg.norm(a - b) for a in points for b in points)
    assert longest(points).mm == pytest.approx(expected, abs=1e-9)


def test_a_lesion_of_millions_of_voxels_is_measured_in_a_second(small, tumour, tmp_path):
    shape = (120, 160, 160)
    volume = read_series(write_series(tmp_path, small.lopsided(shape), (1.0, 1.0, 1.0)))
    z, y, x = np.ogrid[:120, :160, :160]
    ball = (z - 60) ** 2 + (y - 80) ** 2 + (x - 80) ** 2 <= 55**2
    started = time.monotonic()
    (found,) = find(volume, (ball * tumour.value).astype(np.uint8))
    assert time.monotonic() - started < 3
    assert found.diameter.mm == pytest.approx(110)


@pytest.mark.parametrize("seed", range(6))
def test_the_longest_distance_within_a_slice_is_that_of_all_slices(volume, tumour, seed):
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    centre, radii = np.array(SHAPE) / 2, random.uniform(3, 9, 3)
    turned = (grid - centre) @ np.linalg.qr(random.normal(size=(3, 3)))[0]
    mask = (((turned / radii) ** 2).sum(axis=-1) < 1).astype(np.uint8) * tumour.value
    (one,) = find(volume, mask)
    pixels = [np.argwhere(plane) * volume.spacing[1:] for plane in mask]
    far = [max((np.linalg.norm(points - p, axis=1).max() for p in points), default=-1) for points in pixels]
    assert one.in_slice.mm == pytest.approx(max(far))
    assert far[one.slice_frame] == pytest.approx(max(far))
