from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trt.augment import SCALE, cut, deform
from trt.contrast import invert, synthesise, t1_like
from trt.dataset import IGNORED, Case, DatasetError
from trt.lesions import TUMOUR
from trt.phantom import spine_phantom
from trt.recipes import NORMALISATION
from trt.renditions import Mixture, rendition
from trt.sampler import NEIGHBOUR_DISTANCES, Place, Sampler
from trt.trainer import prepare


@pytest.fixture(scope="module")
def case() -> Case:
    phantom = spine_phantom((7, 150, 130), (3.0, 1.4, 1.4), 0)
    return prepare([Case("p0", phantom.image.astype(np.float32), phantom.mask, spacing=(3.0, 1.4, 1.4))])[0]


def test_places_are_drawn_by_label_or_anywhere(case: Case) -> None:
    """Patches of one pixel: what lies under their middle is the label that was drawn, before they are moved."""
    counts: dict[bool, NDArray[np.int64]] = {}
    for balanced in (True, False):
        sampler, random = Sampler([case], 3, 1, 2, balanced=balanced), np.random.default_rng(0)
        places = [sampler.draw(random) for _ in range(1500)]
        labels = [int(place.mask[place.y, place.x]) for place in places]
        counts[balanced] = np.bincount(labels, minlength=4)
    shares = [np.mean(case.mask == label) for label in range(4)]
    np.testing.assert_allclose(counts[False] / 1500, shares, atol=0.03)
    assert counts[True][1:].min() > 0.2 * 1500 > 3 * counts[False][3]


def test_a_label_of_one_voxel_is_drawn_as_often_as_the_background_and_none_that_is_not_there() -> None:
    mask = np.zeros((4, 60, 50), np.uint8)
    mask[2, 30, 25] = 2
    sampler, random = Sampler([Case("a", np.zeros(mask.shape, np.float32), mask)], 3, 1, 16), np.random.default_rng(0)
    places = [sampler.draw(random) for _ in range(400)]
    about = [place.mask.any() and abs(place.y - 30) <= 4 and abs(place.x - 25) <= 4 for place in places]
    assert 0.4 < np.mean(about) < 0.6


def test_a_slice_smaller_than_a_patch_lies_in_its_middle() -> None:
    sampler = Sampler([Case("a", np.ones((1, 5, 7), np.float32), np.ones((1, 5, 7), np.uint8))], 3, 3, 16)
    for seed in range(8):
        place = sampler.draw(np.random.default_rng(seed))
        assert (place.y, place.x) == (2, 3)
        assert place.slices.shape == (3, 5, 7)


def test_channels_are_neighbours_of_the_slice_that_the_mask_is_of(case: Case) -> None:
    numbered = np.broadcast_to(np.arange(7, dtype=np.float32)[:, None, None], case.mask.shape)
    mask = np.broadcast_to(np.arange(7, dtype=np.uint8)[:, None, None], case.mask.shape)
    sampler, random = Sampler([Case("a", numbered, mask)], 6, 3, 32), np.random.default_rng(0)
    distances = set()
    for _ in range(200):
        place = sampler.draw(random)
        below, centre, above = place.slices[:, 0, 0]
        assert centre == place.mask[0, 0]
        assert (below, above) in [(max(centre - d, 0), min(centre + d, 6)) for d in NEIGHBOUR_DISTANCES]
        if below > 0 and above < 6:
            assert centre - below == above - centre
            distances.add(int(above - centre))
        assert 16 <= place.y <= 150 - 16
        assert 16 <= place.x <= 130 - 16
    assert {0, 1, 2} <= distances


def test_equal_generators_draw_equal_places_and_another_rendition_is_drawn_from(case: Case) -> None:
    sampler = Sampler([case], 3, 3, 32)
    first, second = (sampler.draw(np.random.default_rng(5)) for _ in range(2))
    assert (first.y, first.x) == (second.y, second.x)
    np.testing.assert_array_equal(first.slices, second.slices)
    assert len({(place.y, place.x) for place in (sampler.draw(np.random.default_rng(seed)) for seed in range(8))}) > 1
    sampler.replace(0, Case("p0", np.full_like(case.image, 7.0), case.mask))
    assert sampler.draw(np.random.default_rng(5)).slices.min() == 7.0
    with pytest.raises(DatasetError, match="no series"):
        Sampler([], 3, 3, 32)


def test_a_patch_moves_image_and_mask_together() -> None:
    mask = np.zeros((90, 80), np.uint8)
    mask[35:55, 30:50] = 1
    slices = np.repeat(mask[None].astype(np.float32) * 0.8 + 0.1, 3, axis=0)
    places = [Place(slices, mask, 45, 40)] * 16
    patches, target = cut(places, 32, torch.Generator().manual_seed(0))
    assert patches.shape == (16, 3, 32, 32)
    assert target.shape == (16, 32, 32)
    assert float(patches.min()) >= 0
    assert float(patches.max()) <= 1
    for patch, labels in zip(patches[:, 1], target, strict=True):
        assert patch[labels == 1].mean() > patch[labels == 0].mean() + 0.1
    again, _ = cut(places, 32, torch.Generator().manual_seed(0))
    assert torch.equal(patches, again)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 60), columns=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_beyond_the_slice_the_mask_is_ignored_and_the_image_goes_on(rows: int, columns: int, seed: int) -> None:
    place = Place(np.full((1, rows, columns), 0.25, np.float32), np.full((rows, columns), 2, np.uint8), rows // 2, 0)
    images, masks = deform([place], 32, torch.Generator().manual_seed(seed))
    assert torch.allclose(images, torch.tensor(0.25))
    assert set(masks.unique().tolist()) <= {2, IGNORED}
    known = int((masks == 2).sum())
    assert known <= (rows * SCALE + 2) * (columns * SCALE + 2) * 1.5
    if rows >= 3 and columns >= 3:
        assert known
        assert known < 32 * 32  # the middle lies on the edge


def test_contrasts_keep_the_range_and_move_the_tissues(case: Case) -> None:
    np.testing.assert_allclose(invert(invert(case.image)), case.image, atol=1e-6)
    means = {name: [float(image[case.mask == label].mean()) for label in (1, 2, 3)] for name, image in
             (("T2", case.image), ("T1", t1_like(case.image, case.mask)))}  # fmt: skip
    assert means["T2"][1] > means["T2"][0]  # fluid is bright
    assert means["T1"][1] < means["T1"][0]  # and dark
    assert means["T1"][2] < means["T1"][0]
    drawn = [synthesise(case.image, case.mask, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).mean() > 0.02
    orders = set()
    for seed in range(40):
        image = synthesise(case.image, case.mask, np.random.default_rng(seed))
        assert image.dtype == np.float32
        assert image.shape == case.image.shape
        assert -1e-6 <= image.min() <= image.max() <= 1 + 1e-6
        orders.add(tuple(np.argsort([image[case.mask == label].mean() for label in (1, 2, 3)]).tolist()))
    assert len(orders) >= 5  # of six: any tissue may be the brightest


def test_a_rendition_is_a_matter_of_its_generator_and_its_shares(case: Case) -> None:
    assert rendition(case, Mixture(0, 0, 0), NORMALISATION, np.random.default_rng(0)) is case
    first, second = (rendition(case, Mixture(0.5, 0.5, 1), NORMALISATION, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    assert (first.mask == TUMOUR).any()
    assert first.spacing == case.spacing
    many = [rendition(case, Mixture(0.4, 0.3, 0.5), NORMALISATION, np.random.default_rng(n)) for n in range(60)]
    assert 15 <= sum(bool((each.mask == TUMOUR).any()) for each in many) <= 45
    assert 5 <= sum(each is case or np.array_equal(each.image, case.image) for each in many) <= 25
    assert all(each.image.min() >= 0 and each.image.max() <= 1 for each in many)


def test_real_tumours_are_never_painted_over(case: Case) -> None:
    mask = case.mask.copy()
    mask[3, 60:70, 60:70] = TUMOUR
    real = Case("p0", case.image, mask, spacing=case.spacing)
    for seed in range(8):
        np.testing.assert_array_equal(
            rendition(real, Mixture(0.3, 0.3, 1), NORMALISATION, np.random.default_rng(seed)).mask, mask
        )


@pytest.mark.parametrize("wrong", [(0.6, 0.6, 0), (-0.1, 0, 0), (0, 0, 1.1)])
def test_shares_that_cannot_be_are_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        Mixture(*wrong)
