"""Which parts of a mask become segments, and what these say of themselves."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from node.errors import Unsuitable
from node.forms import DEFAULT, SEGMENTATIONS, Recipe
from trt.manifest import Label
from workers.codes import meaning_of
from workers.results import make_objects
from workers.series import write_series
from workers.volume import read_series

SPACING = (4.0, 2.0, 2.0)
SHAPE = (6, 150, 40)


@pytest.fixture
def model(manifest):
    return dataclasses.replace(manifest, labels=(*manifest.labels, Label(5, "sacrum")))


@pytest.fixture
def volume(tmp_path, small):
    return read_series(write_series(tmp_path, small.lopsided(SHAPE), SPACING))


@pytest.fixture
def mask(volume):
    """Five vertebrae over a sacrum, with a canal behind and a tumour in it: (frames, rows, columns), head first."""
    mask = np.zeros(SHAPE, np.uint8)
    for number in range(5):
        mask[1:5, 10 + number * 20 : 24 + number * 20, 10:25] = 1
    mask[1:5, 112:140, 12:30] = 5
    mask[2:4, 5:140, 30:35] = 2
    mask[2:4, 60:66, 31:34] = mask[3, 100, 32] = 4
    return mask


def words(case):
    return [segment.words for segment in case.segments.listed]


def test_vertebrae_over_a_sacrum_are_segments_with_their_levels(volume, mask, model, small):
    case = small.case(volume, mask, model)
    assert words(case) == [
        "L1 vertebra", "L2 vertebra", "L3 vertebra", "L4 vertebra", "L5 vertebra", "Spinal canal", "Neoplasm 1",
        "Neoplasm 2", "Sacrum",
    ]  # fmt: skip
    for number in range(5):
        part = case.segments.mask[1:5, 10 + number * 20 : 24 + number * 20, 10:25]
        assert (part == number + 1).all()
    codes = [segment.meaning.type for segment in case.segments.listed]
    assert codes[4] == ("49668003", "SCT", "L5 vertebra")
    assert len({segment.tracking_uid for segment in case.segments.listed}) == 9
    colours = [segment.meaning.colour for segment in case.segments.listed if segment.level]
    assert all(one != other for one, other in itertools.pairwise(colours))
    assert case.segments.listed[6].lesion == 0
    assert case.lesions[0].volume_ml > case.lesions[1].volume_ml
    assert make_objects(case, [Recipe(form) for form in SEGMENTATIONS]), "the gate lets them through"


def test_without_a_sacrum_there_is_one_segment_of_vertebrae(volume, mask, model, manifest, small):
    for case in (
        small.case(volume, np.where(mask == 5, 0, mask).astype(np.uint8), model),
        small.case(volume, np.where(mask == 5, 0, mask).astype(np.uint8), manifest),
    ):
        assert words(case)[:2] == ["Vertebra", "Spinal canal"]
        assert case.segments.listed[0].meaning == meaning_of(model.labels[0])
        np.testing.assert_array_equal(case.segments.mask == 1, mask == 1)


def test_what_is_above_a_doubt_is_one_segment_without_a_level(volume, mask, model, small):
    mask[1:5, 24:50, 15:17] = 1  # the upper two, grown together with the third
    case = small.case(volume, mask, model)
    assert words(case)[:3] == ["L4 vertebra", "L5 vertebra", "Vertebra, level not known"]
    np.testing.assert_array_equal(np.isin(case.segments.mask, [1, 2, 3]), mask == 1)


def test_one_structure_keeps_its_identity_with_another_model(volume, mask, model, small):
    other = dataclasses.replace(model, digest="0" * 64)
    mine, theirs = (small.case(volume, mask, m).segments.listed for m in (model, other))
    same = [one.tracking_uid == another.tracking_uid for one, another in zip(mine, theirs, strict=True)]
    # The second lesion of another mask may be another lesion.
    assert same == [segment.lesion is None for segment in mine]


def test_many_lesions_are_twenty_segments(volume, mask, model, small):
    mask[mask == 4] = 0
    mask[0, 2:150:4, 38] = 4
    case = small.case(volume, mask, model)
    found = [segment.words for segment in case.segments.listed if segment.lesion is not None]
    assert found == [*(f"Neoplasm {number}" for number in range(1, 20)), "Neoplasm, 18 smaller"]
    assert make_objects(case, DEFAULT)


def test_nothing_found_is_no_object(volume, mask, model, small):
    with pytest.raises(Unsuitable, match="no spine structure was found"):
        make_objects(small.case(volume, mask * 0, model), DEFAULT)


def test_no_lesion_leaves_the_anatomy(volume, mask, model, small):
    mask[mask == 4] = 2
    assert "Neoplasm" not in " ".join(words(small.case(volume, mask, model)))
    assert make_objects(small.case(volume, mask, model), DEFAULT)


def test_the_mask_of_segments_cannot_be_changed_by_who_builds_of_it(volume, mask, model, small):
    with pytest.raises(ValueError, match="read-only"):
        small.case(volume, mask, model).segments.mask[0, 0, 0] = 1
