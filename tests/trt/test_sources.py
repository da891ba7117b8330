"""What every case must satisfy, whatever file it came from, and npz files; NIfTI and DICOM have tests of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trt.cases import NOMINAL_SPACING, DatasetError
from trt.dataset import Case, read_folder
from trt.phantom import spine_phantom

NAMES = ("vertebra", "spinal canal", "intervertebral disc", "neoplasm")


def silent(text: str) -> None:
    raise AssertionError(f"nothing to warn of, but: {text}")


def arrays(seed: int = 0, shape: tuple[int, int, int] = (3, 12, 10)) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    mask[0, 1:4, 1:4], mask[1, 1:9, 5:7], mask[2, 6:8, 2:4] = 1, 2, 3
    return {"image": random.random(shape, np.float32), "mask": mask}


def write(path: Path, **changed: object) -> Path:
    np.savez(path, **arrays() | changed)
    return path


def test_a_patient_is_the_group_or_the_name_up_to_the_first_underscore() -> None:
    zeros = np.zeros((1, 1, 1))
    assert Case("pt5_t1", zeros, zeros).patient == "pt5"
    assert Case("pt5_t1", zeros, zeros, group="other").patient == "other"


def test_spacing_is_nominal_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    write(tmp_path / "a.npz")
    write(tmp_path / "b.npz", spacing=np.array([4.4, 0.9375, 0.9375]))
    first, second = read_folder(tmp_path, 3, warn=silent)
    assert first.spacing == NOMINAL_SPACING
    assert second.spacing == (4.4, 0.9375, 0.9375)
    np.testing.assert_array_equal(first.image, arrays()["image"])
    np.testing.assert_array_equal(second.mask, arrays()["mask"])


def test_pixels_of_another_size_become_the_models(tmp_path: Path) -> None:
    """The same anatomy drawn at two resolutions is nearly the same once it is read."""
    for name, pixel, factor in (("fine", 0.46875, 2), ("plain", 0.9375, 1)):
        phantom = spine_phantom((3, 160 * factor, 130 * factor), (4.0, pixel, pixel), 3)
        spacing = np.array(phantom.spacing)
        np.savez(tmp_path / f"{name}.npz", image=phantom.image, mask=phantom.mask, spacing=spacing)
    fine, plain = read_folder(tmp_path, 3, warn=silent)
    assert fine.image.shape == plain.image.shape == fine.mask.shape
    assert fine.spacing == plain.spacing == (4.0, 0.9375, 0.9375)
    for label in (1, 2, 3):
        one, other = fine.mask == label, plain.mask == label
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.9
    (coarse, _) = read_folder(tmp_path, 3, pixels=(1.875, 0.9375))
    assert coarse.image.shape == (3, 80, 130)
    assert coarse.spacing == (4.0, 1.875, 0.9375)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": np.zeros((3, 12, 9), np.uint8)}, r"mask \(3, 12, 9\) and image \(3, 12, 10\) differ"),
        ({"mask": arrays()["mask"] * 3}, r"0\.\.4 \(1 vertebra, .*4 neoplasm\), found the values 6, 9"),
        ({"mask": arrays()["mask"].astype(np.int16) - 1}, "found the values -1"),
        ({"mask": arrays()["mask"].astype(float)}, "integers"),
        ({"mask": np.zeros((3, 12, 10), np.uint8)}, "mask is empty"),
        ({"mask": (arrays()["mask"] == 1).astype(np.uint8) * 4}, "marks neoplasm but none of vertebra, spinal canal"),
        ({"image": np.where(arrays()["mask"] == 1, np.nan, 1.0)}, "9 of its voxels are not"),
        ({"image": np.where(arrays()["mask"] == 3, np.inf, 1.0)}, "4 of its voxels are not"),
        ({"image": np.where(arrays()["mask"] == 3, 1e300, 1.0)}, "4 of its voxels are not"),
        ({"image": np.ones((3, 12, 10))}, "the same value"),
        ({"image": np.ones((12, 10))}, r"must be \(Z, Y, X\)"),
        ({"spacing": np.array([0.9, 0.9])}, "three finite numbers"),
        ({"spacing": np.array([0.9, np.nan, 0.9])}, "three finite numbers"),
        ({"spacing": np.array([0.9, -0.9, 0.9])}, "not plausible"),
        ({"spacing": np.array([0.0, 0.9, 0.9])}, "not plausible"),
        ({"spacing": np.array([900.0, 900.0, 900.0])}, "not plausible"),
        ({"spacing": np.array(["a", "b", "c"])}, "three finite numbers"),
    ],
)
def test_a_bad_case_is_refused_by_name(tmp_path: Path, changed: dict[str, np.ndarray], message: str) -> None:
    write(tmp_path / "pt7_t2.npz", **changed)
    with pytest.raises(DatasetError, match=message) as caught:
        read_folder(tmp_path, 4, names=NAMES, warn=silent)
    assert "pt7_t2.npz: " in str(caught.value)


def test_a_lesion_beside_anatomy_and_anatomy_without_a_lesion_are_good(tmp_path: Path) -> None:
    mask = arrays()["mask"]
    mask[1, 4, 5] = 4
    write(tmp_path / "a.npz", mask=mask)
    write(tmp_path / "b.npz")
    assert [case.mask.max() for case in read_folder(tmp_path, 4, names=NAMES, warn=silent)] == [4, 3]
    alone = (mask == 4).astype(np.uint8)
    write(tmp_path / "b.npz", mask=alone)
    assert len(read_folder(tmp_path, 1, ["b"], names=["neoplasm"], warn=silent)) == 1, "a model of lesions alone may"


def test_all_bad_files_are_told_at_once_and_no_more_than_ten(tmp_path: Path) -> None:
    for number in range(13):
        write(tmp_path / f"bad{number:02}.npz", mask=np.zeros((3, 12, 10), np.uint8))
    (tmp_path / "aaa.npz").write_bytes(b"PK")
    write(tmp_path / "good.npz")
    with pytest.raises(DatasetError, match="and 4 more") as caught:
        read_folder(tmp_path, 3)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("aaa.npz: is not an npz file, or cut short")
    assert [line.split(":")[0] for line in lines[1:10]] == [f"bad{number:02}.npz" for number in range(9)]
    assert len(lines) == 11
    assert "good" not in str(caught.value)


def test_files_of_other_patients_are_not_opened(tmp_path: Path) -> None:
    write(tmp_path / "a_t1.npz")
    (tmp_path / "b_t1.npz").write_bytes(b"no npz at all")
    assert [case.name for case in read_folder(tmp_path, 3, ["a"])] == ["a_t1"]
    with pytest.raises(DatasetError, match=r"b_t1\.npz"):
        read_folder(tmp_path, 3, ["b"])


def test_what_looks_odd_is_told(tmp_path: Path) -> None:
    for name in ("spine_1", "spine_2"):
        write(tmp_path / f"{name}.npz", mask=(arrays()["mask"] == 1).astype(np.uint8))
    told: list[str] = []
    read_folder(tmp_path, 4, names=NAMES, warn=told.append)
    assert "count as one patient, spine" in told[0]
    assert ["spinal canal" in told[1], "intervertebral disc" in told[2], len(told)] == [True, True, 3]


def test_folders_that_hold_nothing_or_too_much(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a folder"):
        read_folder(tmp_path / "missing", 3)
    with pytest.raises(DatasetError, match=r"no \.npz file, no NIfTI"):
        read_folder(tmp_path, 3)
    (tmp_path / "notes.txt").write_text("nothing to train on")
    with pytest.raises(DatasetError, match=r"no \.npz file, no NIfTI"):
        read_folder(tmp_path, 3)
    write(tmp_path / "a.npz")
    (tmp_path / "b.nii.gz").write_bytes(b"")
    with pytest.raises(DatasetError, match="both npz and NIfTI"):
        read_folder(tmp_path, 3)
    with pytest.raises(DatasetError, match="3 labels, but 4 names"):
        read_folder(tmp_path, 3, names=NAMES)
