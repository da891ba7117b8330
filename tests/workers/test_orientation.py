"""The law of orientation: one anatomy gives one mask in the patient, however it was stored."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.enhanced import write_enhanced
from workers.grid import from_canonical, to_canonical, turn
from workers.prediction import predict_mask
from workers.series import Storage, write_series
from workers.volume import read_series

INSTANCE_ORDERS = (False, True)
STORAGES = [
    Storage(axes=axes, flips=flips)
    for axes in itertools.permutations(range(3))
    for count in range(4)
    for flips in itertools.combinations(range(3), count)
]


def in_patient(mask, volume):
    """The labelled points of a mask in LPS, by nothing but the affine: (n, 4) of mm and label, in a fixed order."""
    index = np.argwhere(mask)
    points = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    table = np.column_stack([np.round(points, 3) + 0.0, mask[tuple(index.T)]])
    return table[np.lexsort(table.T)]


def segmented(paths, manifest, small):
    volume = read_series(paths)
    mask = predict_mask(volume, small.formula, manifest, overlap=0.5, batch=4).mask
    return in_patient(mask, volume), volume


@pytest.fixture(scope="module")
def expected(tmp_path_factory, manifest, small):
    table, _ = segmented(
        write_series(tmp_path_factory.mktemp("plain"), small.lopsided(), small.SPACING), manifest, small
    )
    every = {label.value for label in manifest.labels}
    assert set(table[:, 3]) == every, "the formula must use all labels, or the law says little"
    return table


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: f"{s.axes}{s.flips}")
def test_all_48_ways_to_store_a_volume_give_one_mask(storage, tmp_path, manifest, small, expected):
    for reverse in INSTANCE_ORDERS:
        stored = Storage(axes=storage.axes, flips=storage.flips, reverse=reverse)
        paths = write_series(tmp_path / str(reverse), small.lopsided(), small.SPACING, storage=stored)
        table, _ = segmented(paths[::-1] if reverse else paths, manifest, small)
        np.testing.assert_array_equal(table, expected)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(2, 5), st.integers(9, 40), st.integers(9, 40)),
    spacing=st.tuples(st.sampled_from([0.5, 3.3]), st.sampled_from([0.41, 0.9375, 1.7]), st.sampled_from([0.6, 1.2])),
    storage=st.sampled_from(STORAGES),
    reverse=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_law_holds_where_pixels_are_resampled(
    shape, spacing, storage, reverse, seed, tmp_path_factory, manifest, small
):
    image, folder = small.lopsided(shape, seed), tmp_path_factory.mktemp("any")
    stored = Storage(axes=storage.axes, flips=storage.flips, reverse=reverse)
    if min(image.transpose(stored.axes).shape) < 2:
        return
    plain, _ = segmented(write_series(folder / "a", image, spacing), manifest, small)
    other, _ = segmented(write_series(folder / "b", image, spacing, storage=stored), manifest, small)
    np.testing.assert_array_equal(other, plain)


@pytest.mark.parametrize("degrees", [-40.0, -12.0, 7.0, 44.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_oblique_volume_is_turned_to_its_nearest_axes(degrees, axis, tmp_path, small):
    a, b = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation = np.eye(3)
    others = [i for i in range(3) if i != axis]
    rotation[np.ix_(others, others)] = [[a, -b], [b, a]]
    image = small.lopsided()
    storage = Storage(axes=(2, 0, 1), flips=(1,), rotation=tuple(rotation.ravel()))
    volume = read_series(write_series(tmp_path, image, small.SPACING, storage=storage))
    np.testing.assert_array_equal(to_canonical(volume).voxels, image)


@pytest.mark.parametrize("reverse", [False, True])
def test_enhanced_mr_gives_the_mask_of_the_classic_series(reverse, tmp_path: Path, manifest, small, expected):
    storage = Storage(axes=(0, 2, 1), flips=(0, 2), reverse=reverse)
    path = write_enhanced(tmp_path / "e.dcm", small.lopsided(), small.SPACING, storage=storage)
    table, volume = segmented([path], manifest, small)
    np.testing.assert_array_equal(table, expected)
    assert sorted(volume.frame_numbers) == [1, 2, 3, 4, 5, 6]


@given(axes=st.permutations(range(3)), flips=st.sets(st.integers(0, 2)))
def test_turning_back_is_the_inverse_of_turning(axes, flips):
    mask = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    there = turn(mask, tuple(axes), tuple(sorted(flips)))
    np.testing.assert_array_equal(from_canonical(there, tuple(axes), tuple(sorted(flips))), mask)
