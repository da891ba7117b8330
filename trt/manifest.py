"""A model on disk: `<name>/model.onnx` and the `manifest.json` that says what goes in, what comes out, and for whom.

A manifest whose sha256 does not fit its model is refused: figures and labels speak of one file only.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_MODEL = "penn-spine"
MAX_OVERLAP = 0.75  # more than that calculates everything twenty times and gains nothing
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"

TEXTS = ("orientation", "training_data", "licence", "intended_use")
FIELDS = frozenset(
    {"name", "version", "sha256", "labels", "patch", "channels", "spacing_mm", "normalisation", "overlap", "validation"}
    | set(TEXTS)
)


class ManifestError(ValueError):
    """A model that cannot be trusted or found; the message names the file, the field and what to do."""


@dataclass(frozen=True)
class Label:
    """One class of the mask. `value` is its number in the mask and its channel in the logits; 0 is background."""

    value: int
    name: str


@dataclass(frozen=True)
class Normalisation:
    """Intensities to about 0..1: percentile `low` of the volume to 0, `high` to 1, then clipped to `clip`."""

    low: float
    high: float
    clip: tuple[float, float]


@dataclass(frozen=True)
class Manifest:
    """What a model expects and promises. Spatial pairs are (y, x); `path` is the model, `digest` its sha256."""

    name: str
    version: str
    path: Path
    digest: str
    labels: tuple[Label, ...]  # background excluded, values 1..n in order
    patch: tuple[int, int]  # pixels
    channels: int  # neighbouring slices, odd, the centre slice in the middle
    spacing_mm: tuple[float, float]  # in-plane, of the model's grid
    normalisation: Normalisation
    overlap: float  # default share of a patch shared with the next, 0..MAX_OVERLAP
    orientation: str
    training_data: str
    licence: str
    intended_use: str
    validation: Mapping[str, Any]

    @property
    def classes(self) -> int:
        """Channels of the logits: the labels and the background."""
        return len(self.labels) + 1


def models_dir() -> Path:
    """The folder of the models that come with the package."""
    return Path(__file__).parent / "models"


def available() -> tuple[str, ...]:
    """Names of the models that come with the package."""
    return tuple(sorted(path.parent.name for path in models_dir().glob("*/manifest.json")))


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(model: str | Path = DEFAULT_MODEL) -> Manifest:
    """The manifest of a model by name, or by the path of its folder or manifest.json; every field is checked.

    Raises `ManifestError` when there is no such model, a field is wrong, missing or unknown, or model.onnx has another
    sha256 than the manifest says.
    """
    path = _locate(model)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: not readable as JSON: {error}") from error
    manifest = parse(fields, path)
    if not manifest.path.is_file():
        raise ManifestError(f"{manifest.path}: missing; the manifest beside it is of no use without it")
    found = sha256(manifest.path)
    if found != manifest.digest:
        raise ManifestError(
            f"{manifest.path}: sha256 is {found}, the manifest says {manifest.digest}; "
            "restore the file, or export the model again so that both are written together"
        )
    return manifest


def _locate(model: str | Path) -> Path:
    given = Path(model)
    if isinstance(model, str) and re.fullmatch(NAME, model) and not given.exists():
        given = models_dir() / model
    path = given / "manifest.json" if given.is_dir() else given
    if not path.is_file():
        known = ", ".join(available()) or "none"
        raise ManifestError(f"no model {str(model)!r}; give a model's folder, or one of: {known}")
    return path


def parse(fields: object, path: Path) -> Manifest:
    """The manifest of the fields that `path` holds, or is to hold; `ManifestError` for what is wrong with them."""
    if not isinstance(fields, dict):
        raise ManifestError(f"{path}: must be a JSON object")
    unknown, missing = sorted(set(fields) - FIELDS), sorted(FIELDS - set(fields))
    if unknown or missing:
        raise ManifestError(f"{path}: unknown fields {unknown}, missing fields {missing}")

    def refuse(field: str, need: str) -> ManifestError:
        return ManifestError(f"{path}: {field} must be {need}, not {fields[field]!r}")

    def text(field: str, pattern: str, need: str) -> str:
        value = fields[field]
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise refuse(field, need)
        return value

    def pair(field: str, need: str) -> tuple[float, float]:
        value = fields[field]
        if not isinstance(value, list) or len(value) != 2 or not all(_is_number(item) and item > 0 for item in value):
            raise refuse(field, need)
        return float(value[0]), float(value[1])

    patch = pair("patch", "two sides in whole pixels (y, x)")
    if any(side % 1 for side in patch):
        raise refuse("patch", "two sides in whole pixels (y, x)")
    channels, overlap = fields["channels"], fields["overlap"]
    if type(channels) is not int or channels < 1 or channels % 2 == 0:
        raise refuse("channels", "an odd number of neighbouring slices")
    if not _is_number(overlap) or not 0 <= overlap <= MAX_OVERLAP:
        raise refuse("overlap", f"a number in 0..{MAX_OVERLAP}")
    return Manifest(
        name=text("name", NAME, "letters, digits, dots, dashes and underscores"),
        version=text("version", r"[0-9]+\.[0-9]+\.[0-9]+", "a version such as 1.2.3"),
        path=path.parent / "model.onnx",
        digest=text("sha256", r"[0-9a-f]{64}", "64 hexadecimal digits in lower case"),
        labels=_labels(fields["labels"], refuse("labels", "objects of value and name, values 1, 2, … in order")),
        patch=(int(patch[0]), int(patch[1])),
        channels=channels,
        spacing_mm=pair("spacing_mm", "two spacings in mm (y, x), both positive"),
        normalisation=_normalisation(
            fields["normalisation"],
            refuse("normalisation", "an object of percentiles low < high in 0..100 and clip [low, high]"),
        ),
        overlap=float(overlap),
        **{field: text(field, r"(?s).*\S.*", "text that is not empty") for field in TEXTS},
        validation=_object(fields["validation"], refuse("validation", "an object of measured figures")),
    )


def _labels(value: object, error: ManifestError) -> tuple[Label, ...]:
    if not isinstance(value, list) or not value:
        raise error
    labels = []
    for number, item in enumerate(value, start=1):
        item = _object(item, error)
        if set(item) != {"value", "name"} or item["value"] != number or not isinstance(item["name"], str):
            raise error
        labels.append(Label(number, item["name"]))
    if not all(label.name.strip() for label in labels) or len({label.name for label in labels}) != len(labels):
        raise error
    return tuple(labels)


def _normalisation(value: object, error: ManifestError) -> Normalisation:
    item = _object(value, error)
    if set(item) != {"low", "high", "clip"} or not isinstance(item["clip"], list) or len(item["clip"]) != 2:
        raise error
    if not all(_is_number(number) for number in (item["low"], item["high"], *item["clip"])):
        raise error
    low, high = float(item["low"]), float(item["high"])
    clip = (float(item["clip"][0]), float(item["clip"][1]))
    if not 0 <= low < high <= 100 or not clip[0] < clip[1]:
        raise error
    return Normalisation(low, high, clip)


def _object(value: object, error: ManifestError) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise error
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
