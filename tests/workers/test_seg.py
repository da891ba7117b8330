"""The Segmentation: what it says, that it is valid, always the same, and that the gate catches a false one."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.sr.codedict import codes as dicom_codes
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSNearLossless, SegmentationStorage

from node.errors import ConfigurationError, InvalidResult, Unsuitable
from node.forms import DEFAULT, Form, Recipe
from node.records import RESEARCH_NOTICE
from node.settings import Seg
from tests.workers import made
from trt.manifest import Code as LabelCode
from trt.manifest import Label
from workers.characters import CHARACTER_SETS
from workers.codes import MEANINGS, Meaning, meaning_of
from workers.inspection import check_segmentation
from workers.results import BUILDERS
from workers.seg import build_segmentation
from workers.series import write_series
from workers.volume import read_series
from workers.writing import write

ROOT = Path(__file__).parents[2]
# What another host does with the files of `made.images`: sha256 of all objects, by the keys of their recipes.
ELSEWHERE = """
import json, sys
from pathlib import Path
from node.forms import Recipe
from node.settings import Seg
from tests.workers import made
from workers.case import Case
from workers.results import make_objects
from workers.volume import read_series
volume = read_series([Path(name) for name in sys.argv[2:]])
mask = made.placed(made.anatomy(), volume, "oblique")
case = Case(volume, mask, made.manifest(), made.ENGINE, made.DIGEST, Seg())
found = {}
for one in make_objects(case, [Recipe.parse(key) for key in json.loads(sys.argv[1])]):
    found.setdefault(one.form, []).append(one.sha256)
print(json.dumps(found))
"""


def built(small, volume, mask, manifest, settings=None, recipe=DEFAULT[0]):
    return write(build_segmentation(small.case(volume, mask, manifest, settings), recipe))


def check(small, data, volume, mask, manifest, recipe=DEFAULT[0]):
    check_segmentation(data, small.case(volume, mask, manifest), recipe)


def parsed(data):
    return dcmread(io.BytesIO(data))


def test_attributes_that_viewers_and_archives_need(volume, mask, manifest, small):
    dataset, source = parsed(built(small, volume, mask, manifest)), volume.sources[0]
    assert dataset.SOPClassUID == SegmentationStorage
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert dataset.SegmentationType == "BINARY"
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "BodyPartExamined"):
        assert dataset[keyword].value == source[keyword].value
    assert (dataset.SeriesDate, dataset.SeriesTime) == (source.SeriesDate, source.SeriesTime)
    assert (dataset.ContentDate, dataset.ContentTime) == (source.SeriesDate, source.SeriesTime)
    assert (dataset.SeriesNumber // 1000, dataset.SeriesNumber % 10) == (source.SeriesNumber, 1)
    model = f"{manifest.name} {manifest.version}"
    assert dataset.SeriesDescription == f"PENN spine segmentation (research), {model}, SEG"
    assert dataset.ContentDescription == RESEARCH_NOTICE
    assert dataset.ContentLabel == "SPINE_SEG"
    assert dataset.Manufacturer == "pennode"
    assert dataset.DeviceSerialNumber == manifest.digest
    assert [v.split()[0] for v in dataset.SoftwareVersions] == ["pennode", manifest.name]
    assert dataset.LossyImageCompression == "00"
    assert dataset.SegmentsOverlap == "NO"
    series = dataset.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert len(series.ReferencedInstanceSequence) == len(volume.sources)
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == pytest.approx(volume.spacing[0])
    assert dataset.NumberOfFrames == 3 + 3 + 2 + 2


def test_segments_carry_codes_colours_tracking_and_the_algorithm(volume, mask, manifest, small):
    dataset = parsed(built(small, volume, mask, manifest))
    assert [s.SegmentNumber for s in dataset.SegmentSequence] == [1, 2, 3, 4]
    assert [s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in dataset.SegmentSequence] == [
        dicom_codes.SCT.Vertebra.value, dicom_codes.SCT.VertebralCanal.value, "360499006", "108369006",
    ]  # fmt: skip
    for segment, label in zip(dataset.SegmentSequence, manifest.labels, strict=True):
        meaning = meaning_of(label)
        words = "Neoplasm 1" if label.name == "neoplasm" else meaning.words
        assert segment.SegmentLabel == segment.TrackingID == words
        assert segment.TrackingUID.startswith("2.25.")
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentAlgorithmName == manifest.name
        colour = hd.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb()
        np.testing.assert_allclose(colour, meaning.colour, atol=1)
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == dicom_codes.DCM.ArtificialIntelligence.value
        assert algorithm.AlgorithmVersion == manifest.version
        assert set(algorithm.AlgorithmParameters.split(",")) == {
            "backend=openvino", "overlap=0.5", "precision=f32", f"model_sha256={manifest.digest}",
            f"input_sha256={small.DIGEST}",
        }  # fmt: skip


def test_every_frame_names_the_source_image_it_lies_on(volume, mask, manifest, small):
    dataset = parsed(built(small, volume, mask, manifest))
    for group in dataset.PerFrameFunctionalGroupsSequence:
        named = group.DerivationImageSequence[0].SourceImageSequence[0]
        position = list(group.PlanePositionSequence[0].ImagePositionPatient)
        if volume.frame_numbers:
            item = volume.sources[0].PerFrameFunctionalGroupsSequence[named.ReferencedFrameNumber - 1]
            assert list(item.PlanePositionSequence[0].ImagePositionPatient) == position
        else:
            (source,) = [s for s in volume.sources if s.SOPInstanceUID == named.ReferencedSOPInstanceUID]
            assert list(source.ImagePositionPatient) == position


@pytest.mark.parametrize("omit", [True, False])
def test_another_reader_places_it_by_geometry_on_the_source_grid(omit, volume, mask, manifest, small):
    recipe = Recipe(Form.SEG, all_frames=not omit)
    data = built(small, volume, mask, manifest, recipe=recipe)
    segmentation = hd.seg.segread(io.BytesIO(data))
    geometry = hd.VolumeGeometry(
        volume.affine, volume.voxels.shape, "PATIENT", frame_of_reference_uid=volume.frame_of_reference_uid
    )
    placed = segmentation.get_volume(combine_segments=True).match_geometry(geometry)
    np.testing.assert_array_equal(placed.array, mask)
    assert segmentation.NumberOfFrames == (10 if omit else 24)
    check(small, data, volume, mask, manifest, recipe)


def test_dciodvfy_finds_no_fault(volume, mask, manifest, tmp_path, dciodvfy, small):
    for recipe in (DEFAULT[0], Recipe(Form.SEG, all_frames=True)):
        path = tmp_path / f"{recipe.key}.dcm"
        path.write_bytes(built(small, volume, mask, manifest, recipe=recipe))
        assert dciodvfy(path) == []


def test_the_same_input_gives_the_same_bytes_at_another_time(volume, mask, manifest, small):
    first = built(small, volume, mask, manifest)
    time.sleep(1.01)  # beyond the resolution of a DICOM time in seconds
    assert built(small, volume, mask, manifest) == first
    busier = small.case(volume, mask, manifest, engine={**small.ENGINE, "threads": "64", "device": "b"})
    assert write(build_segmentation(busier)) == first


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
def test_the_same_input_gives_the_same_bytes_on_another_host(enhanced, tmp_path):
    paths = [str(path) for path in made.images(tmp_path, "oblique", enhanced=enhanced)]
    keys = [str(form) for form in BUILDERS] + ["SEG+deflated", "LABELMAP+rle", "SR:SEG"]
    hosts = [({"PYTHONHASHSEED": "1", "TZ": "UTC"}, paths), ({"PYTHONHASHSEED": "99", "TZ": "Asia/Tokyo"}, paths[::-1])]
    found = [
        subprocess.run(
            [sys.executable, "-c", ELSEWHERE, json.dumps(keys), *files],
            env={**os.environ, **host, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
        ).stdout
        for host, files in hosts
    ]  # fmt: skip
    assert json.loads(found[0]).keys() >= set(keys)
    assert found[0] == found[1]


def test_uids_change_with_what_changes_the_result(volume, mask, manifest, small):
    def uids(manifest=manifest, engine=small.ENGINE, digest=small.DIGEST, settings=None, recipe=DEFAULT[0]):
        dataset = build_segmentation(small.case(volume, mask, manifest, settings, engine, digest), recipe)
        return dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.SegmentSequence[0].TrackingUID

    plain = uids()
    others = [
        uids(manifest=dataclasses.replace(manifest, digest="0" * 64)),
        uids(engine={**small.ENGINE, "precision": "bf16"}),
        uids(engine={**small.ENGINE, "overlap": "0.25"}),
        uids(digest="0" * 64),
        uids(settings=Seg(series_description="another")),
        uids(recipe=Recipe(Form.SEG, all_frames=True)),
        uids(manifest=dataclasses.replace(manifest, stride=64)),
        uids(manifest=dataclasses.replace(manifest, finder=dataclasses.replace(manifest.finder, factor=8))),
        uids(manifest=dataclasses.replace(manifest, finder=dataclasses.replace(manifest.finder, margin_mm=31.0))),
        uids(manifest=dataclasses.replace(manifest, finder=dataclasses.replace(manifest.finder, threshold=0.5))),
    ]
    assert len({plain[0], *(o[0] for o in others)}) == 1 + len(others)
    assert len({plain[1], *(o[1] for o in others)}) == 1 + len(others)
    elsewhere = dataclasses.replace(manifest.finder, path=Path("/elsewhere/finder.onnx"))
    assert uids(manifest=dataclasses.replace(manifest, finder=elsewhere)) == plain, "where a file lies is the host's"
    assert {plain[2], *(o[2] for o in others)} == {plain[2]}, "the structure keeps its tracking UID"


def test_only_labels_that_occur_become_segments(volume, mask, manifest, small):
    mask[mask == 2] = 0
    data = built(small, volume, mask, manifest)
    assert [(s.SegmentNumber, s.SegmentLabel) for s in parsed(data).SegmentSequence] == [
        (1, "Vertebra"),
        (2, "Intervertebral disc"),
        (3, "Neoplasm 1"),
    ]
    check(small, data, volume, mask, manifest)


def test_one_label_on_one_slice(volume, mask, manifest, small):
    mask[...] = 0
    mask[3, 5, 5] = 3
    check(small, built(small, volume, mask, manifest), volume, mask, manifest)


def test_an_empty_mask_is_refused(volume, mask, manifest, small):
    with pytest.raises(Unsuitable, match="no spine structure was found"):
        build_segmentation(small.case(volume, mask * 0, manifest))


@pytest.mark.parametrize("odd", [lambda m: m[1:], lambda m: m.swapaxes(1, 2), lambda m: m.astype(np.int16)])
def test_a_mask_of_another_grid_or_type_is_refused(odd, volume, mask, manifest, small):
    with pytest.raises(InvalidResult, match="does not lie on the grid"):
        small.case(volume, odd(mask), manifest)


def test_a_value_that_the_manifest_does_not_know_is_refused(volume, mask, manifest, small):
    mask[2, 2, 2] = 9
    with pytest.raises(InvalidResult, match="holds the value 9, and the model has labels up to 4 only"):
        small.case(volume, mask, manifest)


def test_character_sets_are_those_that_highdicom_takes():
    assert {value.value for value in hd.SpecificCharacterSetValues} == CHARACTER_SETS


def test_a_label_without_a_code_is_a_configuration_error(volume, mask, manifest, small):
    odd = dataclasses.replace(manifest, labels=(Label(1, "gall bladder"), *manifest.labels[1:]))
    with pytest.raises(ConfigurationError, match="'gall bladder'"):
        build_segmentation(small.case(volume, mask, odd))


def test_a_manifest_says_itself_what_its_labels_mean(manifest):
    for label in manifest.labels:
        assert meaning_of(label) == meaning_of(Label(label.value, label.name)), "as the table has it"
    kind, category, region = (("1", "99X", "A"), ("2", "99X", "B"), ("3", "99X", "C"))
    own = Label(1, "gall_bladder", LabelCode(*kind), LabelCode(*category), (1, 2, 3), LabelCode(*region))
    assert meaning_of(own) == Meaning("Gall bladder", category, kind, (1, 2, 3), region)


def test_a_fourth_label_is_a_segment_of_the_spine(volume, mask, manifest, small):
    mask[2, 25, 20] = 4
    manifest = dataclasses.replace(manifest, labels=(*manifest.labels[:3], Label(4, "neoplasm")))
    segment = parsed(built(small, volume, mask, manifest)).SegmentSequence[3]
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "108369006"
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert segment.AnatomicRegionSequence[0].CodeValue == dicom_codes.cid4.Spine.value


@pytest.mark.parametrize("name", MEANINGS)
def test_codes_are_those_of_the_dictionary(name):
    meaning = MEANINGS[name]
    for value, scheme, words in filter(None, (meaning.category, meaning.type, meaning.region)):
        assert scheme == "SCT"
        if value == "360499006":  # in no DICOM context group
            continue
        known = [getattr(dicom_codes.SCT, keyword) for keyword in dir(dicom_codes.SCT)]
        assert words in {code.meaning for code in known if isinstance(code, Code) and code.value == value}


def test_a_lossy_source_is_carried_on(tmp_path, small, manifest):
    datasets = [dcmread(path) for path in write_series(tmp_path, small.lopsided(), small.SPACING)]
    for dataset in datasets:
        dataset.compress(JPEGLSNearLossless, jls_error=2, generate_instance_uid=False)
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionRatio, dataset.LossyImageCompressionMethod = 3.5, "ISO_14495_1"
    volume = read_series(datasets)
    dataset = parsed(built(small, volume, small.labels(volume.voxels.shape), manifest))
    assert dataset.LossyImageCompression == "01"
    assert dataset.LossyImageCompressionRatio == 3.5
    assert dataset.LossyImageCompressionMethod == "ISO_14495_1"


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize(
    ("keyword", "value", "kept"),
    [
        ("StudyID", None, ""),
        ("AccessionNumber", "A number that is longer than it may be", "A number that is longer than it may be"),
        ("PatientBirthDate", "unknown", ""),
        ("PatientSex", "X", ""),
        ("StudyTime", "half past nine", ""),
        ("SeriesDate", "2026-03-14", "20260314"),
        ("PatientName", "Müller^Änne", "Müller^Änne"),
        ("SpecificCharacterSet", "ISO_IR 999", "ISO_IR 192"),
        ("SpecificCharacterSet", ["ISO_IR 100", "ISO_IR 192"], "ISO_IR 192"),
        ("SpecificCharacterSet", ["ISO 2022 IR 100", "ISO 2022 IR 126"], ["ISO 2022 IR 100", "ISO 2022 IR 126"]),
        ("SpecificCharacterSet", "ISO 2022 IR 100", "ISO_IR 192"),
        ("SpecificCharacterSet", "ISO 2022 IR 87", "ISO_IR 192"),
        ("SpecificCharacterSet", ["ISO 2022 IR 87", "ISO 2022 IR 100"], "ISO_IR 192"),
        ("SpecificCharacterSet", ["ISO 2022 IR 6", "ISO 2022 IR 58"], "ISO_IR 192"),
        ("LossyImageCompression", "", "00"),
        ("LossyImageCompression", "NO", "00"),
        ("LossyImageCompression", "0", "00"),
        ("LossyImageCompression", "YES", "01"),
        ("StudyDate", "20230230", ""),
        ("SeriesDate", "20230230", "20260314"),
        ("PatientBirthDate", "18991231", "18991231"),
        ("PatientBirthDate", "1960.01.02", "19600102"),
        ("PatientBirthDate", "20230229", ""),
        ("PatientID", "7" * 70, "7" * 70),
        ("PatientName", ["Geheim^Erna", "Geheim^Anna"], "Geheim^Erna"),
        ("PatientID", ["1", "2"], ["1", "2"]),  # archives file by it, and one of two may be somebody else's
        ("AccessionNumber", ["1", "2"], ["1", "2"]),
        ("StudyID", ["1", "2"], ["1", "2"]),
        ("StudyDescription", ["Spine", "Lumbar"], "Spine"),
        ("ReferringPhysicianName", ["A", "B"], "A"),
        ("PatientBirthDate", ["19600101", "19600102"], "19600101"),
        ("PatientSex", ["F", "F"], "F"),
        ("StudyDate", ["20260314", "20260315"], "20260314"),
        ("BodyPartExamined", ["LSPINE", "SSPINE"], "LSPINE"),
        ("PatientSize", [1.7, 1.8], 1.7),
    ],
)
def test_odd_headers_do_not_cost_the_result(keyword, value, kept, tmp_path, small, manifest):
    datasets = [dcmread(path) for path in write_series(tmp_path, small.lopsided(), small.SPACING)]
    for dataset in datasets:
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    volume = read_series(datasets)
    before = str(volume.sources[0])
    mask = small.labels(volume.voxels.shape)
    data = built(small, volume, mask, manifest)
    check(small, data, volume, mask, manifest)
    assert parsed(data)[keyword].value == kept
    assert str(volume.sources[0]) == before, "the source's headers stay as they are"


@pytest.mark.parametrize("given", ["", None, "ISO_IR 144", "ISO_IR 100"])
def test_words_of_our_own_are_written_in_characters_that_hold_them(given, tmp_path, small, manifest):
    datasets = [dcmread(path) for path in write_series(tmp_path, small.lopsided(), small.SPACING)]
    for dataset in datasets:
        dataset.SpecificCharacterSet = given
        if given is None:
            del dataset.SpecificCharacterSet
    volume = read_series(datasets)
    mask = small.labels(volume.voxels.shape)
    plain = parsed(built(small, volume, mask, manifest))
    assert plain.get("SpecificCharacterSet") == (given or None), "what fits is left as it is"
    settings = Seg(series_description="Wirbelsäule 脊椎")
    dataset = parsed(built(small, volume, mask, manifest, settings))
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert dataset.SeriesDescription.startswith("Wirbelsäule 脊椎, ")


def test_a_description_fits_whatever_the_model_is_called(volume, mask, manifest, small):
    named = dataclasses.replace(manifest, name="m" * 40, version="1.10.100-rc.1")
    recipe = Recipe(Form.FRACTIONAL, all_frames=True, compression="deflated")
    description = parsed(built(small, volume, mask, named, recipe=recipe)).SeriesDescription
    assert len(description) == 64
    assert description.startswith(", " + "m" * 24)


@pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "StudyID", "IssuerOfPatientID"])
@pytest.mark.parametrize(
    ("given", "value"),
    [("ISO_IR 126", b"M\xf1"), ("ISO_IR 138", b"M\xf1"), ("ISO_IR 13", "Yamada=山田".encode("shift_jis"))],
)
def test_a_name_in_bytes_that_its_character_set_has_not_costs_no_result(
    given, value, keyword, tmp_path, small, manifest
):
    datasets = [dcmread(path) for path in write_series(tmp_path, small.lopsided(), small.SPACING)]
    for dataset in datasets:
        tag = Tag(keyword)
        dataset.SpecificCharacterSet = given
        dataset[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)
    volume = read_series(datasets)
    mask = small.labels(volume.voxels.shape)
    check(small, built(small, volume, mask, manifest), volume, mask, manifest)


@pytest.mark.parametrize("words", ["Spine\\AI", "Spine\nAI", "Spine\x1b$B"])
def test_a_series_description_is_one_line_of_one_value(words):
    with pytest.raises(ValueError, match="one line without a backslash"):
        Seg(series_description=words)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize(("value", "leading"), [(None, 0), (2**31 - 1, (2**31 - 1) % 2147483), ([3, 4], 3)])
def test_an_odd_series_number_leads_that_of_the_result_as_far_as_it_fits(value, leading, tmp_path, small, manifest):
    datasets = [dcmread(path) for path in write_series(tmp_path, small.lopsided(), small.SPACING)]
    for dataset in datasets:
        dataset.SeriesNumber = value
    volume = read_series(datasets)
    number = parsed(built(small, volume, small.labels(volume.voxels.shape), manifest)).SeriesNumber
    assert (number // 1000, number % 10) == (leading, 1)
    assert 0 <= number < 2**31


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0", ["4", "4"], "thick", None, ""])
def test_a_slice_thickness_of_no_use_is_that_of_the_gap(value, tmp_path, small, manifest):
    datasets = [dcmread(path) for path in write_series(tmp_path, small.lopsided(), small.SPACING)]
    for dataset in datasets:
        dataset["SliceThickness"]._value = value
    volume = read_series(datasets)
    mask = small.labels(volume.voxels.shape)
    data = built(small, volume, mask, manifest)
    check(small, data, volume, mask, manifest)
    measures = parsed(data).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == measures.SpacingBetweenSlices == pytest.approx(0.9)


def test_a_slice_thickness_that_differs_from_the_gap_is_kept(tmp_path, small, manifest):
    datasets = [dcmread(path) for path in write_series(tmp_path, small.lopsided(), small.SPACING)]
    for dataset in datasets:
        dataset.SliceThickness = "0.7"
    volume = read_series(datasets)
    measures = parsed(built(small, volume, small.labels(volume.voxels.shape), manifest)).SharedFunctionalGroupsSequence[
        0
    ]
    assert measures.PixelMeasuresSequence[0].SliceThickness == 0.7


def test_a_name_that_differs_from_the_first_of_several_is_not_let_through(tmp_path, small, manifest):
    datasets = [dcmread(path) for path in write_series(tmp_path, small.lopsided(), small.SPACING)]
    for dataset in datasets:
        dataset.PatientName = ["Geheim^Erna", "Geheim^Anna"]
    volume = read_series(datasets)
    mask = small.labels(volume.voxels.shape)
    data = small.tampered(lambda d: setattr(d, "PatientName", "Geheim^Anna"))(built(small, volume, mask, manifest))
    with pytest.raises(InvalidResult, match="another patient"):
        check(small, data, volume, mask, manifest)


def test_slices_that_are_a_little_uneven_keep_their_positions_and_other_readers_form_the_volume(
    tmp_path, small, manifest
):
    datasets = [dcmread(path) for path in write_series(tmp_path, small.lopsided(), (4.0, 0.9375, 0.9375))]
    for dataset, shift in zip(datasets, (0.05, -0.05, 0.05, 0, -0.05, 0.05), strict=True):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [round(x + shift, 2), y, z]
    volume = read_series(datasets)
    mask = small.labels(volume.voxels.shape)
    recipe = Recipe(Form.SEG, all_frames=True)
    data = built(small, volume, mask, manifest, recipe=recipe)
    check(small, data, volume, mask, manifest, recipe)
    written = {
        tuple(g.PlanePositionSequence[0].ImagePositionPatient) for g in parsed(data).PerFrameFunctionalGroupsSequence
    }
    assert written == {tuple(d.ImagePositionPatient) for d in datasets}
    geometry = hd.VolumeGeometry(volume.affine, mask.shape, "PATIENT", volume.frame_of_reference_uid)
    placed = hd.seg.segread(io.BytesIO(data)).get_volume(combine_segments=True, rtol=0.05).match_geometry(geometry)
    np.testing.assert_array_equal(placed.array, mask)
