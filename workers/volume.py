"""A series of MR images as one volume with its place in the patient, or the reason why it cannot be one.

Source: PS3.3 C.7.6.2 (Image Plane), C.7.6.16 (Multi-frame Functional Groups), C.11.1 (Modality LUT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless
from pydicom.valuerep import DSfloat

from node.errors import Unsuitable
from workers.frames import Frame, Image, iter_frames, read_image, readable
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


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume on the grid of its source images.

    `voxels` (frames, rows, columns) float32, arbitrary MR units after rescale, frames in order along the normal (row
    direction x column direction), whatever their order in the files. `affine` (4, 4) float64 maps (frame, row, column,
    1) to mm in the patient's LPS system; `spacing` is mm along (frames, rows, columns). `positions` (frames, 3) float64
    mm are those of the frames as stored, between which spacing may vary by rounding.

    `sources` are headers without pixels: one per frame in the same order, or a single Enhanced MR one, and then
    `frame_numbers` gives the number, from 1, that each frame of `voxels` has in it.
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]
    positions: NDArray[np.float64]
    frame_of_reference_uid: str
    series_uid: str
    sources: tuple[Dataset, ...]
    frame_numbers: tuple[int, ...] = ()


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
    for number, (source, image) in enumerate(zip(sources, images, strict=True)):
        for frame_number, stored in iter_frames(source, image):
            index, frame = place[number, frame_number]
            with np.errstate(over="ignore"):  # found below
                voxels[index] = stored * np.float64(frame.slope) + frame.intercept
    low, high = float(voxels.min()), float(voxels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise Unsuitable("pixel values are not finite after Rescale Slope and Intercept", RECONSTRUCT)
    if low == high:
        raise Unsuitable("all pixels of the series have the same value", "check that the images are not empty")
    if images[0].header.PhotometricInterpretation == "MONOCHROME1":  # least value is white, PS3.3 C.7.6.3.1.2
        np.subtract(np.float32(low + high), voxels, out=voxels)
    return voxels


def _headers(images: Sequence[Image], frames: Sequence[Frame], gap: float) -> tuple[Dataset, ...]:
    """Return the headers that a result is built from, with one orientation and the measured spacing in all of them."""
    first = frames[0]
    headers = []
    lossy = next((i for i in images if str(i.header.get("LossyImageCompression", "")) == "01"), None)
    method = next((_LOSSY[i.transfer_syntax_uid] for i in images if i.transfer_syntax_uid in _LOSSY), "")
    for image in [images[frame.image] for frame in frames] if not is_enhanced(images[0]) else images:
        header = image.header
        if lossy is not None or method:
            header.LossyImageCompression = "01"
            if lossy is None:
                header.LossyImageCompressionMethod = method
        thickness = header.get("SliceThickness")
        plane, measures = Dataset(), Dataset()
        plane.ImageOrientationPatient = _decimals(first.orientation)
        measures.PixelSpacing = _decimals(first.spacing)
        measures.SliceThickness = thickness if thickness not in (None, "") else gap
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
    return tuple(headers)


def _position(frame: Frame) -> Dataset:
    item, plane = Dataset(), Dataset()
    plane.ImagePositionPatient = _decimals(frame.position)
    item.PlanePositionSequence = [plane]
    return item


def _decimals(values: Sequence[float]) -> list[DSfloat]:
    """Return decimal strings of at most 16 characters (PS3.5 6.2)."""
    return [DSfloat(value, auto_format=True) for value in values]
