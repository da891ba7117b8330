"""Whether an object that was read back from a PACS is what was sent: voxel by voxel, and every attribute.

A PACS may coerce what identifies patient and study (PS3.4 B.4.1.3): such changes are listed, and are no fault. Anything
else that differs is one: geometry, references, segments, codes, the research notice. Only attributes' names are said,
never values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement

from node.errors import InvalidInstance
from node.header import UNREADABLE

# Differences looked for, and named.
_MOST, _NAMED = 64, 5
_PATIENT_GROUP = 0x0010
_COERCED = frozenset({
    "SpecificCharacterSet", "AccessionNumber", "IssuerOfAccessionNumberSequence", "StudyID", "StudyDescription",
    "StudyDate", "StudyTime", "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence",
    "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "RequestingPhysician", "RequestingService",
    "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "InstitutionCodeSequence",
    "AdmittingDiagnosesDescription", "ProcedureCodeSequence", "ReferencedStudySequence",
    "RequestAttributesSequence", "RequestedProcedureDescription", "ReasonForPerformedProcedureCodeSequence",
    "OriginalAttributesSequence", "TimezoneOffsetFromUTC", "InstanceAvailability", "RetrieveAETitle",
    "StorageMediaFileSetID", "StorageMediaFileSetUID", "QueryRetrieveView", "DataSetTrailingPadding",
    "DigitalSignaturesSequence", "MACParametersSequence",
})  # fmt: skip
# These belong to one encoding of the pixels, which are compared decoded.
_ENCODING = frozenset({"PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"})
# What pydicom raises over pixels that it cannot decode.
_UNDECODABLE = (*UNREADABLE, AttributeError, RuntimeError)


@dataclass(frozen=True)
class Comparison:
    """What differs, and what a PACS may change and did; attributes by their keywords."""

    differences: Sequence[str]
    coerced: Sequence[str]

    @property
    def is_equal(self) -> bool:
        """Whether the copy is as good as the original."""
        return not self.differences

    def words(self) -> str:
        """Return the outcome as a sentence."""
        if self.differences:
            return f"read back and found different: {_listed(self.differences)}"
        also = f"; changed there, as a PACS may: {_listed(self.coerced)}" if self.coerced else ""
        return f"read back and found equal{also}"


def compare(ours: Dataset, theirs: Dataset) -> Comparison:
    """Compare what was sent with what came back, both with their file meta information.

    Raises
    ------
    InvalidInstance
        One of the two cannot be decoded.
    """
    try:
        found = list(islice(_attributes(ours, theirs, ""), _MOST))
        pixels = _pixels(ours, theirs)
    except _UNDECODABLE as error:
        raise InvalidInstance(
            f"what came back cannot be decoded ({type(error).__name__})", "look at the object in the PACS"
        ) from error
    differences = [words for words, may in found if not may]
    return Comparison([*pixels, *differences], [words for words, may in found if may])


def _attributes(ours: Dataset, theirs: Dataset, within: str) -> Iterator[tuple[str, bool]]:
    """Yield what differs, and whether a PACS may change that."""
    for tag in sorted({*ours.keys(), *theirs.keys()}):
        name = keyword_for_tag(tag) or f"({tag.group:04X},{tag.element:04X})"
        if name in _ENCODING or tag.element == 0:
            continue
        may = not within and (name in _COERCED or tag.group == _PATIENT_GROUP)
        where = f"{within}{name}"
        if tag not in theirs:
            if not _is_empty(ours[tag]):
                yield f"{where} is gone", may
        elif tag not in ours:
            # What a PACS adds beside what was sent takes nothing away from it; within a sequence it may.
            if not _is_empty(theirs[tag]):
                yield f"{where} is new", not within
        else:
            yield from _element(ours[tag], theirs[tag], where, may)


def _element(ours: DataElement, theirs: DataElement, where: str, may: bool) -> Iterator[tuple[str, bool]]:
    if ours.VR == "SQ" and theirs.VR == "SQ":
        if len(ours.value) != len(theirs.value):
            yield f"{where} has {len(theirs.value)} items, not {len(ours.value)}", may
            return
        for number, (mine, other) in enumerate(zip(ours.value, theirs.value, strict=True), 1):
            for words, _ in _attributes(mine, other, f"{where}[{number}]."):
                yield words, may
    elif not _is_same(ours.value, theirs.value):
        yield where, may


def _is_same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, bytes) and isinstance(theirs, bytes):
        return ours.rstrip(b"\0") == theirs.rstrip(b"\0")
    if _is_nothing(ours) or _is_nothing(theirs):
        return _is_nothing(ours) and _is_nothing(theirs)
    return bool(ours == theirs)


def _is_empty(element: DataElement) -> bool:
    return _is_nothing(element.value)


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (str, bytes, Sequence)) and len(value) == 0) or str(value) == ""


def _pixels(ours: Dataset, theirs: Dataset) -> list[str]:
    """Return what differs between the decoded frames (Z, Y, X) or (Z, Y, X, 3) of two objects, in words."""
    if "PixelData" not in ours or "PixelData" not in theirs:
        return [] if ("PixelData" in ours) == ("PixelData" in theirs) else ["PixelData"]
    syntaxes = [ds.file_meta.TransferSyntaxUID for ds in (ours, theirs)]
    if not any(syntax.is_compressed for syntax in syntaxes) and ours.PixelData == theirs.PixelData:
        return []
    mine, other = ours.pixel_array, theirs.pixel_array
    if mine.shape != other.shape:
        return [f"the frames' shape is {other.shape}, not {mine.shape}"]
    different = int(np.count_nonzero(mine != other))
    return [f"{different} of {mine.size} voxels"] if different else []


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + more
