"""A Segmentation from anywhere as label values on the grid of its series: what a site's PACS holds, to train on.

Source: PS3.3 C.8.20 (Segmentation), C.7.6.16 (Multi-frame Functional Groups). BINARY, FRACTIONAL (a half or more is in)
and LABELMAP are read. Frames are placed by their geometry alone, whatever the order and direction of their axes;
nothing is resampled. The stricter gate that the node's own results pass is `workers.readback`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.sr.coding import Code

from node.errors import Unsuitable
from trt.cases import plain
from workers.codes import MEANINGS
from workers.frames import readable
from workers.volume import Volume

# Share of a voxel by which a pixel may miss the middle of one. Far from the half that another convention of where a
# pixel lies makes, and above what positions rounded to 0.1 mm do.
OFF_GRID = 0.2
# The same for the step from one pixel to the next, which adds up over a slice.
_STEP = 0.01
_BACKGROUND = Code("125040", "DCM", "Background")
_REMAKE = "make the segmentation on this very series, and export both again"


@dataclass(frozen=True)
class _Frame:
    """One frame: `number` of its segment, or 0 in a label map; position, steps along a column and a row, LPS mm."""

    number: int
    position: NDArray[np.float64]
    steps: NDArray[np.float64]  # (3, 2)


def label_values(segmentation: Dataset, names: Sequence[str]) -> dict[int, int]:
    """Return the label value, from 1, of each segment number; 0 for the background that a label map may describe.

    A segment is known by its coded type (see `workers.codes`) or, failing that, by its label. Several segments may have
    one label: every vertebra its own, say.

    Raises
    ------
    Unsuitable
        A segment is none of `names`; all of these are named.
    InvalidInstance
        The segments are not described as the standard asks.
    """
    values, unknown = {}, []
    with readable("the segmentation", "does not describe its segments"):
        for item in segmentation.SegmentSequence:
            words = str(item.get("SegmentLabel", ""))
            code = (item.get("SegmentedPropertyTypeCodeSequence") or [Dataset()])[0]
            value = _value(_code(code), words, names)
            if value is None:
                unknown.append(f"{words[:64]!r} ({code.get('CodeMeaning', 'no code')})")
            else:
                values[int(item.SegmentNumber)] = value
    if unknown:
        raise Unsuitable(
            f"no label for the segments {', '.join(unknown)}",
            f"name or code them as one of {', '.join(names)}, or remove them",
        )
    if not values:
        raise Unsuitable("the segmentation does not describe its segments", "export it again")
    return values


def add_mask(mask: NDArray[np.uint8], path: Path, volume: Volume, names: Sequence[str]) -> None:
    """Write a Segmentation into `mask` (frames, rows, columns) uint8 on the grid of `volume`; value i + 1: `names[i]`.

    Raises
    ------
    InvalidInstance
        The file is damaged or cut short.
    Unsuitable
        A segment is none of `names`, it overlaps another label of `mask`, or a marked pixel is no voxel of the series.
    """
    with readable("the segmentation", "is damaged or cut short"):
        dataset = dcmread(path)
        kind = str(dataset.SegmentationType)
        pixels = dataset.pixel_array.reshape(-1, int(dataset.Rows), int(dataset.Columns))
        if kind == "FRACTIONAL":
            pixels = pixels >= int(dataset.MaximumFractionalValue) / 2
        frames = _frames(dataset, kind == "LABELMAP")
        reference = str(dataset.FrameOfReferenceUID)
    values = label_values(dataset, names)
    if reference != volume.frame_of_reference_uid:
        raise Unsuitable("the segmentation has another frame of reference than its series", _REMAKE)
    if len(frames) != len(pixels):
        raise Unsuitable("the segmentation does not describe each of its frames", _REMAKE)
    for frame, plane in zip(frames, pixels, strict=True):
        for number in np.unique(plane[plane != 0]) if kind == "LABELMAP" else (frame.number,):
            marked = plane == number if kind == "LABELMAP" else plane != 0
            if int(number) not in values:
                raise Unsuitable(f"a frame of the segmentation shows segment {number}, which it lacks", _REMAKE)
            if values[int(number)] and marked.any():
                _mark(mask, _voxels(np.argwhere(marked), frame, volume), values[int(number)], names)


def _value(code: Code | None, words: str, names: Sequence[str]) -> int | None:
    if code == _BACKGROUND or plain(words) == "background":
        return 0
    for value, name in enumerate(names, 1):
        meaning = MEANINGS.get(plain(name))
        if meaning is not None and code is not None and code == Code(*meaning.type):
            return value
    for value, name in enumerate(names, 1):
        meaning = MEANINGS.get(plain(name))
        if plain(words) in {plain(name), plain(meaning.words) if meaning else ""}:
            return value
    return None


def _code(item: Dataset) -> Code | None:
    """Return a coded entry; pydicom compares it across the old and new designators of SNOMED."""
    value, scheme = item.get("CodeValue"), item.get("CodingSchemeDesignator")
    return Code(str(value), str(scheme), str(item.get("CodeMeaning", ""))) if value and scheme else None


def _frames(dataset: Dataset, label_map: bool) -> list[_Frame]:
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    frames = []
    for group in dataset.PerFrameFunctionalGroupsSequence:

        def numbers(sequence: str, keyword: str, group: Dataset = group) -> NDArray[np.float64]:
            holder = group if sequence in group else shared
            return np.array([float(value) for value in holder[sequence][0][keyword].value])

        rows, columns = numbers("PixelMeasuresSequence", "PixelSpacing")
        along = numbers("PlaneOrientationSequence", "ImageOrientationPatient")
        holder = group if "SegmentIdentificationSequence" in group else shared
        number = 0 if label_map else int(holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        steps = np.stack([along[3:] * rows, along[:3] * columns], axis=1)
        frames.append(_Frame(number, numbers("PlanePositionSequence", "ImagePositionPatient"), steps))
    return frames


def _voxels(pixels: NDArray[np.intp], frame: _Frame, volume: Volume) -> tuple[NDArray[np.intp], ...]:
    """Return the voxels (frame, row, column) that `pixels` (n, 2) of one frame of a Segmentation are."""
    inverse = np.linalg.inv(volume.affine[:3, :3])
    steps = inverse @ frame.steps
    if np.abs(steps - np.round(steps)).max() > _STEP or (np.abs(np.round(steps)).sum(axis=0) != 1).any():
        raise Unsuitable(
            "the pixels of the segmentation have another size or direction than those of its series", _REMAKE
        )
    points = frame.position + pixels @ frame.steps.T  # (n, 3) mm
    # Slices may be a little uneven and shifted: each point is seen from the slice that it is nearest to.
    normal = volume.affine[:3, 0] / np.linalg.norm(volume.affine[:3, 0])
    heights = (volume.positions - volume.positions[0]) @ normal
    nearest = np.interp((points - volume.positions[0]) @ normal, heights, np.arange(len(heights)))
    slices = np.round(nearest).astype(np.intp)
    offsets = (points - volume.positions[slices]) @ inverse.T  # (n, 3) voxels
    index = np.round(offsets).astype(np.intp)
    index[:, 0] += slices
    if np.abs(offsets - np.round(offsets)).max() > OFF_GRID:
        raise Unsuitable("the segmentation lies between the voxels of its series", _REMAKE)
    if (index < 0).any() or (index >= volume.voxels.shape).any():
        raise Unsuitable("the segmentation reaches beyond its series", _REMAKE)
    return index[:, 0], index[:, 1], index[:, 2]


def _mark(mask: NDArray[np.uint8], voxels: tuple[NDArray[Any], ...], value: int, names: Sequence[str]) -> None:
    before = np.unique(mask[voxels])
    others = [names[other - 1] for other in before if other not in (0, value)]
    if others:
        raise Unsuitable(
            f"the segments {names[value - 1]} and {', '.join(others)} overlap",
            "a voxel has one label: correct the segmentation",
        )
    mask[voxels] = value
