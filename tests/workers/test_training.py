"""Training data out of DICOM: what a PACS holds becomes the arrays that it was made from, or an error that names it."""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sr.coding import Code

from node.settings import Seg
from trt.cases import DatasetError
from trt.dataset import read_folder
from trt.phantom import spine_phantom
from workers.case import Case
from workers.codes import MEANINGS
from workers.enhanced import write_enhanced
from workers.grid import resampling, to_canonical, to_model
from workers.seg import build_segmentation
from workers.series import Storage, write_series
from workers.volume import read_series
from workers.writing import write

NAMES = ("vertebra", "spinal canal", "intervertebral disc", "neoplasm")
STORAGES = [
    Storage(axes=axes, flips=flips)
    for axes in itertools.permutations(range(3))
    for count in range(4)
    for flips in itertools.combinations(range(3), count)
]
TILTED = (1, 0, 0, 0, 0.9945218953682733, -0.10452846326765347, 0, 0.10452846326765347, 0.9945218953682733)


def painted(shape=(6, 30, 24)):
    """A mask (Z, Y, X) without symmetry."""
    mask = np.zeros(shape, np.uint8)
    mask[1:4, 3:9, 2:7], mask[2:5, 10:14, 8:15], mask[1:3, 20:, 5:9] = 1, 2, 3
    mask[0, 0, 0] = mask[-1, -1, -1] = 2  # the very corners
    return mask


def stored(mask, storage):
    """`mask` (Z, Y, X) on the axes of a series written with `storage`, its frames along their normal."""
    planes = np.flip(mask, storage.flips).transpose(storage.axes)
    # A stack whose frames run against their normal is read in the opposite order.
    directions = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], float)
    directions[list(storage.flips)] *= -1
    along, rows, columns = directions[list(storage.axes)]
    return planes[::-1] if np.cross(columns, rows) @ along < 0 else planes


def own(path, volume, mask, manifest):
    """Write a Segmentation as the node writes its results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(write(build_segmentation(Case(volume, np.ascontiguousarray(mask), manifest, {}, "", Seg()))))
    return path


def native(volume, array):
    """An array (Z, Y, X, ...) on the axes of `volume`."""
    canonical = to_canonical(volume)
    rest = range(3, array.ndim)
    return np.flip(array, canonical.flips).transpose(*np.argsort(canonical.axes), *rest)


def foreign(path, volume, array, labels, kind="BINARY", names=None, codes=None, **options):
    """Write a Segmentation as another program does: `array` (Z, Y, X, ...) or a highdicom.Volume, segments from 1."""
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=names[number - 1] if names else label,
            segmented_property_category=Code(*MEANINGS[label].category),
            segmented_property_type=Code(*codes[number - 1]) if codes else Code(*MEANINGS[label].type),
            algorithm_type="MANUAL",
        )
        for number, label in enumerate(labels, 1)
    ]
    headers = [dcmread(p, stop_before_pixels=True) for p in options.pop("sources")]
    headers.sort(key=lambda h: float(np.dot(h.ImagePositionPatient, volume.affine[:3, 0])))
    hd.seg.Segmentation(
        source_images=headers,
        pixel_array=array if isinstance(array, hd.Volume) else native(volume, array),
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=9,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="another",
        manufacturer_model_name="program",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=True,
        **options,
    ).save_as(path)
    return path


@pytest.fixture
def paths(tmp_path, small):
    return write_series(tmp_path / "data" / "mr", small.lopsided(), small.SPACING)


@pytest.fixture
def volume(paths):
    return read_series(paths)


@pytest.fixture
def data(tmp_path, paths):
    return tmp_path / "data"


def read(folder, patients=None, names=NAMES, told=None):
    return read_folder(folder, len(names), patients, names=names, warn=(told if told is not None else []).append)


def refused(folder):
    with pytest.raises(DatasetError) as caught:
        read(folder)
    assert "PHANTOM" not in str(caught.value), "no Patient ID in a message"
    return str(caught.value)


# --- what was stored comes back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: f"{s.axes}{s.flips}")
def test_all_48_ways_to_store_a_series_give_the_arrays_it_was_made_from(storage, tmp_path, small, manifest):
    paths = write_series(tmp_path / "mr", small.lopsided(), small.SPACING, storage=storage)
    own(tmp_path / "seg" / "1", read_series(paths), stored(painted(), storage), manifest)
    (case,) = read(tmp_path)
    np.testing.assert_array_equal(case.image, small.lopsided())
    np.testing.assert_array_equal(case.mask, painted())
    np.testing.assert_allclose(case.spacing, small.SPACING, rtol=1e-6)


@pytest.mark.parametrize("enhanced", [False, True])
def test_oblique_reversed_and_enhanced_series(enhanced, tmp_path, small, manifest):
    storage = Storage(axes=(0, 1, 2), flips=(0,), rotation=TILTED, reverse=True)
    if enhanced:
        paths = [write_enhanced(tmp_path / "e.dcm", small.lopsided(), small.SPACING, storage=storage)]
    else:
        paths = write_series(tmp_path / "mr", small.lopsided(), small.SPACING, storage=storage)
    own(tmp_path / "seg.dcm", read_series(paths), stored(painted(), storage), manifest)
    (case,) = read(tmp_path)
    np.testing.assert_array_equal(case.image, small.lopsided())
    np.testing.assert_array_equal(case.mask, painted())


def test_training_sees_the_very_pixels_that_serving_makes(tmp_path, manifest):
    phantom = spine_phantom((4, 200, 160), (4.0, 0.7, 0.6), 1)
    paths = write_series(tmp_path / "mr", phantom.image, phantom.spacing, storage=Storage(axes=(0, 2, 1)))
    volume = read_series(paths)
    own(tmp_path / "seg.dcm", volume, stored(phantom.mask, Storage(axes=(0, 2, 1))), manifest)
    (case,) = read(tmp_path)
    canonical = to_canonical(volume)
    serving = to_model(canonical.voxels, resampling(canonical, manifest.spacing_mm))
    np.testing.assert_array_equal(case.image, serving)
    assert case.mask.shape == serving.shape
    assert case.spacing == (4.0, 0.9375, 0.9375)
    pixels = 0.7 * 0.6 / 0.9375**2
    for label in (1, 2, 3):
        assert (case.mask == label).sum() == pytest.approx((phantom.mask == label).sum() * pixels, rel=0.02)


@pytest.mark.parametrize("patient", ["pt005", "pt041", "pt118"])
def test_real_series_with_their_masks(patient, tmp_path, real, manifest):
    paths = real(f"spine_t2_{patient}")
    arrays = np.load(paths[0].parents[2] / "spider_t2space" / f"{patient}.npz")
    for path in paths:
        shutil.copy(path, tmp_path)
    volume = read_series(paths)
    canonical = to_canonical(volume)
    mask = np.flip(arrays["mask"], canonical.flips).transpose(np.argsort(canonical.axes))
    own(tmp_path / "seg.dcm", volume, mask, manifest)
    (case,) = read(tmp_path)
    np.testing.assert_array_equal(case.image, arrays["image"].astype(np.float32) * 8)  # 8 bits stored as 11
    np.testing.assert_array_equal(case.mask, arrays["mask"])
    assert case.spacing[1:] == (0.9375, 0.9375)


# --- Segmentations by others ----------------------------------------------------------------------------------------


def placed_by_highdicom(path, volume):
    geometry = hd.VolumeGeometry(
        volume.affine, volume.voxels.shape, "PATIENT", frame_of_reference_uid=volume.frame_of_reference_uid
    )
    return hd.seg.segread(path).get_volume(combine_segments=True).match_geometry(geometry).array


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_all_three_kinds_of_segmentation(kind, data, paths, volume):
    path = foreign(data / "seg", volume, painted(), NAMES[:3], kind, sources=paths)
    (case,) = read(data)
    np.testing.assert_array_equal(case.mask, painted())
    np.testing.assert_array_equal(placed_by_highdicom(path, volume), native(volume, painted()))


def test_of_a_fractional_segmentation_a_half_or_more_counts(data, paths, volume):
    shares = np.zeros((*painted().shape, 2), np.float32)
    shares[2, 5, 5:9, 0] = 0.2, 0.45, 0.55, 1.0
    shares[2, 5, 5:9, 1] = 0.8, 0.55, 0.45, 0.0
    foreign(data / "seg", volume, shares, NAMES[:2], "FRACTIONAL", sources=paths, max_fractional_value=200)
    assert read(data)[0].mask[2, 5, 4:10].tolist() == [0, 2, 2, 1, 1, 0]


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(), (0,), (1, 2)])
def test_frames_may_run_another_way_than_those_of_the_series(axes, flips, data, paths, volume):
    array = np.flip(native(volume, painted()), flips)
    affine = volume.affine.copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (painted().shape[axis] - 1)
        affine[:3, axis] *= -1
    turned = hd.Volume(array, affine, "PATIENT", frame_of_reference_uid=volume.frame_of_reference_uid)
    foreign(data / "seg", volume, turned.permute_spatial_axes(axes), NAMES[:3], sources=paths)
    np.testing.assert_array_equal(read(data)[0].mask, painted())


def test_frames_may_be_smaller_than_those_of_the_series(data, paths, volume):
    reference = volume.frame_of_reference_uid
    whole = hd.Volume(native(volume, painted()), volume.affine, "PATIENT", frame_of_reference_uid=reference)
    foreign(data / "seg", volume, whole[1:5, 2:28, 1:20], NAMES[:3], sources=paths)
    expected = np.zeros_like(painted())
    expected[1:5, 2:28, 1:20] = painted()[1:5, 2:28, 1:20]  # the range of slices is its own mirror image
    np.testing.assert_array_equal(read(data)[0].mask, expected)


def test_slices_that_are_a_little_uneven(tmp_path, small):
    """And shifted sideways by a quarter of a pixel, as positions rounded to 0.1 mm do."""
    paths = write_series(tmp_path / "mr", small.lopsided(), (4.0, 0.4, 0.4))
    for path, shift in zip(paths, (0.05, -0.05, 0.05, 0, -0.05, 0.05), strict=True):
        dataset = dcmread(path)
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [round(float(x) + shift, 6), round(float(y) + shift, 6), z]
        dataset.save_as(path)
    foreign(tmp_path / "seg", read_series(paths), painted(), NAMES[:3], sources=paths)
    (case,) = read_folder(tmp_path, 4, names=NAMES, pixels=(0.4, 0.4))
    np.testing.assert_array_equal(case.mask, painted())


def moved(volume, millimetres):
    affine = volume.affine.copy()
    affine[:3, 3] += millimetres
    reference = volume.frame_of_reference_uid
    return hd.Volume(native(volume, painted()), affine, "PATIENT", frame_of_reference_uid=reference)


@pytest.mark.parametrize(
    ("millimetres", "message"),
    [
        ((0, 0.47, 0), "lies between the voxels"),
        ((0.45, 0, 0), "lies between the voxels"),
        ((0, 0, 0.3), "lies between the voxels"),
        ((0.9, 0, 0), "reaches beyond"),
        ((-1.8, 0, 0), "reaches beyond"),
        ((0, 0.9375, 0), "reaches beyond"),
    ],
)
def test_a_segmentation_off_the_grid_is_refused(millimetres, message, data, paths, volume):
    foreign(data / "seg", volume, moved(volume, (0, 0.05, -0.05)), NAMES[:3], sources=paths)
    np.testing.assert_array_equal(read(data)[0].mask, painted())
    (data / "seg").unlink()
    foreign(data / "seg", volume, moved(volume, millimetres), NAMES[:3], sources=paths)
    assert message in refused(data)


@pytest.mark.parametrize("factor", [0.5, 1.05, 2, 3])
def test_pixels_of_another_size_are_refused(factor, data, paths, volume):
    affine = volume.affine @ np.diag([1, factor, factor, 1])
    reference = volume.frame_of_reference_uid
    other = hd.Volume(painted()[:, :10, :8], affine, "PATIENT", frame_of_reference_uid=reference)
    foreign(data / "seg", volume, other, NAMES[:3], sources=paths)
    assert "another size or direction" in refused(data)


# --- segments and labels --------------------------------------------------------------------------------------------


def test_a_segment_is_known_by_its_code_whatever_its_label(data, paths, volume):
    mask = painted()
    mask[3, 3:9, 2:7] = 4  # a vertebra of its own
    meaning = MEANINGS["vertebra"].type
    codes = [meaning, MEANINGS["spinal canal"].type, MEANINGS["intervertebral disc"].type, meaning]
    labels = [*NAMES[:3], "vertebra"]
    foreign(data / "seg", volume, mask, labels, "LABELMAP", ["L4", "x", "y", "L3"], codes, sources=paths)
    np.testing.assert_array_equal(read(data)[0].mask, np.where(mask == 4, 1, mask))


def test_a_segment_of_an_unknown_code_is_known_by_its_label(data, paths, volume):
    unknown = ("85756007", "SCT", "Tissue")
    foreign(
        data / "seg", volume, painted(), NAMES[:3], "BINARY", ["VERTEBRA", "spinal_canal", "Intervertebral disc"],
        [unknown] * 3, sources=paths,
    )  # fmt: skip
    np.testing.assert_array_equal(read(data)[0].mask, painted())


def test_a_code_goes_before_a_label(data, paths, volume):
    foreign(data / "seg", volume, painted(), NAMES[:3], "BINARY", ["vertebra"] * 3, sources=paths)
    np.testing.assert_array_equal(read(data)[0].mask, painted())


def test_segments_that_no_label_fits_are_all_named(data, paths, volume):
    foreign(data / "seg.dcm", volume, painted(), ["vertebra", "sacrum", "spinal cord"], sources=paths)
    text = refused(data)
    assert re.match(r"seg.dcm \(SEG 1\.", text)
    assert "'sacrum' (Sacrum), 'spinal cord' (Spinal cord)" in text
    assert "name or code them as one of vertebra, spinal canal" in text


def test_a_tumour_alone_is_refused_and_beside_anatomy_welcome(data, paths, volume):
    foreign(data / "seg.dcm", volume, (painted() == 1).astype(np.uint8), ["neoplasm"], sources=paths)
    assert "marks neoplasm but none of vertebra, spinal canal, intervertebral disc; train with all" in refused(data)
    rest = np.where(painted() == 1, 0, painted())
    foreign(data / "rest.dcm", volume, np.where(rest > 0, rest - 1, 0), NAMES[1:3], sources=paths)
    np.testing.assert_array_equal(read(data)[0].mask, np.where(painted() == 1, 4, painted()))


def test_labels_that_overlap_are_refused(data, paths, volume):
    planes = np.stack([painted() == 1, painted() > 0], axis=-1).astype(np.uint8)
    foreign(data / "seg.dcm", volume, planes, NAMES[:2], sources=paths)
    assert "spinal canal and vertebra overlap" in refused(data)
    (data / "seg.dcm").unlink()
    foreign(data / "a.dcm", volume, (painted() == 1).astype(np.uint8), NAMES[:1], sources=paths)
    foreign(data / "b.dcm", volume, (painted() > 0).astype(np.uint8), NAMES[1:2], sources=paths)
    text = refused(data)
    assert "spinal canal and vertebra overlap" in text
    assert "a.dcm" in text
    assert "b.dcm" in text


# --- which mask belongs to which series -----------------------------------------------------------------------------


def test_two_segmentations_of_one_label_are_refused_by_both_names(data, paths, volume, manifest):
    foreign(data / "new.dcm", volume, painted(), NAMES[:3], sources=paths)
    own(data / "old.dcm", volume, painted(), manifest)
    text = refused(data)
    assert "new.dcm" in text
    assert "old.dcm" in text
    assert "both mark vertebra" in text


@pytest.mark.parametrize("kept", ["series", "images", "place"])
def test_a_segmentation_finds_its_series(kept, tmp_path, data, paths, volume, small):
    write_series(data / "other", small.lopsided(seed=7), small.SPACING, seed=7)
    dataset = dcmread(foreign(tmp_path / "seg", volume, painted(), NAMES[:3], sources=paths))
    if kept != "series":
        del dataset.ReferencedSeriesSequence
    if kept == "place":
        del dataset.SourceImageSequence
        for group in dataset.PerFrameFunctionalGroupsSequence:
            del group.DerivationImageSequence
    dataset.save_as(data / "seg")
    told = []
    (case,) = read(data, told=told)
    np.testing.assert_array_equal(case.image, small.lopsided())
    assert len(told) == 1, told
    assert "no segmentation, left out: series" in told[0]
    assert "MR0001.dcm, 6 files" in told[0]


def test_nothing_but_the_place_does_not_tell_two_series_apart(tmp_path, data, paths, volume, small):
    write_series(data / "other", small.lopsided(seed=7), small.SPACING, storage=Storage(reverse=True))
    dataset = dcmread(foreign(tmp_path / "seg", volume, painted(), NAMES[:3], sources=paths))
    del dataset.ReferencedSeriesSequence, dataset.SourceImageSequence
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    dataset.save_as(data / "seg")
    assert "belongs to 2 series" in refused(data)


def test_a_segmentation_without_its_series(data, paths, volume, small):
    foreign(data / "seg.dcm", volume, painted(), NAMES[:3], sources=paths)
    shutil.rmtree(data / "mr")
    assert re.match(r"seg.dcm \(SEG .*\): its series is not in the folder; add the MR images", refused(data))


def test_a_segmentation_of_ct_by_another_program(real):
    folder = real("spine_t2_pt005")[0].parents[2] / "seg_by_others"
    text = refused(folder)
    assert "liver.dcm" in text
    assert "partial_overlaps.dcm" in text
    assert "made on CT Image Storage, not on MR images" in text


def test_series_without_any_segmentation(data):
    assert "none of 1 image series is MR with a segmentation" in refused(data)


def test_names_of_labels_are_needed(data, paths, volume):
    foreign(data / "seg", volume, painted(), NAMES[:3], sources=paths)
    with pytest.raises(DatasetError, match="by the names of labels"):
        read_folder(data, 3)


def test_other_files_are_told_and_left_out(data, paths, volume):
    (data / "deep" / "deeper").mkdir(parents=True)
    foreign(data / "deep" / "deeper" / "00A1", volume, painted(), NAMES[:3], sources=paths)
    (data / "README").write_text("exported yesterday")
    (data / "empty").write_bytes(b"")
    told = []
    assert len(read(data, told=told)) == 1
    assert "other files, left out: 2 no DICOM" in told


# --- patients -------------------------------------------------------------------------------------------------------


def test_patients_go_by_a_pseudonym_and_only_those_wanted_are_read(tmp_path, small):
    for seed in (1, 2, 2):
        folder = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}"
        storage = Storage(reverse=len(folder.name) % 2 == 0)
        paths = write_series(folder, small.lopsided(seed=seed), small.SPACING, seed=seed, storage=storage)
        foreign(folder / "seg", read_series(paths), painted(), NAMES[:3], sources=paths)
    shutil.rmtree(tmp_path / "2-2")  # the same series twice would be an error of its own
    paths = write_series(tmp_path / "again", small.lopsided(), small.SPACING, seed=2, storage=Storage(axes=(0, 2, 1)))
    foreign(tmp_path / "again" / "seg", read_series(paths), painted(), NAMES[:3], sources=paths)
    cases = read(tmp_path)
    patients = [case.patient for case in cases]
    assert len(patients) == 3
    assert len(set(patients)) == 2
    assert len({case.name for case in cases}) == 3
    for case in cases:
        assert re.fullmatch("[0-9a-f]{12}", case.patient)
        assert re.fullmatch("[0-9a-f]{12}_[0-9a-f]{8}", case.name)
    twice = max(patients, key=patients.count)
    (other,) = set(patients) - {twice}
    assert [case.patient for case in read(tmp_path, [twice])] == [twice] * 2
    seg = tmp_path / "1-0" / "seg"
    seg.write_bytes(seg.read_bytes()[:-200])
    assert len(read(tmp_path, [twice])) == 2, "another patient's file is not read"
    with pytest.raises(DatasetError, match=r"seg .*is damaged or cut short"):
        read(tmp_path, [other])


def test_a_pseudonym_cannot_be_found_by_trying_numbers(data, paths, volume):
    """It comes from UIDs alone: another Patient ID leaves it, a mask made anew too, an earlier series does not."""
    foreign(data / "seg", volume, painted(), NAMES[:3], sources=paths)
    (before,) = read(data)
    for path in [*paths, data / "seg"]:
        changed(path, PatientID="0815")
    assert read(data)[0].name == before.name
    foreign(data / "seg", volume, painted(), NAMES[:3], sources=paths)
    assert read(data)[0].name == before.name
    shutil.copytree(data / "mr", data / "older")
    for number, path in enumerate(sorted((data / "older").iterdir())):
        changed(path, SeriesInstanceUID="1.1", SOPInstanceUID=f"1.1.{number}")
    (after,) = read(data)
    assert after.patient == hashlib.sha256(b"1.1").hexdigest()[:12]
    assert after.patient != before.patient


def test_a_series_of_nobody_is_refused(data, paths, volume):
    for path in paths:
        dataset = dcmread(path)
        dataset.PatientID = ""
        dataset.save_as(path)
    foreign(data / "seg", volume, painted(), NAMES[:3], sources=paths)
    assert "has no Patient ID" in refused(data)


def test_an_image_and_a_mask_of_two_patients(data, paths, volume):
    path = foreign(data / "seg", volume, painted(), NAMES[:3], sources=paths)
    dataset = dcmread(path)
    dataset.IssuerOfPatientID = "another hospital"
    dataset.save_as(path)
    assert "name different patients" in refused(data)


def test_the_nodes_own_results_are_told(data, volume, manifest):
    own(data / "seg.dcm", volume, painted(), manifest)
    told = []
    read(data, told=told)
    assert "made by pennode itself" in told[0]


# --- damaged files --------------------------------------------------------------------------------------------------


def changed(path, **values):
    dataset = dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


SPOILT = {
    "mask cut in its pixels": (lambda d: cut(d / "seg.dcm", 0.98), "seg.dcm (SEG ", "damaged or cut short"),
    "mask cut in its header": (lambda d: cut(d / "seg.dcm", 0.3), "seg.dcm", "does not describe its segments"),
    "image cut in its pixels": (lambda d: cut(d / "mr/MR0003.dcm", 0.8), "MR0001.dcm, 6 files", "image 3 has damaged"),
    "image cut in its header": (lambda d: cut(d / "mr/MR0003.dcm", 0.2), "MR0003.dcm", "cut short"),
    "last image lost": (lambda d: (d / "mr/MR0006.dcm").unlink(), "seg.dcm (SEG ", "1 images of the series are miss"),
    "an image twice": (
        lambda d: shutil.copy(d / "mr/MR0002.dcm", d / "copy.dcm"), "seg.dcm (SEG ", "the same image is there twice",
    ),
    "another place": (
        lambda d: changed(d / "seg.dcm", FrameOfReferenceUID="1.2.3"), "seg.dcm (SEG ", "another frame of reference",
    ),
    "one value": (
        lambda d: [changed(p, PixelData=bytes(2 * 30 * 24)) for p in (d / "mr").iterdir()],
        "seg.dcm (SEG ", "all pixels of the series have the same value",
    ),
    "no segments": (lambda d: changed(d / "seg.dcm", SegmentSequence=None), "seg.dcm", "describe its segments"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_wrong_is_told_with_the_name_of_the_file(case, data, paths, volume):
    spoil, name, reason = SPOILT[case]
    foreign(data / "seg.dcm", volume, painted(), NAMES[:3], sources=paths)
    assert len(read(data)) == 1
    spoil(data)
    text = refused(data)
    assert name in text
    assert reason in text


def test_all_bad_series_are_told_at_once(tmp_path, small):
    for seed in range(3):
        paths = write_series(tmp_path / f"mr{seed}", small.lopsided(), small.SPACING, seed=seed)
        foreign(tmp_path / f"seg{seed}", read_series(paths), painted(), NAMES[:3], sources=paths)
    cut(tmp_path / "seg0", 0.98)
    (tmp_path / "mr2" / "MR0004.dcm").unlink()
    assert sorted(line.split(" ")[0] for line in refused(tmp_path).splitlines()) == ["seg0", "seg2"]
