"""One series to train on or to be judged by, and what every one must satisfy, whatever kind of file it came from.

Readers give `Source`s: cheap to list, read one at a time. Their arrays stay untrusted until `make_case` has seen them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trt.geometry import in_plane, mask_to_model, to_model

Volume: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.uint8]
Tell: TypeAlias = Callable[[str], None]
"""Takes a sentence about what was left out or looks odd, and yet is no error."""

NOMINAL_SPACING = (0.9, 0.9375, 0.9375)
"""mm (z, y, x): what an npz file has that does not say otherwise."""
ABNORMAL = frozenset({"neoplasm", "tumour", "tumor", "lesion", "edema", "oedema", "cyst"})
"""Labels that lie within anatomy; a mask of these alone teaches a network that the anatomy is background."""

_SPACING_MM = (0.02, 50.0)  # beyond it lengths are in another unit than mm
_MAX_VOXELS = 2**27  # as in serving
_LISTED = 10


class DatasetError(ValueError):
    """A data file or a split that cannot be trained on; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Case:
    """One series: `image` (Z, Y, X) float32, arbitrary MR units, and `mask` (Z, Y, X) uint8 of label values.

    `spacing` is mm along (Z, Y, X). `group` is the patient; if empty, the patient is `name` up to the first underscore.
    """

    name: str
    image: Volume
    mask: Mask
    spacing: tuple[float, float, float] = NOMINAL_SPACING
    group: str = ""

    @property
    def patient(self) -> str:
        """The patient the series belongs to."""
        return self.group or self.name.split("_")[0]


@dataclass(frozen=True)
class Arrays:
    """What a file holds, unchecked: `image` and `mask` (Z, Y, X) on the model's axes, `spacing` mm along them."""

    image: NDArray[Any]
    mask: NDArray[Any]
    spacing: Sequence[float] | NDArray[Any]


@dataclass(frozen=True)
class Source:
    """One series that can be read. `where` is how messages name its files; `patient` is "" where nobody can tell.

    `read` raises `DatasetError`, whose text names the file.
    """

    where: str
    name: str
    patient: str
    read: Callable[[], Arrays]


def broken(where: str, reason: str, patient: str = "") -> Source:
    """Return a source whose reading fails, for what is found wrong while listing: all of it is then told at once."""

    def read() -> Arrays:
        raise DatasetError(f"{where}: {reason}")

    return Source(where, where, patient, read)


def refuse(problems: Sequence[str]) -> None:
    """Raise `DatasetError` with up to ten of `problems`, one to a line, if there are any."""
    if problems:
        more = [f"and {len(problems) - _LISTED} more like these"] if len(problems) > _LISTED else []
        raise DatasetError("\n".join([*problems[:_LISTED], *more]))


def plain(name: str) -> str:
    """Return a label's name as it is compared: lower case, spaces for underscores."""
    return " ".join(name.lower().replace("_", " ").split())


def make_case(
    source: Source, arrays: Arrays, labels: int, names: Sequence[str], pixels: tuple[float, float] | None
) -> Case:
    """Check what a source gave and bring it to `pixels` mm (y, x); None leaves the grid as it is.

    `labels` is the number of labels, `names` theirs if known, value i + 1 being `names[i]`.

    Raises
    ------
    DatasetError
        Image and mask differ in shape, a value is not finite or no label, the image is of one value, the mask is empty
        or marks a lesion without the anatomy about it, or the spacing is not in mm.
    """
    where = source.where
    image, mask = _image(where, arrays.image), arrays.mask
    if mask.shape != image.shape:
        raise DatasetError(f"{where}: mask {mask.shape} and image {image.shape} differ in shape")
    spacing = np.asarray(arrays.spacing)
    if spacing.shape != (3,) or spacing.dtype.kind not in "uif" or not np.isfinite(spacing).all():
        raise DatasetError(f"{where}: spacing must be three finite numbers, mm along (Z, Y, X)")
    if not _SPACING_MM[0] <= spacing.min() <= spacing.max() <= _SPACING_MM[1]:
        told = " x ".join(f"{value:g}" for value in spacing)
        raise DatasetError(f"{where}: a voxel of {told} mm is not plausible; spacing is mm along (Z, Y, X)")
    checked = _mask(where, mask, labels, names)
    if image.min() == image.max():
        raise DatasetError(f"{where}: all voxels of the image have the same value; export the image again")
    millimetres = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    if pixels is not None:
        weights = in_plane((image.shape[1], image.shape[2]), millimetres[1:], pixels)
        if image.shape[0] * weights.size[0] * weights.size[1] > _MAX_VOXELS:
            raise DatasetError(
                f"{where}: at the model's pixel size slices would have {weights.size[0]} x {weights.size[1]} pixels"
            )
        if not weights.identity:
            image, checked = to_model(image, weights), mask_to_model(checked, weights)
            millimetres = (millimetres[0], *pixels)
    return Case(source.name, image, checked, millimetres, source.patient)


def _image(where: str, image: NDArray[Any]) -> Volume:
    if image.ndim != 3 or 0 in image.shape:
        raise DatasetError(f"{where}: image must be (Z, Y, X) and not empty, found shape {image.shape}")
    if image.dtype.kind not in "uif":
        raise DatasetError(f"{where}: image must be real and finite numbers, found {image.dtype}")
    with np.errstate(over="ignore"):  # found below
        voxels = image.astype(np.float32)
    unusable = int(np.count_nonzero(~np.isfinite(voxels)))
    if unusable:
        raise DatasetError(f"{where}: image must be real and finite numbers, {unusable} of its voxels are not")
    return voxels


def _mask(where: str, mask: NDArray[Any], labels: int, names: Sequence[str]) -> Mask:
    if mask.dtype.kind not in "ui":
        raise DatasetError(f"{where}: mask must be integers 0..{labels}, found {mask.dtype}")
    values = [int(value) for value in np.unique(mask)]
    unknown = [value for value in values if not 0 <= value <= labels]
    if unknown:
        listed = ", ".join(map(str, unknown[:_LISTED])) + (", ..." if len(unknown) > _LISTED else "")
        meant = f" ({', '.join(f'{value} {name}' for value, name in enumerate(names, 1))})" if names else ""
        raise DatasetError(f"{where}: mask must be integers 0..{labels}{meant}, found the values {listed}")
    if values == [0]:
        raise DatasetError(f"{where}: the mask is empty; take the series away, or mark what it shows")
    marked = [names[value - 1] for value in values if value] if names else []
    anatomy = [name for name in names if plain(name) not in ABNORMAL]
    if marked and anatomy and not set(marked) & set(anatomy):
        raise DatasetError(
            f"{where}: marks {' and '.join(marked)} but none of {', '.join(anatomy)}; train with all labels marked, "
            "since unmarked anatomy would be taught as background"
        )
    return mask.astype(np.uint8)
