from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trt.decision import crumbs, decide, likeliest
from trt.labels import Label
from trt.manifest import ManifestError, load, parse

LABELS = (Label(1, "vertebra"), Label(2, "neoplasm", least_mm3=10.0))


def logits_of(mask: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Logits (K, Z, Y, X) whose likeliest label is `mask`, with `under` next."""
    logits = np.zeros((3, *mask.shape), np.float32)
    np.put_along_axis(logits, under[None].astype(np.intp), 1.0, axis=0)
    np.put_along_axis(logits, mask[None].astype(np.intp), 2.0, axis=0)
    return logits


def test_crumbs_become_what_is_likeliest_next_and_larger_parts_stay() -> None:
    mask, under = np.zeros((4, 20, 20), np.uint8), np.zeros((4, 20, 20), np.uint8)
    under[:, :, :10] = 1
    mask[under == 1] = 1
    mask[1:3, 2:5, 2:4] = 2  # 12 voxels, over two slices, in the vertebra
    mask[0, 10:13, 2:5] = 2  # 9 voxels
    mask[3, 5:8, 15:18] = 2  # 9 voxels, in the background
    logits = logits_of(mask, under)
    found = decide(((z, logits[:, z]) for z in range(4)), mask.shape, LABELS, 1.0)
    assert (found[1:3, 2:5, 2:4] == 2).all()
    assert (found[0, 10:13, 2:5] == 1).all()
    assert (found[3, 5:8, 15:18] == 0).all()
    assert np.count_nonzero(found == 2) == 12
    np.testing.assert_array_equal(decide(((z, logits[:, z]) for z in range(4)), mask.shape, LABELS, 2.0), mask)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), least=st.floats(0, 60))
def test_without_a_least_volume_it_is_the_likeliest_label_and_with_one_only_that_label_changes(
    seed: int, least: float
) -> None:
    logits = np.random.default_rng(seed).normal(size=(3, 3, 9, 8)).astype(np.float32)
    plain = logits.argmax(axis=0)
    slices = [(z, logits[:, z].copy()) for z in (2, 0, 1)]
    np.testing.assert_array_equal(decide(slices, (3, 9, 8), (Label(1, "a"), Label(2, "b")), 0.5), plain)
    found = decide(slices, (3, 9, 8), (Label(1, "a"), Label(2, "b", least_mm3=least)), 0.5)
    changed = found != plain
    assert (plain[changed] == 2).all()
    assert (found[changed] != 2).all()
    assert not crumbs(found == 2, least, 0.5).any()
    for z, given_logits in slices:
        np.testing.assert_array_equal(given_logits, logits[:, z])  # left as they were


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(1, 7))
def test_the_likeliest_is_the_first_of_the_highest(seed: int, classes: int) -> None:
    logits = np.random.default_rng(seed).integers(-2, 3, (classes, 9, 8)).astype(np.float32)
    np.testing.assert_array_equal(likeliest(logits), logits.argmax(axis=0))
    turned = logits.transpose(0, 2, 1)  # as planes lie in memory after resampling
    np.testing.assert_array_equal(likeliest(turned), turned.argmax(axis=0))
    np.testing.assert_array_equal(likeliest(logits[:, 1:, :5]), logits[:, 1:, :5].argmax(axis=0))


def test_the_likeliest_of_many_classes() -> None:
    logits = np.eye(256, dtype=np.float32).reshape(256, 16, 16) - 1
    np.testing.assert_array_equal(likeliest(logits).ravel(), np.arange(256))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 6, 7)])
def test_parts_at_the_border_are_judged_and_nothing_has_no_parts(shape: tuple[int, int, int]) -> None:
    inside = np.zeros(shape, bool)
    assert not crumbs(inside, 1.0, 1.0).any()
    inside[-1, -1, -1] = inside[0, 0, 0] = True
    np.testing.assert_array_equal(crumbs(inside, 1.5, 1.0), inside)
    assert not crumbs(inside, 1.0, 1.0).any()


def test_parts_touch_by_corners_and_across_slices() -> None:
    inside = np.zeros((2, 4, 4), bool)
    inside[0, 0, 0] = inside[1, 1, 1] = inside[0, 3, 3] = True
    small = crumbs(inside, 2.0, 1.0)
    assert small[0, 3, 3]
    assert small.sum() == 1


@pytest.mark.parametrize("wrong", [-1, "70", None, True])
def test_a_least_volume_that_is_none_is_refused(wrong: object) -> None:
    manifest = load()
    assert {label.name: label.least_mm3 for label in manifest.labels}["neoplasm"] > 0
    fields = json.loads(manifest.path.with_name("manifest.json").read_text())
    fields["labels"][3]["least_mm3"] = wrong
    with pytest.raises(ManifestError, match="labels"):
        parse(fields, manifest.path.with_name("manifest.json"))
