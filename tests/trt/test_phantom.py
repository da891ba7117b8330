from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt.candidates import segment
from trt.engine import open_engine
from trt.manifest import load
from trt.metrics import dice
from trt.phantom import CANAL, DISC, VERTEBRA, spine_phantom

SMALL = (6, 120, 110)
SPACING = (2.0, 0.9375, 0.9375)


def test_the_default_has_every_label_and_a_plausible_look() -> None:
    phantom = spine_phantom()
    assert phantom.image.shape == phantom.mask.shape == (20, 320, 256)
    assert phantom.image.dtype == np.uint16
    assert phantom.mask.dtype == np.uint8
    assert phantom.spacing == (0.9, 0.9375, 0.9375)
    shares = np.bincount(phantom.mask.ravel(), minlength=4) / phantom.mask.size
    assert 0.06 < shares[VERTEBRA] < 0.18
    assert 0.02 < shares[CANAL] < 0.07
    assert 0.01 < shares[DISC] < 0.05
    means = [phantom.image[phantom.mask == label].mean() for label in range(4)]
    assert means[CANAL] > means[VERTEBRA] > means[DISC]


def test_axes_run_as_documented() -> None:
    phantom = spine_phantom(seed=1)
    middle = [np.argwhere(phantom.mask == label).mean(0) for label in range(4)]
    assert middle[DISC][2] < middle[CANAL][2]  # the canal lies behind the discs
    rows = np.flatnonzero((phantom.mask == DISC).any(axis=(0, 2)))
    assert rows.max() < np.flatnonzero((phantom.mask == CANAL).any(axis=(0, 2))).max()  # the sacral canal is lowest


def test_equal_seeds_give_equal_phantoms() -> None:
    first, second = (spine_phantom(SMALL, SPACING, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert (spine_phantom(SMALL, SPACING, seed=6).mask != first.mask).any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("axis", range(3))
def test_a_flip_is_seen_in_the_mask(seed: int, axis: int) -> None:
    mask = spine_phantom(SMALL, SPACING, seed).mask
    assert (np.flip(mask, axis) != mask).mean() > 0.002


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.floats(0.5, 6), st.floats(0.4, 5), st.floats(0.4, 5)),
    st.integers(0, 1000),
)
def test_any_shape_and_spacing(shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int) -> None:
    phantom = spine_phantom(shape, spacing, seed)
    assert phantom.image.shape == phantom.mask.shape == shape
    assert phantom.mask.max() <= 3


@pytest.mark.parametrize(("shape", "spacing"), [((0, 9, 9), SPACING), (SMALL, (1.0, 0.0, 1.0))])
def test_lengths_must_be_positive(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        spine_phantom(shape, spacing)


@pytest.mark.parametrize(
    ("shape", "spacing", "false_ml"),
    [((8, 320, 256), (2.0, 0.9375, 0.9375), 1.1), ((5, 320, 256), (4.0, 0.9375, 0.9375), 2.1)],
)
def test_the_committed_model_knows_the_phantom(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], false_ml: float
) -> None:
    """The phantom has no tumour: what is marked as one is false, 0.9 and 1.8 ml here, and must not become more."""
    manifest = load()
    phantom = spine_phantom(shape, spacing, seed=11)
    with open_engine(manifest) as engine:
        found = segment(phantom.image, manifest, engine, overlap=0.25)
    drawn = [label for label in manifest.labels if (phantom.mask == label.value).any()]
    assert [label.value for label in drawn] == [VERTEBRA, CANAL, DISC]
    scores = {label.name: dice(found, phantom.mask, label.value) for label in drawn}
    assert min(scores.values()) >= 0.75, scores
    assert (found > DISC).sum() * np.prod(spacing) / 1000 <= false_ml
