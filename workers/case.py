"""What all result objects of one series share: the mask, the model, the source's headers, and their identity."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from node.errors import InvalidResult
from node.forms import Form, Recipe
from node.records import derived_uid
from node.settings import Seg
from trt.manifest import Manifest
from workers.characters import character_sets
from workers.earlier import Earlier, followed
from workers.frames import copied
from workers.lesions import Lesion, find_lesions
from workers.segments import Segments, segments_of
from workers.values import date_of, sex_of, time_of
from workers.volume import Volume
from workers.writing import TELL_US, translated

# What an engine says of itself but does not change the mask differs between hosts, and stays out of the objects.
_HOST_ONLY = frozenset({"threads", "batch", "device"})
# What was found rather than asked: it is told, and another host may find it a little otherwise for the same object.
_GATE = ("gate_agreement", "gate_difference", "gate_reference", "fallback_from")
_FOUND = frozenset((*_GATE, *(f"finder_{name}" for name in _GATE)))
_ISSUER = "IssuerOfPatientID"
_NAMES = ("PatientName", "PatientID", "AccessionNumber", "StudyID")
_NUMBER = re.compile(r"\d{1,12}")
_LONG_STRING = 64  # characters of LO (PS3.5 6.2)
# The last digit of a result's Series Number; the two before it are the model's.
_NUMBERS = {form: number for number, form in enumerate(Form, 1)}


@dataclass(frozen=True, eq=False)
class Case:
    """What the results of one series are made of.

    `mask` is (frames, rows, columns) uint8 on the grid of `volume`, values as in `manifest.labels`, 0 background.
    `parameters` are those of the algorithm, as they go into objects; `digest` is that of the input; `earlier` is for
    comparison.

    Raises `InvalidResult` for a mask of another grid or type, or with a value that the manifest does not know.
    """

    volume: Volume
    mask: NDArray[np.uint8]
    manifest: Manifest
    parameters: Mapping[str, str]
    digest: str
    settings: Seg
    earlier: Earlier | None = None

    def __post_init__(self) -> None:
        if self.mask.shape != self.volume.voxels.shape or self.mask.dtype != np.uint8:
            raise InvalidResult("the mask does not lie on the grid of its series", TELL_US)
        highest = int(self.mask.max(initial=0))
        if highest > len(self.manifest.labels):
            raise InvalidResult(
                f"the mask holds the value {highest}, and the model has labels up to {len(self.manifest.labels)} only",
                TELL_US,
            )

    @cached_property
    def sources(self) -> tuple[Dataset, ...]:
        """The volume's headers; the first, from which patient and study are taken, with all that result objects need.

        They are shared: nobody may change them.
        """
        first, *others = self.volume.sources
        with translated():
            return _complete(first, self._words), *others

    @property
    def _words(self) -> str:
        """All text in the objects that is not the source's."""
        model = self.manifest
        return f"{self.settings.series_description} {model.name} {model.version} {model.labels}"

    @cached_property
    def when(self) -> tuple[str, str]:
        """Date (DA) and time (TM) of the series, the first of its own that is valid; no clock is asked."""
        first = self.sources[0]
        for kind in ("Series", "Acquisition", "Content", "Study"):
            date = date_of(first.get(f"{kind}Date"))
            if date:
                return date, time_of(first.get(f"{kind}Time")) or "000000"
        return "19000101", "000000"

    @property
    def told(self) -> dict[str, str]:
        """The algorithm's parameters that go into objects, with the digests of model and input."""
        told = {k: v for k, v in sorted(self.parameters.items()) if k not in _HOST_ONLY}
        return told | {"model_sha256": self.manifest.digest, "input_sha256": self.digest}

    @property
    def identity(self) -> tuple[str, ...]:
        """What the mask and its words follow from: the source series, the parameters with the digests of model and
        input, and what the manifest says of the model, since several manifests may lie beside one file.
        """
        asked = {k: v for k, v in self.told.items() if k not in _FOUND}
        return self.volume.series_uid, repr(asked), *self._model

    @property
    def _model(self) -> tuple[str, ...]:
        """What tells this model from others: its name, version and bytes, what it is shown and what its labels mean."""
        model = self.manifest
        shown: tuple[object, ...] = (model.channels, model.spacing_mm, model.normalisation, model.stride)
        if model.finder is not None:  # its digest is among the parameters, its place is that of a host
            shown += tuple(value for name, value in vars(model.finder).items() if name not in ("path", "digest"))
        return model.name, model.version, model.digest, repr(shown), repr(model.labels)

    @cached_property
    def lesions(self) -> tuple[Lesion, ...]:
        """The lesions of the mask, found once for all forms."""
        found = find_lesions(self.volume, self.mask, self.manifest, self.identity)
        return followed(found, self.earlier, self.volume) if self.earlier is not None else found

    @cached_property
    def segments(self) -> Segments:
        """The segments of all forms of segmentation; raises as `workers.segments.segments_of`."""
        return segments_of(self)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How many voxels of each segment number (256) each frame has: (frames, 256)."""
        mask, box = self.segments.mask, self.segments.box
        counts = np.zeros((len(mask), 256), np.int64)
        counts[box[0]] = [np.bincount(plane.ravel(), minlength=256) for plane in mask[box]]
        counts[:, 0] = mask[0].size - counts[:, 1:].sum(axis=1)
        return counts

    def uid(self, what: str, recipe: Recipe, *more: str) -> str:
        """Return a UID of a result: the same for the same identity, release, settings and recipe."""
        compared = (self.earlier.sop_uid,) if self.earlier is not None else ()
        return derived_uid(what, *self._made, recipe.key, *compared, *more)

    @cached_property
    def _made(self) -> tuple[str, ...]:
        """What all results of a case share; UIDs are many, and a release takes long to look up."""
        return (*self.identity, version("pennode"), self.settings.model_dump_json())

    def series_number(self, form: Form) -> int:
        """Return the Series Number of a form's results.

        The source's number leads, so that a PACS lists the result beside it; two digits derived from the model follow,
        so that the results of two models are told apart, all but always, by number too. IS holds 31 bits.
        """
        given = str(self.sources[0].get("SeriesNumber") or "").strip()
        number = int(given) if _NUMBER.fullmatch(given) else 0
        model = int(hashlib.sha256("\n".join(self._model).encode()).hexdigest(), 16) % 100
        return number % (2**31 // 1000) * 1000 + model * 10 + _NUMBERS[form]

    def series_description(self, recipe: Recipe) -> str:
        """Return what tells this result from others of the series: the words of the settings, model and recipe."""
        ending = f", {self.manifest.name[:24]} {self.manifest.version[:12]}, {recipe.key}"
        return (self.settings.series_description[: max(0, _LONG_STRING - len(ending))] + ending)[:_LONG_STRING]


def _complete(source: Dataset, said: str) -> Dataset:
    """Return a copy of a source's header with what highdicom insists on; a value it cannot take is left empty.

    Archives hold headers without Study ID, or with a birth date of free text; neither is a reason to have no result.
    `said` are the words of our own that are to be written beside it.
    """
    header = copied(source)
    for keyword in (*_NAMES, "ReferringPhysicianName"):
        if header.get(keyword) is None:
            setattr(header, keyword, "")
    for keyword in ("PatientBirthDate", "StudyDate"):
        setattr(header, keyword, date_of(header.get(keyword)))
    header.StudyTime = time_of(header.get("StudyTime"))
    header.PatientSex = sex_of(header.get("PatientSex"))
    given = header.get("SpecificCharacterSet") or []
    sets = [given] if isinstance(given, str) else list(given)
    written = list(character_sets(sets, said, (str(header.get(keyword) or "") for keyword in (*_NAMES, _ISSUER))))
    if written != sets:
        header.SpecificCharacterSet = written
    elif not sets and "SpecificCharacterSet" in header:
        del header.SpecificCharacterSet
    return header
