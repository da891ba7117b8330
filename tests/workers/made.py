"""Cases to make results of: a small volume stored in many ways, and a mask with all that makes contours difficult."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from node.settings import Seg
from trt.manifest import Manifest, load
from workers.case import Case
from workers.enhanced import write_enhanced
from workers.series import Storage, write_series
from workers.volume import Volume, read_series

ENGINE = {"backend": "openvino", "precision": "f32", "overlap": "0.5", "threads": "2", "device": "a CPU"}
DIGEST = "ab" * 32
SHAPE, SPACING = (8, 40, 30), (3.0, 0.7, 0.5)
TILTED = (1, 0, 0, 0, 0.9945218953682733, -0.10452846326765347, 0, 0.10452846326765347, 0.9945218953682733)

STORED = {
    "sagittal": Storage(),
    "coronal": Storage(axes=(2, 1, 0), flips=(1,)),
    "axial": Storage(axes=(1, 2, 0), reverse=True),
    "oblique": Storage(flips=(0,), rotation=TILTED, reverse=True, slope=0.5, intercept=-20.0),
}


def image() -> NDArray[np.uint16]:
    """An image (Z, Y, X) without symmetry."""
    random = np.random.default_rng(5)
    slope = np.add.outer(np.add.outer(np.arange(SHAPE[0]) * 9, np.arange(SHAPE[1]) * 11), np.arange(SHAPE[2]) * 7)
    return (100 + slope + random.integers(0, 60, SHAPE)).astype(np.uint16)


def anatomy(*, lesions: bool = True) -> NDArray[np.uint8]:
    """A mask (Z, Y, X): a vertebra with holes, pixels that touch by corners, a canal at the border, two lesions."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:6, 4:20, 3:18] = 1
    mask[2:5, 8:11, 6:9] = mask[3, 14, 10] = mask[3, 15, 11] = 0
    mask[2, 12:16, 12:15] = 0
    mask[4, 22, 4] = mask[4, 23, 5] = mask[4, 24, 4] = 1
    mask[:, :, 25:] = 2
    mask[2:4, 26:30, 4:18] = 3
    if lesions:
        mask[3:6, 9:12, 19:24] = 4
        mask[6, 33:35, 9:11] = 4
    return mask


def unchanged(_: Dataset) -> None:
    """What is done to images by default."""


def images(
    folder: Path, stored: str = "sagittal", *, enhanced: bool = False, change: Callable[[Dataset], None] = unchanged
) -> list[Path]:
    """Files of the image, with what `change` does to each."""
    storage = STORED[stored]
    if enhanced:
        paths = [write_enhanced(folder / "enhanced.dcm", image(), SPACING, storage=storage)]
    else:
        paths = write_series(folder / "classic", image(), SPACING, storage=storage)
    for path in paths:
        dataset = dcmread(path)
        change(dataset)
        dataset.save_as(path)
    return paths


def volume(folder: Path, stored: str = "sagittal") -> Volume:
    """The image, written and read again."""
    return read_series(images(folder, stored))


def placed(mask: NDArray[np.uint8], made: Volume, stored: str) -> NDArray[np.uint8]:
    """A mask (Z, Y, X) on the frames of a volume that was stored in a certain way."""
    storage = STORED[stored]
    turned = np.flip(mask, storage.flips).transpose(storage.axes)
    grey = np.flip(image(), storage.flips).transpose(storage.axes)
    same = (
        np.corrcoef(grey.ravel(), made.voxels.ravel())[0, 1]
        > np.corrcoef(grey[::-1].ravel(), made.voxels.ravel())[0, 1]
    )
    return np.ascontiguousarray(turned if same else turned[::-1])


def manifest() -> Manifest:
    """The shipped model's, with parts of any size left in the mask."""
    shipped = load()
    return dataclasses.replace(
        shipped, labels=tuple(dataclasses.replace(label, least_mm3=0.0) for label in shipped.labels)
    )


def case(
    folder: Path,
    stored: str = "sagittal",
    *,
    enhanced: bool = False,
    lesions: bool = True,
    change: Callable[[Dataset], None] = unchanged,
) -> Case:
    """A case of the anatomy above."""
    made = read_series(images(folder, stored, enhanced=enhanced, change=change))
    return Case(made, placed(anatomy(lesions=lesions), made, stored), manifest(), ENGINE, DIGEST, Seg())


def inside(line: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which pixel centres lie in a closed line of (row, column), by the even-odd rule; written for the tests alone."""
    filled = np.zeros(shape, bool)
    columns = np.arange(shape[1])
    for (row, column), (next_row, next_column) in zip(line, np.roll(line, -1, axis=0), strict=True):
        for y in range(shape[0]):
            if (row > y) != (next_row > y):
                filled[y] ^= columns < column + (y - row) / (next_row - row) * (next_column - column)
    return filled
