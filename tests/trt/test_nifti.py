"""NIfTI pairs: whatever their axes, one anatomy gives the same arrays; and what is wrong is named before training."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from trt.cases import Case, DatasetError
from trt.dataset import read_folder
from trt.geometry import MODEL_AXES

NAMES = ("vertebra", "spinal canal", "intervertebral disc")
SPACING = (3.0, 0.9375, 0.9375)
SHAPE = (4, 9, 7)
STORED = [
    (axes, flips)
    for axes in itertools.permutations(range(3))
    for count in range(4)
    for flips in itertools.combinations(range(3), count)
]


def silent(text: str) -> None:
    raise AssertionError(f"nothing to warn of, but: {text}")


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """An image and a mask (Z, Y, X) without symmetry."""
    image = np.random.default_rng(1).integers(0, 4000, SHAPE).astype(np.int16)
    mask = np.zeros(SHAPE, np.uint8)
    mask[0, 1:4, 1:3], mask[1:3, 2:8, 4], mask[3, 5, 2:6] = 1, 2, 3
    return image, mask


def save(
    path: Path,
    array: np.ndarray,
    axes: tuple[int, ...] = (0, 1, 2),
    flips: tuple[int, ...] = (),
    rotation: np.ndarray | None = None,
    spacing: tuple[float, ...] = SPACING,
    slope: float | None = None,
) -> Path:
    """Write `array` (Z, Y, X) on the model's axes, stored with its axes exchanged and reversed."""
    directions = MODEL_AXES * np.array(spacing)[:, None]  # LPS mm per step along Z, Y, X
    if rotation is not None:
        directions = directions @ rotation.T
    directions[list(flips)] *= -1
    affine = np.eye(4)
    affine[:3, :3] = (np.diag([-1, -1, 1]) @ directions[list(axes)].T).astype(float)
    affine[:3, 3] = -40, 12.5, 310
    path.parent.mkdir(parents=True, exist_ok=True)
    file = nibabel.Nifti1Image(np.flip(array, flips).transpose(axes), affine)
    if slope is not None:
        file.header.set_slope_inter(slope, -10)
    nibabel.save(file, path)
    return path


def pair(folder: Path, name: str = "pt1_t2", **how: object) -> None:
    image, mask = phantom()
    save(folder / f"{name}.nii.gz", image, **how)
    save(folder / f"{name}_mask.nii.gz", mask, **how)


def read(folder: Path) -> Case:
    (case,) = read_folder(folder, 3, names=NAMES, warn=silent)
    return case


def same(case: Case) -> None:
    image, mask = phantom()
    np.testing.assert_array_equal(case.image, image)
    np.testing.assert_array_equal(case.mask, mask)
    np.testing.assert_allclose(case.spacing, SPACING, rtol=1e-6)
    assert (case.image.dtype, case.mask.dtype) == (np.float32, np.uint8)


@pytest.mark.parametrize(("axes", "flips"), STORED)
def test_all_48_ways_to_store_a_pair_give_the_same_arrays(
    axes: tuple[int, ...], flips: tuple[int, ...], tmp_path: Path
) -> None:
    pair(tmp_path, axes=axes, flips=flips)
    same(read(tmp_path))


def test_the_first_voxel_is_right_superior_anterior(tmp_path: Path) -> None:
    """By hand, in the words of NIfTI, where the first axis runs to the patient's right to left: R+ A+ S+."""
    image, mask = np.zeros((3, 4, 5), np.int16), np.zeros((3, 4, 5), np.uint8)
    image[2, 3, 4] = 7  # most right, most anterior, most superior
    mask[2, 3, 4] = 1
    affine = np.diag([3.0, 0.9375, 0.9375, 1.0])
    nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "a_mask.nii")
    (case,) = read_folder(tmp_path, 3)
    assert case.image.shape == (3, 5, 4)
    assert case.image[0, 0, 0] == 7
    assert case.mask[0, 0, 0] == case.mask.sum() == 1


@pytest.mark.parametrize("degrees", [-40.0, 9.0, 30.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_oblique_pair_goes_to_its_nearest_axes(degrees: float, axis: int, tmp_path: Path) -> None:
    a, b = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation, others = np.eye(3), [i for i in range(3) if i != axis]
    rotation[np.ix_(others, others)] = [[a, -b], [b, a]]
    pair(tmp_path, axes=(2, 0, 1), flips=(1,), rotation=rotation)
    same(read(tmp_path))


def test_scaled_values_are_those_they_stand_for(tmp_path: Path) -> None:
    image, mask = phantom()
    save(tmp_path / "a.nii", image, slope=2.5)
    save(tmp_path / "a_mask.nii.gz", mask.astype(np.float32))
    (case,) = read_folder(tmp_path, 3)
    np.testing.assert_allclose(case.image, image * 2.5 - 10, rtol=1e-5)
    np.testing.assert_array_equal(case.mask, mask)


def test_pixels_of_another_size_become_the_models(tmp_path: Path) -> None:
    image, mask = phantom()
    fine = [np.kron(array, np.ones((1, 2, 2), array.dtype)) for array in (image, mask)]
    spacing = (3.0, 0.9375 / 2, 0.9375 / 2)
    save(tmp_path / "a.nii.gz", fine[0], axes=(2, 1, 0), spacing=spacing)
    save(tmp_path / "a_mask.nii.gz", fine[1], axes=(2, 1, 0), spacing=spacing)
    case = read(tmp_path)
    assert case.image.shape == SHAPE
    assert case.spacing == pytest.approx(SPACING)
    np.testing.assert_array_equal(case.mask, mask)  # each label has half of its pixels' weight or more
    assert np.corrcoef(case.image.ravel(), image.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("pixel", [0.3, 0.7, 2.0])
def test_image_and_mask_stay_together_when_resampled(pixel: float, tmp_path: Path) -> None:
    """An image that is its own mask keeps lying under it, to half a pixel."""
    mask = np.zeros((2, 90, 80), np.uint8)
    mask[:, 31:60, 17:40] = 2
    save(tmp_path / "a.nii", mask.astype(np.int16), spacing=(3.0, pixel, pixel))
    save(tmp_path / "a_mask.nii", mask, spacing=(3.0, pixel, pixel))
    (case,) = read_folder(tmp_path, 3)
    assert case.image.shape[1:] == (round(90 * pixel / 0.9375), round(80 * pixel / 0.9375))
    assert set(np.unique(case.mask)) == {0, 2}
    np.testing.assert_array_equal(case.mask == 2, case.image > 1)


def nnunet(folder: Path, labels: object, names: tuple[str, ...] = ("spine_001", "spine_002")) -> None:
    image, mask = phantom()
    values = np.array([0, 3, 2, 1], np.uint8)  # the data set counts the other way round
    for name in names:
        save(folder / "imagesTr" / f"{name}_0000.nii.gz", image)
        save(folder / "labelsTr" / f"{name}.nii.gz", values[mask])
    if labels is not None:
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "intervertebral_disc": 1, "Spinal Canal": 2, "vertebra": 3},
        {"0": "background", "1": "intervertebral disc", "2": "spinal canal", "3": "vertebra"},
    ],
    ids=["nnU-Net 2", "nnU-Net 1"],
)
def test_nnunet_values_are_mapped_by_name_and_a_number_is_a_patient(labels: object, tmp_path: Path) -> None:
    nnunet(tmp_path, labels)
    cases = read_folder(tmp_path, 3, names=NAMES, warn=silent)
    assert [case.patient for case in cases] == ["spine_001", "spine_002"]
    for case in cases:
        same(case)
    assert [case.name for case in read_folder(tmp_path, 3, ["spine_002"], names=NAMES)] == ["spine_002"]


def test_nnunet_values_stay_where_nothing_names_them(tmp_path: Path) -> None:
    nnunet(tmp_path, None)
    mask = read_folder(tmp_path, 3, names=NAMES)[0].mask
    np.testing.assert_array_equal(mask, np.array([0, 3, 2, 1])[phantom()[1]])
    nnunet(tmp_path, {"a": 1, "b": 2, "c": 3})
    np.testing.assert_array_equal(read_folder(tmp_path, 3)[0].mask, mask)


def test_nnunet_names_that_end_in_four_digits_are_no_channels(tmp_path: Path) -> None:
    nnunet(tmp_path, None, ("mr_2024", "mr_2025"))
    (tmp_path / "imagesTr" / "mr_2025_0000.nii.gz").rename(tmp_path / "imagesTr" / "mr_2025.nii.gz")
    assert [case.name for case in read_folder(tmp_path, 3)] == ["mr_2024", "mr_2025"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "vertebra": 1, "sacrum": 2}, "dataset.json: the model has no label 'sacrum'"),
        ({"background": 0, "vertebra": 3, "spinal canal": 2}, "spine_001.nii.gz: holds the values 1"),
        ({"background": 0, "vertebra": [1, 2]}, 'dataset.json: must hold "labels"'),
        (["vertebra"], 'dataset.json: must hold "labels"'),
    ],
)
def test_a_dataset_json_that_does_not_fit(labels: object, message: str, tmp_path: Path) -> None:
    nnunet(tmp_path, labels)
    with pytest.raises(DatasetError, match=message):
        read_folder(tmp_path, 3, names=NAMES)


def rewrite(path: Path, change: object) -> None:
    file = nibabel.load(path)
    nibabel.save(change(nibabel.Nifti1Image(np.asanyarray(file.dataobj), file.affine)), path)


def shifted(file: nibabel.Nifti1Image, mm: float) -> nibabel.Nifti1Image:
    affine = file.affine.copy()
    affine[1, 3] += mm
    return nibabel.Nifti1Image(np.asanyarray(file.dataobj), affine)


def unplaced(file: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    file.header["qform_code"] = file.header["sform_code"] = 0
    return nibabel.Nifti1Image(np.asanyarray(file.dataobj), None, file.header)


def sheared(file: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    affine = file.affine.copy()
    affine[:3, 1] += 0.1 * affine[:3, 0]
    return nibabel.Nifti1Image(np.asanyarray(file.dataobj), affine)


def changed(function: object) -> object:
    return lambda file: nibabel.Nifti1Image(function(np.asanyarray(file.dataobj)), file.affine)


IMAGE, MASK = "pt1.nii.gz", "pt1_mask.nii.gz"
SPOILT = {
    "cut short": (IMAGE, lambda p: p.write_bytes(p.read_bytes()[:-60]), f"{IMAGE}: cannot be read as NIfTI"),
    "mask cut short": (MASK, lambda p: p.write_bytes(p.read_bytes()[:60]), f"{MASK}: cannot be read as NIfTI"),
    "empty file": (IMAGE, lambda p: p.write_bytes(b""), f"{IMAGE}: cannot be read as NIfTI"),
    "no NIfTI": (IMAGE, lambda p: p.write_bytes(b"x" * 999), f"{IMAGE}: cannot be read as NIfTI"),
    "no mask": (MASK, Path.unlink, f"{IMAGE}: has no mask {MASK}"),
    "no image": (IMAGE, Path.unlink, f"{MASK}: is a mask without its image"),
    "another shape": (MASK, lambda p: rewrite(p, changed(lambda a: a[1:])), f"{IMAGE} and {MASK}: differ in shape"),
    "another place": (
        MASK, lambda p: rewrite(p, lambda f: shifted(f, 0.01)), f"{IMAGE} and {MASK}: lie in different places",
    ),
    "no place": (IMAGE, lambda p: rewrite(p, unplaced), f"{IMAGE}: does not say how it lies"),
    "sheared": (IMAGE, lambda p: rewrite(p, sheared), f"{IMAGE}: its axes are not at right angles"),
    "four dimensions": (
        IMAGE, lambda p: rewrite(p, changed(lambda a: np.stack([a, a], axis=3))), f"{IMAGE}: must be one volume",
    ),
    "NaN": (
        IMAGE, lambda p: rewrite(p, changed(lambda a: np.where(a == a.max(), np.nan, a))),
        f"{IMAGE} and {MASK}: image must be real and finite",
    ),
    "shares": (MASK, lambda p: rewrite(p, changed(lambda a: a * 0.5)), f"{MASK}: a mask holds whole numbers"),
    "NaN in the mask": (
        MASK, lambda p: rewrite(p, changed(lambda a: np.where(a == 1, np.nan, a))), f"{MASK}: a mask holds whole",
    ),
    "another label": (
        MASK, lambda p: rewrite(p, changed(lambda a: a * 4)), f"{IMAGE} and {MASK}: mask must be integers 0..3",
    ),
    "nothing marked": (MASK, lambda p: rewrite(p, changed(lambda a: a * 0)), f"{IMAGE} and {MASK}: the mask is empty"),
    "twice": (
        IMAGE, lambda p: save(p.with_name("pt1.nii"), phantom()[0]), "pt1.nii and pt1.nii.gz: are the same case",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_wrong_is_told_with_the_name_of_the_file(case: str, tmp_path: Path) -> None:
    pair(tmp_path, "pt1")
    assert read(tmp_path).patient == "pt1"
    name, spoil, message = SPOILT[case]
    spoil(tmp_path / name)
    with pytest.raises(DatasetError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(message), str(caught.value)


def test_a_difference_below_a_thousandth_of_a_millimetre_is_rounding(tmp_path: Path) -> None:
    pair(tmp_path)
    rewrite(tmp_path / "pt1_t2_mask.nii.gz", lambda file: shifted(file, 5e-4))
    same(read(tmp_path))


def test_a_second_channel_is_refused(tmp_path: Path) -> None:
    nnunet(tmp_path, None)
    save(tmp_path / "imagesTr" / "spine_001_0001.nii.gz", phantom()[0])
    with pytest.raises(DatasetError, match="imagesTr/spine_001_0001: is another channel"):
        read_folder(tmp_path, 3, names=NAMES)


def test_all_bad_pairs_are_told_at_once(tmp_path: Path) -> None:
    for number in range(3):
        pair(tmp_path, f"pt{number}")
    (tmp_path / "pt0_mask.nii.gz").unlink()
    (tmp_path / "pt2.nii.gz").write_bytes(b"cut")
    with pytest.raises(DatasetError) as caught:
        read_folder(tmp_path, 3)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["pt0.nii.gz", "pt2.nii.gz"]
    assert [case.name for case in read_folder(tmp_path, 3, ["pt1"])] == ["pt1"]


def test_a_real_pair_lies_as_it_must(tmp_path: Path) -> None:
    """A real cervical cord with its mask, stored P S R: after reading, the cord runs along Y through all of it."""
    folder = Path(os.environ.get("SPINE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "nifti"
    if not folder.is_dir():
        pytest.skip(f"no spine data in {folder} (SPINE_DATA)")
    (tmp_path / "pt.nii.gz").symlink_to(folder / "t2_fake_lesion.nii.gz")
    (tmp_path / "pt_mask.nii.gz").symlink_to(folder / "t2_fake_lesion_sc_seg.nii.gz")
    (case,) = read_folder(tmp_path, 1, names=["spinal cord"], pixels=(0.8, 0.8), warn=silent)
    assert case.image.shape == (29, 99, 99)
    rows = case.mask.any(axis=(0, 2))
    assert rows.sum() > 0.5 * rows.size
    stored = np.asarray(nibabel.load(folder / "t2_fake_lesion_sc_seg.nii.gz").dataobj)
    assert case.mask.sum() == stored.sum()
    # Stored from anterior to posterior, inferior to superior (codes P, S), left to right (R).
    np.testing.assert_array_equal(case.mask, stored.transpose(2, 1, 0)[::-1, ::-1])
