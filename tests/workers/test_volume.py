"""Reading series: geometry, transfer syntaxes, and every reason to refuse."""

from __future__ import annotations

import re
import shutil
import subprocess
import traceback
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from node.errors import InvalidInstance, PennodeError, Unsuitable
from workers.enhanced import write_enhanced
from workers.frames import copied
from workers.prediction import predict_mask
from workers.series import Storage, write_series
from workers.volume import read_series

NAME, PATIENT_ID = "Geheim^Erna", "SECRET-4711"


@pytest.fixture
def paths(tmp_path, small):
    return write_series(tmp_path, small.lopsided(), small.SPACING)


@pytest.fixture
def images(paths):
    datasets = [dcmread(path) for path in paths]
    for dataset in datasets:
        dataset.PatientName, dataset.PatientID = NAME, PATIENT_ID
    return datasets


@pytest.fixture
def enhanced(tmp_path, small):
    dataset = dcmread(write_enhanced(tmp_path / "e.dcm", small.lopsided(), small.SPACING))
    dataset.PatientName, dataset.PatientID = NAME, PATIENT_ID
    return dataset


def refusal(sources, kind=Unsuitable):
    """What a technologist reads; no patient in it, nor in anything that a log would print of it."""
    with pytest.raises(kind) as caught:
        read_series(sources)
    error = caught.value
    assert error.reason
    assert error.next_step
    printed = "".join(traceback.format_exception(error))
    assert "Geheim" not in printed
    assert PATIENT_ID not in printed
    return str(error)


# --- what is read ---------------------------------------------------------------------------------------------------


def test_geometry_is_that_of_the_standard(tmp_path, small):
    image = small.lopsided()
    volume = read_series(write_series(tmp_path, image, (4.4, 0.5, 0.7)))
    # Sagittal, the normal points to the patient's right: the first frame is the one furthest left, model slice 5.
    np.testing.assert_array_equal(volume.voxels, image[::-1])
    assert volume.voxels.dtype == np.float32
    assert volume.spacing == (4.4, 0.5, 0.7)
    centre = volume.affine @ ((np.array([*volume.voxels.shape, 3]) - 1) / 2 * (1, 1, 1, 0) + (0, 0, 0, 1))
    np.testing.assert_allclose(centre, (0, 0, 0, 1), atol=1e-9)
    np.testing.assert_allclose(volume.affine[:3, 1], (0, 0, -0.5), atol=1e-12)  # rows run downwards
    for frame, source in enumerate(volume.sources):
        np.testing.assert_allclose((volume.affine @ (frame, 0, 0, 1))[:3], source.ImagePositionPatient, atol=1e-9)
        assert "PixelData" not in source


def test_file_order_and_instance_numbers_do_not_matter(images):
    first = read_series(images)
    images[0].InstanceNumber, images[3].InstanceNumber = 99, None
    again = read_series(images[::-1])
    np.testing.assert_array_equal(first.voxels, again.voxels)
    assert [s.SOPInstanceUID for s in first.sources] == [s.SOPInstanceUID for s in again.sources]


def test_rescale_differs_from_slice_to_slice(images, small):
    for number, dataset in enumerate(images):
        stored = dataset.pixel_array.astype(np.uint16)
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5, -number
        dataset.PixelData = ((stored + number) * 2).astype("<u2").tobytes()
    np.testing.assert_array_equal(read_series(images).voxels, small.lopsided()[::-1])


def test_signed_pixels_keep_their_sign(images):
    for dataset in images:
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 16, 15
        dataset.PixelData = (dataset.pixel_array.astype("<i2") - 500).tobytes()
    assert read_series(images).voxels.min() < -300


def test_monochrome1_is_inverted(images, small):
    for dataset in images:
        dataset.PhotometricInterpretation = "MONOCHROME1"
    voxels, plain = read_series(images).voxels, small.lopsided()[::-1].astype(np.float32)
    np.testing.assert_array_equal(voxels, plain.max() + plain.min() - plain)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless],
    ids=lambda uid: uid.name,
)
def test_transfer_syntaxes_give_the_same_voxels(syntax, tmp_path, small):
    storage = Storage(transfer_syntax_uid=syntax)
    image = small.lopsided((6, 40, 36))
    files = write_series(tmp_path, image, small.SPACING, storage=storage)
    assert dcmread(files[0]).file_meta.TransferSyntaxUID == syntax
    volume = read_series(files)
    np.testing.assert_array_equal(volume.voxels, image[::-1])
    assert volume.sources[0].get("LossyImageCompression", "00") == "00"


@pytest.mark.parametrize("command", [["dcmcjpeg", "+e1"], ["dcmcjpeg", "+el"], ["dcmcjpls"], ["dcmcrle"]], ids="_".join)
def test_files_compressed_by_dcmtk(command, paths, tmp_path, small):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    packed = [tmp_path / f"packed{number}" for number in range(len(paths))]
    for path, target in zip(paths, packed, strict=True):
        subprocess.run([*command, str(path), str(target)], check=True, timeout=30)
    np.testing.assert_array_equal(read_series(packed).voxels, small.lopsided()[::-1])


def test_a_lossy_source_says_so_in_its_headers(images):
    for dataset in images:
        dataset.compress(JPEGLSNearLossless, jls_error=2, generate_instance_uid=False)
    volume = read_series(images)
    assert volume.sources[0].LossyImageCompression == "01"
    assert volume.sources[0].LossyImageCompressionMethod == "ISO_14495_1"


def test_what_one_image_says_of_lossy_compression_holds_for_the_series(images):
    images[5].LossyImageCompression, images[5].LossyImageCompressionRatio = "01", 7
    images[5].LossyImageCompressionMethod = "ISO_10918_1"
    for header in read_series(images).sources:
        said = (header.LossyImageCompression, header.LossyImageCompressionRatio, header.LossyImageCompressionMethod)
        assert said == ("01", 7, "ISO_10918_1")


@pytest.mark.parametrize("value", [b"3A", b"1\\2 ", b"\xff\xfe", b"nan "])
def test_an_odd_instance_number_only_costs_an_image_its_name(value, images):
    tag = Tag("InstanceNumber")
    for dataset in images:
        dataset[tag] = RawDataElement(tag, "IS", len(value), value, 0, False, True)
    assert len(read_series(images).sources) == 6
    del images[3].ImagePositionPatient
    assert "file 4 has no position" in refusal(images)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("ratio", ["10:1", "", ["10:1", "5"]])
def test_a_compression_ratio_that_is_no_number_is_not_carried_on(ratio, images):
    for dataset in images:
        dataset.LossyImageCompression = "01"
        dataset.add(DataElement("LossyImageCompressionRatio", "DS", "1"))
        dataset["LossyImageCompressionRatio"]._value = ratio
    header = read_series(images).sources[0]
    assert header.LossyImageCompression == "01"
    assert "LossyImageCompressionRatio" not in header


def test_an_id_that_some_images_lack_is_no_second_patient(images):
    images[0].PatientID, images[1].IssuerOfPatientID = "", "HERE"
    assert len(read_series(images).sources) == 6


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("ImagingFrequency", b"A\\B "), ("PatientWeight", b"A\\B "), ("B1rms", b"\xff\xfe")],
)
def test_what_cannot_be_read_and_nobody_needs_is_left_out(keyword, value, images):
    tag = Tag(tag_for_keyword(keyword))
    for dataset in images:
        dataset[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)
    volume = read_series(images)
    assert keyword not in volume.sources[0]
    assert "PatientID" in volume.sources[0]


def test_private_and_bulky_attributes_are_dropped(images):
    images[0].private_block(0x0021, "VENDOR", create=True).add_new(0x01, "OB", b"x" * 1000)
    images[0].add_new(0x60003000, "OW", b"\0" * 90)
    assert {tag.group for source in read_series(images).sources for tag in source.keys()} <= {  # noqa: SIM118
        0x0008, 0x0010, 0x0018, 0x0020, 0x0028,
    }  # fmt: skip


# --- what is refused ------------------------------------------------------------------------------------------------


def test_no_files_at_all():
    assert "no images" in refusal([])


def test_a_file_that_is_not_dicom(paths, tmp_path):
    (tmp_path / "notes.txt").write_text("Geheim^Erna SECRET-4711")
    assert "file 2 of 2 is not a DICOM file" in refusal([paths[0], tmp_path / "notes.txt"], InvalidInstance)


def test_an_empty_file_and_a_missing_file(paths, tmp_path):
    (tmp_path / "empty").touch()
    assert "is not a DICOM file" in refusal([tmp_path / "empty"], InvalidInstance)
    assert "cannot be read (No such file" in refusal([tmp_path / "gone"], InvalidInstance)


@pytest.mark.parametrize("kept", [0.2, 0.9, 0.999])
def test_a_truncated_file(kept, paths):
    data = paths[2].read_bytes()
    paths[2].write_bytes(data[: int(len(data) * kept)])
    text = refusal(paths, PennodeError)
    assert kept < 0.5 or "image 3 has damaged or incomplete pixel data" in text


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_a_truncated_compressed_file(syntax, tmp_path, small):
    storage = Storage(transfer_syntax_uid=syntax)
    files = write_series(tmp_path, small.lopsided((6, 40, 36)), small.SPACING, storage=storage)
    files[1].write_bytes(files[1].read_bytes()[:-400])
    assert "image 2 has damaged or incomplete pixel data" in refusal(files, InvalidInstance)


def change(keyword, value, which=slice(None)):
    """A change of one attribute; None deletes it."""

    def apply(images):
        for dataset in images[which]:
            if value is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        return images

    return apply


def without_slices(*numbers):
    return lambda images: [d for d in images if d.InstanceNumber not in numbers]


def twice(**traits):
    """Each image a second time at its position, as a further echo, time point or b-value."""

    def apply(images):
        copies = []
        for number, dataset in enumerate(images, 1):
            copy = copied(dataset)
            copy.file_meta = dataset.file_meta
            copy.SOPInstanceUID, copy.InstanceNumber = f"1.2.3.{number}", 100 + number
            for keyword, value in traits.items():
                setattr(copy, keyword, value)
            copies.append(copy)
        return images + copies

    return apply


def moved(number, *offset):
    def apply(images):
        position = images[number].ImagePositionPatient
        images[number].ImagePositionPatient = [p + o for p, o in zip(position, offset, strict=True)]
        return images

    return apply


def sheared(images):
    for number, dataset in enumerate(images):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, z + 0.2 * number]
    return images


def flat(images):
    for dataset in images:
        dataset.PixelData = bytes(len(dataset.PixelData))
    return images


def padded_all_over(images):
    for dataset in images:
        dataset.add_new(0x00280120, "US", 0)
        dataset.add_new(0x00280121, "US", 4095)
    return images


def coloured(images):
    for dataset in images:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.PixelData *= 3
    return images


def eight_bit(images):
    for dataset in images:
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = dataset.PixelData[::2]
    return images


def localizer(images):
    images[5].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    return images


OBLIQUE = [1, 0, 0, 0.3, 0.9, 0]
ONE = slice(3, 4)
BAD = {
    "CT": (change("SOPClassUID", CTImageStorage), "file 1 of 6 is CT Image Storage, not an MR image"),
    "unknown class": (change("SOPClassUID", "1.2.3"), "an object of an unknown kind, not an MR image"),
    "mixed orientations": (localizer, "different orientations .* localizer"),
    "one missing slice": (
        without_slices(4),
        r"slices are missing: 1.80 mm between image 5 and image 3, 0.90 mm elsewhere \(send the missing",
    ),
    "irregular": (moved(5, 0.3, 0, 0), r"not evenly spaced: 1.20 mm between image 6 and image 5.*\(recon"),
    "one moved onto another": (moved(5, -0.9, 0, 0), r"same position \(image \d, image \d\)"),
    "echoes": (twice(EchoTime=80), r"same position .*differ in echo time \(120.* and 80|80.* and 120"),
    "time points": (
        lambda images: twice(TemporalPositionIdentifier=2)(change("TemporalPositionIdentifier", 1)(images)),
        "differ in time point",
    ),
    "b-values": (lambda images: twice(DiffusionBValue=800.0)(change("DiffusionBValue", 0.0)(images)), "b-value"),
    "magnitude and phase": (twice(ImageType=["ORIGINAL", "PRIMARY", "P"]), "they differ in image type"),
    "twice the same": (lambda images: [*images, images[0]], "the same image is there twice"),
    "no reason known": (twice(), r"same position \(image \d+, image \d+\) "),
    "two frames of reference": (change("FrameOfReferenceUID", "1.2.3", ONE), "two or more frames of reference"),
    "no frame of reference": (
        change("FrameOfReferenceUID", None),
        "no Frame of Reference UID.*de-identification removed it.*keep or replace.*export the series again",
    ),
    "two series": (change("SeriesInstanceUID", "1.2.3", ONE), "two or more series"),
    "two patients": (change("PatientID", "SOMEBODY-ELSE", ONE), r"name two or more patients \(Patient ID\)"),
    "two issuers": (
        lambda images: (
            change("IssuerOfPatientID", "HERE")(change("IssuerOfPatientID", "THERE", ONE)(images)[:3]) + images[3:]
        ),
        "name two or more patients",
    ),
    "different rows": (change("Rows", 29, ONE), "different sizes .*29 x 24 and 30 x 24"),
    "different columns": (change("Columns", 23, ONE), "different sizes"),
    "different spacing": (change("PixelSpacing", [0.9, 0.9], ONE), "different Pixel Spacing"),
    "no spacing": (change("PixelSpacing", None), "has no Pixel Spacing"),
    "zero spacing": (change("PixelSpacing", [0, 0]), "not plausible"),
    "absurd spacing": (change("PixelSpacing", [500, 500]), "500 x 500 mm: not plausible"),
    "no position": (change("ImagePositionPatient", None, ONE), "image 4 has no position or orientation"),
    "no orientation": (change("ImageOrientationPatient", None), "image 1 has no position or orientation"),
    "orientation not orthogonal": (change("ImageOrientationPatient", OBLIQUE), "not two unit vectors at a right angle"),
    "orientation not unit": (change("ImageOrientationPatient", [2, 0, 0, 0, 1, 0]), "not two unit vectors"),
    "colour": (coloured, "is a colour image"),
    "palette": (change("PhotometricInterpretation", "PALETTE COLOR"), "is a colour image or has no grey values"),
    "partly inverted": (change("PhotometricInterpretation", "MONOCHROME1", ONE), "some images are inverted"),
    "8 bit": (eight_bit, "8 bits per pixel; an MR image has 16"),
    "high bit": (
        change("HighBit", 15, ONE),
        r"pixels of image 4 do not lie in the low bits .*Bits Stored 12, High Bit 15; High Bit must be Bits Stored - 1",
    ),
    "frames in classic MR": (change("NumberOfFrames", 2, ONE), "image 4 holds 2 frames"),
    "negative rescale": (change("RescaleSlope", -1, ONE), "image 4 has a negative Rescale Slope"),
    "nothing but padding": (padded_all_over, "all pixels of the series have the same value.*not empty"),
    "flat": (flat, "all pixels of the series have the same value"),
    "one slice": (lambda images: images[:1], "fewer than 2 slices"),
    "no finite rescale": (change("RescaleSlope", "nan", ONE), "image 4 has no usable Rescale Slope"),
    "zero rescale": (change("RescaleSlope", 0), "no usable Rescale Slope"),
    "overflow": (change("RescaleSlope", "1e300"), "not finite"),
    "absurd size": (lambda images: change("Rows", 65535)(change("Columns", 65535)(images)), "more than a worker takes"),
    "shear": (sheared, "shifted sideways"),
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("case", BAD)
def test_a_series_that_is_no_volume_is_refused_with_its_reason(case, images):
    spoil, expected = BAD[case]
    text = refusal(spoil(images))
    assert re.search(expected, text), text


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("value", [f"{CTImageStorage} Phantom^Spine", "1.2.840.10008.9", ["1.2.3", "1.2.4"]])
def test_a_class_without_a_name_is_not_quoted(value, images):
    assert "file 1 of 6 is an object of an unknown kind, not an MR image" in refusal(
        change("SOPClassUID", value)(images)
    )


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_every_reason_has_a_text_of_its_own(images):
    faults = {}
    for fault, (spoil, _) in BAD.items():
        faults.setdefault(refusal(spoil(deepcopy(images))), set()).add(fault)
    assert [alike for alike in faults.values() if len(alike) > 1] == [
        {"two patients", "two issuers"}, {"orientation not orthogonal", "orientation not unit"}, {"colour", "palette"},
        {"nothing but padding", "flat"},
    ]  # fmt: skip


def test_a_shift_below_rounding_is_accepted(images):
    for number, dataset in enumerate(images):
        dataset.ImagePositionPatient = [round(float(v), 2) for v in dataset.ImagePositionPatient]
        if number == 2:
            dataset.ImagePositionPatient[0] += 0.01
    assert read_series(images).spacing[0] == pytest.approx(0.9, abs=0.005)


def spaced_at(images, gaps, digits=None, normal=(1, 0, 0)):
    """The same images, `gaps` mm apart along their normal, positions written with so many digits."""
    offsets = np.concatenate([[0.0], np.cumsum(gaps)])
    for dataset, offset in zip(images, offsets, strict=True):
        position = offset * np.array(normal) + (1.23, -4.56, 7.89)
        dataset.ImagePositionPatient = [round(v, digits) if digits is not None else round(v, 6) for v in position]
    return images


OBLIQUE_NORMAL = np.cross([0, 0.8, 0.6], [0.6, 0.48, -0.64])


@pytest.mark.parametrize(
    ("gaps", "digits"),
    [
        ([3.35] * 5, 1),
        ([0.9375] * 5, 1),
        ([4.05, 3.95, 4.05, 3.95, 4.0], None),
        ([4.1, 3.9, 4.0, 4.1, 3.9], None),
        ([4.0, 4.0, 4.06, 4.0, 4.0], None),
        ([0.9, 0.9, 1.0, 0.8, 0.9], None),
    ],
)
@pytest.mark.parametrize("oblique", [False, True])
def test_slices_that_are_a_little_uneven_are_one_volume_and_keep_their_positions(gaps, digits, oblique, images, small):
    if oblique:
        for dataset in images:
            dataset.ImageOrientationPatient = [0, 0.8, 0.6, 0.6, 0.48, -0.64]
    spaced_at(images, gaps, digits, OBLIQUE_NORMAL if oblique else (-1, 0, 0))
    volume = read_series(images[::-1])
    assert volume.spacing[0] == pytest.approx(np.mean(gaps), abs=0.05)
    stored = sorted(tuple(float(v) for v in d.ImagePositionPatient) for d in images)
    assert sorted(map(tuple, volume.positions)) == stored


@pytest.mark.parametrize("gaps", [[4, 4, 4.3, 4, 4], [4, 4, 5.8, 4, 4], [0.9, 0.9, 0.7, 0.9, 0.9]])
def test_slices_that_are_more_than_a_little_uneven_are_not_called_missing(gaps, images):
    assert re.search("not evenly spaced: .* elsewhere", text := refusal(spaced_at(images, gaps, normal=(-1, 0, 0))))
    assert "missing" not in text


@pytest.mark.parametrize("gaps", [[4, 4, 6, 4, 4], [0.9, 0.9, 0.9, 0.9, 2.7], [4, 4.3, 8, 4, 4]])
def test_a_gap_of_half_a_slice_more_is_a_missing_slice(gaps, images):
    text = refusal(spaced_at(images, gaps, normal=(-1, 0, 0)))
    assert f"slices are missing: {max(gaps):.2f} mm between" in text


# --- padding --------------------------------------------------------------------------------------------------------


def framed(images, value, *, signed, bits=16):
    """Pixels in a frame of about 5 %: the least value of the rest, or so many of them `value`."""
    for dataset in images:
        pixels = dataset.pixel_array.astype(np.int64) + 10
        pixels[:, -1] = pixels[0, :] = 10
        if value is not None:
            pixels[:, -1] = pixels[0, :] = value
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = int(signed), bits, bits - 1
        dataset.PixelData = (pixels & 0xFFFF).astype("<u2").tobytes()
    return images


@pytest.mark.parametrize(
    ("value", "signed", "bits", "vr", "written"),
    [
        (-2000, True, 16, "SS", -2000),
        (-2000, True, 16, "US", 63536),
        (-32768, True, 16, "SS", -32768),
        (65535, False, 16, "US", 65535),
        (65535, False, 12, "US", 65535),
        (65535, False, 16, "SS", -1),
        (-2000, True, 13, "SS", -2000),
        (4095, False, 12, "US", 4095),
        (0, False, 12, "US", 0),
    ],
)
@pytest.mark.parametrize("inverted", [False, True])
def test_padding_changes_neither_voxels_nor_mask(value, signed, bits, vr, written, inverted, paths, small, manifest):
    def read(padded):
        images = framed([dcmread(path) for path in paths], value if padded else None, signed=signed, bits=bits)
        for dataset in images:
            if inverted and not padded:  # there the least value is the greatest
                pixels = dataset.pixel_array.copy()
                pixels[:, -1] = pixels[0, :] = 3000
                dataset.PixelData = pixels.astype("<u2").tobytes()
            if inverted:
                dataset.PhotometricInterpretation = "MONOCHROME1"
                at = dataset.pixel_array.copy()
                at[5, 5] = 3000  # the greatest value of the rest
                dataset.PixelData = at.astype("<u2").tobytes()
            at = dataset.pixel_array.copy()
            at[6, 6] = 10
            dataset.PixelData = at.astype("<u2").tobytes()
            if padded:
                dataset.add_new(0x00280120, vr, written)
        return read_series(images)

    padded, plain = read(True), read(False)
    np.testing.assert_array_equal(padded.voxels, plain.voxels)
    masks = [predict_mask(v, small.formula, manifest, overlap=0.5, batch=4).mask for v in (padded, plain)]
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize("ends", [(-2000, -1500), (-1500, -2000), (-1800, "")])
def test_a_range_of_padding_is_taken_out_of_every_slice_after_its_own_rescale(ends, paths):
    images = framed([dcmread(path) for path in paths], -1800, signed=True)
    for number, dataset in enumerate(images):
        dataset.RescaleSlope, dataset.RescaleIntercept = 1 + number, 5
        dataset.add_new(0x00280120, "SS", ends[0])
        if ends[1]:
            dataset.add_new(0x00280121, "SS", ends[1])
    voxels = read_series(images).voxels
    rest = voxels[:, 1:, :-1]
    assert rest.min() > 0
    assert (voxels[:, 0] == rest.min()).all()
    assert (voxels[:, :, -1] == rest.min()).all()


def test_padding_of_an_enhanced_object(enhanced, small):
    enhanced.add_new(0x00280120, "US", int(small.lopsided().max()))
    image = small.lopsided()[::-1].astype(np.float32)
    image[image == image.max()] = image.min()
    np.testing.assert_array_equal(read_series([enhanced]).voxels, image)


def test_pixel_data_that_is_missing(images):
    del images[1].PixelData
    assert "image 2 has damaged or incomplete pixel data" in refusal(images, InvalidInstance)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_header_value_that_cannot_be_read(images):
    images[1]["ImagePositionPatient"]._value = [NAME, 2, 3]
    assert "its header is damaged" in refusal(images, InvalidInstance)


# --- Enhanced MR ----------------------------------------------------------------------------------------------------


def frame_groups(dataset):
    return dataset.PerFrameFunctionalGroupsSequence


def test_enhanced_geometry_may_stand_in_each_frame(enhanced, small):
    shared = enhanced.SharedFunctionalGroupsSequence[0]
    for group in frame_groups(enhanced):
        for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence", "PixelValueTransformationSequence"):
            setattr(group, keyword, shared[keyword].value)
    frame_groups(enhanced)[0].PixelValueTransformationSequence = Sequence([Dataset()])
    item = frame_groups(enhanced)[0].PixelValueTransformationSequence[0]
    item.RescaleSlope, item.RescaleIntercept = 2, 1
    for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence", "PixelValueTransformationSequence"):
        delattr(shared, keyword)
    image = small.lopsided().astype(np.float32)
    image[0] = image[0] * 2 + 1
    volume = read_series([enhanced])
    np.testing.assert_array_equal(volume.voxels, image[::-1])
    assert volume.frame_numbers == (6, 5, 4, 3, 2, 1)


def with_content(dataset, keyword, values, sequence="FrameContentSequence"):
    for group, value in zip(frame_groups(dataset), values, strict=True):
        if sequence not in group:
            setattr(group, sequence, [Dataset()])
        setattr(group[sequence].value[0], keyword, value)


def in_pairs(dataset):
    """Let two frames each share a position."""
    positions = [g.PlanePositionSequence[0].ImagePositionPatient for g in frame_groups(dataset)]
    for number, group in enumerate(frame_groups(dataset)):
        group.PlanePositionSequence[0].ImagePositionPatient = positions[number // 2]


@pytest.mark.parametrize("shared", [True, False])
def test_enhanced_slice_thickness_is_the_sources_own(shared, enhanced):
    frames = enhanced.PerFrameFunctionalGroupsSequence
    common = enhanced.SharedFunctionalGroupsSequence[0]
    common.PixelMeasuresSequence[0].SliceThickness = 0.6
    if not shared:
        for frame in frames:
            frame.PixelMeasuresSequence = common.PixelMeasuresSequence
        del common.PixelMeasuresSequence
    measures = read_series([enhanced]).sources[0].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SliceThickness, measures.SpacingBetweenSlices) == (0.6, 0.9)


def test_enhanced_with_several_stacks(enhanced):
    with_content(enhanced, "StackID", ["1", "1", "1", "2", "2", "2"])
    assert "holds 2 stacks of slices" in refusal([enhanced])


@pytest.mark.parametrize(
    ("keyword", "sequence", "values", "word"),
    [
        ("TemporalPositionIndex", "FrameContentSequence", [1, 2], "time point (1 and 2)"),
        ("EffectiveEchoTime", "MREchoSequence", [11.0, 90.0], "echo time (11.0 and 90.0)"),
        ("DiffusionBValue", "MRDiffusionSequence", [0.0, 800.0], "b-value (0.0 and 800.0)"),
        ("ComplexImageComponent", "MRImageFrameTypeSequence", ["MAGNITUDE", "PHASE"], "image type"),
    ],
)
def test_enhanced_with_several_images_per_position(keyword, sequence, values, word, enhanced):
    in_pairs(enhanced)
    with_content(enhanced, keyword, values * 3, sequence)
    assert f"they differ in {word}" in refusal([enhanced])


def test_enhanced_whose_frames_are_not_described(enhanced):
    enhanced.PerFrameFunctionalGroupsSequence.pop()
    assert "does not describe each of its frames" in refusal([enhanced], InvalidInstance)


def test_two_enhanced_objects(enhanced):
    other = copied(enhanced)
    other.file_meta, other.SOPInstanceUID = enhanced.file_meta, "1.2.3"
    assert "more than one Enhanced MR object" in refusal([enhanced, other])


def test_enhanced_and_classic_together(enhanced, images):
    enhanced.SeriesInstanceUID, enhanced.StudyInstanceUID = images[0].SeriesInstanceUID, images[0].StudyInstanceUID
    assert "classic and Enhanced MR images are mixed" in refusal([*images, enhanced])


# --- bytes from outside ---------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_arrive_the_answer_is_a_volume_or_a_refusal(data, tmp_path_factory, small):
    folder = tmp_path_factory.mktemp("fuzz")
    image = small.lopsided((2, 32, 32))
    if data.draw(st.booleans()):
        files = [write_enhanced(folder / "e.dcm", image, small.SPACING)]
    else:
        syntax = data.draw(st.sampled_from([ImplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless]))
        files = write_series(folder, image, small.SPACING, storage=Storage(transfer_syntax_uid=syntax))
    damaged = bytearray(files[0].read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(128, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    files[0].write_bytes(damaged)
    try:
        volume = read_series(files)
    except PennodeError as error:
        printed = "".join(traceback.format_exception(error))
    else:
        printed = ""
        assert np.isfinite(volume.voxels).all()
    assert "Phantom" not in printed


# --- real scanners --------------------------------------------------------------------------------------------------


def test_slices_with_gaps_between_them(real):
    volume = read_series(real("real_t1_sag_brain_gap"))
    assert volume.voxels.shape == (35, 256, 256)
    assert volume.spacing == pytest.approx((4.8, 1.015625, 1.015625), abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize(("folder", "frames"), [("real_rle", 4), ("real_jpegls", 4), ("real_enhanced_mr", 8)])
def test_compressed_and_enhanced_series_of_real_scanners(folder, frames, real):
    datasets = [dcmread(path) for path in real(folder)]
    assert "no Frame of Reference UID" in refusal(datasets)  # it was taken out with the patient's data
    for dataset in datasets:
        dataset.FrameOfReferenceUID = "1.2.3"
    volume = read_series(datasets)
    assert volume.voxels.shape == (frames, 256, 256)
    assert volume.spacing[0] == pytest.approx(1.2 if "enhanced" in folder else 1.0, abs=1e-4)
