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
_GROUP: Name = ("125007", "DCM")
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
        cited = {uid for entry in items for uid, _ in references_in(entry.get("ReferencedSOPSequence", ()))}
        comments = [str(entry.TextValue) for entry in items if _is(entry, _COMMENT)]
        evaluations = [entry.ConceptCodeSequence[0].CodeValue for entry in items if _is(entry, _SUMMARY)]
        groups = {}
        for entry in items:
            if _is(entry, _GROUP):
                content = list(entry.ContentSequence)
                (uid,) = (str(inner.UID) for inner in content if _is(inner, _TRACKING))
                volumes = [
                    float(inner.MeasuredValueSequence[0].NumericValue) for inner in content if _is(inner, _VOLUME)
                ]
                segments = [
                    int(inner.ReferencedSOPSequence[0].ReferencedSegmentNumber)
                    for inner in content
                    if _is(inner, _SEGMENT)
                ]
                groups[uid] = volumes, segments
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


def _is(entry: Dataset, name: Name) -> bool:
    """Tell whether a content item has a name."""
    given = entry.ConceptNameCodeSequence[0]
    return (given.CodeValue, given.CodingSchemeDesignator) == name


def _walk(items: Sequence[Dataset]) -> Iterator[Dataset]:
    for entry in items:
        yield entry
        yield from _walk(entry.get("ContentSequence", ()))
