"""The gate: whatever is damaged in the bytes of a segmentation, it is not let out."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from node.errors import ConfigurationError, InvalidResult
from node.forms import Form, Recipe
from workers import case as case_module
from workers import results
from workers.inspection import check_segmentation
from workers.lenience import lenient
from workers.ownership import belongs
from workers.readback import read_segmentation
from workers.results import make_objects
from workers.seg import build_segmentation
from workers.series import write_series
from workers.volume import read_series
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


def measures_changed(keyword, value):
    return lambda dataset: setattr(shared(dataset).PixelMeasuresSequence[0], keyword, value)


def measures_without(keyword):
    return lambda dataset: delattr(shared(dataset).PixelMeasuresSequence[0], keyword)


def turned_a_little(dataset):
    plane = shared(dataset).PlaneOrientationSequence[0]
    plane.ImageOrientationPatient = [round(float(v) + 9e-4, 9) for v in plane.ImageOrientationPatient]


def contradicting(keyword, **values):
    """One frame says for itself what all share, and says it otherwise."""

    def change(dataset):
        item = Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        setattr(dataset.PerFrameFunctionalGroupsSequence[-1], keyword, [item])

    return change


def no_frame_content(dataset):
    del dataset.PerFrameFunctionalGroupsSequence[1].FrameContentSequence


def indices(*, change):
    def apply(dataset):
        for group in dataset.PerFrameFunctionalGroupsSequence:
            content = group.FrameContentSequence[0]
            found = content.DimensionIndexValues
            content.DimensionIndexValues = change([found] if isinstance(found, int) else list(found))

    return apply


def swapped_indices(dataset):
    one, other = (dataset.PerFrameFunctionalGroupsSequence[i].FrameContentSequence[0] for i in (0, 3))
    one.DimensionIndexValues, other.DimensionIndexValues = other.DimensionIndexValues, one.DimensionIndexValues


def other_pointer(dataset):
    dataset.DimensionIndexSequence[-1].DimensionIndexPointer = 0x00200013


def source_image_changed(keyword, value):
    def change(dataset):
        group = dataset.PerFrameFunctionalGroupsSequence[-1]
        setattr(group.DerivationImageSequence[0].SourceImageSequence[0], keyword, value)

    return change


def another_source_image(dataset):
    images = dataset.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence[0].SourceImageSequence
    images.append(images[0])


def another_referenced_series(dataset):
    dataset.ReferencedSeriesSequence.append(Dataset())


def another_referenced_image(dataset):
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3"
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence.append(item)


def other_family(dataset):
    algorithm = segments(dataset)[0].SegmentationAlgorithmIdentificationSequence[0]
    algorithm.AlgorithmFamilyCodeSequence[0].CodeValue = "123109"


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
    "another modality": (changed("Modality", "MR"), "Modality, or another"),
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
    "no spacing between slices": (measures_without("SpacingBetweenSlices"), "another SpacingBetweenSlices"),
    "another spacing between slices": (measures_changed("SpacingBetweenSlices", 99), "another SpacingBetweenSlices"),
    "no thickness": (measures_without("SliceThickness"), "another SliceThickness"),
    "another thickness": (measures_changed("SliceThickness", 99), "another SliceThickness"),
    "turned by less than a thousandth": (turned_a_little, "does not lie on the grid"),
    "a frame turned by itself": (
        contradicting("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        "what all its frames share",
    ),
    "a frame of its own spacing": (
        contradicting("PixelMeasuresSequence", PixelSpacing=[2, 2]),
        "what all its frames share",
    ),
    "a frame without content": (no_frame_content, "indices of a frame"),
    "frames of one index": (indices(change=lambda found: [1] * len(found)), "indices of a frame"),
    "indices from 0": (indices(change=lambda found: [one - 1 for one in found]), "indices of a frame"),
    "an index more": (indices(change=lambda found: [*found, 1]), "indices of a frame"),
    "no dimension organization": (without("DimensionOrganizationSequence"), "does not describe its dimensions"),
    "no dimensions": (without("DimensionIndexSequence"), "does not describe its dimensions"),
    "other dimensions": (other_pointer, "does not describe its dimensions"),
    "other bits stored": (changed("BitsStored", 7), "BitsStored, or another|by a fraction"),
    "another high bit": (changed("HighBit", 1), "HighBit, or another"),
    "inverted": (changed("PhotometricInterpretation", "MONOCHROME1"), "PhotometricInterpretation, or another"),
    "segments that overlap": (changed("SegmentsOverlap", "YES"), "SegmentsOverlap, or another"),
    "no image type": (without("ImageType"), "ImageType, or another"),
    "an original": (changed("ImageType", ["ORIGINAL", "PRIMARY"]), "ImageType, or another"),
    "no content label": (without("ContentLabel"), "no ContentLabel"),
    "no content date": (without("ContentDate"), "ContentDate, or another"),
    "no manufacturer": (without("Manufacturer"), "Manufacturer, or another"),
    "no word of compression": (without("LossyImageCompression"), "LossyImageCompression, or another"),
    "a false word of compression": (changed("LossyImageCompression", "01"), "LossyImageCompression, or another"),
    "another series number": (changed("SeriesNumber", 1), "SeriesNumber, or another"),
    "another series description": (changed("SeriesDescription", "x"), "SeriesDescription, or another"),
    "another issuer": (changed("IssuerOfPatientID", "SOMEBODY"), "another patient or study"),
    "no sex": (changed("PatientSex", ""), "another patient or study"),
    "no study date": (changed("StudyDate", ""), "another patient or study"),
    "another study time": (changed("StudyTime", "101010"), "another patient or study"),
    "another algorithm family": (other_family, "names another algorithm"),
    "a series more": (another_referenced_series, "or to others"),
    "an image more": (another_referenced_image, "or to others"),
    "a source image more": (another_source_image, "does not refer to the image it lies on"),
    "a source of another class": (
        source_image_changed("ReferencedSOPClassUID", "1.2.840.10008.5.1.4.1.1.2"),
        "does not refer to the image",
    ),
    "a source that lies elsewhere": (source_image_changed("SpatialLocationsPreserved", "NO"), "does not refer to"),
    "done by hand": (segment_changed("SegmentAlgorithmType", "MANUAL"), "names another algorithm"),
}
ONLY_SEGMENT_WISE = {
    "segments exchanged": (exchanged, "differs from the mask"),
    "indices exchanged": (swapped_indices, "indices of a frame"),
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


@pytest.fixture
def misled(monkeypatch):
    """A writer that is misled before it writes: what `change` does to the header that patient and study come from."""

    def mislead(change):
        complete = case_module._complete

        def wrong(*given):
            header = complete(*given)
            change(header)
            return header

        monkeypatch.setattr(case_module, "_complete", wrong)

    return mislead


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientID", "SOMEBODY-ELSE"), ("PatientName", "SOMEBODY^ELSE"), ("IssuerOfPatientID", "SOMEBODY"),
        ("PatientBirthDate", "19010101"), ("PatientSex", ""), ("StudyInstanceUID", "1.2.3"), ("StudyDate", ""),
        ("StudyTime", ""), ("StudyID", "7"), ("AccessionNumber", "7"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", [form for form in Form if form is not Form.SC_MULTIFRAME])
def test_what_a_writer_was_told_wrongly_does_not_pass(form, keyword, value, volume, mask, manifest, small, misled):
    misled(lambda header: setattr(header, keyword, value))
    with pytest.raises(InvalidResult) as caught:
        make_objects(small.case(volume, mask, manifest), [Recipe(form)])
    # highdicom notices itself that the images are of several studies.
    assert "another patient or study" in caught.value.reason or keyword == "StudyInstanceUID"


@pytest.mark.parametrize(
    ("keyword", "given", "kept"),
    [
        ("PatientBirthDate", "1960.02.03", "19600203"), ("PatientBirthDate", "1960.02.03", ""),
        ("PatientBirthDate", "19600230", ""), ("StudyDate", "unknown", ""), ("StudyTime", "half past nine", ""),
        ("PatientSex", "X", ""), ("PatientBirthDate", None, ""), ("StudyDate", " 20260314", "20260314"),
    ],
)  # fmt: skip
def test_a_value_that_is_none_may_be_left_out(keyword, given, kept):
    with lenient():
        source, written = Dataset(), Dataset()
        setattr(source, keyword, given)
        setattr(written, keyword, kept)
        assert belongs(written, source)
        setattr(written, keyword, "19700101")
        assert not belongs(written, source)


@keys(EACH_TYPE)
def test_an_issuer_of_the_patient_id_is_carried_on(recipe, tmp_path, manifest, small):
    datasets = [dcmread(path) for path in write_series(tmp_path, small.lopsided(), small.SPACING)]
    for dataset in datasets:
        dataset.IssuerOfPatientID = "HOSPITAL"
    volume = read_series(datasets)
    case = small.case(volume, small.labels(volume.voxels.shape), manifest)
    refused(case, recipe, without("IssuerOfPatientID"), "another patient or study", small)


def without_canal(found):
    """Segments that lack one, numbered anew without a gap."""
    mask = found.mask.copy()
    mask[mask == 2] = 0
    mask[mask > 2] -= 1
    listed = [dataclasses.replace(one, number=one.number - (one.number > 2)) for one in found.listed if one.number != 2]
    return dataclasses.replace(found, mask=mask, listed=tuple(listed))


def of_two_labels(found):
    """Segments two of which have each other's label."""
    one, other, *more = found.listed
    exchanged = [dataclasses.replace(one, number=2), dataclasses.replace(other, number=1)]
    return dataclasses.replace(found, listed=(exchanged[1], exchanged[0], *more))


def smaller_box(found):
    """Segments that leave out the slice at their end."""
    frames, *plane = found.box
    mask = found.mask.copy()
    mask[frames.stop - 1] = 0
    return dataclasses.replace(found, mask=mask, box=(slice(frames.start, frames.stop - 1), *plane))


@pytest.mark.parametrize("wrong", [without_canal, of_two_labels, smaller_box])
@keys(EACH_TYPE)
def test_segments_that_are_not_those_of_the_mask_do_not_pass(recipe, wrong, volume, mask, manifest, small, monkeypatch):
    found = case_module.segments_of
    monkeypatch.setattr(case_module, "segments_of", lambda case: wrong(found(case)))
    with pytest.raises(InvalidResult, match="differs from the mask"):
        make_objects(small.case(volume, mask, manifest), [recipe])


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
