"""Patches fitted to a series: they cover it, cost no more than the model's own, and hold what a call may hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trt import fitting
from trt.candidates import segment
from trt.engine import Engine, open_engine
from trt.fitting import fit
from trt.manifest import Manifest, load
from trt.patches import count_patches, normalise, predict_volume
from trt.phantom import spine_phantom

SHAPE = (3, 320, 256)


def small(patch: tuple[int, int] = (16, 12), stride: int | None = 4) -> Manifest:
    return dataclasses.replace(load(), patch=patch, stride=stride, overlap=0.5)


def band(first: int, last: int) -> np.ndarray:
    plane = np.zeros(SHAPE[1:], np.bool_)
    plane[:, first:last] = True
    return np.broadcast_to(plane, SHAPE)


def test_one_patch_takes_a_whole_band() -> None:
    found = fit(SHAPE, band(70, 207), load())
    assert (found.patch, found.patches, found.pixels) == ((320, 144), 3, 3 * 320 * 144)


def test_everything_is_taken_by_whole_slices() -> None:
    assert fit(SHAPE, None, load()).patch == (320, 256)


def test_a_slice_too_large_for_one_call_is_cut_evenly_with_the_models_own_overlap() -> None:
    manifest = load()
    found = fit((2, 1024, 1024), None, manifest)
    height, width = found.patch
    assert height * width <= 8 * 128 * 128
    assert found.patches > 2
    assert found.overlap * max(height, width) >= manifest.overlap * 128 - 1
    own = count_patches((2, 1024, 1024), manifest.patch, manifest.overlap) * 128 * 128
    assert found.pixels < own


@pytest.mark.parametrize(("manifest", "flexible"), [(load(), False), (dataclasses.replace(load(), stride=None), True)])
def test_the_models_own_patches_where_no_others_can_run(manifest: Manifest, flexible: bool) -> None:
    found = fit(SHAPE, band(70, 207), manifest, flexible=flexible, overlap=0.5, batch=3)
    assert (found.patch, found.overlap, found.batch) == ((128, 128), 0.5, 3)
    assert found.patches == count_patches(SHAPE, (128, 128), 0.5, band(70, 207))


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
def test_a_volume_is_cut_alike_whatever_fits_into_a_batch(batch: int) -> None:
    found = fit(SHAPE, None, load(), batch=batch)
    assert found.patch == (320, 256)
    assert found.batch == max(batch * 128 * 128 // (320 * 256), min(2, batch))


def test_slices_that_differ_are_counted_for_two_sizes_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []

    def count(shape: tuple[int, int, int], *arguments: Any) -> int:
        counted.append(shape[0])
        return count_patches(shape, *arguments)

    monkeypatch.setattr(fitting, "count_patches", count)
    region = np.random.default_rng(0).random((9, 700, 600)) > 0.5
    fit((9, 700, 600), region, load())
    assert counted.count(9) == 2
    assert counted.count(1) > 2


def test_no_patch_is_smaller_than_the_models_own() -> None:
    assert fit(SHAPE, band(100, 110), load()).patch[1] == 128
    assert fit((1, 40, 30), None, load()).patch == (128, 128)


def test_nothing_to_run_costs_nothing() -> None:
    assert fit(SHAPE, np.zeros(SHAPE, np.bool_), load()).patches == 0


@settings(max_examples=60, deadline=None)
@given(data=st.data(), overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]), batch=st.integers(1, 9))
def test_fitted_patches_give_the_volume_back_and_never_cost_more(
    data: st.DataObject, overlap: float, batch: int
) -> None:
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70)))
    region = data.draw(st.none() | arrays(np.bool_, shape))
    manifest = small()
    found = fit(shape, region, manifest, overlap=overlap, batch=batch)
    assert all(side % 4 == 0 and side >= own for side, own in zip(found.patch, manifest.patch, strict=True))
    assert found.batch == min(2, batch) or found.batch * found.patch[0] * found.patch[1] <= batch * 16 * 12
    assert (found.patch, found.overlap) == (lambda other: (other.patch, other.overlap))(
        fit(shape, region, manifest, overlap=overlap, batch=1)
    )
    assert found.pixels <= fit(shape, region, manifest, flexible=False, overlap=overlap, batch=batch).pixels

    seen = []

    def centre(patches: np.ndarray) -> np.ndarray:
        seen.append(len(patches))
        return patches[:, 1:2]

    volume = np.random.default_rng(0).random(shape, np.float32)
    logits = predict_volume(
        volume, centre, patch=found.patch, channels=3, overlap=found.overlap, batch=found.batch, region=region
    )[0]
    inside = np.ones(shape, np.bool_) if region is None else region
    np.testing.assert_array_equal(logits[inside], volume[inside])
    assert sum(seen) == max(found.patches, 1)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with open_engine(load(), threads=2) as opened:
        yield opened


def test_the_shipped_model_finds_the_same_in_fitted_patches_as_in_its_own(engine: Engine) -> None:
    manifest = load()
    phantom = spine_phantom((4, 320, 256), (4.0, *manifest.spacing_mm), seed=5)
    own, fitted = (
        segment(phantom.image, manifest, engine, flexible=flexible, spacing=(4.0, *manifest.spacing_mm))
        for flexible in (False, True)
    )
    assert (own == fitted).mean() > 0.995
    assert (own > 0).mean() > 0.05


def test_an_engine_calculates_a_pixel_far_from_the_border_alike_in_patches_of_any_size(engine: Engine) -> None:
    manifest = load()
    image = normalise(spine_phantom((3, 416, 384), (4.0, *manifest.spacing_mm), seed=6).image, manifest.normalisation)
    large, small = engine(image[None]), engine(np.ascontiguousarray(image[None, :, 32:352, 16:336]))
    assert engine.flexible
    np.testing.assert_allclose(small[0, :, 150:170, 150:170], large[0, :, 182:202, 166:186], atol=1e-4)
