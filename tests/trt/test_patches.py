from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trt.manifest import Normalisation
from trt.patches import (
    BACKGROUND,
    Array,
    NonFiniteOutput,
    bell,
    count_patches,
    cover,
    normalise,
    places,
    predict_slices,
    predict_volume,
    starts,
)


def centre(patches: Array) -> Array:
    middle = patches.shape[1] // 2
    return patches[:, middle : middle + 1]


shapes = st.tuples(st.integers(1, 5), st.integers(1, 37), st.integers(1, 37))
sides = st.tuples(st.integers(1, 19), st.integers(1, 19))
overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.75]) | st.floats(0, 0.75)
settled = settings(max_examples=150, deadline=None, derandomize=True)


@settled
@given(
    st.data(),
    shapes,
    sides,
    st.sampled_from([1, 3, 5]),
    overlaps,
    st.integers(1, 9),
)
def test_identity_network_returns_the_volume(
    data: st.DataObject,
    shape: tuple[int, int, int],
    patch: tuple[int, int],
    channels: int,
    overlap: float,
    batch: int,
) -> None:
    finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
    volume = data.draw(arrays.arrays(np.float32, shape, elements=finite))
    logits = predict_volume(volume, centre, patch=patch, channels=channels, overlap=overlap, batch=batch)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits[0], volume)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_identity_holds_at_the_size_that_serves(overlap: float) -> None:
    volume = np.random.default_rng(0).normal(0, 100, (3, 321, 251)).astype(np.float32)
    logits = predict_volume(volume, centre, patch=(128, 128), channels=3, overlap=overlap)
    np.testing.assert_array_equal(logits[0], volume)


@settled
@given(st.integers(1, 700), st.integers(1, 200), st.floats(0, 0.9))
def test_grid_covers_the_axis_evenly(length: int, patch: int, overlap: float) -> None:
    found = starts(length, patch, overlap)
    assert found[0] == 0
    assert found[-1] == max(length - patch, 0)
    steps = np.diff(found)
    if len(steps):
        assert steps.max() <= patch
        assert steps.max() - steps.min() <= 1
        assert steps.max() <= max(1, np.ceil(patch * (1 - overlap)))


def test_grid_follows_the_published_example() -> None:
    assert starts(110, 64, 0.5) == [0, 23, 46]


@settled
@given(st.data(), shapes, sides, st.sampled_from([1, 3]), overlaps, st.integers(1, 9))
def test_a_region_is_covered_and_all_else_is_background(
    data: st.DataObject, shape: tuple[int, int, int], patch: tuple[int, int], channels: int, overlap: float, batch: int
) -> None:
    region = data.draw(arrays.arrays(np.bool_, shape))
    volume = np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)
    told: list[tuple[int, int]] = []

    def predict(patches: Array) -> Array:
        return np.concatenate([centre(patches), centre(patches) + 1], axis=1)

    logits = predict_volume(
        volume, predict, patch=patch, channels=channels, overlap=overlap, batch=batch, region=region,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    np.testing.assert_array_equal(logits[0][region], volume[region])
    np.testing.assert_array_equal(logits[0][~region], BACKGROUND)
    np.testing.assert_array_equal(logits[1][~region], 0)
    count = count_patches(shape, patch, overlap, region)
    assert told[-1] == (max(count, 1), max(count, 1))


@settled
@given(shapes, sides, overlaps, st.integers(1, 9))
def test_a_region_of_everything_changes_nothing(
    shape: tuple[int, int, int], patch: tuple[int, int], overlap: float, batch: int
) -> None:
    volume = np.random.default_rng(1).normal(size=shape).astype(np.float32)

    def predict(patches: Array) -> Array:
        """Differs from patch to patch, so that every place and weight tells."""
        return patches * patches.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float32)

    options = {"patch": patch, "channels": 3, "overlap": overlap}
    plain = predict_volume(volume, predict, **options)  # type: ignore[arg-type]
    region = np.ones(shape, np.bool_)
    np.testing.assert_array_equal(predict_volume(volume, predict, batch=batch, region=region, **options), plain)  # type: ignore[arg-type]
    assert count_patches(shape, patch, overlap, region) == count_patches(shape, patch, overlap)


@settled
@given(st.data(), st.integers(1, 40), st.integers(0, 200), st.floats(0, 0.9))
def test_places_along_an_axis_cover_what_is_wanted(data: st.DataObject, patch: int, more: int, overlap: float) -> None:
    wanted = data.draw(arrays.arrays(np.bool_, patch + more, elements=st.booleans()))
    found = cover(wanted, patch, overlap)
    assert found == sorted(set(found))
    covered = np.zeros_like(wanted)
    for start in found:
        assert 0 <= start <= more
        covered[start : start + patch] = True
    assert covered[wanted].all()


def test_runs_are_covered_apart_or_together_by_what_takes_fewer() -> None:
    wanted = np.zeros(300, np.bool_)
    wanted[10:60] = wanted[80:90] = True
    assert cover(wanted, 100, 0.5) == [0]
    wanted[280:290] = True
    assert cover(wanted, 100, 0.5) == [0, 200]
    assert cover(np.zeros(300, np.bool_), 100, 0.5) == []


@settled
@given(st.data(), st.integers(4, 32), st.sampled_from([0.0, 0.25, 0.5]))
def test_a_rectangle_has_half_an_overlap_of_context(data: st.DataObject, patch: int, overlap: float) -> None:
    height, width = (data.draw(st.integers(patch, 150)) for _ in range(2))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    region = np.zeros((height, width), np.bool_)
    region[top:bottom, left:right] = True
    deep = np.zeros_like(region)
    context = int(overlap * patch / 2)
    for y, x in places(region, (patch, patch), overlap):
        rows = slice(y + (context if y > top else 0), y + patch - (context if y + patch < bottom else 0))
        columns = slice(x + (context if x > left else 0), x + patch - (context if x + patch < right else 0))
        deep[rows, columns] = True
    assert deep[region].all()


def test_fewer_patches_cover_a_narrow_band() -> None:
    region = np.zeros((10, 320, 256), np.bool_)
    region[:, :, 80:190] = True
    assert count_patches(region.shape, (128, 128), 0.5) == 120
    assert count_patches(region.shape, (128, 128), 0.5, region) == 40


def test_the_batch_does_not_matter_within_a_region() -> None:
    random = np.random.default_rng(3)
    volume, region = random.normal(size=(4, 30, 41)).astype(np.float32), random.random((4, 30, 41)) < 0.02
    region[1] = False
    results = [
        predict_volume(volume, np.sin, patch=(16, 12), channels=3, batch=batch, region=region) for batch in (1, 5, 64)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_channels_are_the_neighbouring_slices_clamped_at_the_ends() -> None:
    volume = np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None], (4, 6, 6)).copy()
    logits = predict_volume(volume, lambda patches: patches, patch=(4, 4), channels=3)
    np.testing.assert_array_equal(logits[:, :, 0, 0], [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 3]])


def test_every_call_but_the_last_sees_a_whole_batch_and_progress_ends_at_the_total() -> None:
    seen, told = [], []

    def predict(patches: Array) -> Array:
        seen.append(patches.shape)
        return centre(patches)

    volume = np.zeros((3, 40, 33), np.float32)
    predict_volume(
        volume, predict, patch=(16, 16), channels=3, batch=7, progress=lambda done, total: told.append((done, total))
    )
    total = count_patches((3, 40, 33), (16, 16), 0.5)
    assert total == 3 * 4 * 4
    assert seen == [(7, 3, 16, 16)] * 6 + [(6, 3, 16, 16)]
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_slices_come_in_order_before_the_volume_is_done() -> None:
    calls = 0

    def predict(patches: Array) -> Array:
        nonlocal calls
        calls += 1
        return centre(patches)

    slices = predict_slices(np.zeros((50, 16, 16), np.float32), predict, patch=(16, 16), channels=1, batch=2)
    assert next(slices)[0] == 0
    assert calls == 1
    assert [z for z, _ in slices] == list(range(1, 50))


def test_the_batch_size_changes_nothing() -> None:
    volume = np.random.default_rng(1).normal(size=(4, 30, 41)).astype(np.float32)

    def predict(patches: Array) -> Array:
        return np.concatenate([patches**2, np.sin(patches)], axis=1)

    results = [predict_volume(volume, predict, patch=(16, 12), channels=3, batch=batch) for batch in (1, 5, 64)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@settled
@given(shapes, sides, overlaps, st.integers(1, 9))
def test_a_pixel_is_the_mean_of_its_patches_by_weight(
    shape: tuple[int, int, int], patch: tuple[int, int], overlap: float, batch: int
) -> None:
    volume = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    shape = shape[0], max(shape[1], patch[0]), max(shape[2], patch[1])
    volume = np.resize(volume, shape)
    answers: list[Array] = []

    def predict(patches: Array) -> Array:
        """Two classes that differ from patch to patch."""
        answers.append(np.concatenate([patches * len(answers), patches + 100], axis=1))
        return answers[-1]

    logits = predict_volume(volume, predict, patch=patch, channels=1, overlap=overlap, batch=batch)
    weight = np.multiply.outer(bell(patch[0]), bell(patch[1]))
    summed, total = np.zeros((2, *shape)), np.zeros(shape)
    grid = [(y, x) for y in starts(shape[1], patch[0], overlap) for x in starts(shape[2], patch[1], overlap)]
    chosen = [(z, y, x) for z in range(shape[0]) for y, x in grid]
    for (z, y, x), answer in zip(chosen, np.concatenate(answers), strict=False):
        summed[:, z, y : y + patch[0], x : x + patch[1]] += weight * answer
        total[z, y : y + patch[0], x : x + patch[1]] += weight
    wanted = summed / total
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@settled
@given(shapes, sides, overlaps, st.integers(1, 9))
def test_a_network_that_is_linear_and_alike_everywhere_may_be_tiled_or_not(
    shape: tuple[int, int, int], patch: tuple[int, int], overlap: float, batch: int
) -> None:
    volume = np.random.default_rng(6).normal(size=shape).astype(np.float32)
    mix = np.array([[0.25, -2.0, 0.5], [1.0, 1.0, -3.0]], np.float32)

    def linear(patches: Array) -> Array:
        return np.einsum("kc,nchw->nkhw", mix, patches)

    tiled = predict_volume(volume, linear, patch=patch, channels=3, overlap=overlap, batch=batch)
    whole = predict_volume(volume, linear, patch=shape[1:], channels=3, overlap=0, batch=1)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-5)


def test_what_is_yielded_is_the_callers() -> None:
    volume = np.random.default_rng(5).normal(size=(6, 21, 18)).astype(np.float32)
    kept = []
    for z, logits in predict_slices(volume, centre, patch=(16, 16), channels=3, batch=7):
        np.testing.assert_array_equal(logits[0], volume[z])
        logits *= 2
        kept.append(logits)
    np.testing.assert_array_equal(np.concatenate(kept), volume * 2)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
@pytest.mark.parametrize("batch", [1, 8, 40])
def test_what_is_held_does_not_grow_with_the_series(overlap: float, batch: int) -> None:
    patch, plane, channels, classes = (64, 64), (256, 192), 3, 5
    per_slice = count_patches((1, *plane), patch, overlap)

    def predict(patches: Array) -> Array:
        return np.repeat(centre(patches), classes, axis=1)

    def peak(depth: int) -> int:
        volume = np.broadcast_to(np.float32(1), (depth, *plane))  # takes no memory itself
        tracemalloc.start()
        for _ in predict_slices(volume, predict, patch=patch, channels=channels, overlap=overlap, batch=batch):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    slices = -(-(batch - 1) // per_slice) + 2  # that a batch meets, the one it began, and the one yielded last
    patches = batch * (channels + 2 * classes) + 2 * classes  # in, out, the batch before, one being blended
    budget = 4 * slices * (classes + 1) * plane[0] * plane[1] + 4 * patches * patch[0] * patch[1] + 2**18
    assert peak(100) <= budget
    assert peak(100) <= peak(20) + 2**15


def test_logits_that_float32_cannot_blend_are_refused() -> None:
    calls = 0

    def predict(patches: Array) -> Array:
        nonlocal calls
        calls += 1
        return np.full_like(centre(patches), 3e38 * (-1) ** calls)

    with pytest.raises(NonFiniteOutput, match="too far apart"):
        predict_volume(np.zeros((1, 12, 8), np.float32), predict, patch=(8, 8), channels=1, batch=1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_output_that_is_not_finite_is_refused(wrong: float) -> None:
    def predict(patches: Array) -> Array:
        logits = centre(patches).copy()
        logits[-1, 0, 3, 3] = wrong
        return logits

    with pytest.raises(NonFiniteOutput, match="NaN or infinity"):
        predict_volume(np.zeros((2, 8, 8), np.float32), predict, patch=(8, 8), channels=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volume": np.zeros((2, 8, 8))}, "float32"),
        ({"volume": np.zeros((8, 8), np.float32)}, "volume must be"),
        ({"volume": np.zeros((0, 8, 8), np.float32)}, "not empty"),
        ({"patch": (0, 8)}, "positive"),
        ({"batch": 0}, "positive"),
        ({"channels": 2}, "odd"),
        ({"overlap": 1.0}, "overlap"),
        ({"overlap": -0.1}, "overlap"),
        ({"region": np.ones((2, 8, 7), np.bool_)}, "region must be"),
        ({"region": np.ones((2, 8, 8), np.uint8)}, "region must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_once(change: dict[str, object], message: str) -> None:
    arguments = {"volume": np.zeros((2, 8, 8), np.float32), "patch": (8, 8), "channels": 1} | change
    volume = arguments.pop("volume")
    with pytest.raises(ValueError, match=message):
        predict_slices(volume, centre, **arguments)  # type: ignore[arg-type]


def test_a_network_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="the network returned"):
        predict_volume(np.zeros((2, 8, 8), np.float32), lambda p: p[:, :, 1:], patch=(8, 8), channels=1)


def test_normalise_maps_percentiles_and_clips() -> None:
    volume = np.arange(1001, dtype=np.uint16).reshape(1, 1, 1001)
    found = normalise(volume, Normalisation(10, 90, (0.0, 1.0)))
    assert found.dtype == np.float32
    assert found[0, 0, 100] == 0
    assert found[0, 0, 500] == pytest.approx(0.5)
    assert found[0, 0, 950] == 1
    assert volume.max() == 1000


@settled
@given(st.floats(0.1, 50), st.floats(-1000, 1000))
def test_normalise_does_not_depend_on_unit_or_offset(scale: float, offset: float) -> None:
    volume = np.random.default_rng(2).uniform(0, 100, (2, 9, 9)).astype(np.float32)
    rule = Normalisation(0.5, 99.5, (0.0, 1.0))
    moved = volume * np.float32(scale) + np.float32(offset)
    np.testing.assert_allclose(normalise(moved, rule), normalise(volume, rule), atol=1e-3)


def test_normalise_takes_a_flat_volume_and_refuses_nan() -> None:
    rule = Normalisation(0.5, 99.5, (0.0, 1.0))
    np.testing.assert_array_equal(normalise(np.full((2, 3, 3), 7), rule), 0)
    with pytest.raises(ValueError, match="NaN"):
        normalise(np.array([[[1.0, np.nan]]]), rule)
