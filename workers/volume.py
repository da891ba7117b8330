"""A series of MR images as one volume with its place in the patient, or the reason why it cannot be one.

Source: PS3.3 C.7.6.2 (Image Plane), C.7.6.16 (Multi-frame Functional Groups), C.7.5.1.1.2 (Pixel Padding Value), C.11.1
(Modality LUT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VM, keyword_for_tag
from pydicom.multival import MultiValue
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless
from pydicom.valuerep import DSfloat

from node.errors import Unsuitable
from workers.frames import UNREADABLE, Frame, Image, iter_frames, read_image, readable
from workers.suitability import (
    MAX_VOXELS,
    RECONSTRUCT,
    check_pixels,
    check_planes,
    check_series,
    directions,
    is_enhanced,
    stack,
)

_LOSSY = {
    JPEGBaseline8Bit: "ISO_10918_1",
    JPEGExtended12Bit: "ISO_10918_1",
    JPEGLSNearLossless: "ISO_14495_1",
    JPEG2000: "ISO_15444_1",
}
_RATIO = "LossyImageCompressionRatio"
_COMPRESSION = ("LossyImageCompression", _RATIO, "LossyImageCompressionMethod")
_YES = frozenset({"01", "1", "YES"})  # the first by the standard, the others by writers
# Archives file a result by these, so that they stay as they are, whatever they are.
_IDENTIFIERS = frozenset({"PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID"})


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume on the grid of its source images.

    `voxels` (frames, rows, columns) float32, arbitrary MR units after rescale, frames in order along the normal (row
    direction x column direction), whatever their order in the files. `affine` (4, 4) float64 maps (frame, row, column,
    1) to mm in the patient's LPS system; `spacing` is mm along (frames, rows, columns). Padding has the least value of
    the rest. `positions` (frames, 3) float64 mm are those of the frames as stored, between which spacing may vary a
    little.

    `sources` are headers without pixels: one per frame in the same order, or a single Enhanced MR one, and then
    `frame_numbers` gives the number, from 1, that each frame of `voxels` has in it. `rescales` are slope and intercept
    of each frame, by which stored values became those of `voxels`.
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    positions: NDArray[np.float64]
    frame_of_reference_uid: str
    series_uid: str
    sources: tuple[Dataset, ...]
    frame_numbers: tuple[int, ...] = ()
    rescales: tuple[tuple[float, float], ...] = ()


def read_series(sources: Sequence[Path | Dataset]) -> Volume:
    """Read one series: classic MR instances in any order, or one Enhanced MR instance.

    Raises
    ------
    InvalidInstance
        A source is no DICOM object, is damaged, or its pixel data is truncated.
    Unsuitable
        The images are sound but do not form one volume that can be segmented; each reason has its own text.
    """
    if not sources:
        raise Unsuitable("the series has no images", "send the series again")
    images = [read_image(source, index, len(sources)) for index, source in enumerate(sources)]
    with readable("the series", "has a damaged header"):  # values are parsed when they are first looked at
        check_series(images)
        check_pixels(images)
        rows, columns = int(images[0].header.Rows), int(images[0].header.Columns)
    frames = [frame for image in images for frame in image.frames]
    if rows * columns * len(frames) > MAX_VOXELS:
        raise Unsuitable(
            f"{len(frames)} images of {rows} x {columns} pixels are more than a worker takes",
            "send a smaller field of view or fewer slices",
        )
    check_planes(frames)
    frames, gap = stack(frames)
    voxels = _decode(sources, images, frames, (rows, columns))
    with readable("the series", "has a damaged header"):
        return Volume(
            voxels=voxels,
            affine=_affine(frames, gap),
            spacing=(gap, frames[0].spacing[0], frames[0].spacing[1]),
            positions=np.array([frame.position for frame in frames]),
            frame_of_reference_uid=str(images[0].header.FrameOfReferenceUID),
            series_uid=str(images[0].header.SeriesInstanceUID),
            sources=_headers(images, frames, gap),
            frame_numbers=tuple(f.number for f in frames) if is_enhanced(images[0]) else (),
            rescales=tuple((float(frame.slope), float(frame.intercept)) for frame in frames),
        )


def _affine(frames: Sequence[Frame], gap: float) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = (directions(frames[0]) * np.array([[gap], [frames[0].spacing[0]], [frames[0].spacing[1]]])).T
    affine[:3, 3] = frames[0].position
    return affine


def _decode(
    sources: Sequence[Path | Dataset], images: Sequence[Image], frames: Sequence[Frame], shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Return rescaled voxels (frames, rows, columns) float32; one decoded frame at a time is in memory beside them."""
    place = {(frame.image, frame.number): (index, frame) for index, frame in enumerate(frames)}
    voxels = np.empty((len(frames), *shape), np.float32)
    padded = []
    for number, (source, image) in enumerate(zip(sources, images, strict=True)):
        with readable(image.name, "has a damaged header"):
            padding = _padding(image.header)
        for frame_number, stored in iter_frames(source, image):
            index, frame = place[number, frame_number]
            if (frame.slope, frame.intercept) == (1, 0):
                voxels[index] = stored
            else:
                with np.errstate(over="ignore"):  # found below
                    voxels[index] = stored * np.float64(frame.slope) + frame.intercept
            if padding is not None:
                beyond = (stored >= padding[0]) & (stored <= padding[1])
                if beyond.any():
                    voxels[index][beyond] = np.nan  # until the least value of all frames is known
                    padded.append(index)
    low, high = float(np.fmin.reduce(voxels, axis=None)), float(np.fmax.reduce(voxels, axis=None))  # NaN apart
    if np.isinf(low) or np.isinf(high):
        raise Unsuitable("pixel values are not finite after Rescale Slope and Intercept", RECONSTRUCT)
    if not low < high:
        raise Unsuitable("all pixels of the series have the same value", "check that the images are not empty")
    if images[0].header.PhotometricInterpretation == "MONOCHROME1":  # least value is white, PS3.3 C.7.6.3.1.2
        np.subtract(np.float32(low + high), voxels, out=voxels)
    for index in padded:
        np.nan_to_num(voxels[index], copy=False, nan=low)
    return voxels


def _padding(header: Dataset) -> tuple[int, int] | None:
    """Return the least and the greatest stored value that mean "no image here", or None.

    The value is brought into what Bits Stored and Pixel Representation can say, as decoders do with pixels: writers
    take the wrong one of the two VRs, US and SS, or a value of all 16 bits.
    """
    value = _first(header.get("PixelPaddingValue"))
    if value in (None, ""):
        return None
    limit = _first(header.get("PixelPaddingRangeLimit"))
    bits, signed = int(header.BitsStored), int(header.PixelRepresentation)

    def stored(number: Any) -> int:
        # The VR depends on Pixel Representation; where pydicom could not tell, the bytes are left.
        whole = int.from_bytes(number[:2], "little") if isinstance(number, bytes) else int(number)
        whole &= (1 << bits) - 1
        return whole - (1 << bits) if signed and whole >> (bits - 1) else whole

    ends = sorted(stored(number) for number in (value, value if limit in (None, "") else limit))
    return ends[0], ends[1]


def _headers(images: Sequence[Image], frames: Sequence[Frame], gap: float) -> tuple[Dataset, ...]:
    """Return the headers that a result is built from.

    All have one orientation and the measured spacing; the first, from which patient and study are taken, has one value
    where the standard has one: a backslash in a name makes two of it (PS3.5 6.2).
    """
    first = frames[0]
    thickness = _decimals([first.thickness or gap])[0]
    headers = []
    lossy = _lossy(images)
    for image in [images[frame.image] for frame in frames] if not is_enhanced(images[0]) else images:
        header = image.header
        for keyword in _COMPRESSION:
            header.pop(keyword, None)
        header.update(lossy)
        plane, measures = Dataset(), Dataset()
        plane.ImageOrientationPatient = _decimals(first.orientation)
        measures.PixelSpacing = _decimals(first.spacing)
        measures.SliceThickness = thickness
        measures.SpacingBetweenSlices = gap
        if is_enhanced(image):
            shared = Dataset()
            shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
            header.SharedFunctionalGroupsSequence = [shared]
            header.PerFrameFunctionalGroupsSequence = [_position(frame) for frame in image.frames]
        else:
            header.update(plane)
            header.update(measures)
        headers.append(header)
    _make_single(headers[0])
    return tuple(headers)


def _lossy(images: Sequence[Image]) -> Dataset:
    """Return what a result says of lossy compression of its source (PS3.3 C.7.6.1.1.5), of whichever image says most.

    Empty where no image was compressed so.
    """
    said = Dataset()
    for image in images:
        if _first(image.header.get("LossyImageCompression")) in _YES or image.transfer_syntax_uid in _LOSSY:
            said.LossyImageCompression = "01"
            for keyword in _COMPRESSION[1:]:
                value = image.header.get(keyword)
                if keyword not in said and value not in (None, "", []) and (keyword != _RATIO or _are_numbers(value)):
                    said[keyword] = image.header[keyword]
    method = next((_LOSSY[i.transfer_syntax_uid] for i in images if i.transfer_syntax_uid in _LOSSY), "")
    if method and "LossyImageCompressionMethod" not in said:
        said.LossyImageCompressionMethod = method
    return said


def _are_numbers(value: Any) -> bool:
    try:
        return all(0 < float(one) < np.inf for one in (value if isinstance(value, MultiValue) else [value]))
    except (TypeError, ValueError):
        return False


def _make_single(header: Dataset) -> None:
    """Leave one value where the standard has one, and out what cannot be read and identifies nobody.

    What the volume needs was read before; of two identifiers, one may be somebody else's.
    """
    for tag in list(header.keys()):
        keyword = keyword_for_tag(tag)
        try:
            element = header[tag]
            several = isinstance(element.value, MultiValue) and dictionary_has_tag(tag)
            if several and keyword not in _IDENTIFIERS and dictionary_VM(tag) == "1":
                element.value = _first(element.value)
        except UNREADABLE:
            if keyword in _IDENTIFIERS or keyword == "PatientName":
                raise
            del header[tag]


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, MultiValue) else value


def _position(frame: Frame) -> Dataset:
    item, plane = Dataset(), Dataset()
    plane.ImagePositionPatient = _decimals(frame.position)
    item.PlanePositionSequence = [plane]
    return item


def _decimals(values: Sequence[float]) -> list[DSfloat]:
    """Return decimal strings of at most 16 characters (PS3.5 6.2)."""
    return [DSfloat(value, auto_format=True) for value in values]
