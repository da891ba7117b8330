"""Where the model runs: air is left out by a bound, the spine's band only ever grows, and a miss is told."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.ndimage import maximum_filter

from trt.engine import open_engine
from trt.extraction import AIR_CEILING, air_level, band, find_spine, find_tissue, finder_model, select, shrink
from trt.manifest import Finder, load
from trt.patches import Array, normalise, predict_volume
from trt.phantom import spine_phantom

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SPINE_DATA", ROOT.parent / "shared" / "data")) / "spider_t2space"
FINDER = Finder(Path("f"), "0" * 64, factor=4, patch=(32, 32), channels=1, threshold=0.3, margin_mm=8.0, kept=1.0)
settled = settings(max_examples=60, deadline=None, derandomize=True)


def bright(patches: Array) -> Array:
    """A finder that takes what is brighter than a half for spine."""
    centre = patches[:, 0]
    return np.stack([np.zeros_like(centre), np.where(centre > 0.5, 5, -5).astype(np.float32)], axis=1)


def column(shape: tuple[int, int, int] = (4, 160, 200)) -> Array:
    volume = np.full(shape, 0.2, np.float32)
    volume[1:3, 20:140, 80:110] = 1
    return volume


# --- air ------------------------------------------------------------------------------------------------------------


@settled
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
        elements=st.sampled_from([0.0, 0.01, 0.02, 0.5, 1.0]).map(np.float32),
    ),
    st.sampled_from([1, 3]),
)
def test_outside_the_tissue_all_channels_are_air(volume: Array, channels: int) -> None:
    level = air_level(volume)
    assert level <= AIR_CEILING
    region = find_tissue(volume, channels)
    if region is None:
        assert volume.max() <= level
        return
    reach = channels // 2
    for z, plane in enumerate(region):
        near = volume[max(z - reach, 0) : z + reach + 1]
        assert near[:, ~plane].max(initial=0) <= level


def test_what_is_dark_within_the_patient_stays() -> None:
    volume = np.zeros((3, 40, 60), np.float32)
    volume[:, 5:35, 20:50] = 0.4
    volume[:, 10:20, 30:40] = 0
    region = find_tissue(volume, 3)
    assert region is not None
    assert region[:, 5:35, 20:50].all()
    assert region.sum() == 3 * 30 * 30


def test_constant_air_lets_everything_run() -> None:
    manifest = load()
    volume = normalise(np.zeros((2, 40, 40)), manifest.normalisation)
    selection = select(volume, manifest, "tissue")
    assert (selection.region, selection.extraction) == (None, "all")
    assert selection.reason


def test_a_dark_volume_without_air_loses_nothing() -> None:
    assert find_tissue(np.full((2, 40, 40), 0.1, np.float32), 3) is not None
    region = find_tissue(np.random.default_rng(0).uniform(0.05, 1, (2, 40, 40)).astype(np.float32), 3)
    assert region is not None
    assert region.all()


# --- the spine ------------------------------------------------------------------------------------------------------


@settled
@given(
    arrays.arrays(np.bool_, st.tuples(st.integers(1, 30), st.integers(1, 30))),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_the_band_holds_all_that_was_seen_and_its_margin(seen: np.ndarray, down: int, across: int) -> None:
    if not seen.any():
        return
    found = band(seen, (down, across))
    assert found.any(axis=1).all(), "from top to bottom"
    assert found[maximum_filter(seen, (2 * down + 1, 2 * across + 1), mode="constant")].all()


def test_a_gap_in_the_band_is_bridged() -> None:
    seen = np.zeros((30, 40), np.bool_)
    seen[2:10, 5:9] = seen[20:28, 25:29] = True
    found = band(seen, (1, 1))
    assert found[15, 16:18].all()
    assert not found[15, 30:].any()
    assert not found[5, 20:].any()


def test_all_slices_share_the_band_and_its_margin() -> None:
    volume = column()
    region, reason = find_spine(volume, bright, FINDER, (1.0, 1.0))
    assert region is not None
    assert reason == ""
    assert region.shape == volume.shape
    assert (region == region[:1]).all()
    assert region[0, 12:148, 72:118].all()
    assert region.mean() < 0.5


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.5, 1.5)])  # too small; too low
def test_too_little_spine_lets_everything_run_and_says_why(spacing: tuple[float, float]) -> None:
    volume = column()
    volume[:, 60:] = 0
    manifest = dataclasses.replace(load(), finder=FINDER, spacing_mm=spacing)
    selection = select(volume, manifest, "spine", bright)
    assert (selection.region, selection.extraction) == (None, "all")
    assert "too little" in selection.reason


def test_too_much_spine_lets_everything_run_and_says_why() -> None:
    region, reason = find_spine(np.ones((2, 200, 240), np.float32), bright, FINDER, (1.0, 1.0))
    assert region is None
    assert "too much" in reason


def test_a_low_field_of_view_lets_everything_run_and_says_why() -> None:
    selection = select(column()[:, :159], dataclasses.replace(load(), finder=FINDER), "spine", bright)
    assert (selection.region, selection.extraction) == (None, "all")
    assert "149.1 mm high" in selection.reason


def test_what_is_done_follows_what_is_asked_and_there() -> None:
    manifest = dataclasses.replace(load(), finder=FINDER)
    volume = column()
    assert select(volume, manifest, "all", bright).extraction == "all"
    assert select(volume, manifest, "tissue", bright).extraction == "tissue"
    assert select(volume, manifest, "spine", bright).extraction == "spine"
    assert select(volume, manifest, "spine").extraction == "tissue"
    assert select(volume, dataclasses.replace(manifest, finder=None), "spine", bright).extraction == "tissue"


def test_the_batch_does_not_matter() -> None:
    manifest = dataclasses.replace(load(), finder=FINDER)
    regions = [select(column(), manifest, "spine", bright, batch=batch).region for batch in (1, 7)]
    assert regions[0] is not None
    np.testing.assert_array_equal(regions[0], regions[1])


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 9, 10), (2, 3, 3)])
def test_shrinking_takes_means_and_repeats_the_edge(shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(0).random(shape, np.float32)
    small = shrink(volume, 4)
    assert small.dtype == np.float32
    assert small.shape == (shape[0], -(-shape[1] // 4), -(-shape[2] // 4))
    if shape[1] >= 4:
        np.testing.assert_allclose(small[:, 0, 0], volume[:, :4, :4].mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(shrink(np.full(shape, 0.3, np.float32), 4), 0.3, rtol=1e-6)


# --- the finder that comes with the model ---------------------------------------------------------------------------


def test_a_model_without_a_finder_has_no_model_of_it() -> None:
    with pytest.raises(ValueError, match="no finder"):
        finder_model(dataclasses.replace(load(), finder=None))


def curve(*levels: float) -> Callable[[Array], Array]:
    return lambda image: np.interp(image, np.linspace(0, 1, len(levels)), levels).astype(np.float32)


CONTRASTS = {"as it is": curve(0, 1), "inverted": curve(0, 0.95, 0.5, 0), "like T1": curve(0, 0.5, 0.6, 0.25, 0.1)}


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_the_finder_keeps_the_phantoms_spine(contrast: str) -> None:
    manifest = load()
    with open_engine(finder_model(manifest), threads=1) as engine:
        for seed in range(3):
            phantom = spine_phantom((5, 320, 256), (4.0, 0.9375, 0.9375), seed)
            image = CONTRASTS[contrast](normalise(phantom.image, manifest.normalisation))
            region = select(image, manifest, "spine", engine).region
            assert region is None or region[phantom.mask > 0].mean() > 0.98


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_the_finder_keeps_every_spine_held_back(contrast: str) -> None:
    """At least 99.9 % of the labelled voxels of each patient: `kept` of the manifest, measured again."""
    from trt.dataset import read_folder, read_split

    if not DATA.is_dir():
        pytest.skip(f"no real data in {DATA}")
    manifest = load()
    assert manifest.finder is not None
    cases = read_folder(DATA, len(manifest.labels), read_split(manifest.path.with_name("split.json")).validation)
    with open_engine(finder_model(manifest), threads=1) as engine:
        for case in cases:
            image = CONTRASTS[contrast](normalise(case.image, manifest.normalisation))
            region = select(image, manifest, "spine", engine).region
            kept = 1.0 if region is None else region[case.mask > 0].mean()
            assert kept >= 0.999, case.name
            if contrast == "as it is":
                assert region is not None, case.name
                assert kept >= manifest.finder.kept, case.name


def test_air_costs_no_labelled_voxel_of_real_series() -> None:
    from trt.dataset import read_folder

    if not DATA.is_dir():
        pytest.skip(f"no real data in {DATA}")
    manifest = load()
    for case in read_folder(DATA, len(manifest.labels)):
        region = find_tissue(normalise(case.image, manifest.normalisation), manifest.channels)
        assert region is not None
        assert region[case.mask > 0].mean() > 0.99999, case.name  # a voxel at the edge of a slice may be black


def test_inside_the_band_the_model_sees_what_it_always_saw() -> None:
    """With the identity for a network the volume comes back, bit for bit."""
    volume = column()
    region = select(volume, dataclasses.replace(load(), finder=FINDER), "spine", bright).region
    assert region is not None
    logits = predict_volume(
        volume, lambda p: p[:, 1:2], patch=(64, 64), channels=3, overlap=0.25, batch=5, region=region
    )
    np.testing.assert_array_equal(logits[0][region], volume[region])
