"""Training data: series with their masks (read in `trt.sources`), split by patient."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from trt.cases import Case, DatasetError, Mask, Volume
from trt.manifest import Manifest
from trt.sources import read_folder

__all__ = [
    "IGNORED",
    "Case",
    "DatasetError",
    "Mask",
    "Split",
    "Volume",
    "make_split",
    "read_folder",
    "read_held_back",
    "read_split",
    "write_split",
]

IGNORED = 255
"""Value of a mask where nothing is known; losses leave it out."""


@dataclass(frozen=True)
class Split:
    """Patients to train on and patients held back from training; `seed` drew them."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    seed: int


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


def read_held_back(folder: Path, manifest: Manifest) -> tuple[Case, ...]:
    """The series of `folder` that the model's split holds back, on its grid.

    Raises as `read_split` and `read_folder`.
    """
    names = [label.name for label in manifest.labels]
    held_back = read_split(manifest.path.with_name("split.json")).validation
    return read_folder(folder, len(names), held_back, names=names, pixels=manifest.spacing_mm)
