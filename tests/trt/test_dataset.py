from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trt.dataset import DatasetError, Split, make_split, read_folder, read_split, write_split
from trt.manifest import models_dir
from trt.sources import read_case


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_a_good_case_is_read(tmp_path: Path) -> None:
    image, mask = np.arange(24).reshape(2, 3, 4), np.ones((2, 3, 4), np.int64)
    case = read_case(write(tmp_path / "pt1_t2.npz", image=image, mask=mask), 3)
    assert case.image.dtype == np.float32
    assert case.mask.dtype == np.uint8
    assert case.patient == "pt1"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((2, 3, 4))}, "found only"),
        ({"image": np.zeros((3, 4)), "mask": np.zeros((3, 4), int)}, r"must be \(Z, Y, X\)"),
        ({"image": np.zeros((0, 3, 4)), "mask": np.zeros((0, 3, 4), int)}, "not empty"),
        ({"image": np.zeros((2, 3, 4)), "mask": np.zeros((2, 3, 5), int)}, "differ in shape"),
        ({"image": np.zeros((2, 3, 4)), "mask": np.full((2, 3, 4), 4)}, r"0\.\.3"),
        ({"image": np.zeros((2, 3, 4)), "mask": np.full((2, 3, 4), -1)}, r"0\.\.3"),
        ({"image": np.zeros((2, 3, 4)), "mask": np.zeros((2, 3, 4))}, "integers"),
        ({"image": np.full((2, 3, 4), np.nan), "mask": np.zeros((2, 3, 4), int)}, "finite"),
        ({"image": np.zeros((2, 3, 4), complex), "mask": np.zeros((2, 3, 4), int)}, "real"),
        ({"image": np.array([object()]), "mask": np.zeros((2, 3, 4), int)}, "cannot be read"),
    ],
)
def test_a_bad_case_is_refused_by_name(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = write(tmp_path / "pt9.npz", **arrays)
    with pytest.raises(DatasetError, match=message) as caught:
        read_case(path, 3)
    assert "pt9.npz" in str(caught.value)


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "pt9.npz", image=np.zeros((2, 3, 4)), mask=np.zeros((2, 3, 4), int))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DatasetError, match="cut short"):
        read_case(path, 3)
    with pytest.raises(DatasetError, match="not an npz"):
        read_case(tmp_path / "missing.npz", 3)


def test_a_folder_is_read_in_order_and_misses_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no \.npz"):
        read_folder(tmp_path, 3)
    for name in ("b", "a_t1", "a_t2"):
        write(tmp_path / f"{name}.npz", image=np.arange(4).reshape(1, 2, 2), mask=np.ones((1, 2, 2), int))
    assert [case.name for case in read_folder(tmp_path, 3)] == ["a_t1", "a_t2", "b"]
    assert [case.name for case in read_folder(tmp_path, 3, ["a"])] == ["a_t1", "a_t2"]
    with pytest.raises(DatasetError, match="no file for patient c"):
        read_folder(tmp_path, 3, ["a", "c"])


def test_a_split_is_by_patient_and_fixed_by_its_seed(tmp_path: Path) -> None:
    patients = [f"pt{n % 10}" for n in range(30)]
    split = make_split(patients, 3, seed=4)
    assert split == make_split(reversed(patients), 3, seed=4)
    assert split != make_split(patients, 3, seed=5)
    assert len(split.validation) == 3
    assert sorted(split.train + split.validation) == sorted(set(patients))
    write_split(split, tmp_path / "split.json")
    assert read_split(tmp_path / "split.json") == split


@pytest.mark.parametrize("held_back", [0, 2])
def test_a_split_needs_both_sides(held_back: int) -> None:
    with pytest.raises(DatasetError, match="both sides"):
        make_split(["a", "b"], held_back, seed=0)


def test_a_split_that_leaks_is_refused(tmp_path: Path) -> None:
    write_split(Split(("a", "b"), ("b",), 0), tmp_path / "split.json")
    with pytest.raises(DatasetError, match="both sides of the split: b"):
        read_split(tmp_path / "split.json")
    (tmp_path / "split.json").write_text("[]")
    with pytest.raises(DatasetError, match="not a split"):
        read_split(tmp_path / "split.json")


def test_the_committed_split_holds_back_six_of_thirty_two() -> None:
    split = read_split(models_dir() / "penn-spine" / "split.json")
    assert (len(split.train), len(split.validation)) == (26, 6)
