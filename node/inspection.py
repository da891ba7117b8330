"""What the node demands of a result object before it takes it: that it is of this series, and says what it is for.

Each form refers to its source by attributes of its own. Only those are read, and of one object at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.tag import Tag

from node.errors import InvalidResult
from node.forms import SEGMENTATIONS, Form, Recipe
from node.header import UNREADABLE
from node.records import RESEARCH_NOTICE

# Where each form has a place for a sentence on what it is for: (0070,0081), (0020,4000), (0008,2111), (3006,0006).
_NOTICE: dict[Form, tuple[str, ...]] = {
    Form.SEG: ("ContentDescription",),
    Form.LABELMAP: ("ContentDescription",),
    Form.FRACTIONAL: ("ContentDescription",),
    Form.GSPS: ("ContentDescription",),
    Form.RTSTRUCT: ("StructureSetDescription",),
    Form.SC: ("ImageComments", "DerivationDescription"),
    Form.SC_MULTIFRAME: ("ImageComments", "DerivationDescription"),
    Form.SR: (),  # somewhere in its content
}
# Where each form names its source: Common Instance Reference (PS3.3 C.12.2) and Derivation Image (C.7.6.16.2.6) of
# segmentations, C.11.11, C.8.8.5, C.12.4, C.17.2.
_SOURCE: dict[Form, tuple[str, ...]] = {
    Form.SEG: ("ReferencedSeriesSequence", "PerFrameFunctionalGroupsSequence"),
    Form.LABELMAP: ("ReferencedSeriesSequence", "PerFrameFunctionalGroupsSequence"),
    Form.FRACTIONAL: ("ReferencedSeriesSequence", "PerFrameFunctionalGroupsSequence"),
    Form.GSPS: ("ReferencedSeriesSequence",),
    Form.RTSTRUCT: ("ReferencedFrameOfReferenceSequence",),
    Form.SC: ("SourceImageSequence",),
    Form.SC_MULTIFRAME: ("SourceImageSequence",),
    Form.SR: ("CurrentRequestedProcedureEvidenceSequence", "ContentSequence"),
}
_DERIVATION = Tag("DerivationImageSequence")
_ALWAYS = ("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID")
_MOST_ITEMS = 100_000


@dataclass(frozen=True)
class Origin:
    """Where the results of a job belong: its study and series, and the SOP Instance UIDs of its images."""

    study_uid: str
    series_uid: str
    sop_uids: Collection[str] = field(default_factory=frozenset)


def check_forms(made: Sequence[str], wanted: Collection[str]) -> None:
    """Check that there is each form that was asked for, segmentations and reports once, and none that was not.

    Raises
    ------
    InvalidResult
        One is absent, twice there, or was not asked for.
    """
    lacking, strange = sorted(set(wanted) - set(made)), sorted(set(made) - set(wanted))
    if lacking:
        raise InvalidResult(f"the result bundle lacks what was asked for: {', '.join(lacking)}", "check the worker")
    if strange:
        raise InvalidResult(f"the result bundle holds what nobody asked for: {', '.join(strange)}", "check the worker")
    once = {key for key in made if Recipe.parse(key).form in SEGMENTATIONS | {Form.SR}}
    if any(made.count(key) > 1 for key in once):
        raise InvalidResult("the result bundle holds a segmentation or report of one form twice", "check the worker")


def inspect(
    path: Path, sop_class_uid: str, sop_uid: str, recipe: Recipe, origin: Origin, segmentations: Mapping[str, str]
) -> None:
    """Check one Part-10 file. `segmentations` are the SOP Instance UIDs of its bundle's, by the keys of their recipes.

    Raises
    ------
    InvalidResult
        It cannot be read, is not the object it is said to be, belongs to another study or series, refers to a
        segmentation that is not the one beside it, or does not say that it is for research only.
    """
    form = recipe.form
    try:
        ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_ALWAYS, *_NOTICE[form], *_SOURCE[form]])
        # What is sent on is described by its file meta information (`node.outgoing`).
        meta = ds.file_meta
        found = {
            (str(ds.SOPInstanceUID), str(ds.SOPClassUID)),
            (str(meta.MediaStorageSOPInstanceUID), str(meta.MediaStorageSOPClassUID)),
        }
        study = str(ds.StudyInstanceUID)
        belongs = _belongs(ds, form, origin)
        evidence = set(_evidence(ds)) if recipe.of else set()
        said = list(_sentences(ds, form))
    except UNREADABLE as error:
        raise InvalidResult(f"a result object is not usable ({type(error).__name__})", "check the worker") from error
    if found != {(sop_uid, sop_class_uid)}:
        raise InvalidResult("a result object is not the one its manifest names", "check the worker")
    if study != origin.study_uid or not belongs:
        raise InvalidResult(f"a result object ({form}) belongs to another study or series", "check the worker")
    if recipe.of and segmentations.get(recipe.of) not in evidence:
        raise InvalidResult("a report refers to a segmentation that is not beside it", "check the worker")
    if not any(RESEARCH_NOTICE in sentence for sentence in said):
        raise InvalidResult(f"a result object ({form}) does not say that it is for research only", "check the worker")


def _belongs(ds: Dataset, form: Form, origin: Origin) -> bool:
    """Tell whether the object refers to the series and, unless it is a report, to no other.

    Where segmentations, presentation states and captures name images, each is of the series.
    """
    if form is Form.SR:
        return any(
            item.StudyInstanceUID == origin.study_uid and origin.series_uid in _series(item)
            for item in ds.CurrentRequestedProcedureEvidenceSequence
        )
    if form is Form.RTSTRUCT:
        studies = [
            study for frame in ds.ReferencedFrameOfReferenceSequence for study in frame.RTReferencedStudySequence
        ]
        named = {
            str(one.SeriesInstanceUID)
            for study in studies
            if study.ReferencedSOPInstanceUID == origin.study_uid
            for one in study.RTReferencedSeriesSequence
        }
        return named == {origin.series_uid}
    if form in (Form.SC, Form.SC_MULTIFRAME):
        sources = {str(item.ReferencedSOPInstanceUID) for item in ds.SourceImageSequence}
        return bool(sources) and sources <= set(origin.sop_uids)
    return _series(ds) == [origin.series_uid] and set(_images(ds)) <= set(origin.sop_uids)


def _series(holder: Dataset) -> list[str]:
    return [str(item.SeriesInstanceUID) for item in holder.ReferencedSeriesSequence]


def _images(ds: Dataset) -> Iterator[str]:
    """Yield the SOP Instance UIDs of the images that an object names, all together and frame by frame."""
    for series in ds.ReferencedSeriesSequence:
        for keyword in ("ReferencedInstanceSequence", "ReferencedImageSequence"):  # the latter of presentation states
            yield from (str(item.ReferencedSOPInstanceUID) for item in series.get(keyword) or ())
    seen = set()
    for frame in ds.get("PerFrameFunctionalGroupsSequence") or ():
        # Frames of several segments on one slice say so by the same bytes, and to parse them takes longest.
        raw = frame.get_item(_DERIVATION).value if _DERIVATION in frame else b""
        if not isinstance(raw, bytes) or raw not in seen:
            seen.add(raw if isinstance(raw, bytes) else b"")
            for derived in frame.get("DerivationImageSequence") or ():
                yield from (str(item.ReferencedSOPInstanceUID) for item in derived.get("SourceImageSequence") or ())


def _evidence(ds: Dataset) -> Iterator[str]:
    for study in ds.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            for item in series.ReferencedSOPSequence:
                yield str(item.ReferencedSOPInstanceUID)


def _sentences(ds: Dataset, form: Form) -> Iterator[str]:
    """Yield the texts that may hold the notice; of a report, those of its content, however deep."""
    yield from (str(ds.get(keyword) or "") for keyword in _NOTICE[form])
    waiting = list(ds.ContentSequence) if form is Form.SR else []
    for _ in range(_MOST_ITEMS):
        if not waiting:
            return
        item = waiting.pop()
        yield str(item.get("TextValue") or "")
        waiting += item.get("ContentSequence") or []
