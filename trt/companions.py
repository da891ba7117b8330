"""Files that go along with a model, as its manifest tells of them: its finder, and its weights in eight bits.

ManifestError, raised for what cannot be trusted, is here and is known to others by `trt.manifest`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt.labels import as_object, is_number, matches

FINDER_FILE = "finder.onnx"
INT8_FILE = "int8.onnx"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
DIGEST = r"[0-9a-f]{64}"


class ManifestError(ValueError):
    """A model that cannot be trusted or found; the message names the file, the field and what to do."""


@dataclass(frozen=True)
class Finder:
    """The small network that tells where the spine is; `path` is its ONNX file, `digest` its sha256.

    It runs on slices shrunk by `factor`, in patches of `patch` (y, x) of its own pixels. What is more likely spine than
    `threshold`, and `margin_mm` about it, is where the model runs. `kept` is the least share of a series' foreground
    that this kept, over the patients held back, as acquired and in other contrasts.
    """

    path: Path
    digest: str
    factor: int
    patch: tuple[int, int]
    channels: int
    threshold: float
    margin_mm: float
    kept: float


@dataclass(frozen=True)
class Quantised:
    """The model with weights and feature maps of eight bits, made by `trt.quantise`; `path` is its ONNX file.

    `model_digest` is the sha256 of the model that it was made from; `patches` of training patients told the ranges.
    """

    path: Path
    digest: str
    model_digest: str
    patches: int


def finder_fields(finder: Finder) -> dict[str, Any]:
    """What a manifest says of a finder; `parse_finder` reads it."""
    return {
        "file": finder.path.name,
        "sha256": finder.digest,
        "factor": finder.factor,
        "patch": list(finder.patch),
        "channels": finder.channels,
        "threshold": finder.threshold,
        "margin_mm": finder.margin_mm,
        "kept": finder.kept,
    }


def parse_finder(fields: object, path: Path) -> Finder:
    """The finder of the fields that `path` holds, or is to hold; `ManifestError` for what is wrong with them."""
    error = ManifestError(
        f"{path}: finder must be an object of file (a name), sha256, factor, patch [y, x] and odd channels in whole "
        f"pixels, threshold in 0..1, margin_mm and kept in 0..1, not {fields!r}"
    )
    item = as_object(fields, error)
    if set(item) != {"file", "sha256", "factor", "patch", "channels", "threshold", "margin_mm", "kept"}:
        raise error
    patch, counts = item["patch"], (item["factor"], item["channels"])
    if not isinstance(patch, list) or len(patch) != 2 or any(type(n) is not int or n < 1 for n in (*counts, *patch)):
        raise error
    threshold, margin, kept = item["threshold"], item["margin_mm"], item["kept"]
    if not all(is_number(number) for number in (threshold, margin, kept)):
        raise error
    if not (0 < threshold < 1 and margin >= 0 and 0 <= kept <= 1 and item["channels"] % 2):
        raise error
    if not matches(NAME, item["file"]) or not matches(DIGEST, item["sha256"]):
        raise error
    return Finder(
        path=path.parent / item["file"],
        digest=item["sha256"],
        factor=item["factor"],
        patch=(patch[0], patch[1]),
        channels=item["channels"],
        threshold=float(threshold),
        margin_mm=float(margin),
        kept=float(kept),
    )


def quantised_fields(quantised: Quantised) -> dict[str, Any]:
    """What a manifest says of a model in eight bits; `parse_quantised` reads it."""
    return {
        "file": quantised.path.name,
        "sha256": quantised.digest,
        "model_sha256": quantised.model_digest,
        "patches": quantised.patches,
    }


def parse_quantised(fields: object, path: Path, model_digest: str) -> Quantised:
    """The model in eight bits that the manifest at `path` tells of; made from the model of `model_digest`, or refused.

    Raises `ManifestError` for what is wrong with the fields.
    """
    error = ManifestError(
        f"{path}: int8 must be an object of file (a name), sha256, model_sha256 and patches (a number), not {fields!r}"
    )
    item = as_object(fields, error)
    if set(item) != {"file", "sha256", "model_sha256", "patches"}:
        raise error
    if not matches(NAME, item["file"]) or not all(matches(DIGEST, item[field]) for field in ("sha256", "model_sha256")):
        raise error
    if type(item["patches"]) is not int or item["patches"] < 1:
        raise error
    if item["model_sha256"] != model_digest:
        raise ManifestError(
            f"{path}: {item['file']} was made from another model.onnx than this; make it again by python -m "
            "trt.quantise, or take int8 out of the manifest"
        )
    return Quantised(path.parent / item["file"], item["sha256"], item["model_sha256"], item["patches"])
