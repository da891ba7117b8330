"""A model on disk: `<name>/model.onnx` and the `manifest.json` that says what goes in, what comes out, and for whom.

A manifest whose sha256 does not fit its model is refused: figures and labels speak of one file only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt.companions import (
    DIGEST,
    FINDER_FILE,
    INT8_FILE,
    NAME,
    Finder,
    ManifestError,
    Quantised,
    finder_fields,
    parse_finder,
    parse_quantised,
    quantised_fields,
)
from trt.labels import Code, Label, as_object, is_number, matches, parse_labels

__all__ = [
    "DEFAULT_MODEL",
    "FIELDS",
    "FINDER_FILE",
    "INT8_FILE",
    "MAX_OVERLAP",
    "OPTIONAL",
    "Code",
    "Finder",
    "Label",
    "Manifest",
    "ManifestError",
    "Normalisation",
    "Quantised",
    "available",
    "finder_fields",
    "load",
    "models_dir",
    "parse",
    "parse_finder",
    "parse_quantised",
    "quantised_fields",
    "sha256",
]

DEFAULT_MODEL = "penn-spine"
MAX_OVERLAP = 0.75  # more than that calculates everything twenty times and gains nothing

TEXTS = ("orientation", "training_data", "licence", "intended_use")
FIELDS = frozenset(
    {"name", "version", "sha256", "labels", "patch", "channels", "spacing_mm", "normalisation", "overlap", "validation"}
    | set(TEXTS)
)
OPTIONAL = frozenset({"finder", "int8", "stride"})


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
    finder: Finder | None = None  # without one, the model runs everywhere but in air
    quantised: Quantised | None = None  # for precision int8
    stride: int | None = None  # patches may have sides of any multiple of it; without one, only those of `patch`

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


def load(model: str | Path = DEFAULT_MODEL, *, int8: bool = True) -> Manifest:
    """The manifest of a model by name, or by the path of its folder or manifest.json; every field is checked.

    Without `int8`, what it says of a version in eight bits is passed over: that is how a wrong one is made anew.

    Raises `ManifestError` when there is no such model, a field is wrong, missing or unknown, or a file has another
    sha256 than the manifest says.
    """
    path = _locate(model)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: not readable as JSON: {error}") from error
    if not int8 and isinstance(fields, dict):
        fields.pop("int8", None)
    manifest = parse(fields, path)
    _require(manifest.path, manifest.digest)
    for companion in (manifest.finder, manifest.quantised):
        if companion is not None:
            _require(companion.path, companion.digest)
    return manifest


def _require(path: Path, digest: str) -> None:
    if not path.is_file():
        raise ManifestError(f"{path}: missing; the manifest beside it is of no use without it")
    found = sha256(path)
    if found != digest:
        raise ManifestError(
            f"{path}: sha256 is {found}, the manifest says {digest}; "
            "restore the file, or export the model again so that both are written together"
        )


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
    unknown, missing = sorted(set(fields) - FIELDS - OPTIONAL), sorted(FIELDS - set(fields))
    if unknown or missing:
        raise ManifestError(f"{path}: unknown fields {unknown}, missing fields {missing}")

    def refuse(field: str, need: str) -> ManifestError:
        return ManifestError(f"{path}: {field} must be {need}, not {fields[field]!r}")

    def text(field: str, pattern: str, need: str) -> str:
        value = fields[field]
        if not matches(pattern, value):
            raise refuse(field, need)
        return str(value)

    def pair(field: str, need: str) -> tuple[float, float]:
        value = fields[field]
        if not isinstance(value, list) or len(value) != 2 or not all(is_number(item) and item > 0 for item in value):
            raise refuse(field, need)
        return float(value[0]), float(value[1])

    patch = pair("patch", "two sides in whole pixels (y, x)")
    if any(side % 1 for side in patch):
        raise refuse("patch", "two sides in whole pixels (y, x)")
    stride = fields.get("stride")
    if stride is not None and (type(stride) is not int or stride < 1 or any(side % stride for side in patch)):
        raise refuse("stride", "a whole number of pixels that the sides of patch are multiples of")
    channels, overlap = fields["channels"], fields["overlap"]
    if type(channels) is not int or channels < 1 or channels % 2 == 0:
        raise refuse("channels", "an odd number of neighbouring slices")
    if not is_number(overlap) or not 0 <= overlap <= MAX_OVERLAP:
        raise refuse("overlap", f"a number in 0..{MAX_OVERLAP}")
    return Manifest(
        name=text("name", NAME, "letters, digits, dots, dashes and underscores"),
        version=text("version", r"[0-9]+\.[0-9]+\.[0-9]+", "a version such as 1.2.3"),
        path=path.parent / "model.onnx",
        digest=text("sha256", DIGEST, "64 hexadecimal digits in lower case"),
        labels=parse_labels(
            fields["labels"],
            refuse(
                "labels",
                "objects of value, name (ASCII, at most 47 characters, no backslash) and, all or none, code, category "
                "and colour, values 1, 2, … in order",
            ),
        ),
        patch=(int(patch[0]), int(patch[1])),
        channels=channels,
        spacing_mm=pair("spacing_mm", "two spacings in mm (y, x), both positive"),
        normalisation=_normalisation(
            fields["normalisation"],
            refuse("normalisation", "an object of percentiles low < high in 0..100 and clip [low, high]"),
        ),
        overlap=float(overlap),
        **{field: text(field, r"(?s).*\S.*", "text that is not empty") for field in TEXTS},
        validation=as_object(fields["validation"], refuse("validation", "an object of measured figures")),
        finder=parse_finder(fields["finder"], path) if "finder" in fields else None,
        quantised=parse_quantised(fields["int8"], path, str(fields["sha256"])) if "int8" in fields else None,
        stride=stride,
    )


def _normalisation(value: object, error: ManifestError) -> Normalisation:
    item = as_object(value, error)
    if set(item) != {"low", "high", "clip"} or not isinstance(item["clip"], list) or len(item["clip"]) != 2:
        raise error
    if not all(is_number(number) for number in (item["low"], item["high"], *item["clip"])):
        raise error
    low, high = float(item["low"]), float(item["high"])
    clip = (float(item["clip"][0]), float(item["clip"][1]))
    if not 0 <= low < high <= 100 or not clip[0] < clip[1]:
        raise error
    return Normalisation(low, high, clip)
