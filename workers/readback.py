"""Reading a Segmentation back from its bytes, placed by its own geometry as a viewer would (PS3.3 C.8.20).

Nothing here looks at what was in memory when the object was built. What it must say to be let out is checked in
`workers.inspection`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.tag import BaseTag, Tag
from pydicom.uid import RLELossless

from node.errors import InvalidResult
from workers.volume import Volume
from workers.writing import TELL_US, translated

# A result's frames lie on those of its source; decimal strings round far below this, and slices are never so close.
POSITION_TOLERANCE_MM = 0.01
_COSINE_TOLERANCE = 1e-5  # decimal strings round far below this
_LENGTH_TOLERANCE = 2e-3  # of a direction as its source has it (`workers.suitability`), and ours is the source's


_PLACE, _SEGMENT = Tag("PlanePositionSequence"), Tag("SegmentIdentificationSequence")


@dataclass(frozen=True)
class Segment:
    """One segment as read back: its number and label, and its recommended colour in sRGB 0..255."""

    number: int
    label: str
    colour: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Reading:
    """A Segmentation as read: the data set, and its mask (frames, rows, columns) uint8 on the grid of its volume.

    `mask` holds segment numbers, 0 background. Of each frame of the object, in its order, `numbers` tells its segment's
    number, 1 in a label map, `places` the frame of the volume that it lies on, and `filled` how many of its pixels are
    in a segment.
    """

    dataset: Dataset
    mask: NDArray[np.uint8]
    numbers: tuple[int, ...]
    places: NDArray[np.intp]
    filled: NDArray[np.intp]


def read_segmentation(data: bytes, volume: Volume) -> tuple[NDArray[np.uint8], tuple[Segment, ...]]:
    """Read a Segmentation back; see `read_back`. Returns its mask and its segments, without the background's."""
    reading = read_back(data, volume)
    with translated():
        return reading.mask, tuple(shown(item) for item in described(reading.dataset))


def read_back(data: bytes, volume: Volume) -> Reading:
    """Read a Segmentation of any type back and place it on the grid of `volume` by its geometry alone.

    Raises
    ------
    InvalidResult
        It is no Segmentation, lies in another frame of reference, off the grid, or its segments overlap; or a voxel is
        in one by a fraction.
    """
    with translated():
        dataset = dcmread(io.BytesIO(data))
        kind = str(dataset.SegmentationType)
        shared = dataset.SharedFunctionalGroupsSequence[0]
        groups = dataset.PerFrameFunctionalGroupsSequence
        orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
        spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
        positions = np.array(_of_each(groups, shared, _PLACE, "ImagePositionPatient"), float)
        numbers = [1] * len(groups)
        if kind != "LABELMAP":
            numbers = [int(number) for number in _of_each(groups, shared, _SEGMENT, "ReferencedSegmentNumber")]
        full = int(dataset.MaximumFractionalValue) if kind == "FRACTIONAL" else 1
        reference, size = str(dataset.FrameOfReferenceUID), (int(dataset.Rows), int(dataset.Columns))
        count = int(dataset.NumberOfFrames)
    if (
        reference != volume.frame_of_reference_uid
        or count != len(groups)
        or size != volume.voxels.shape[1:]
        or not _is_along(orientation, volume)
        or not np.allclose(spacing, volume.spacing[1:], rtol=1e-4)
    ):
        raise InvalidResult("the segmentation does not lie on the grid of its series", TELL_US)
    places = _places(positions, volume)
    mask, filled = np.zeros(volume.voxels.shape, np.uint8), np.zeros(count, np.intp)
    plane = np.empty(size, np.uint8)
    with translated():
        for index, (pixels, number, place) in enumerate(
            zip(_frames(dataset, count, size), numbers, places, strict=True)
        ):
            filled[index] = np.count_nonzero(pixels)
            if kind == "FRACTIONAL" and filled[index] != np.count_nonzero(pixels == full):
                raise InvalidResult("a voxel lies in a segment by a fraction", TELL_US)
            np.multiply(pixels if full == 1 else (pixels == full).view(np.uint8), number, out=plane)
            np.bitwise_or(mask[place], plane, out=mask[place])
    if int(filled.sum()) != np.count_nonzero(mask):  # voxels that are in two segments, or in two frames, count twice
        raise InvalidResult("two segments overlap", TELL_US)
    return Reading(dataset, mask, tuple(numbers), places, filled)


def described(dataset: Dataset) -> list[Dataset]:
    """Return the descriptions of segments, without that of the background, number 0, which a label map has."""
    return [item for item in dataset.SegmentSequence if int(item.SegmentNumber)]


def _is_along(orientation: NDArray[np.float64], volume: Volume) -> bool:
    """Tell whether directions (2, 3) of a row and of a column are those of `volume`, whose own have unit length."""
    lengths = np.linalg.norm(orientation, axis=1, keepdims=True)
    if not np.allclose(lengths, 1, atol=_LENGTH_TOLERANCE):
        return False
    directions = (volume.affine[:3, :3] / np.array(volume.spacing)).T[[2, 1]]
    return np.allclose(orientation / lengths, directions, rtol=0, atol=_COSINE_TOLERANCE)


def _frames(dataset: Dataset, count: int, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames (rows, columns) uint8 as stored, of one bit or eight."""
    pixels = size[0] * size[1]
    if int(dataset.BitsAllocated) != 1:
        dataset.pixel_array_options(
            decoding_plugin="pydicom" if dataset.file_meta.TransferSyntaxUID == RLELossless else ""
        )
        yield from dataset.pixel_array.reshape(count, *size)
        return
    data = np.frombuffer(dataset.PixelData, np.uint8)
    if len(data) != (count * pixels + 15) // 16 * 2:
        raise ValueError("too few or too many pixels")
    for index in range(count):  # frames follow each other bit by bit (PS3.5 8.1.1), not byte by byte
        first, skipped = divmod(index * pixels, 8)
        yield np.unpackbits(data[first:], count=skipped + pixels, bitorder="little")[skipped:].reshape(size)


def _places(positions: NDArray[np.float64], volume: Volume) -> NDArray[np.intp]:
    """Return the frames of `volume` that have these positions (n, 3) mm."""
    distances = np.linalg.norm(positions[:, None] - volume.positions[None], axis=2)
    places = np.asarray(distances.argmin(axis=1), np.intp)
    if (distances[np.arange(len(places)), places] > POSITION_TOLERANCE_MM).any():
        raise InvalidResult("a frame of the segmentation lies on no slice of its series", TELL_US)
    return places


def _of_each(groups: Iterable[Dataset], shared: Dataset, tag: BaseTag, keyword: str) -> list[Any]:
    """Return an attribute of the functional group `tag` of each frame; where it has none, of what all share.

    Frames on one slice, or of one segment, say so by the same bytes, which are parsed once.
    """
    known: dict[bytes, Any] = {}
    found = []
    for group in groups:
        holder = group if tag in group else shared
        raw = holder.get_item(tag).value if tag in holder else None
        if not isinstance(raw, bytes):  # of undefined length, and parsed already, or absent
            found.append(holder[tag].value[0][keyword].value)
            continue
        if raw not in known:
            known[raw] = holder[tag].value[0][keyword].value
        found.append(known[raw])
    return found


def shown(item: Dataset) -> Segment:
    """Return a segment as viewers show it."""
    red, green, blue = hd.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue).to_rgb()
    return Segment(int(item.SegmentNumber), str(item.SegmentLabel), (int(red), int(green), int(blue)))
