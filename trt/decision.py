"""From logits to labels: each voxel the likeliest label, but no crumbs of a label that has a least volume."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure
from scipy.ndimage import label as number_parts

from trt.labels import Label
from trt.patches import Array

TOUCHING = generate_binary_structure(3, 3)  # voxels that share a face, an edge or a corner: 26-connected


def decide(
    slices: Iterable[tuple[int, Array]], shape: tuple[int, int, int], labels: Sequence[Label], voxel_mm3: float
) -> NDArray[np.uint8]:
    """The mask (Z, Y, X) uint8 of label values, of `slices` of (z, logits (K, Y, X)), every slice given once.

    Connected parts of a label that are smaller than its `least_mm3` become what is likeliest next.
    """
    mask = np.zeros(shape, np.uint8)
    next_best = {label.value: np.zeros(shape, np.uint8) for label in labels if label.least_mm3}
    for z, logits in slices:
        mask[z] = chosen = likeliest(logits)
        for value, others in next_best.items():
            inside = chosen == value
            if inside.any():
                rest = logits[:, inside].copy()
                rest[value] = -np.inf
                others[z][inside] = rest.argmax(axis=0)
    return settle(mask, next_best, labels, voxel_mm3)


def settle(
    mask: NDArray[np.uint8], next_best: Mapping[int, NDArray[np.uint8]], labels: Sequence[Label], voxel_mm3: float
) -> NDArray[np.uint8]:
    """Take the crumbs from a mask (Z, Y, X) uint8, in place: each becomes what `next_best` of its label says there.

    `next_best` holds a volume (Z, Y, X) uint8 for every label that has a `least_mm3`, true within that label at least.
    """
    for label in labels:
        if label.least_mm3:
            small = crumbs(mask == label.value, label.least_mm3, voxel_mm3)
            mask[small] = next_best[label.value][small]
    return mask


def likeliest(logits: Array) -> NDArray[np.uint8]:
    """The class (Y, X) uint8 with the highest of logits (K, Y, X), no NaN, K at most 256; the first of equals.

    Class by class, since numpy's argmax along a first axis takes many times as long, and in the order in memory of the
    logits, which is another after resampling.
    """
    highest = logits[0].copy(order="K")
    chosen = np.zeros_like(highest, np.uint8)
    higher = np.empty_like(highest, np.bool_)
    for value, plane in enumerate(logits[1:], start=1):
        np.greater(plane, highest, out=higher)
        np.maximum(plane, highest, out=highest)
        np.maximum(chosen, higher.view(np.uint8) * np.uint8(value), out=chosen)
    return chosen


def crumbs(inside: NDArray[np.bool_], least_mm3: float, voxel_mm3: float) -> NDArray[np.bool_]:
    """The connected parts of `inside` (Z, Y, X) bool that are smaller than `least_mm3`, of voxels of `voxel_mm3`."""
    small = np.zeros_like(inside)
    box = tuple(_extent(np.asarray(inside.any(axis=axes))) for axes in ((1, 2), (0, 2), (0, 1)))
    parts, count = number_parts(inside[box], TOUCHING)
    least = np.bincount(parts.ravel(), minlength=count + 1) * voxel_mm3 < least_mm3
    least[0] = False
    small[box] = least[parts]
    return small


def _extent(line: NDArray[np.bool_]) -> slice:
    """From the first that is true to the last; empty where none is."""
    found = np.flatnonzero(line)
    return slice(found[0], found[-1] + 1) if len(found) else slice(0)
