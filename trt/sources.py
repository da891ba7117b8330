"""A folder of any kind of training data as cases: npz files, NIfTI pairs, or what a registered reader knows.

npz: one file per series with `image` and `mask` (Z, Y, X) on the model's axes and, if wished, `spacing` (3,) mm. The
patient is the file's stem up to the first underscore, so that `pt005_t1.npz` and `pt005_t2.npz` never end up on both
sides of the split. NIfTI: see `trt.nifti`.

A reader is an entry point of the group `pennode.datasets`: a function of (folder, names of the labels, tell) that
returns `Source`s, or none where the folder holds nothing of its kind. DICOM is read by one: this package knows none.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np

from trt.cases import ABNORMAL, NOMINAL_SPACING, Arrays, Case, DatasetError, Source, Tell, make_case, plain, refuse

_LOG = logging.getLogger(__name__)

READERS = "pennode.datasets"
PIXELS = (0.9375, 0.9375)
"""mm (y, x) of the grid to train on."""


def read_case(path: Path, labels: int, names: Sequence[str] = ()) -> Case:
    """One npz file, on its own grid; see `trt.cases.make_case` for what raises `DatasetError`."""
    source = _npz(path)
    return make_case(source, source.read(), labels, names, None)


def read_folder(
    folder: Path,
    labels: int,
    patients: Iterable[str] | None = None,
    *,
    names: Sequence[str] = (),
    pixels: tuple[float, float] = PIXELS,
    warn: Tell = _LOG.warning,
) -> tuple[Case, ...]:
    """Read every series of `folder`, or those of `patients` only, onto slices of `pixels` mm (y, x).

    `labels` is the number of labels, `names` are theirs: value i + 1 is `names[i]`. They are needed for DICOM, and map
    the values of a NIfTI data set that names its own. `warn` is told of what is left out.

    Raises
    ------
    DatasetError
        The folder holds no data, a patient has no file, or files cannot be trained on: up to ten of them are named.
    """
    if names and len(names) != labels:
        raise DatasetError(f"{labels} labels, but {len(names)} names for them: {', '.join(names)}")
    found = list_sources(folder, names, warn)
    if patients is not None:
        wanted = set(patients)
        missing = sorted(wanted - {source.patient for source in found})
        if missing:
            raise DatasetError(f"{folder}: no file for patient {', '.join(missing)}")
        found = [source for source in found if source.patient in wanted or not source.patient]
    cases, problems = [], []
    for source in found:
        try:
            cases.append(make_case(source, source.read(), labels, names, pixels))
        except DatasetError as error:
            problems.append(str(error))
    refuse(problems)
    if len(cases) > 1 and len({case.patient for case in cases}) == 1:
        warn(f"all {len(cases)} series count as one patient, {cases[0].patient}: name files <patient>_<series>")
    marked = {int(value) for case in cases for value in np.unique(case.mask)}
    for value, name in enumerate(names, 1):
        if value not in marked and plain(name) not in ABNORMAL:
            warn(f"no series marks {name}: a network trained on these alone learns that there is none")
    return tuple(cases)


def list_sources(folder: Path, names: Sequence[str], tell: Tell) -> list[Source]:
    """Return what `folder` holds, in a fixed order, without reading it; see `read_folder`."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: is not a folder; give the folder of the training data")
    npz = [_npz(path) for path in sorted(folder.glob("*.npz"))]
    pairs = _nifti(folder, names)
    if npz and pairs:
        raise DatasetError(f"{folder}: holds both npz and NIfTI files; give each kind a folder of its own")
    if npz or pairs:
        return npz or pairs
    if any(folder.iterdir()):
        for entry in sorted(entry_points(group=READERS), key=lambda entry: entry.name):
            found: list[Source] = entry.load()(folder, names, tell)
            if found:
                return found
    raise DatasetError(
        f"{folder}: holds no .npz file, no NIfTI image with its mask and no DICOM series with a segmentation; "
        "give the folder of the training data"
    )


def _nifti(folder: Path, names: Sequence[str]) -> list[Source]:
    if not any(
        path.name.endswith((".nii", ".nii.gz")) for part in ("", "imagesTr") for path in (folder / part).glob("*")
    ):
        return []
    try:
        from trt import nifti  # serving has no nibabel
    except ModuleNotFoundError as error:
        if error.name != "nibabel":
            raise
        raise DatasetError(f"{folder}: NIfTI files need nibabel; install pennode[train]") from error
    return nifti.list_sources(folder, names)


def _npz(path: Path) -> Source:
    return Source(path.name, path.stem, path.stem.split("_")[0], partial(_read_npz, path))


def _read_npz(path: Path) -> Arrays:
    if not is_zipfile(path):
        raise DatasetError(f"{path.name}: is not an npz file, or cut short; write it with numpy.savez_compressed")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("image", "mask", "spacing") if name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path.name}: cannot be read as npz: {error}") from error
    spacing = arrays.pop("spacing", np.array(NOMINAL_SPACING))
    if len(arrays) != 2:
        raise DatasetError(f"{path.name}: must hold the arrays image and mask, found only {sorted(arrays)}")
    return Arrays(arrays["image"], arrays["mask"], spacing)
