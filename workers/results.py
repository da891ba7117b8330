"""The result objects of a case: each form is built, written, and read back before it may leave the worker."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydicom import Dataset

from node.errors import ConfigurationError
from node.forms import SEGMENTATIONS, Form, Recipe
from workers.capture import build_captures, check_capture
from workers.case import Case
from workers.encoding import Encoder
from workers.inspection import check_segmentation
from workers.prediction import timed
from workers.presentation import build_presentation, check_presentation
from workers.report import build_report
from workers.reportcheck import check_report
from workers.seg import build_segmentation
from workers.structures import build_structure_set, check_structure_set
from workers.writing import write

Made = Mapping[str, Dataset]
"""The segmentations of a case built so far, by the key of their recipe."""

Builder = Callable[[Case, Recipe, Made], Sequence[Dataset]]
"""Builds the objects of one recipe, in order of their Instance Numbers."""

Check = Callable[[bytes, Case, Recipe], None]
"""Reads one object of a recipe back from its bytes; raises `InvalidResult` for what may not leave the worker."""


@dataclass(frozen=True)
class ResultObject:
    """One DICOM object to be delivered: a name for its file, its recipe, UID and bytes (PS3.10), and their sha256."""

    name: str
    form: str
    sop_uid: str
    data: bytes
    sha256: str


def _segmentation(case: Case, recipe: Recipe, _: Made) -> Sequence[Dataset]:
    return (build_segmentation(case, recipe),)


BUILDERS: dict[Form, Builder] = {
    **dict.fromkeys(SEGMENTATIONS, _segmentation),
    Form.SR: build_report,
    Form.SC: build_captures,
    Form.SC_MULTIFRAME: build_captures,
    Form.RTSTRUCT: build_structure_set,
    Form.GSPS: build_presentation,
}
CHECKS: dict[Form, Check] = {
    **dict.fromkeys(SEGMENTATIONS, check_segmentation),
    Form.SR: check_report,
    Form.SC: check_capture,
    Form.SC_MULTIFRAME: check_capture,
    Form.RTSTRUCT: check_structure_set,
    Form.GSPS: check_presentation,
}


def make_objects(
    case: Case, recipes: Sequence[Recipe], timings: dict[str, float] | None = None
) -> tuple[ResultObject, ...]:
    """Build, write and check the objects of `recipes`, segmentations first; `timings` gets seconds of write and check.

    Raises
    ------
    ConfigurationError
        A recipe has a form that nothing here can make, or a label of the model has no DICOM code.
    Unsuitable
        The mask is empty.
    InvalidResult
        An object cannot be built, or its bytes did not pass their check.
    """
    require(recipes)
    timings = {} if timings is None else timings
    made: dict[str, Dataset] = {}
    encoder = Encoder()
    results: list[ResultObject] = []
    for recipe in sorted(recipes, key=lambda recipe: recipe.form not in SEGMENTATIONS):
        with timed(timings, "write"):
            objects = BUILDERS[recipe.form](case, recipe, made)
            if recipe.form in SEGMENTATIONS:
                (made[recipe.key],) = objects
            written = [_written(one, recipe, encoder, several=len(objects) > 1) for one in objects]
        with timed(timings, "check"):
            for result in written:
                CHECKS[recipe.form](result.data, case, recipe)
        results += written
    return tuple(results)


def require(recipes: Iterable[Recipe]) -> None:
    """Raise `ConfigurationError` for a form that nothing here can make, or that cannot be made as is asked."""
    for recipe in recipes:
        if recipe.form not in BUILDERS:
            raise ConfigurationError(
                f"this worker cannot make {recipe.form}", "take it out of `forms` and `instead`, or update the worker"
            )
        if recipe.form is Form.SEG and recipe.compression == "rle":  # PS3.5 8.2.2: of whole bytes
            raise ConfigurationError(
                "a BINARY segmentation has one bit per pixel, which RLE cannot encode",
                "set compression to deflated or none, or ask for LABELMAP or FRACTIONAL",
            )


def _written(dataset: Dataset, recipe: Recipe, encoder: Encoder, *, several: bool) -> ResultObject:
    data = write(dataset, encoder)
    number = f"{dataset.SeriesNumber}.{dataset.InstanceNumber}" if several else f"{dataset.SeriesNumber}"
    return ResultObject(
        name=f"{number}.{recipe.form.lower()}.dcm",
        form=recipe.key,
        sop_uid=str(dataset.SOPInstanceUID),
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
    )
