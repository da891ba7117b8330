"""Reading a measurement report back from its bytes: the gate that it passes before it leaves a worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from pydicom import Dataset

from node.forms import Recipe
from node.records import RESEARCH_NOTICE
from workers.case import Case
from workers.heading import read_back, references_in, refuse_unless
from workers.writing import translated

Name = tuple[str, str]
"""Value and scheme of a coded concept."""

_COMMENT: Name = ("121106", "DCM")
_SUMMARY: Name = ("111017", "DCM")
_VOLUME: Name = ("118565006", "SCT")
_TRACKING: Name = ("112040", "DCM")
_SEGMENT: Name = ("121191", "DCM")
_WITH, _WITHOUT = "111242", "111241"  # all algorithms succeeded, with findings and without
_UNEVEN = 0.06  # slices may be uneven by 5 %, figures have four digits


def check_report(data: bytes, case: Case, recipe: Recipe) -> None:
    """Read a report back from its bytes; each segment must have its group, with its identity and its volume.

    Raises
    ------
    InvalidResult
        Patient, study, references, flags, notice, groups or figures are not those of the case.
    """
    report = read_back(data, case, recipe, "report")
    with translated("report"):
        flags = str(report.PreliminaryFlag), str(report.VerificationFlag)
        evidence = {
            uid
            for kind in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
            for uid, _ in references_in(report.get(kind, ()))
        }
        items = list(_walk(report.ContentSequence))
        cited = {uid for _, entry in items for uid, _ in references_in(entry.get("ReferencedSOPSequence", ()))}
        comments = [str(entry.TextValue) for name, entry in items if name == _COMMENT]
        evaluations = [entry.ConceptCodeSequence[0].CodeValue for name, entry in items if name == _SUMMARY]
        groups: dict[str, tuple[list[float], list[int]]] = {}
        for name, entry in items:
            if name == _TRACKING:  # the first of a group's own
                group = groups.setdefault(str(entry.UID), ([], []))
            elif name == _VOLUME:
                group[0].append(float(entry.MeasuredValueSequence[0].NumericValue))
            elif name == _SEGMENT:
                group[1].append(int(entry.ReferencedSOPSequence[0].ReferencedSegmentNumber))
    refuse_unless(flags == ("PRELIMINARY", "UNVERIFIED"), "the written report says that somebody has verified it")
    refuse_unless(RESEARCH_NOTICE in comments, "the written report does not say that it is for research")
    refuse_unless(
        {str(source.SOPInstanceUID) for source in case.volume.sources} <= evidence and cited <= evidence,
        "the written report does not name all that it refers to",
    )
    refuse_unless(
        (_WITH if case.lesions else _WITHOUT) in evaluations,
        "the written report does not say whether something abnormal was segmented",
    )
    counts = np.bincount(case.segments.mask.ravel(), minlength=256)
    voxel_ml = float(np.prod(case.volume.spacing)) / 1000
    for segment in case.segments.listed:
        volumes, segments = groups.get(segment.tracking_uid, ([], []))
        expected = counts[segment.number] * voxel_ml
        refuse_unless(
            len(volumes) == 1 and abs(volumes[0] - expected) <= _UNEVEN * expected,
            "a volume in the written report is not that of its segment",
        )
        refuse_unless(
            segments == ([segment.number] if recipe.of else []), "the written report refers to another segment"
        )


def _walk(items: Sequence[Dataset]) -> Iterator[tuple[Name, Dataset]]:
    """Yield each content item with its name, however deep, in the order of the document."""
    for entry in items:
        name = entry.ConceptNameCodeSequence[0]
        yield (str(name.CodeValue), str(name.CodingSchemeDesignator)), entry
        yield from _walk(entry.get("ContentSequence", ()))
