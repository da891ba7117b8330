"""The gate: whatever is damaged in the bytes of a segmentation, it is not let out."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from pydicom import dcmread

from node.errors import ConfigurationError, InvalidResult
from node.forms import Form, Recipe
from workers import results
from workers.inspection import check_segmentation
from workers.readback import read_segmentation
from workers.results import make_objects
from workers.seg import build_segmentation
from workers.writing import write

RECIPES = [
    Recipe(Form.SEG), Recipe(Form.SEG, all_frames=True), Recipe(Form.SEG, compression="deflated"),
    Recipe(Form.LABELMAP), Recipe(Form.LABELMAP, all_frames=True, compression="rle"),
    Recipe(Form.FRACTIONAL), Recipe(Form.FRACTIONAL, compression="rle"),
]  # fmt: skip
EACH_TYPE = [Recipe(Form.SEG), Recipe(Form.LABELMAP), Recipe(Form.FRACTIONAL)]


def keys(recipes):
    return pytest.mark.parametrize("recipe", recipes, ids=lambda recipe: recipe.key)


def built(small, volume, mask, manifest, recipe):
    return write(build_segmentation(small.case(volume, mask, manifest), recipe))


@keys(RECIPES)
def test_what_was_built_passes(recipe, volume, mask, manifest, small):
    case = small.case(volume, mask, manifest)
    data = built(small, volume, mask, manifest, recipe)
    check_segmentation(data, case, recipe)
    read, segments = read_segmentation(data, volume)
    np.testing.assert_array_equal(read, mask)
    assert [s.label for s in segments] == ["Vertebra", "Spinal canal", "Intervertebral disc", "Neoplasm 1"]
    for other in RECIPES:
        if other != recipe:
            with pytest.raises(InvalidResult):
                check_segmentation(data, case, other)


def test_one_bit_per_pixel_cannot_be_run_length_encoded(volume, mask, manifest, small):
    with pytest.raises(ConfigurationError, match="one bit per pixel"):
        make_objects(small.case(volume, mask, manifest), [Recipe(Form.SEG, compression="rle")])


def test_a_form_that_nothing_makes_is_named(volume, mask, manifest, small, monkeypatch):
    monkeypatch.delitem(results.BUILDERS, Form.LABELMAP)
    with pytest.raises(ConfigurationError, match="cannot make LABELMAP"):
        make_objects(small.case(volume, mask, manifest), [Recipe(Form.LABELMAP)])


def test_another_model_makes_other_objects_of_the_same_structures(volume, mask, manifest, small):
    other = dataclasses.replace(manifest, name="penn-other", digest="0" * 64)
    objects = [one for model in (manifest, other) for one in make_objects(small.case(volume, mask, model), EACH_TYPE)]
    headers = [dcmread(io.BytesIO(one.data), stop_before_pixels=True) for one in objects]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "SeriesDescription"):
        assert len({str(header[keyword].value) for header in headers}) == 6
    numbers = [int(header.SeriesNumber) for header in headers]
    assert len(set(numbers)) == 6
    assert [(number // 1000, number % 10) for number in numbers] == [(3, 1), (3, 2), (3, 3)] * 2
    forms = ["seg", "labelmap", "fractional"] * 2
    assert [one.name for one in objects] == [f"{n}.{form}.dcm" for n, form in zip(numbers, forms, strict=True)]
    assert all("penn-other" in header.SeriesDescription for header in headers[3:])
    assert make_objects(small.case(volume, mask, manifest), EACH_TYPE) == tuple(objects[:3])


@pytest.mark.parametrize(
    "changed",
    [{"name": "penn-other"}, {"version": "9.9.9"}, {"spacing_mm": (0.4, 0.4)}],
    ids=lambda changed: next(iter(changed)),
)
def test_manifests_beside_one_file_are_other_models(volume, mask, manifest, small, changed):
    other = dataclasses.replace(manifest, **changed)
    mine, theirs = (small.case(volume, mask, model) for model in (manifest, other))
    made = [{one.sop_uid for one in make_objects(case, EACH_TYPE)} for case in (mine, theirs)]
    assert not made[0] & made[1]
    assert mine.series_number(Form.SR) != theirs.series_number(Form.SR)
    assert {lesion.tracking_uid for lesion in mine.lesions}.isdisjoint(o.tracking_uid for o in theirs.lesions)


# --- damage ---------------------------------------------------------------------------------------------------------


def one_bit(dataset):
    pixels = bytearray(dataset.PixelData)
    pixels[len(pixels) // 3] ^= 1
    dataset.PixelData = bytes(pixels)


def swapped_positions(dataset):
    one, other = (g.PlanePositionSequence[0] for g in dataset.PerFrameFunctionalGroupsSequence[:2])
    one.ImagePositionPatient, other.ImagePositionPatient = other.ImagePositionPatient, one.ImagePositionPatient


def shifted(dataset):
    for group in dataset.PerFrameFunctionalGroupsSequence:
        x, y, z = group.PlanePositionSequence[0].ImagePositionPatient
        group.PlanePositionSequence[0].ImagePositionPatient = [x, y + 0.5, z]


def shared(dataset):
    return dataset.SharedFunctionalGroupsSequence[0]


def turned(dataset):
    plane = shared(dataset).PlaneOrientationSequence[0]
    plane.ImageOrientationPatient = plane.ImageOrientationPatient[3:] + plane.ImageOrientationPatient[:3]


def spaced(dataset):
    shared(dataset).PixelMeasuresSequence[0].PixelSpacing = [1.1, 1.1]


def no_derivation(dataset):
    del dataset.PerFrameFunctionalGroupsSequence[-1].DerivationImageSequence


def wrong_derivation(dataset):
    one, other = (dataset.PerFrameFunctionalGroupsSequence[i] for i in (0, 1))
    one.DerivationImageSequence = other.DerivationImageSequence


def no_references(dataset):
    del dataset.ReferencedSeriesSequence


def fewer_references(dataset):
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence = []


def segments(dataset):
    return [item for item in dataset.SegmentSequence if item.SegmentNumber]


def relabelled(dataset):
    segments(dataset)[0].SegmentLabel, segments(dataset)[1].SegmentLabel = "Spinal canal", "Vertebra"


def other_code(dataset):
    segments(dataset)[1].SegmentedPropertyTypeCodeSequence = segments(dataset)[0].SegmentedPropertyTypeCodeSequence


def other_algorithm(dataset):
    segments(dataset)[1].SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters = "model_sha256=0"


def without(keyword):
    return lambda dataset: delattr(dataset, keyword)


def segment_without(keyword):
    return lambda dataset: delattr(segments(dataset)[-1], keyword)


def changed(keyword, value):
    return lambda dataset: setattr(dataset, keyword, value)


def segment_changed(keyword, value):
    return lambda dataset: setattr(segments(dataset)[-1], keyword, value)


def another_identity(dataset):
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"


def no_source_image(dataset):
    del dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence


def a_frame_less(dataset):
    dataset.NumberOfFrames -= 1


def exchanged(dataset):
    for group in dataset.PerFrameFunctionalGroupsSequence:
        item = group.SegmentIdentificationSequence[0]
        item.ReferencedSegmentNumber = {1: 2, 2: 1, 3: 3, 4: 4}[item.ReferencedSegmentNumber]


NOT_VALID = "no valid segmentation object"

# Of each: what is done, and what the gate says.
DAMAGE = {
    "one bit": (one_bit, "differs from the mask|two segments overlap|by a fraction"),
    "two frames exchanged": (swapped_positions, "differs from the mask|two segments overlap"),
    "half a millimetre": (shifted, "lies on no slice"),
    "rows and columns exchanged": (turned, "does not lie on the grid"),
    "another spacing": (spaced, "does not lie on the grid"),
    "another frame of reference": (changed("FrameOfReferenceUID", "1.2.3"), "does not lie on the grid"),
    "no frame of reference": (without("FrameOfReferenceUID"), NOT_VALID),
    "a frame less than described": (a_frame_less, "does not lie on the grid"),
    "no pixels": (without("PixelData"), NOT_VALID),
    "another patient": (changed("PatientID", "SOMEBODY-ELSE"), "another patient or study"),
    "another name": (changed("PatientName", "SOMEBODY^ELSE"), "another patient or study"),
    "another birth date": (changed("PatientBirthDate", "19010101"), "another patient or study"),
    "another study": (changed("StudyInstanceUID", "1.2.3"), "another patient or study"),
    "another accession number": (changed("AccessionNumber", "7"), "another patient or study"),
    "another modality": (changed("Modality", "MR"), "another modality"),
    "another identity": (another_identity, "another type, syntax or identity"),
    "another series": (changed("SeriesInstanceUID", "1.2.3"), "another type, syntax or identity"),
    "no series description": (without("SeriesDescription"), "no SeriesDescription"),
    "no word of research": (changed("ContentDescription", "approved"), "for research only"),
    "a frame without derivation": (no_derivation, "does not refer to the image it lies on"),
    "a frame without a source image": (no_source_image, "does not refer to the image it lies on"),
    "a frame derived from another slice": (wrong_derivation, "does not refer to the image it lies on"),
    "no referenced series": (no_references, "no ReferencedSeriesSequence"),
    "no referenced images": (fewer_references, "does not refer to all images"),
    "labels exchanged": (relabelled, "not the labels of the mask"),
    "no colour": (segment_without("RecommendedDisplayCIELabValue"), "no RecommendedDisplayCIELabValue"),
    "another colour": (segment_changed("RecommendedDisplayCIELabValue", [30000, 30000, 30000]), "another colour"),
    "no tracking id": (segment_without("TrackingID"), "no TrackingID"),
    "another tracking id": (segment_changed("TrackingID", "Neoplasm 7"), "other codes or another identity"),
    "another tracking UID": (segment_changed("TrackingUID", "1.2.3"), "other codes or another identity"),
    "another code": (other_code, "other codes or another identity"),
    "no region": (segment_without("AnatomicRegionSequence"), "other codes or another identity"),
    "no algorithm": (segment_without("SegmentationAlgorithmIdentificationSequence"), "no SegmentationAlgorithm"),
    "another algorithm": (other_algorithm, "names another algorithm"),
    "done by hand": (segment_changed("SegmentAlgorithmType", "MANUAL"), "names another algorithm"),
}
ONLY_SEGMENT_WISE = {
    "segments exchanged": (exchanged, "differs from the mask"),
}


def refused(case, recipe, change, expected, small):
    data = write(build_segmentation(case, recipe))
    check_segmentation(data, case, recipe)
    with pytest.raises(InvalidResult, match=expected) as caught:
        check_segmentation(small.tampered(change)(data), case, recipe)
    assert "SOMEBODY" not in str(caught.value)
    assert "PHANTOM" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGE)
@keys(EACH_TYPE)
def test_a_false_object_does_not_pass_the_gate(recipe, damage, volume, mask, manifest, small):
    refused(small.case(volume, mask, manifest), recipe, *DAMAGE[damage], small)


@pytest.mark.parametrize("damage", ONLY_SEGMENT_WISE)
def test_frames_of_another_segment_do_not_pass_the_gate(damage, volume, mask, manifest, small):
    refused(small.case(volume, mask, manifest), Recipe(Form.SEG), *ONLY_SEGMENT_WISE[damage], small)


def test_half_a_voxel_does_not_pass_the_gate(volume, mask, manifest, small):
    def half(dataset):
        pixels = np.frombuffer(dataset.PixelData, np.uint8).copy()
        pixels[np.flatnonzero(pixels)[5]] = 128
        dataset.PixelData = pixels.tobytes()

    refused(small.case(volume, mask, manifest), Recipe(Form.FRACTIONAL), half, "by a fraction", small)


def test_a_probability_does_not_pass_for_an_occupancy(volume, mask, manifest, small):
    change = changed("SegmentationFractionalType", "PROBABILITY")
    refused(
        small.case(volume, mask, manifest), Recipe(Form.FRACTIONAL), change, "something else by its fractions", small
    )


@pytest.mark.parametrize("data", [b"", b"not DICOM", b"\0" * 128 + b"DICM"])
def test_bytes_that_are_no_segmentation(data, volume):
    with pytest.raises(InvalidResult):
        read_segmentation(data, volume)


def test_a_segmentation_by_others_is_read_as_well(volume, mask, manifest, small):
    """Other labels: what counts is geometry and segment numbers."""
    data = built(small, volume, mask, manifest, Recipe(Form.SEG))
    data = small.tampered(lambda d: setattr(d.SegmentSequence[0], "SegmentLabel", "L4"))(data)
    read, segments = read_segmentation(data, volume)
    np.testing.assert_array_equal(read, mask)
    assert segments[0].label == "L4"
