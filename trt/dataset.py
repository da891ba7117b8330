"""Training data: one npz file per series with `image` and `mask` (Z, Y, X), split by patient, patches drawn from them.

A patient's name is the file's stem up to the first underscore, so that `pt005_t1.npz` and `pt005_t2.npz` never end
up on both sides of the split.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.float32]
Mask = NDArray[np.uint8]

IGNORED = 255
"""Value of a mask where nothing is known; losses leave it out."""

NEIGHBOUR_DISTANCES = (0, 1, 2, 3, 4)
"""Slices between a patch's channels in training; 0 repeats the centre slice. At 0.9 mm that is 0 to 3.6 mm."""


class DatasetError(ValueError):
    """A data file or a split that cannot be trained on; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Case:
    """One series: `image` (Z, Y, X) float32, arbitrary MR units, and `mask` (Z, Y, X) uint8 of label values."""

    name: str
    image: Volume
    mask: Mask

    @property
    def patient(self) -> str:
        """The patient the series belongs to."""
        return self.name.split("_")[0]


@dataclass(frozen=True)
class Split:
    """Patients to train on and patients held back from training; `seed` drew them."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    seed: int


def read_case(path: Path, labels: int) -> Case:
    """One npz file. Raises `DatasetError` unless it holds a 3-D image and a mask of that shape in 0..labels."""
    if not is_zipfile(path):
        raise DatasetError(f"{path.name}: is not an npz file, or cut short; write it with numpy.savez_compressed")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("image", "mask") if name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path.name}: cannot be read as npz: {error}") from error
    if len(arrays) != 2:
        raise DatasetError(f"{path.name}: must hold the arrays image and mask, found only {sorted(arrays)}")
    image, mask = arrays["image"], arrays["mask"]
    if image.ndim != 3 or 0 in image.shape:
        raise DatasetError(f"{path.name}: image must be (Z, Y, X) and not empty, found shape {image.shape}")
    if mask.shape != image.shape:
        raise DatasetError(f"{path.name}: mask {mask.shape} and image {image.shape} differ in shape")
    if image.dtype.kind not in "uif" or not np.isfinite(image).all():
        raise DatasetError(f"{path.name}: image must be real and finite numbers, found {image.dtype}")
    if mask.dtype.kind not in "ui" or mask.min() < 0 or mask.max() > labels:
        raise DatasetError(f"{path.name}: mask must be integers 0..{labels}, found {mask.dtype} up to {mask.max()}")
    return Case(path.stem, image.astype(np.float32), mask.astype(np.uint8))


def read_folder(folder: Path, labels: int, patients: Iterable[str] | None = None) -> tuple[Case, ...]:
    """Every `*.npz` of `folder` by name, or those of `patients` only; `DatasetError` where a patient has no file."""
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise DatasetError(f"{folder}: holds no .npz file; give the folder of the training data")
    if patients is not None:
        wanted = set(patients)
        paths = [path for path in paths if path.stem.split("_")[0] in wanted]
        missing = sorted(wanted - {path.stem.split("_")[0] for path in paths})
        if missing:
            raise DatasetError(f"{folder}: no file for patient {', '.join(missing)}")
    return tuple(read_case(path, labels) for path in paths)


def make_split(patients: Iterable[str], held_back: int, seed: int) -> Split:
    """Hold back `held_back` patients, drawn by `seed`; the same names and seed give the same split."""
    names = sorted(set(patients))
    if not 0 < held_back < len(names):
        raise DatasetError(f"cannot hold back {held_back} of {len(names)} patients; both sides need at least one")
    drawn = np.random.default_rng(seed).permutation(len(names))[:held_back]
    validation = {names[index] for index in drawn}
    return Split(tuple(n for n in names if n not in validation), tuple(sorted(validation)), seed)


def write_split(split: Split, path: Path) -> None:
    """Write the split as JSON."""
    path.write_text(json.dumps(asdict(split), indent=1) + "\n", encoding="utf-8")


def read_split(path: Path) -> Split:
    """Read a split; `DatasetError` when it is not one, or when a patient stands on both sides."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        split = Split(tuple(fields["train"]), tuple(fields["validation"]), int(fields["seed"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: not a split (train, validation, seed): {error!r}") from error
    both = sorted(set(split.train) & set(split.validation))
    if both:
        raise DatasetError(f"{path}: patients on both sides of the split: {', '.join(both)}")
    return split


class Sampler:
    """Draws class-balanced crops: a label is drawn first, then one of its voxels, which the crop is put about.

    `cases` hold images already normalised. Label 0 stands for a voxel anywhere. Equal seeds draw equal crops.
    `size` is the side of a crop, `patch` the side of its middle, which lies within the slice wherever that is large
    enough; the rest, there for rotation and scaling, may reach over the edge.
    """

    def __init__(self, cases: Sequence[Case], labels: int, channels: int, patch: int, size: int, seed: int) -> None:
        if not cases:
            raise DatasetError("no series to train on")
        self._cases, self._labels, self._channels, self._patch, self._size = cases, labels, channels, patch, size
        self._random = np.random.default_rng(seed)
        flat = [case.mask.reshape(-1) for case in cases]
        wanted = range(1, labels + 1)
        self._voxels = [[np.flatnonzero(mask == label).astype(np.int32) for label in wanted] for mask in flat]

    def draw(self, count: int) -> tuple[NDArray[np.float32], Mask]:
        """Crops (N, C, S, S) float32 and masks of their centre slices (N, S, S) uint8.

        Over the edge of the slice the image repeats the edge and the mask is IGNORED.
        """
        images = np.empty((count, self._channels, self._size, self._size), np.float32)
        masks = np.empty((count, self._size, self._size), np.uint8)
        for n in range(count):
            self._crop(images[n], masks[n])
        return images, masks

    def _crop(self, image: NDArray[np.float32], mask: Mask) -> None:
        chosen = int(self._random.integers(len(self._cases)))
        case, label = self._cases[chosen], int(self._random.integers(self._labels + 1))
        voxels = self._voxels[chosen][label - 1] if label else np.empty(0, np.int32)
        flat = voxels[self._random.integers(voxels.size)] if voxels.size else self._random.integers(case.mask.size)
        centre, y, x = (int(i) for i in np.unravel_index(flat, case.mask.shape))
        rows, rows_outside = self._range(y, case.mask.shape[1])
        columns, columns_outside = self._range(x, case.mask.shape[2])
        distance = int(self._random.choice(NEIGHBOUR_DISTANCES))
        half = self._channels // 2
        for channel in range(self._channels):
            z = min(max(centre + (channel - half) * distance, 0), case.mask.shape[0] - 1)
            image[channel] = case.image[z][np.ix_(rows, columns)]
        mask[:] = case.mask[centre][np.ix_(rows, columns)]
        mask[rows_outside] = IGNORED
        mask[:, columns_outside] = IGNORED

    def _range(self, centre: int, length: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        centre += int(self._random.integers(-self._patch // 4, self._patch // 4 + 1))
        half = self._patch // 2
        centre = min(max(centre, half), length - half) if length > self._patch else length // 2
        index = np.arange(centre - self._size // 2, centre - self._size // 2 + self._size)
        return np.clip(index, 0, length - 1), (index < 0) | (index >= length)
