"""Every form of result on every geometry: valid to the validators, voxel-exact in its place to readers by others."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread

from node.forms import SEGMENTATIONS, Form, Recipe
from tests.standard import Standard
from workers.enhanced import write_enhanced
from workers.results import BUILDERS, make_objects
from workers.series import Storage, write_series
from workers.volume import read_series

ABOUT_Z, ABOUT_Y = np.deg2rad(23), np.deg2rad(-11)
OBLIQUE = tuple(
    (
        np.array([[np.cos(ABOUT_Z), -np.sin(ABOUT_Z), 0], [np.sin(ABOUT_Z), np.cos(ABOUT_Z), 0], [0, 0, 1]])
        @ np.array([[np.cos(ABOUT_Y), 0, np.sin(ABOUT_Y)], [0, 1, 0], [-np.sin(ABOUT_Y), 0, np.cos(ABOUT_Y)]])
    ).ravel()
)
# Which of the model's axes (0 to the left, 1 to the feet, 2 to the back) the frames, rows and columns are.
ORIENTATIONS = {
    "axial": {"axes": (1, 2, 0)},
    "sagittal": {"axes": (0, 1, 2)},
    "coronal": {"axes": (2, 1, 0)},
    "oblique": {"axes": (0, 1, 2), "rotation": OBLIQUE},
}
# mm along the model's axes, thickness of slices in mm or as the gap, and how axes and order are reversed.
KINDS = {
    "pixels not square": ((0.9, 0.7, 1.3), None, {}),
    "gaps between slices": ((1.1, 1.2, 1.25), "0.6", {}),
    "flips": ((0.9, 0.9375, 0.9375), None, {"flips": (0, 2), "reverse": True}),
    "enhanced": ((0.9, 0.7, 1.3), None, {"flips": (1,), "reverse": True}),
}
SEGMENTATION_RECIPES = [
    Recipe(Form.SEG), Recipe(Form.SEG, all_frames=True), Recipe(Form.SEG, compression="deflated"),
    Recipe(Form.LABELMAP), Recipe(Form.LABELMAP, all_frames=True, compression="rle"),
    Recipe(Form.LABELMAP, compression="deflated"),
    Recipe(Form.FRACTIONAL), Recipe(Form.FRACTIONAL, all_frames=True, compression="rle"),
    Recipe(Form.FRACTIONAL, compression="deflated"),
]  # fmt: skip
OTHERS = [Recipe(form) for form in BUILDERS if form not in SEGMENTATIONS]
REPORTS = [Recipe(form, of="SEG") for form in BUILDERS if form is Form.SR]
RECIPES = [*SEGMENTATION_RECIPES, *OTHERS, *REPORTS]
BACKGROUND_OF_LABEL_MAPS = (
    # The tool is of 2022, label maps of 2024: it does not know the class, nor that segment 0 is the background.
    "Information Object Not found", "SegmentNumber of 0", "SegmentNumber not monotonically increasing",
)  # fmt: skip


@pytest.fixture(scope="module", params=[f"{o}, {k}" for o, k in itertools.product(ORIENTATIONS, KINDS)])
def volume(request, tmp_path_factory, small):
    folder = tmp_path_factory.mktemp("series")
    orientation, kind = request.param.split(", ")
    spacing, thickness, reversed_ = KINDS[kind]
    storage = Storage(**ORIENTATIONS[orientation], **reversed_)
    image = small.lopsided((7, 22, 19))
    if kind == "enhanced":
        return read_series([write_enhanced(folder / "e.dcm", image, spacing, storage=storage)])
    paths = write_series(folder, image, spacing, storage=storage)
    datasets = [dcmread(path) for path in paths]
    for dataset in datasets:
        if thickness:
            dataset.SliceThickness = thickness
    return read_series(datasets)


@pytest.fixture(scope="module")
def mask(volume):
    """No two slices, rows or columns alike, two lesions, the first and the last slice of each axis free or not."""
    frames, rows, columns = volume.voxels.shape
    mask = np.zeros(volume.voxels.shape, np.uint8)
    mask[1 : frames - 2, 1 : rows // 2, 2 : columns // 2] = 1
    mask[2:, rows // 2 + 1 :, 1:3] = 2
    mask[0, 0, 0] = mask[2:4, 1:3, columns - 3 :] = 3
    mask[3, rows - 3, columns // 2 :] = mask[1, rows - 1, columns - 1] = 4
    mask[1, 1, 2] = mask[2, 1, 3] = 0
    return mask


@pytest.fixture(scope="session")
def standard():
    return Standard()


def segimage2itkimage():
    found = Path(sys.executable).parent / "segimage2itkimage"
    if not found.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("dcmqi is not installed: pip install dcmqi")
        pytest.skip("dcmqi is not installed")
    return found


@pytest.fixture(scope="module")
def objects(volume, mask, manifest, small, tmp_path_factory):
    """Files of every recipe, and the case."""
    folder = tmp_path_factory.mktemp("objects")
    case = small.case(volume, mask, manifest)
    files = {}
    for number, result in enumerate(make_objects(case, RECIPES)):
        path = folder / f"{number}.dcm"
        path.write_bytes(result.data)
        files.setdefault(result.form, []).append(path)
    assert set(files) == {recipe.key for recipe in RECIPES}
    return case, files


def test_no_validator_finds_a_fault(objects, standard, dciodvfy, tmp_path):
    _, files = objects
    found = {}
    for key, paths in files.items():
        recipe = Recipe.parse(key)
        for path in paths[:3]:
            found[key, "dicom-validator"] = standard.faults(path)
            if recipe.compression == "deflated":  # which dciodvfy cannot read
                dataset = dcmread(path)
                dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
                path = tmp_path / "inflated.dcm"
                dataset.save_as(path)
            lines = [line for line in dciodvfy(path) if "Error" in line or recipe.form in SEGMENTATIONS]
            if recipe.form is Form.LABELMAP:
                lines = [line for line in lines if not any(text in line for text in BACKGROUND_OF_LABEL_MAPS)]
            found[key, "dciodvfy"] = lines
    assert {where: lines for where, lines in found.items() if lines} == {}


def test_highdicom_reads_every_voxel_in_its_place(objects):
    case, files = objects
    volume, expected = case.volume, case.segments.mask
    geometry = hd.VolumeGeometry(volume.affine, expected.shape, "PATIENT", volume.frame_of_reference_uid)
    for key in (recipe.key for recipe in SEGMENTATION_RECIPES):
        (path,) = files[key]
        segmentation = hd.seg.segread(path)
        if segmentation.SegmentationType == "FRACTIONAL":
            placed = segmentation.get_volume(combine_segments=False).match_geometry(geometry)
            numbers = np.arange(1, len(case.segments.listed) + 1)
            found = ((placed.array > 0) * numbers).sum(axis=-1)
            assert set(np.unique(placed.array)) == {0, 1}
        else:
            found = segmentation.get_volume(combine_segments=True).match_geometry(geometry).array
        np.testing.assert_array_equal(found, expected, err_msg=key)
        # And by the images that its frames name.
        if not volume.frame_numbers:
            uids = [str(source.SOPInstanceUID) for source in volume.sources]
            named = segmentation.get_pixels_by_source_instance(
                uids, combine_segments=segmentation.SegmentationType != "FRACTIONAL", ignore_spatial_locations=False,
                assert_missing_frames_are_empty=True,
            )  # fmt: skip
            if named.ndim == 4:
                named = ((named > 0) * numbers).sum(axis=-1)
            np.testing.assert_array_equal(named, expected, err_msg=key)


def test_dcmqi_reads_every_voxel_in_its_place(objects, tmp_path):
    tool = segimage2itkimage()
    case, files = objects
    affine = np.linalg.inv(case.volume.affine)
    for key in (recipe.key for recipe in SEGMENTATION_RECIPES):
        out = tmp_path / key
        out.mkdir()
        (path,) = files[key]
        subprocess.run(
            [tool, "--inputDICOM", path, "--outputDirectory", out, "-t", "nrrd"],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        found = np.zeros_like(case.segments.mask)
        written = sorted(out.glob("*.nrrd"))
        assert written, key
        for image in written:
            array = SimpleITK.ReadImage(str(image))
            values = SimpleITK.GetArrayFromImage(array)
            direction = np.array(array.GetDirection()).reshape(3, 3) * np.array(array.GetSpacing())
            index = np.argwhere(values)
            points = index[:, ::-1] @ direction.T + np.array(array.GetOrigin())
            voxels = (np.c_[points, np.ones(len(points))] @ affine.T)[:, :3]
            assert np.abs(voxels - voxels.round()).max(initial=0) < 1e-3, key
            place = tuple(voxels.round().astype(int).T)
            assert not found[place].any(), key
            stored = values[tuple(index.T)]
            found[place] = stored if len(written) == 1 and stored.max() > 1 else _number(image)
        np.testing.assert_array_equal(found, case.segments.mask, err_msg=key)


def _number(path):
    """The segment of a file that dcmqi wrote, by its name."""
    return int("".join(filter(str.isdigit, path.stem)))


def test_the_same_series_gives_the_same_bytes(volume, mask, manifest, small):
    recipes = [Recipe(form) for form in BUILDERS]
    first = make_objects(small.case(volume, mask, manifest), recipes)
    assert make_objects(small.case(volume, mask.copy(), manifest), recipes) == first


def test_a_fault_is_found_by_the_offline_standard(objects, standard, tmp_path):
    """That it finds nothing elsewhere means something."""
    _, files = objects
    for form in SEGMENTATIONS:
        dataset = dcmread(files[form][0])
        del dataset.ContentLabel
        dataset.SegmentSequence[0].SegmentAlgorithmType = None
        dataset.save_as(tmp_path / "broken.dcm")
        faults = standard.faults(tmp_path / "broken.dcm")
        assert any("(0070,0080): TagMissing" in fault for fault in faults), faults
        assert any("(0062,0008)" in fault for fault in faults), faults
