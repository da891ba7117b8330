"""The gate an engine passes before it may serve: its logits beside those of a reference, on patches made anew.

The patches are cut from the phantom of `trt.phantom`, so that nothing need be stored and no patient is in them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trt.engine import EngineError, open_engine
from trt.extraction import shrink
from trt.manifest import Manifest
from trt.patches import Array, Predict, normalise, starts
from trt.phantom import spine_phantom

LEAST_AGREEMENT = 0.999
"""The least share of pixels whose largest logit must be that of the reference."""

LEAST_AGREEMENTS = {"int8": 0.995}
"""The same for precisions that have a bar of their own: in eight bits borders shift by a pixel here and there, and what
that costs in Dice is in the model's card."""

TOLERANCES = {"f32": 0.01, "f16": 0.1, "bf16": 0.5, "int8": 1.5}
"""How far a logit may lie from the reference, by the precision that is judged; logits of penn-spine run to 13."""

FIELD_MM = (300.0, 240.0)  # (y, x) of the phantom
SPACING_MM = 4.0  # across slices, as clinical series have it
SEED = 20


class GateError(EngineError):
    """An engine that does not calculate what its model does; `gate` holds the figures where there are any."""

    def __init__(self, text: str, gate: Gate | None = None) -> None:
        super().__init__(text)
        self.gate = gate


@dataclass(frozen=True)
class Gate:
    """What the comparison found, and what was asked of it."""

    reference: str  # what gave the logits that are taken for right
    probes_sha256: str  # of the patches
    patches: int
    classes: int  # that the reference saw in them, of those the model knows
    agreement: float  # share of pixels
    largest_difference: float  # of any logit; infinity where one is not finite
    least_agreement: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the engine may serve."""
        return self.agreement >= self.least_agreement and self.largest_difference <= self.tolerance


def probe_patches(manifest: Manifest, *, factor: int = 1, count: int = 8) -> Array:
    """Patches (count, C, H, W) float32 about the spine of a phantom, normalised as the manifest says.

    `factor` shrinks the slices first, as is done for a model's finder. Equal arguments give equal patches. Raises
    `ValueError` unless `count` is positive.
    """
    if count < 1:
        raise ValueError(f"count must be positive, not {count}")
    volume = _volume(manifest, factor)
    height, width = manifest.patch
    left = (volume.shape[2] - width) // 2
    tops = starts(volume.shape[1], height, 0.5)
    chosen = [(n % 3, tops[n % len(tops)]) for n in range(count)]
    patches = [volume[z : z + manifest.channels, top : top + height, left : left + width] for z, top in chosen]
    return np.stack(patches)


def whole_slice(manifest: Manifest, *, factor: int = 1) -> Array:
    """A patch (1, C, Y, X) float32 of as much of the phantom's middle slice as the model's stride lets through."""
    volume = _volume(manifest, factor)
    stride = manifest.stride or 1
    height, width = (length // stride * stride for length in volume.shape[1:])
    return np.ascontiguousarray(volume[None, 1 : 1 + manifest.channels, :height, :width])


def _volume(manifest: Manifest, factor: int) -> Array:
    """Slices (Z, Y, X) float32 of a phantom, normalised, at least three centre slices of a patch's size."""
    sides = [
        max(round(length / pixel), side * factor)
        for length, pixel, side in zip(FIELD_MM, manifest.spacing_mm, manifest.patch, strict=True)
    ]
    depth = manifest.channels + 2  # three centre slices, the middle one through the middle of the spine
    image = _image((depth, sides[0], sides[1]), (SPACING_MM, *manifest.spacing_mm))
    volume = normalise(image, manifest.normalisation)
    return shrink(volume, factor) if factor > 1 else volume


@lru_cache(maxsize=2)  # of a model and its finder: half of what a gate costs is to draw them
def _image(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> NDArray[np.uint16]:
    return spine_phantom(shape, spacing, seed=SEED).image


def probes_digest(patches: Array) -> str:
    """The sha256 of patches (N, C, H, W) float32, in hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(patches).tobytes()).hexdigest()


def _bars(precision: str) -> tuple[float, float]:
    """The least agreement and the tolerance for a precision that has one."""
    return LEAST_AGREEMENTS.get(precision, LEAST_AGREEMENT), TOLERANCES.get(precision, 0.0)


def compare(
    candidate: Predict,
    reference: Predict,
    patches: Array,
    *,
    tolerance: float,
    name: str,
    least_agreement: float = LEAST_AGREEMENT,
) -> Gate:
    """Run both on patches (N, C, H, W) float32 and tell how far the candidate is from the reference called `name`.

    A candidate that returns NaN or infinity is infinitely far. Raises `GateError` for logits of another shape or dtype.
    """
    wanted, found = reference(patches), candidate(patches)
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise GateError(
            f"the engine returned {found.shape} {found.dtype}, its reference {wanted.shape} {wanted.dtype}: "
            "it was built from another model"
        )
    finite = bool(np.isfinite(found).all())
    labels = wanted.argmax(axis=1)  # (N, H, W)
    return Gate(
        reference=name,
        probes_sha256=probes_digest(patches),
        patches=len(patches),
        classes=len(np.unique(labels)),
        agreement=float((found.argmax(axis=1) == labels).mean()),
        largest_difference=float(np.abs(found - wanted).max()) if finite else float("inf"),
        least_agreement=least_agreement,
        tolerance=tolerance,
    )


def judge(
    candidate: Predict,
    manifest: Manifest,
    precision: str,
    *,
    factor: int = 1,
    count: int = 8,
    patches: Array | None = None,
) -> Gate:
    """Compare an engine of `precision` with OpenVINO in float32; see `compare`.

    On `patches`, or where there are none on `count` of `probe_patches` with `factor`.

    A flexible engine has kernels of their own for other sizes, so it is compared on whole slices of the phantom too;
    what is told is then the worse of both. Raises `EngineError` for a precision without a tolerance, or where OpenVINO
    does not run the model.
    """
    if precision not in TOLERANCES:
        raise EngineError(f"no tolerance for precision {precision!r}; there is one for: {', '.join(TOLERANCES)}")
    if patches is None:
        patches = probe_patches(manifest, factor=factor, count=count)
    with open_engine(manifest, "openvino", batch=1, precision="f32") as reference:
        facts = reference.describe()
        name = f"{facts['backend']} {facts['version']} {facts['precision']}"
        least, tolerance = _bars(precision)
        gate = compare(candidate, reference, patches, tolerance=tolerance, name=name, least_agreement=least)
        if getattr(candidate, "flexible", False) and manifest.stride is not None:
            whole = whole_slice(manifest, factor=factor)
            other = compare(candidate, reference, whole, tolerance=tolerance, name=name, least_agreement=least)
            gate = replace(
                gate,
                patches=gate.patches + other.patches,
                agreement=min(gate.agreement, other.agreement),
                largest_difference=max(gate.largest_difference, other.largest_difference),
            )
        return gate


def require(gate: Gate | None, what: str) -> None:
    """Let the engine called `what` serve, or raise `GateError` where it did not pass, or was never judged."""
    if gate is None:
        raise GateError(f"{what}: was never compared with its reference; judge it on the GPU that it is to run on")
    if not gate.passed:
        raise GateError(
            f"{what}: {gate.agreement:.4%} of pixels agree with {gate.reference} (at least {gate.least_agreement:.1%} "
            f"must), logits differ by up to {gate.largest_difference:.3g} (at most {gate.tolerance:g} allowed); "
            "it does not serve: choose precision f32, or backend openvino",
            gate,
        )
