"""Do these frames form one volume that can be segmented? Every refusal has its own text and next step.

Source: PS3.3 C.7.6.2 (Image Plane), C.7.6.3 (Image Pixel), C.8.3.1 (MR Image). The texts name images by their Instance
Number and never quote a value that could identify the patient.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import EnhancedMRImageStorage

from node.errors import InvalidInstance, Unsuitable
from node.records import is_uid
from workers.frames import Frame, Image

# The array of voxels alone is half a gigabyte as float32 then, and a worker holds several: 200 x 512 x 512, four tenths
# of this, was measured at 1.03 GB. The largest spine series in use are about 640 x 640 x 200. It is there so that a
# header that lies about its size does not exhaust the worker.
MAX_VOXELS = 2**27
# Direction cosines are written with three digits or more: their length and right angle hold to 1e-3, or they are wrong.
COSINE_TOLERANCE = 1e-3
# Pixel spacing within one series differs by rounding only.
PIXEL_SPACING_TOLERANCE = 1e-4
# Finer than any MR pixel, coarser than any: beyond it the header is wrong, and resampling would explode.
PIXEL_SPACING_MM = (0.02, 20.0)
# No two slices are so close; a gap below it is the same position.
SAME_POSITION_MM = 0.01
# Some scanners write positions to 0.1 mm: two of them then differ by up to 0.1 mm along each axis, 0.173 mm in space.
ROUNDING_MM = 0.18
# Gaps between slices may differ by that rounding, or by 5 %. Positions go into the SEG as they are, and a reader may be
# stricter when it forms a volume: highdicom's get_volume takes 1 %, unless it is given another rtol or atol.
GAP_TOLERANCE = 0.05
# From here on a gap is that of a missing slice.
MISSING = 1.5
# Sideways shift of slices per mm along the normal, about one degree: rounding stays below it, a tilted stack does not.
SHEAR_TOLERANCE = 0.02

RECONSTRUCT = "reconstruct or export the series anew on the scanner"
_ONE_SERIES = "send each series on its own"


def is_enhanced(image: Image) -> bool:
    """Tell whether an image is Enhanced MR (PS3.3 A.36): many frames in one instance."""
    return bool(image.header.SOPClassUID == EnhancedMRImageStorage)


def check_series(images: Sequence[Image]) -> None:
    """Raise `Unsuitable` for images that do not belong together."""

    def values(keyword: str) -> set[str]:
        return {str(image.header.get(keyword, "")) for image in images}

    if len(values("SeriesInstanceUID")) > 1 or len(values("StudyInstanceUID")) > 1:
        raise Unsuitable("the images belong to two or more series", _ONE_SERIES)
    if len(values("PatientID") - {""}) > 1 or len(values("IssuerOfPatientID") - {""}) > 1:
        raise Unsuitable(
            "the images name two or more patients (Patient ID)",
            "correct them on the scanner or PACS, and send them again",
        )
    if len(values("SOPInstanceUID")) < len(images):
        raise Unsuitable("the same image is there twice (equal SOP Instance UID)", "send each image once")
    if len(values("SOPClassUID")) > 1:
        raise Unsuitable("classic and Enhanced MR images are mixed in one series", _ONE_SERIES)
    if is_enhanced(images[0]) and len(images) > 1:
        raise Unsuitable("the series holds more than one Enhanced MR object", "send one volume per series")
    if len(values("FrameOfReferenceUID")) > 1:
        raise Unsuitable(
            "the images have two or more frames of reference (Frame of Reference UID): the patient was positioned anew",
            _ONE_SERIES,
        )
    if not is_uid(str(images[0].header.get("FrameOfReferenceUID", ""))):
        raise Unsuitable(
            "the images have no Frame of Reference UID, so their place in the patient is unknown",
            "where de-identification removed it, let it keep or replace that UID; "
            "else export the series again from the scanner or PACS",
        )
    sizes = sorted({(int(image.header.get("Rows") or 0), int(image.header.get("Columns") or 0)) for image in images})
    if len(sizes) > 1:
        listed = " and ".join(f"{rows} x {columns}" for rows, columns in sizes[:3])
        raise Unsuitable(f"the images have different sizes (Rows x Columns): {listed}", _ONE_SERIES)
    if min(sizes[0]) < 1:
        raise InvalidInstance("the images do not say how many rows and columns they have", "send the series again")


def check_pixels(images: Sequence[Image]) -> None:
    """Raise `Unsuitable` for what is not 16 bit grey values (PS3.3 C.8.3.1.1.4), in classic MR one frame per image."""
    for image in images:
        header = image.header
        count = int(header.get("NumberOfFrames") or 1)
        if count > 1 and not is_enhanced(image):
            raise Unsuitable(
                f"{image.name} holds {count} frames, but only Enhanced MR says where each of them lies",
                "send one image per file, or Enhanced MR",
            )
        samples, photometric = int(header.get("SamplesPerPixel") or 0), str(header.get("PhotometricInterpretation", ""))
        if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise Unsuitable(
                f"{image.name} is a colour image or has no grey values (Photometric Interpretation)",
                "send the original grey images, not screenshots, maps or fused images",
            )
        bits = int(header.get("BitsAllocated") or 0)
        if bits != 16:
            raise Unsuitable(
                f"{image.name} has {bits} bits per pixel; an MR image has 16 (Bits Allocated)",
                "send the original images, not a reduced copy",
            )
        stored, high = int(header.get("BitsStored") or 0), header.get("HighBit")
        if not 1 <= stored <= bits or (high is not None and int(high) != stored - 1):
            raise Unsuitable(
                f"the pixels of {image.name} do not lie in the low bits of their 16 "
                f"(Bits Stored {stored}, High Bit {high}; High Bit must be Bits Stored - 1)",
                "export the series again from the scanner or PACS",
            )
    if len({str(image.header.PhotometricInterpretation) for image in images}) > 1:
        raise Unsuitable("some images are inverted and others not (Photometric Interpretation)", RECONSTRUCT)


def check_planes(frames: Sequence[Frame]) -> None:
    """Raise `Unsuitable` for planes whose place in the patient is unknown, or that are not parallel and alike."""
    for frame in frames:
        if (
            len(frame.position) != 3
            or len(frame.orientation) != 6
            or not np.isfinite(frame.position + frame.orientation).all()
        ):
            raise Unsuitable(
                f"{frame.name} has no position or orientation in the patient (Image Position / Orientation Patient)",
                "send the original images, not reformatted screenshots",
            )
        row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
        if (
            max(abs(row @ row - 1), abs(column @ column - 1)) > 2 * COSINE_TOLERANCE
            or abs(row @ column) > COSINE_TOLERANCE
        ):
            raise Unsuitable(
                f"the orientation of {frame.name} is not two unit vectors at a right angle (Image Orientation Patient)",
                RECONSTRUCT,
            )
        if len(frame.spacing) != 2 or not all(np.isfinite(frame.spacing)):
            raise Unsuitable(f"{frame.name} has no Pixel Spacing, so sizes in mm are unknown", RECONSTRUCT)
        if not PIXEL_SPACING_MM[0] <= min(frame.spacing) <= max(frame.spacing) <= PIXEL_SPACING_MM[1]:
            raise Unsuitable(
                f"the Pixel Spacing of {frame.name} is {frame.spacing[0]:g} x {frame.spacing[1]:g} mm: not plausible",
                RECONSTRUCT,
            )
        if not np.isfinite((frame.slope, frame.intercept)).all() or frame.slope == 0:
            raise Unsuitable(f"{frame.name} has no usable Rescale Slope and Intercept", RECONSTRUCT)
        if frame.slope < 0:
            raise Unsuitable(
                f"{frame.name} has a negative Rescale Slope, which turns bright to dark",
                "send the original images, not a map calculated from them",
            )
    stacks = {frame.traits["stack"] for frame in frames if "stack" in frame.traits}
    if len(stacks) > 1:
        raise Unsuitable(f"the image holds {len(stacks)} stacks of slices (Stack ID)", "send one stack per series")
    if len(frames) < 2:
        raise Unsuitable("the series has fewer than 2 slices and is no volume", "send the whole series")
    orientations = np.array([frame.orientation for frame in frames])
    if np.abs(orientations - orientations[0]).max() > COSINE_TOLERANCE:
        raise Unsuitable(
            "the slices have different orientations (Image Orientation Patient), as in a localizer",
            "send one orientation",
        )
    spacings = np.array([frame.spacing for frame in frames])
    if (np.abs(spacings - spacings[0]) > PIXEL_SPACING_TOLERANCE * spacings[0]).any():
        raise Unsuitable("the slices have different Pixel Spacing", _ONE_SERIES)


def stack(frames: Sequence[Frame]) -> tuple[list[Frame], float]:
    """Return the frames in order along their normal, and the gap in mm from one to the next.

    Raises `Unsuitable` for frames at one position, missing or uneven slices, and slices shifted sideways.
    """
    positions = np.array([frame.position for frame in frames])
    normal = directions(frames[0])[0]
    offsets = (positions - positions[0]) @ normal
    order = np.argsort(offsets, kind="stable")
    ordered, offsets = [frames[i] for i in order], offsets[order]
    gaps = np.diff(offsets)
    for (before, after), gap in zip(itertools.pairwise(ordered), gaps, strict=True):
        if gap < SAME_POSITION_MM:
            raise Unsuitable(
                f"several images lie at the same position ({before.name}, {after.name}){_difference(before, after)}",
                "send one image per position: each echo, time point or b-value as its own series",
            )
    expected = float(np.median(gaps))
    odd = int(np.abs(gaps - expected).argmax())
    if abs(gaps[odd] - expected) > max(ROUNDING_MM, GAP_TOLERANCE * expected):
        where = (
            f"{gaps[odd]:.2f} mm between {ordered[odd].name} and {ordered[odd + 1].name}, {expected:.2f} mm elsewhere"
        )
        if gaps[odd] >= MISSING * expected:
            raise Unsuitable(f"slices are missing: {where}", "send the missing slices, or the whole series again")
        raise Unsuitable(f"the slices are not evenly spaced: {where}", RECONSTRUCT)
    sideways = positions[order] - positions[order[0]]
    sideways = np.linalg.norm(sideways - np.outer(sideways @ normal, normal), axis=1)
    if (sideways > np.maximum(ROUNDING_MM, SHEAR_TOLERANCE * offsets - SHEAR_TOLERANCE * offsets[0])).any():
        raise Unsuitable("the slices are shifted sideways against each other (a tilted or sheared stack)", RECONSTRUCT)
    # Rounded below what positions resolve, so that a stack stored in another order has the very same spacing.
    return ordered, round(float(offsets[-1] - offsets[0]) / (len(ordered) - 1), 6)


def _difference(one: Frame, other: Frame) -> str:
    """Name what tells two images at one position apart. ImageType may hold free text: it is named, not quoted."""
    words = [word for word in one.traits if one.traits[word] != other.traits.get(word, one.traits[word])]
    if not words:
        return ""
    word = words[0]
    if word == "image type":
        return ": they differ in image type"
    return f": they differ in {word} ({one.traits[word][:16]} and {other.traits[word][:16]})"


def directions(frame: Frame) -> NDArray[np.float64]:
    """Return unit vectors (3, 3) in LPS along frames, rows (downwards) and columns (rightwards), one per line."""
    along_columns, along_rows = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    normal = np.cross(along_columns, along_rows)
    return np.stack([v / np.linalg.norm(v) for v in (normal, along_rows, along_columns)])
