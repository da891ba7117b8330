from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, label
from scipy.spatial.distance import pdist

from trt.contrast import t1_like
from trt.lesions import TUMOUR, Kind, Lesion, Lesioned, Weighting, insert_lesions
from trt.manifest import Normalisation
from trt.patches import normalise
from trt.phantom import CANAL, DISC, VERTEBRA, spine_phantom

Image, Mask, Spacing = NDArray[np.float32], NDArray[np.uint8], tuple[float, float, float]

SHAPE = (12, 190, 150)
THIN, THICK = (0.9, 0.9375, 0.9375), (4.4, 0.9, 0.9)
T1, T2, ANY = Weighting.T1_GADOLINIUM, Weighting.T2, Weighting.ANY
CANAL_KINDS = (Kind.INTRAMEDULLARY, Kind.INTRADURAL, Kind.EPIDURAL)
HOST = dict.fromkeys(CANAL_KINDS, CANAL) | {Kind.VERTEBRAL: VERTEBRA}


@cache
def series(spacing: Spacing = THIN, seed: int = 0, weighting: Weighting = T1) -> tuple[Image, Mask]:
    phantom = spine_phantom(SHAPE, spacing, seed)
    image = normalise(phantom.image.astype(np.float32), Normalisation(0.5, 99.5, (0.0, 1.0)))
    return (t1_like(image, phantom.mask) if weighting is T1 else image), phantom.mask


@pytest.fixture(scope="module")
def thin() -> tuple[Image, Mask]:
    return series()


def insert(volume: tuple[Image, Mask], seed: int, spacing: Spacing = THIN, **options: Any) -> Lesioned:
    options = {"count": 1, "weighting": T1} | options
    return insert_lesions(*volume, spacing, np.random.default_rng(seed), **options)


def some(volume: tuple[Image, Mask], kind: Kind, seeds: int = 4, **options: Any) -> list[tuple[Lesion, Lesioned]]:
    """Single lesions of a kind; most seeds must find a place."""
    found = [insert(volume, seed, kinds=(kind,), **options) for seed in range(seeds)]
    found = [result for result in found if result.lesions]
    assert len(found) > seeds / 2
    return [(result.lesions[0], result) for result in found]


@pytest.mark.parametrize("weighting", list(Weighting))
def test_lesions_are_what_is_reported(weighting: Weighting) -> None:
    volume = series(weighting=weighting)
    total = 0
    for seed in range(3):
        result = insert(volume, seed, count=4, weighting=weighting)
        parts, found = label(result.mask == TUMOUR)
        assert found == len(result.lesions)
        assert len({int(parts[lesion.centre]) for lesion in result.lesions} - {0}) == found
        for lesion in result.lesions:
            places = np.argwhere(parts == parts[lesion.centre])
            assert len(places) == lesion.voxels >= 8
            longest = pdist(places[:: 1 + len(places) // 1500] * np.array(THIN)).max() + THIN[1]
            assert longest - 1e-3 <= lesion.diameter_mm < longest * 1.15 + 0.1
            assert 3 <= lesion.diameter_mm <= 40
            assert lesion.necrotic or not lesion.rim
        total += found
        assert np.isfinite(result.image).all()
        assert result.image.min() > -0.5
        assert result.image.max() < 1.7
        assert (result.image.dtype, result.mask.dtype) == (np.float32, np.uint8)
    assert total >= 6


def test_lesions_keep_their_distance(thin: tuple[Image, Mask]) -> None:
    pairs = 0
    for seed in range(3):
        result = insert(thin, seed, count=6)
        parts, found = label(result.mask == TUMOUR)
        for part in range(1, found + 1):
            away = distance_transform_edt(parts != part, THIN)
            others = away[(parts > 0) & (parts != part)]
            assert others.min(initial=math.inf) >= 6.0 - 1e-6
            pairs += others.size > 0
    assert pairs >= 6


def test_inputs_stay_and_equal_generators_give_equal_lesions(thin: tuple[Image, Mask]) -> None:
    image, mask = thin[0].copy(), thin[1].copy()
    first, second, other = (insert(thin, seed, count=3) for seed in (3, 3, 4))
    np.testing.assert_array_equal(thin[0], image)
    np.testing.assert_array_equal(thin[1], mask)
    assert first.lesions == second.lesions
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.lesions != other.lesions


def test_none_wanted_is_a_copy(thin: tuple[Image, Mask]) -> None:
    result = insert(thin, 0, count=0)
    assert result.lesions == ()
    np.testing.assert_array_equal(result.image, thin[0])
    np.testing.assert_array_equal(result.mask, thin[1])
    assert not np.shares_memory(result.image, thin[0])
    assert not np.shares_memory(result.mask, thin[1])


@pytest.mark.parametrize("kind", list(Kind))
def test_what_is_far_stays_and_what_is_near_is_pushed(thin: tuple[Image, Mask], kind: Kind) -> None:
    pushed = 0
    for _, result in some(thin, kind):
        away = distance_transform_edt(result.mask != TUMOUR, THIN)
        changed = (result.image != thin[0]) | (result.mask != thin[1])
        assert away[changed].max() < 30  # the corner of a box about it
        pushed += int(((np.abs(result.image - thin[0]) > 0.02) & (away > 2.5)).sum())
        for tissue in (VERTEBRA, CANAL, DISC):
            before, after = (thin[1] == tissue).sum(), (result.mask == tissue).sum()
            assert 0.75 * before < after < 1.1 * before
    assert pushed > 100


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("spacing", [THIN, THICK])
def test_each_kind_lies_in_its_compartment(kind: Kind, spacing: Spacing) -> None:
    volume = series(spacing, seed=2)
    mask = volume[1]
    for lesion, result in some(volume, kind, spacing=spacing):
        assert lesion.kind is kind
        tumour = result.mask == TUMOUR
        host = mask == HOST[kind]
        if kind is Kind.INTRAMEDULLARY:
            assert host[tumour].all()
        elif kind is Kind.EPIDURAL:
            wall = distance_transform_edt(host, spacing) + distance_transform_edt(~host, spacing)
            assert wall[tumour].min() < 2
            assert distance_transform_edt(~host, spacing)[tumour].max() < 3.5
        elif kind is Kind.INTRADURAL:
            assert host[tumour].mean() > 0.4  # a dumbbell is half in the foramen
        else:
            assert host[tumour].mean() > 0.5
        assert not (mask[tumour] == DISC).any()


def test_an_intradural_lesion_without_a_dumbbell_is_in_the_canal(thin: tuple[Image, Mask]) -> None:
    small = [pair for pair in some(thin, Kind.INTRADURAL, 16) if pair[0].diameter_mm < 8]
    assert len(small) >= 2
    for _, result in small:
        assert (thin[1][result.mask == TUMOUR] == CANAL).mean() > 0.95


def test_an_intramedullary_lesion_runs_along_the_canal(thin: tuple[Image, Mask]) -> None:
    long = [pair for pair in some(thin, Kind.INTRAMEDULLARY, 10) if pair[0].diameter_mm > 15]
    assert long
    for _, result in long:
        extent = np.ptp(np.argwhere(result.mask == TUMOUR), axis=0) * np.array(THIN)
        assert extent[1] > 1.3 * extent[2]


def test_some_vertebral_lesions_reach_the_canal(thin: tuple[Image, Mask]) -> None:
    results = [insert(thin, seed, kinds=(Kind.VERTEBRAL,)) for seed in range(16)]
    narrowed = [(thin[1] == CANAL)[result.mask == TUMOUR].sum() for result in results]
    assert 1 <= sum(count >= 8 for count in narrowed) <= 10


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("spacing", [THIN, THICK])
def test_enhancing_lesions_outshine_their_host(kind: Kind, spacing: Spacing) -> None:
    volume = series(spacing)
    for lesion, result in some(volume, kind, 5, spacing=spacing):
        if not lesion.necrotic and lesion.voxels > 30:
            tumour = result.mask == TUMOUR
            near = (distance_transform_edt(~tumour, spacing) < 15) & (result.mask == HOST[kind])
            assert np.median(result.image[tumour]) > np.median(result.image[near]) + 0.12
            assert result.image[tumour].std() < 0.35 * result.image[tumour].mean()


def test_a_rim_is_brighter_than_its_core(thin: tuple[Image, Mask]) -> None:
    rims = 0
    for seed in range(30):
        result = insert(thin, seed, kinds=(Kind.VERTEBRAL, Kind.INTRADURAL))
        for lesion in result.lesions:
            if lesion.rim:
                deep = distance_transform_edt(result.mask == TUMOUR, THIN)
                core, wall = deep > 0.75 * deep.max(), (deep > 0.95) & (deep < 1.6)
                assert result.image[wall].mean() > result.image[core].mean() + 0.1
                rims += 1
    assert rims >= 3


def test_without_a_weighting_lesions_are_brighter_or_darker(thin: tuple[Image, Mask]) -> None:
    steps = []
    for lesion, result in some(thin, Kind.VERTEBRAL, 16, weighting=ANY):
        if not lesion.necrotic and lesion.voxels > 100:
            tumour = result.mask == TUMOUR
            steps.append(float(np.median(result.image[tumour]) - np.median(thin[0][tumour])))
    assert min(np.abs(steps)) > 0.08
    assert min(steps) < 0 < max(steps)


def test_what_finds_no_place_is_left_out(thin: tuple[Image, Mask]) -> None:
    image, mask = thin
    bones = np.where(mask == VERTEBRA, mask, 0).astype(np.uint8)
    assert insert((image, bones), 0, count=3, kinds=CANAL_KINDS).lesions == ()
    mixed = insert((image, bones), 1, count=5).lesions
    assert {lesion.kind for lesion in mixed} == {Kind.VERTEBRAL}
    assert insert((image, np.zeros_like(mask)), 0, count=3).lesions == ()


@pytest.mark.parametrize("shape", [(1, 160, 140), (3, 40, 30), (2, 1, 1)])
def test_small_volumes(shape: tuple[int, int, int]) -> None:
    phantom = spine_phantom(shape, THICK, 0)
    image = np.clip(phantom.image / np.float32(1000), 0, 1).astype(np.float32)
    for seed in range(3):
        result = insert((image, phantom.mask), seed, THICK, count=2)
        assert (result.mask == TUMOUR).sum() == sum(lesion.voxels for lesion in result.lesions)


def test_wrong_inputs_are_named(thin: tuple[Image, Mask]) -> None:
    image, mask = thin
    wrong: list[tuple[Any, Any, Any, dict[str, Any], str]] = [
        (image[0], mask[0], THIN, {}, "image"),
        (image.astype(np.float64), mask, THIN, {}, "image"),
        (image, mask[1:], THIN, {}, "mask"),
        (image, mask.astype(np.int16), THIN, {}, "mask"),
        (image, np.full_like(mask, TUMOUR), THIN, {}, "mask"),
        (image, mask, (0.0, 1.0, 1.0), {}, "spacing"),
        (image, mask, (1.0, 1.0), {}, "spacing"),
        (image, mask, THIN, {"count": -1}, "count"),
        (image, mask, THIN, {"kinds": ()}, "kinds"),
    ]
    for pixels, labels, spacing, options, word in wrong:
        with pytest.raises(ValueError, match=word):
            insert((pixels, labels), 0, spacing, **options)


def test_real_series_take_lesions_of_every_kind() -> None:
    root = Path(os.environ.get("SPINE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    paths = sorted((root / "spider_t2space").glob("*.npz"))[:2]
    if not paths:
        pytest.skip(f"no spine data in {root} (SPINE_DATA)")
    for path in paths:
        with np.load(path) as file:
            image = normalise(file["image"].astype(np.float32), Normalisation(0.5, 99.5, (0.0, 1.0)))
            mask = file["mask"]
        for kind in Kind:
            for lesion, result in some((image, mask), kind, 4, weighting=T2):
                assert lesion.voxels == (result.mask == TUMOUR).sum()
                assert (result.mask != mask).sum() < 0.1 * mask.size
