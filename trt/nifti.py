"""NIfTI images with their masks, in either of two layouts, turned to the model's axes by their affine.

nnU-Net's: `imagesTr/<case>_0000.nii.gz` and `labelsTr/<case>.nii.gz`. A `dataset.json` beside them names the values of
the masks, which are then mapped by name. There, `spine_001` is a patient of its own, as nnU-Net has it.
Flat: `<case>.nii.gz` and `<case>_mask.nii.gz`; the patient is the name up to the first underscore.
`.nii` is read as well as `.nii.gz`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from trt.cases import Arrays, DatasetError, Source, broken, plain
from trt.geometry import nearest_axes, turn

_SUFFIX = re.compile(r"\.nii(\.gz)?$")
_MASK = "_mask"
_CHANNEL = re.compile(r"_\d{4}$")
_NUMBERED = re.compile(r"[A-Za-z-]+_\d+(?=_|$)")
_SAME_MM = 1e-3
_RIGHT_ANGLE = 1e-3
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's world is RAS
_EXPORT = "export it again"


def list_sources(folder: Path, names: Sequence[str]) -> list[Source]:
    """Return the pairs of `folder`, by name, without reading them; an image without its mask fails when read.

    Raises
    ------
    DatasetError
        `dataset.json` cannot be read, or names a label that `names` lacks.
    """
    if (folder / "imagesTr").is_dir():
        images, masks = _by_name(folder / "imagesTr"), _by_name(folder / "labelsTr")
        stems = {name: name if name in masks else _CHANNEL.sub("", name) for name in images}
        extra = sorted(name for name, stem in stems.items() if stem != name and not name.endswith("_0000"))
        images = {stems[name]: paths for name, paths in images.items() if name not in extra}
        mapping, wanted = _mapping(folder / "dataset.json", names), "labelsTr/{}.nii.gz"
        told = "is another channel, and a series has one: make it a case of its own, or remove it"
        several = [broken(f"imagesTr/{name}", told, _numbered(stems[name])) for name in extra]
        patients = {name: _numbered(name) for name in {*images, *masks}}
    else:
        files = _by_name(folder)
        masks = {name.removesuffix(_MASK): paths for name, paths in files.items() if name.endswith(_MASK)}
        images = {name: paths for name, paths in files.items() if not name.endswith(_MASK)}
        mapping, wanted, several = None, "{}_mask.nii.gz", []
        patients = {name: name.split("_")[0] for name in {*images, *masks}}
    sources = []
    for name in sorted({*images, *masks}):
        image, mask, patient = images.get(name, []), masks.get(name, []), patients[name]
        if len(image) > 1 or len(mask) > 1:
            twice = image if len(image) > 1 else mask
            sources.append(broken(f"{twice[0].name} and {twice[1].name}", "are the same case; keep one", patient))
        elif not mask:
            sources.append(broken(image[0].name, f"has no mask {wanted.format(name)}; add it or remove this", patient))
        elif not image:
            sources.append(broken(mask[0].name, "is a mask without its image; add it or remove this", patient))
        else:
            where = f"{image[0].name} and {mask[0].name}" if image[0].name != mask[0].name else image[0].name
            sources.append(Source(where, name, patient, partial(_read, image[0], mask[0], mapping)))
    return sources + several


def _numbered(name: str) -> str:
    match = _NUMBERED.match(name)
    return match.group() if match else name.split("_")[0]


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """Return the NIfTI files of a folder by their name without suffix."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        if _SUFFIX.search(path.name) and not path.name.startswith("."):  # "._x.nii" is what macOS leaves
            found.setdefault(_SUFFIX.sub("", path.name), []).append(path)
    return found


def _mapping(path: Path, names: Sequence[str]) -> dict[int, int] | None:
    """Return which value each value of a mask becomes, or None where values stay: no file, or no names to go by."""
    if not path.exists() or not names:
        return None
    try:
        given = json.loads(path.read_text(encoding="utf-8"))["labels"]
        # nnU-Net 2 has {"vertebra": 1}, nnU-Net 1 {"1": "vertebra"}.
        pairs = [(value, key) if str(key).isdigit() else (key, value) for key, value in given.items()]
        values = {plain(str(name)): int(value) for name, value in pairs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f'{path.name}: must hold "labels", each a name and one number ({error!r})') from error
    known = {"background": 0} | {plain(name): value for value, name in enumerate(names, 1)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise DatasetError(
            f"{path.name}: the model has no label {', '.join(map(repr, unknown))}; it has {', '.join(names)}"
        )
    return {value: known[name] for name, value in values.items()}


def _read(image_path: Path, mask_path: Path, mapping: Mapping[int, int] | None) -> Arrays:
    """Read one pair. Raises `DatasetError` for files that are damaged, lie nowhere in the patient, or do not match."""
    image, affine = _load(image_path)
    mask, other = _load(mask_path)
    both = f"{image_path.name} and {mask_path.name}"
    if image_path.name == mask_path.name:
        both = f"{image_path.parent.name}/{image_path.name} and {mask_path.parent.name}/{mask_path.name}"
    if image.shape != mask.shape:
        raise DatasetError(f"{both}: differ in shape, {image.shape} and {mask.shape}; resample the mask to the image")
    if np.abs(affine - other).max() > _SAME_MM:
        raise DatasetError(f"{both}: lie in different places (their affines differ); resample the mask to the image")
    if mask.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # found below
            whole = mask.astype(np.int32)
        if not np.array_equal(whole, mask):
            raise DatasetError(f"{mask_path.name}: a mask holds whole numbers, label values, and nothing between them")
        mask = whole
    if mapping is not None:
        mask = _mapped(mask_path.name, mask, mapping)
    axes, flips = nearest_axes(affine)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    spacing = (float(lengths[axes[0]]), float(lengths[axes[1]]), float(lengths[axes[2]]))
    return Arrays(turn(image, axes, flips), turn(mask, axes, flips), spacing)


def _mapped(name: str, mask: NDArray[Any], mapping: Mapping[int, int]) -> NDArray[np.uint8]:
    values, places = np.unique(mask, return_inverse=True)
    unknown = [int(value) for value in values if int(value) not in {0, *mapping}]
    if unknown:
        raise DatasetError(f"{name}: holds the values {', '.join(map(str, unknown[:10]))}, which dataset.json lacks")
    mapped = np.array([mapping.get(int(value), 0) for value in values], np.uint8)
    return mapped[places].reshape(mask.shape)


def _load(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return voxels as stored (scaled) and the affine from their indices to mm in LPS."""
    try:
        file = nibabel.load(path)
        if not isinstance(file, nibabel.Nifti1Image):  # NIfTI-2 is one as well
            raise ImageFileError("another format")
        voxels, affine = np.asanyarray(file.dataobj), _TO_LPS @ np.asarray(file.affine, np.float64)
        placed = int(file.header["qform_code"]) > 0 or int(file.header["sform_code"]) > 0
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        ImageFileError,
        HeaderDataError,
        zlib.error,
    ) as error:
        raise DatasetError(
            f"{path.name}: cannot be read as NIfTI, or is cut short ({type(error).__name__}); {_EXPORT}"
        ) from error
    if not placed:
        raise DatasetError(f"{path.name}: does not say how it lies in the patient (no qform, no sform); {_EXPORT}")
    if voxels.ndim > 3 and voxels.shape[3:] == (1,) * (voxels.ndim - 3):
        voxels = voxels.reshape(voxels.shape[:3])
    if voxels.ndim != 3 or voxels.dtype.kind not in "uif":
        raise DatasetError(f"{path.name}: must be one volume of grey values, found {voxels.dtype} {voxels.shape}")
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or not lengths.all():
        raise DatasetError(f"{path.name}: its affine is not usable; {_EXPORT}")
    cosines = axes / lengths
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > _RIGHT_ANGLE:
        raise DatasetError(f"{path.name}: its axes are not at right angles (a sheared affine); resample it")
    return voxels, affine
