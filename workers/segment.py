"""Segment the MR series in a folder, without a node and without a network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.uid import UID, EnhancedMRImageStorage, MRImageStorage

from node.errors import ConfigurationError, InvalidInstance, NotFound, PennodeError
from node.forms import DEFAULT, SEGMENTATIONS, Form, Recipe
from node.records import input_digest
from trt.engine import DeviceEngine
from trt.patches import Progress
from workers.identity import Identity, read_identity
from workers.overlap import one_by_one, overlapped
from workers.overlay import write_picture
from workers.pipeline import Arrived, Bundle, Pipeline
from workers.prediction import Prediction
from workers.whole import write_whole

_MR = (str(MRImageStorage), str(EnhancedMRImageStorage))


@dataclass(frozen=True)
class Found:
    """One MR series in a folder: a short name for people and files, its files, and their input digest."""

    name: str
    series_uid: str
    paths: tuple[Path, ...]
    digest: str


@dataclass(frozen=True)
class Outcome:
    """What became of one series: the files written and the bundle, or the error."""

    found: Found
    written: tuple[Path, ...] = ()
    bundle: Bundle | None = None
    error: PennodeError | None = None


def find_series(folder: Path, warn: Callable[[str], None]) -> list[Found]:
    """Return the MR series below `folder`, in order of series number; `warn` is told of every file left out.

    Raises
    ------
    NotFound
        There is no such folder, or nothing in it is an MR image.
    """
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}", "name a folder with DICOM files")
    groups: dict[str, list[tuple[Identity, Path]]] = {}
    dicom = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        shown = path.relative_to(folder)
        try:
            identity = read_identity(path)
        except InvalidInstance as error:
            # A DICOMDIR has no series of its own, so that it ends here as well.
            kind = "a DICOM directory" if path.name.upper() == "DICOMDIR" else error.reason.removeprefix("the file ")
            warn(f"ignored {shown}: {kind}")
            continue
        dicom += 1
        if identity.sop_class_uid not in _MR:
            warn(f"ignored {shown}: {UID(identity.sop_class_uid).name}, not an MR image")
            continue
        groups.setdefault(identity.series_uid, []).append((identity, path))
    if not groups:
        what = "MR image" if dicom else "DICOM file"
        raise NotFound(f"there is no {what} in {folder}", "name a folder with MR series")
    series = sorted(groups.values(), key=lambda files: (files[0][0].series_number or 0, files[0][0].series_uid))
    return [_found(files) for files in series]


def series_below(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each MR series below `folder` by Series Instance UID; other files are passed over.

    Raises `NotFound` as `find_series` does.
    """
    return {found.series_uid: list(found.paths) for found in find_series(folder, lambda _: None)}


def segment_all(
    series: Sequence[Found],
    out: Path,
    pipeline: Pipeline,
    *,
    picture: bool,
    recipes: Sequence[Recipe] = DEFAULT,
    watch: Callable[[Found], AbstractContextManager[Progress | None]] = lambda _: nullcontext(),
) -> Iterator[Outcome]:
    """Segment series and write their results into `out`; what is refused is told in the outcome, not raised.

    Writes `<series number>_<short>.<form>.dcm` for each of `recipes`, with a number before `<form>` where one makes
    several objects, and beside it a `.png` of the first segmentation with `picture`. Series overlap where a device
    calculates, see `workers.overlap`; `watch` is entered while one is calculated, and gives what is told patches done
    and patches in all.
    """

    ahead = len(series) > 1 and isinstance(pipeline.engine, DeviceEngine)

    def read(found: Found) -> Arrived:
        return pipeline.read(found.paths, ahead=ahead)

    def calculate(found: Found, arrived: Arrived) -> Prediction:
        with watch(found) as progress:
            return pipeline.calculate(arrived, progress)

    def write(found: Found, arrived: Arrived, prediction: Prediction) -> Outcome:
        bundle = pipeline.write(arrived, prediction, found.digest, recipes)
        written = [out / f"{found.name}.{result.name.partition('.')[2]}" for result in bundle.objects]
        for path, result in zip(written, bundle.objects, strict=True):
            write_whole(path, result.data)
        shown = [result for result in bundle.objects if Recipe.parse(result.form).form in SEGMENTATIONS]
        if picture and shown:
            written.append(out / f"{found.name}.png")
            write_picture(written[-1], arrived.volume, shown[0].data)
        return Outcome(found, tuple(written), bundle)

    row = overlapped if ahead else one_by_one
    for found, outcome in row(series, read, calculate, write):
        yield Outcome(found, error=outcome) if isinstance(outcome, PennodeError) else outcome


def recipes_of(forms: str) -> tuple[Recipe, ...]:
    """Return the recipes of forms given as words between commas, as in ``SEG,SR,SC``; a report is of the segmentation.

    Raises
    ------
    ConfigurationError
        A word is no form, or stands there twice.
    """
    # Forms in capitals, whatever was typed; options are as they are: SEG+deflated.
    words = [f"{form.upper()}{plus}{rest}" for form, plus, rest in (w.strip().partition("+") for w in forms.split(","))]
    try:
        recipes = [Recipe.parse(word) for word in words]
    except ValueError as error:
        raise ConfigurationError(
            f"--forms {forms[:64]!r} names something that is no form of results",
            f"name some of {', '.join(Form)}, with commas between",
        ) from error
    if len(set(recipes)) < len(recipes):
        raise ConfigurationError(f"--forms {forms[:64]!r} names a form twice", "name each once")
    of = next((recipe.key for recipe in recipes if recipe.form in SEGMENTATIONS), "")
    return tuple(replace(recipe, of=of) if recipe.form is Form.SR else recipe for recipe in recipes)


def _found(files: list[tuple[Identity, Path]]) -> Found:
    """Name a series by its number and eight characters of a hash, as two series may have one number."""
    first = files[0][0]
    number = "0" if first.series_number is None else str(first.series_number)
    return Found(
        name=f"{number}_{hashlib.sha256(first.series_uid.encode()).hexdigest()[:8]}",
        series_uid=first.series_uid,
        paths=tuple(path for _, path in files),
        digest=input_digest((identity.sop_uid, identity.sha256) for identity, _ in files),
    )
