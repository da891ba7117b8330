"""How well a mask fits another: pixels, surfaces, volumes, lesions. No file, no network; every figure has one place.

What is undefined is NaN, never 0 or 1: averages leave it out and say how many they left out. Where a figure follows
others' definitions, tests compare it with MONAI, SimpleITK and scikit-learn.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label

from trt.decision import TOUCHING
from trt.lesion_shapes import measure_diameter

Where = NDArray[np.bool_]
Spacing = tuple[float, float, float]

FIGURES = ("precision", "recall", "accuracy", "f1", "iou", "dice")
FOUND_IOU = 0.1  # of a true lesion and one found component, for the lesion to count as found
TOLERANCE_MM = 1.0  # a pixel: what surface Dice lets pass
MIN_VOLUME = 14.0  # mm3, of a sphere of 3 mm: smaller found components neither find a lesion nor count as false


@dataclass(frozen=True)
class Counts:
    """Pixels of one unit (a patch, a series, or many pooled): true and false positives, false and true negatives."""

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def foreground(self) -> float:
        """Share of the pixels that are foreground in truth, 0..1: accuracy can only be read beside it."""
        return _ratio(self.tp + self.fn, self.tp + self.fp + self.fn + self.tn)

    def figures(self) -> dict[str, float]:
        """The six figures of this unit, 0..1; here F1 and Dice are one.

        Precision is NaN where nothing was found, recall where nothing is to be found, and F1, IoU and Dice where both
        hold.
        """
        dice = _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)
        return {
            "precision": _ratio(self.tp, self.tp + self.fp),
            "recall": _ratio(self.tp, self.tp + self.fn),
            "accuracy": _ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn),
            "f1": dice,
            "iou": _ratio(self.tp, self.tp + self.fp + self.fn),
            "dice": dice,
        }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def count(found: Where, truth: Where) -> Counts:
    """Counts of two bool arrays of one shape; `ValueError` for two shapes, which numpy would stretch to one another."""
    if found.shape != truth.shape:
        raise ValueError(f"masks must be of one shape, not {found.shape} and {truth.shape}")
    tp, found_, truth_ = (int(np.count_nonzero(array)) for array in (found & truth, found, truth))
    return Counts(tp, found_ - tp, truth_ - tp, truth.size - found_ - truth_ + tp)


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (n - 1) and worst of `count` values; NaN where too few, `left_out` were undefined."""

    mean: float
    sd: float
    worst: float
    count: int
    left_out: int


def spread(values: Iterable[float], worst: Callable[[list[float]], float] = min) -> Spread:
    """The spread of values, NaN among them left out; `worst` picks one of a list that is not empty."""
    every = list(values)
    known = [value for value in every if not math.isnan(value)]
    return Spread(
        statistics.fmean(known) if known else math.nan,
        statistics.stdev(known) if len(known) > 1 else math.nan,
        worst(known) if known else math.nan,
        len(known),
        len(every) - len(known),
    )


def farthest(values: list[float]) -> float:
    """The value farthest from 0, with its sign."""
    return max(values, key=abs)


def over_units(units: Sequence[Counts]) -> dict[str, Spread]:
    """The six figures averaged over units, each unit (patch, series) weighing the same.

    F1 is the harmonic mean of the averaged precision and the averaged recall, so that it says something that the
    average of Dice does not; its sd and worst are those of the units, where F1 is Dice. The paper does not tell how its
    F1 (91.3) came to differ from its Dice (91.1); the harmonic mean of its precision and recall would be 90.8.
    """
    columns = [unit.figures() for unit in units]
    averaged = {name: spread(column[name] for column in columns) for name in FIGURES}
    precision, recall, each = averaged["precision"].mean, averaged["recall"].mean, averaged["f1"]
    harmonic = _ratio(2 * precision * recall, precision + recall)
    return averaged | {"f1": Spread(harmonic, each.sd, each.worst, each.count, each.left_out)}


def dice(found: NDArray[np.uint8], truth: NDArray[np.uint8], value: int) -> float:
    """Twice the overlap over the sum of both sizes, 0..1; NaN where the label `value` is in neither."""
    return count(found == value, truth == value).figures()["dice"]


def volume_error(found: Where, truth: Where) -> float:
    """How much more was found than there is, in % of what there is (less is negative); NaN where there is nothing."""
    return 100 * _ratio(int(np.count_nonzero(found)) - (size := int(np.count_nonzero(truth))), size)


def hd95(found: Where, truth: Where, spacing: Spacing) -> float:
    """95th percentile of the Hausdorff distance of two masks (Z, Y, X), in mm; NaN where either is empty.

    MONAI's definition: of the distances from each surface voxel of one mask to the nearest of the other, the 95th
    percentile, interpolated; of both directions, the larger. Surface voxels are those that one erosion by a cross takes
    away, and the edge of the volume counts as surface. Others pool both directions first and get smaller figures.
    """
    if not found.any() or not truth.any():
        return math.nan
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance  # here: serving has no torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 calls itself by an argument it deprecates
        distance = compute_hausdorff_distance(
            *_tensors(found, truth), include_background=True, percentile=95, spacing=spacing
        )
    return float(distance)


def surface_dice(found: Where, truth: Where, spacing: Spacing, tolerance_mm: float = TOLERANCE_MM) -> float:
    """Share, 0..1, of the surface voxels of two masks (Z, Y, X) that lie within a distance of the other's surface.

    The normalised surface Dice as MONAI defines it, on the surface voxels of `hd95`: of a mask whose border is as exact
    as people draw it, this says more than Dice, which falls with thinness. 0 where one mask is empty, NaN where both
    are.
    """
    if not found.any() or not truth.any():
        return math.nan if found.any() == truth.any() else 0.0
    from monai.metrics.surface_dice import compute_surface_dice  # here: serving has no torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as above
        share = compute_surface_dice(*_tensors(found, truth), [tolerance_mm], include_background=True, spacing=spacing)
    return float(share)


def _tensors(found: Where, truth: Where) -> tuple[Any, Any]:
    """Both masks as MONAI takes them, (1, 1, Z, Y, X), cut to the box that holds them."""
    import torch

    (box,) = find_objects((found | truth).astype(np.uint8))
    ours, theirs = (torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (found, truth))
    return ours, theirs


@dataclass(frozen=True)
class LesionScore:
    """One true lesion: its longest diameter in mm and whether it was found."""

    diameter_mm: float
    found: bool


@dataclass(frozen=True)
class LesionScores:
    """The true lesions of a series, and how many found components lie in none of them."""

    lesions: tuple[LesionScore, ...]
    false: int


def lesion_scores(found: Where, truth: Where, spacing: Spacing, min_volume: float = MIN_VOLUME) -> LesionScores:
    """Lesions of two masks (Z, Y, X), each a 26-connected component.

    A true lesion is found when one found component overlaps it by an IoU of at least FOUND_IOU. IoU, and not the share
    covered, so that a component over half the spine finds nothing. A found component that touches no voxel of a true
    lesion is false. Found components below `min_volume` (mm3) are passed over.
    """
    voxel = math.prod(spacing)
    ours, number = label(found, TOUCHING)
    sizes = np.bincount(ours.ravel(), minlength=number + 1)
    large = sizes * voxel >= min_volume
    large[0] = False
    ours = np.where(large[ours], ours, 0)
    theirs, count_ = label(truth, TOUCHING)
    lesions = []
    for value, box in enumerate(find_objects(theirs, count_), 1):
        inside = theirs[box] == value
        shared = np.bincount(ours[box][inside], minlength=number + 1)[1:]
        union = sizes[1:] + int(np.count_nonzero(inside)) - shared
        best = float((shared / union).max(initial=0.0))
        lesions.append(LesionScore(longest_diameter(inside, spacing), best >= FOUND_IOU))
    true = np.zeros(number + 1, bool)
    true[np.unique(ours[truth])] = True
    return LesionScores(tuple(lesions), int(np.count_nonzero(large & ~true)))


def longest_diameter(inside: Where, spacing: Spacing) -> float:
    """Distance of the farthest two voxel centres of a mask (Z, Y, X) and one pixel (Y), in mm; 0 where it is empty."""
    return measure_diameter(inside, spacing) if inside.any() else 0.0
