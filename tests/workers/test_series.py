"""The phantom series: valid DICOM, the same bytes each time, and its mask known."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from trt.phantom import spine_phantom
from workers.enhanced import write_enhanced
from workers.grid import to_canonical
from workers.identity import digest_of, read_identity
from workers.series import Storage, write_phantom, write_series
from workers.volume import read_series


def test_the_classic_series_is_valid(tmp_path, small, dciodvfy):
    for path in write_series(tmp_path, small.lopsided(), small.SPACING)[::5]:
        assert dciodvfy(path) == []


def test_the_enhanced_object_is_valid(tmp_path, small, dciodvfy):
    assert dciodvfy(write_enhanced(tmp_path / "e.dcm", small.lopsided(), small.SPACING)) == []


def test_the_same_call_writes_the_same_bytes_and_another_seed_another_patient(tmp_path, small):
    one = write_series(tmp_path / "1", small.lopsided(), small.SPACING)
    two = write_series(tmp_path / "2", small.lopsided(), small.SPACING)
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    assert digest_of(one) == digest_of(two[::-1])
    other = dcmread(write_series(tmp_path / "3", small.lopsided(), small.SPACING, seed=1)[0])
    first = dcmread(one[0])
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert other[keyword].value != first[keyword].value
    assert first.PatientName == "Phantom^Spine"


@pytest.mark.parametrize(
    ("given", "told"), [(b"12", 12), (b"3\\4 ", None), (b"3A", None), (b"nan ", None), (b"", None)]
)
def test_an_odd_series_number_is_no_reason_to_refuse_a_file(given, told, tmp_path, small):
    (path, *_) = write_series(tmp_path, small.lopsided(), small.SPACING)
    dataset = dcmread(path)
    tag = Tag("SeriesNumber")
    dataset[tag] = RawDataElement(tag, "IS", len(given), given, 0, False, True)
    dataset.save_as(path)
    assert read_identity(path).series_number == told


def test_a_phantom_comes_back_as_it_was_drawn(tmp_path):
    volume = read_series(write_phantom(tmp_path, (3, 64, 48), seed=2))
    np.testing.assert_array_equal(
        to_canonical(volume).voxels, spine_phantom((3, 64, 48), (0.9, 0.9375, 0.9375), 2).image
    )
    assert volume.spacing == (0.9, 0.9375, 0.9375)


@pytest.mark.parametrize("write", ["classic", "enhanced"])
def test_rescale_is_undone_when_read(write, tmp_path, small):
    image, storage = small.lopsided() // 2 * 2 + 10, Storage(slope=2.0, intercept=10.0)
    paths = (
        write_series(tmp_path, image, small.SPACING, storage=storage)
        if write == "classic"
        else [write_enhanced(tmp_path / "e.dcm", image, small.SPACING, storage=storage)]
    )
    np.testing.assert_array_equal(to_canonical(read_series(paths)).voxels, image)
