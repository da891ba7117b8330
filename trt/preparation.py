"""What comes before the patches, on a torch device: resampling, normalisation, and where to run.

As `trt.geometry.to_model`, `trt.patches.normalise` and `trt.extraction.select`, for series that fit the budget whole:
the pixels go up once, as the scanner gave them, and what comes down is a region. `send` lets them go up while another
series is calculated.

Tested on torch's CPU device, which runs the very same code; not run on a GPU yet.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trt import extraction
from trt.copies import Rising, copies
from trt.device import BUDGET_MB, on_stream
from trt.engine import DeviceEngine
from trt.extraction import Extraction, Selection
from trt.geometry import Resampling
from trt.manifest import Finder, Manifest, Normalisation
from trt.patches import Array, Predict, Region
from trt.slabs import Cut, down, padded, slabs, up

log = logging.getLogger(__name__)


def send(voxels: Array, engine: DeviceEngine, most_mb: float) -> Rising | None:
    """The series' own `voxels` (Z, Y, X) float32 on their way to the engine's device, for `prepare`.

    None where they take more than `most_mb`, or more than there is: `prepare` then takes them from the host. It may be
    called while the engine calculates, from another thread.
    """
    if voxels.nbytes > most_mb * 2**20:
        return None
    try:
        return copies(engine.device).up(voxels)
    except torch.OutOfMemoryError as error:
        log.warning("no device memory to send a series ahead to: %s", str(error).partition("\n")[0])
        return None


def prepare(
    voxels: Array,
    weights: Resampling,
    normalisation: Normalisation,
    engine: DeviceEngine,
    budget_mb: float = BUDGET_MB,
    *,
    rising: Rising | None = None,
) -> Tensor | None:
    """The normalised volume on the model's grid (Z, Y, X) float32, on the engine's device, of the series' own `voxels`.

    `rising` is what `send` gave for them, and is used up.

    None where it takes more than a quarter of the budget, or of what memory there is: it is then for the host to
    prepare. Raises `ValueError` for NaN or infinity.
    """
    rows, columns = weights.size
    if 4 * len(voxels) * rows * columns > budget_mb * 2**18:
        return None
    try:
        with torch.no_grad(), on_stream(engine.stream):
            there = voxels if rising is None else rising.there()
            return _normalised(_resampled(there, weights, engine.device), normalisation)
    except torch.OutOfMemoryError as error:
        log.warning("no device memory to prepare a series with; the host does: %s", str(error).partition("\n")[0])
        return None


def select(
    pixels: Tensor,
    manifest: Manifest,
    wanted: Extraction,
    finder: Predict | None,
    engine: DeviceEngine,
    *,
    batch: int = 8,
) -> Selection:
    """Where to run the model on what `prepare` gave; as `trt.extraction.select`.

    A `finder` that is not an engine of the same device is given the pixels on the host, as any is where the device has
    no memory left.
    """
    try:
        with torch.no_grad(), on_stream(engine.stream):
            return _select(pixels, manifest, wanted, finder, engine, batch)
    except torch.OutOfMemoryError as error:
        log.warning("no device memory to find a spine with; the host does: %s", str(error).partition("\n")[0])
    with on_stream(engine.stream):
        on_host = down(pixels)
    return extraction.select(on_host, manifest, wanted, finder, batch=batch)


def _select(
    pixels: Tensor,
    manifest: Manifest,
    wanted: Extraction,
    finder: Predict | None,
    engine: DeviceEngine,
    batch: int,
) -> Selection:
    """As `select`, on the device."""
    if wanted == "spine" and manifest.finder is not None and finder is not None:
        if not isinstance(finder, DeviceEngine) or finder.device != engine.device:
            return extraction.select(down(pixels), manifest, wanted, finder, batch=batch)
        spine, engine_of_it = manifest.finder, finder
        region, reason = extraction.outline(
            lambda: _seen(pixels, spine, engine_of_it, batch), tuple(pixels.shape), spine, manifest.spacing_mm
        )
        return Selection(region, "all" if region is None else "spine", reason)
    if wanted == "all":
        return Selection(None, "all")
    found = _tissue(pixels, manifest.channels)
    return Selection(found, "all" if found is None else "tissue", "" if found is not None else "no tissue was seen")


def percentiles(values: Tensor, wanted: tuple[float, ...]) -> list[float]:
    """Percentiles of finite values of any shape, as `numpy.percentile` interpolates; the host waits for them."""
    flat = values.reshape(-1)
    places = [share / 100 * (len(flat) - 1) for share in wanted]
    ranks = [(math.floor(place), min(math.floor(place) + 1, len(flat) - 1)) for place in places]
    found = down(torch.stack([flat.kthvalue(rank + 1).values for pair in ranks for rank in pair])).astype(np.float64)
    pairs = found.reshape(-1, 2).tolist()
    return [low + (high - low) * (place % 1) for (low, high), place in zip(pairs, places, strict=True)]


def _resampled(voxels: Array | Tensor, weights: Resampling, device: torch.device) -> Tensor:
    """Slices with the model's pixels, resampled there; those of an array are sent one by one, and stay as they are."""
    if weights.identity and isinstance(voxels, Tensor):
        return voxels
    there = torch.empty((len(voxels), *weights.size), device=device)
    if weights.identity:
        return there.copy_(up(voxels, device))
    rows, columns = (up(matrix.toarray(), device) for matrix in weights.to_model)
    for plane, own in zip(there, voxels, strict=True):
        sent = own if isinstance(own, Tensor) else up(own, device)
        torch.matmul(torch.matmul(rows, sent), columns.T, out=plane)
    return there


def _normalised(volume: Tensor, rule: Normalisation) -> Tensor:
    """As `trt.patches.normalise`, in place."""
    if not np.isfinite(down(torch.stack(torch.aminmax(volume)))).all():
        raise ValueError("the volume holds NaN or infinity; mend the pixels before normalising")
    low, high = (np.float32(value) for value in percentiles(volume, (rule.low, rule.high)))
    volume -= float(low)
    if high > low:
        # By a tensor: a number on the host would be turned over and multiplied with, which rounds otherwise.
        volume /= torch.full((), float(high - low), device=volume.device)
    else:
        volume.fill_(rule.clip[0])
    return volume.clamp_(*rule.clip)


def _seen(pixels: Tensor, finder: Finder, engine: DeviceEngine, batch: int) -> NDArray[np.bool_]:
    """Where the finder sees a spine in any slice (y, x), on its coarse grid; as in `trt.extraction.find_spine`."""
    coarse = _shrunk(pixels, finder.factor)
    cut = Cut(finder.patch, finder.channels, 2, extraction.FINDER_OVERLAP, batch)
    seen = torch.zeros(coarse.shape[1:], dtype=torch.bool, device=pixels.device)
    # All in one slab: shrunk slices with two classes are smaller than the pixels that were found to fit.
    for _, logits in slabs(coarse, engine.on_device, engine.device, cut, depth=len(coarse)):
        seen |= (logits[:, 1] - logits[:, 0] > extraction.bar_of(finder)).any(0)
    return np.asarray(down(seen), np.bool_)


def _shrunk(volume: Tensor, factor: int) -> Tensor:
    """As `trt.extraction.shrink`."""
    depth, height, width = volume.shape
    rows, columns = -(-height // factor), -(-width // factor)
    whole = padded(volume, (0, rows * factor - height), (0, columns * factor - width))
    return whole.reshape(depth, rows, factor, columns, factor).mean(dim=(2, 4))


def _tissue(volume: Tensor, channels: int) -> Region | None:
    """As `trt.extraction.find_tissue`."""
    depth, height, width = volume.shape
    side = min(extraction.AIR_BLOCK, height, width)
    rows, columns = height // side, width // side
    blocks = volume[:, : rows * side, : columns * side].reshape(depth, rows, side, columns, side).amax(dim=(2, 4))
    level = min(extraction.AIR_CEILING, percentiles(blocks, (extraction.AIR_PERCENTILE,))[0])
    here = volume > level
    bright = here.clone()
    for step in range(1, channels // 2 + 1):
        bright[step:] |= here[:-step]
        bright[:-step] |= here[step:]
    marks = bright.to(torch.uint8)
    across = torch.arange(width, device=volume.device)
    first, last = marks.argmax(2, keepdim=True), width - 1 - marks.flip(2).argmax(2, keepdim=True)
    found = np.asarray(down(bright.any(2, keepdim=True) & (across >= first) & (across <= last)), np.bool_)
    return found if found.any() else None
