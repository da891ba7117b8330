"""A result in figures: a measurement report (PS3.16 TID 1500) as Comprehensive 3D SR (PS3.3 A.35.13).

One measurement group per segment: of a volume (TID 1411) where a segmentation goes with the report, else of source
images (TID 1501). Lesions come first, with volume, longest diameter and level. That there is no lesion in the mask
is said in words and in code, and that this does not mean that there is none.

Built after the public text of IHE AI Results: a TID 1500 report as root that refers to segments and source images, with
tracking identifiers. Conformance to the profile is not claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import highdicom.sr as sr
import numpy as np
from pydicom import Dataset
from pydicom.sr.coding import Code

from node.forms import Recipe
from node.records import RESEARCH_NOTICE, derived_uid
from trt.cases import plain
from trt.manifest import Label
from workers import growth
from workers.case import Case
from workers.codes import meaning_of
from workers.heading import begin, image_of, item, refuse_unless
from workers.lesions import Lesion, frame_ml, is_abnormal
from workers.segments import SACRUM, Segment
from workers.writing import translated

_VOLUME = Code("118565006", "SCT", "Volume")
_LONGEST = Code("103339001", "SCT", "Long axis")
_ML, _MM = Code("cm3", "UCUM", "cubic centimeter"), Code("mm", "UCUM", "millimeter")
_SUMMED = Code("126030", "DCM", "Sum of segmented voxel method for volume")
_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
_COMMENT = Code("121106", "DCM", "Comment")
_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
_SUMMARY = Code("111017", "DCM", "CAD Processing and Findings Summary")
_WITH = Code("111242", "DCM", "All algorithms succeeded; with findings")
_WITHOUT = Code("111241", "DCM", "All algorithms succeeded; without findings")
_PROCEDURE = Code("25056-3", "LN", "MRI unspecified body region")  # CID 100 has none of the spine
_NONE = "No {} was segmented. This does not show that there is none."

Made = Mapping[str, Dataset]


def build_report(case: Case, recipe: Recipe, made: Made) -> Sequence[Dataset]:
    """Return the report of a case; it refers to the segmentation that was made by the recipe of key `recipe.of`.

    Raises
    ------
    Unsuitable
        The mask is empty.
    InvalidResult
        highdicom refuses to build the object, or the segmentation is not among those made.
    """
    refuse_unless(not recipe.of or recipe.of in made, f"the report refers to {recipe.of}, which was not made")
    segmentation = made.get(recipe.of)
    with translated("report"):
        groups = [_group(case, segment, segmentation) for segment in _ordered(case)]
        groups += [_nothing(case, label) for label in _without(case)]
        context = sr.ObservationContext(observer_device_context=_observer(case))
        content = sr.MeasurementReport(
            context, _PROCEDURE, groups, title=Code("126000", "DCM", "Imaging Measurement Report")
        )
        content[0].ContentSequence.append(_evaluations(case))
        # highdicom's own document class copies its content, and looks through it, several times over.
        report = begin(case, recipe, "SR")
        report.update(content[0])
        report.CompletionFlag, report.PreliminaryFlag, report.VerificationFlag = "COMPLETE", "PRELIMINARY", "UNVERIFIED"
        report.PerformedProcedureCodeSequence = []
        report.ReferencedPerformedProcedureStepSequence = []
        evidence = [*case.sources, *([segmentation] if segmentation is not None else [])]
        if case.earlier is not None:
            evidence.append(growth.cited(case.earlier))
            report.CodingSchemeIdentificationSequence = [growth.scheme()]
        own = [instance for instance in evidence if instance.StudyInstanceUID == case.sources[0].StudyInstanceUID]
        other = [instance for instance in evidence if instance.StudyInstanceUID != case.sources[0].StudyInstanceUID]
        report.CurrentRequestedProcedureEvidenceSequence = _evidence(own)
        if other:
            report.PertinentOtherEvidenceSequence = _evidence(other)
    return (report,)


def _evidence(instances: Sequence[Dataset]) -> list[Dataset]:
    """Return references to instances of one study (PS3.3 C.17.2), series by series."""
    series: dict[str, list[Dataset]] = {}
    for instance in instances:
        reference = item(ReferencedSOPClassUID=instance.SOPClassUID, ReferencedSOPInstanceUID=instance.SOPInstanceUID)
        series.setdefault(str(instance.SeriesInstanceUID), []).append(reference)
    listed = [item(SeriesInstanceUID=uid, ReferencedSOPSequence=references) for uid, references in series.items()]
    return [item(StudyInstanceUID=instances[0].StudyInstanceUID, ReferencedSeriesSequence=listed)]


def _ordered(case: Case) -> list[Segment]:
    return sorted(case.segments.listed, key=lambda segment: (segment.lesion is None, segment.number))


def _without(case: Case) -> list[Label]:
    """Return the abnormal labels of the model that do not occur in the mask."""
    found = {lesion.label for lesion in case.lesions}
    return [label for label in case.manifest.labels if is_abnormal(label) and label not in found]


def _group(case: Case, segment: Segment, segmentation: Dataset | None) -> object:
    lesion = None if segment.lesion is None else case.lesions[segment.lesion]
    meaning = segment.meaning
    counts = case.counts[:, segment.number]
    ml = lesion.volume_ml if lesion else float(counts @ frame_ml(case.volume))
    measurements = [sr.Measurement(_VOLUME, growth.figure(ml), _ML, method=_SUMMED)]
    if lesion is not None and lesion.diameter is not None:
        measurements.append(sr.Measurement(_LONGEST, growth.figure(lesion.diameter.mm), _MM))
    if lesion is not None and lesion.before is not None and case.earlier is not None:
        measurements += growth.measured(lesion, lesion.before, case.earlier)
    shared = {
        "tracking_identifier": sr.TrackingIdentifier(segment.tracking_uid, segment.words),
        "finding_category": Code(*meaning.category),
        "finding_type": Code(*meaning.type),
        "finding_sites": _sites(case, segment, lesion),
        "algorithm_id": _algorithm(case),
        "measurements": measurements,
    }
    if segmentation is not None:
        source = sr.SourceSeriesForSegmentation(case.volume.series_uid)
        reference = sr.ReferencedSegment(
            segmentation.SOPClassUID, segmentation.SOPInstanceUID, segment.number, source_series=source
        )
        group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=reference, **shared)
    else:
        frames = np.flatnonzero(counts).tolist()
        group = sr.MeasurementsAndQualitativeEvaluations(source_images=_images(case, frames), **shared)
    if lesion is not None and case.earlier is not None:
        group[0].ContentSequence.append(_comment(growth.in_words(lesion, case.earlier)))
    return group


def _sites(case: Case, segment: Segment, lesion: Lesion | None) -> list[sr.FindingSite] | None:
    if segment.meaning.region is None:
        return None
    level = level_of(case, lesion) if lesion is not None else None
    modifier = Code(*level.meaning.type) if level is not None else None
    return [sr.FindingSite(Code(*segment.meaning.region), topographical_modifier=modifier)]


def level_of(case: Case, lesion: Lesion) -> Segment | None:
    """Return the vertebra that a lesion lies in or at, if its level is known.

    It is the one whose voxels are nearest to the voxel in the middle of the lesion, in mm. None if a vertebra without a
    name or the sacrum is nearer, or if it is farther away than half of a pitch, the distance to the centre of the next
    known level: a lesion that has taken a whole vertebra lies between its neighbours, and in neither.
    """
    voxels = np.argwhere(lesion.inside) + [part.start for part in lesion.box]
    steps, mask = case.volume.affine[:3, :3], case.segments.mask
    middle = voxels[np.argmin((((voxels - voxels.mean(axis=0)) @ steps.T) ** 2).sum(axis=1))]
    named = {segment.number: segment for segment in case.segments.listed if segment.level}
    alike = {segment.label for segment in named.values()}
    bones = [s.number for s in case.segments.listed if s.label in alike or plain(s.label.name) == SACRUM]
    if not named:
        return None
    others = np.argwhere(np.isin(mask, bones))
    numbers = mask[tuple(others.T)]
    distances = np.linalg.norm((others - middle) @ steps.T, axis=1)
    nearest = int(numbers[distances.argmin()])
    if nearest not in named:
        return None
    centres = {number: steps @ others[numbers == number].mean(axis=0) for number in named}  # two or more
    pitch = min(np.linalg.norm(centres[nearest] - centre) for number, centre in centres.items() if number != nearest)
    return named[nearest] if distances.min() <= pitch / 2 else None


def _images(case: Case, frames: Sequence[int]) -> list[sr.SourceImageForMeasurementGroup]:
    """Return references to the source images of `frames`, one per instance."""
    if case.volume.frame_numbers:
        only = case.sources[0]
        numbers = sorted(case.volume.frame_numbers[frame] for frame in frames)
        return [sr.SourceImageForMeasurementGroup(only.SOPClassUID, only.SOPInstanceUID, numbers)]
    return [
        sr.SourceImageForMeasurementGroup(image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID)
        for image in (image_of(case, frame) for frame in frames)
    ]


def _nothing(case: Case, label: Label) -> object:
    """Return a group that says that the mask has no voxel of an abnormal label."""
    meaning = meaning_of(label)
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            derived_uid("tracking none", *case.identity, label.name), f"No {meaning.words.lower()}"
        ),
        finding_category=Code(*meaning.category),
        finding_type=Code(*meaning.type),
        algorithm_id=_algorithm(case),
        qualitative_evaluations=[sr.QualitativeEvaluation(_SUMMARY, _WITHOUT)],
        source_images=_images(case, range(len(case.mask))),
    )
    group[0].ContentSequence.append(_comment(_NONE.format(meaning.words.lower())))
    return group


def _evaluations(case: Case) -> sr.ContainerContentItem:
    """Return what holds for the whole report: for whom it is, and whether anything abnormal was segmented."""
    container = sr.ContainerContentItem(_EVALUATIONS, relationship_type=sr.RelationshipTypeValues.CONTAINS)
    container.ContentSequence = sr.ContentSequence()
    container.ContentSequence.append(_comment(RESEARCH_NOTICE))
    for evaluation in sr.QualitativeEvaluation(_SUMMARY, _WITH if case.lesions else _WITHOUT):
        container.ContentSequence.append(evaluation)
    said = [_NONE.format(meaning_of(label).words.lower()) for label in _without(case)]
    said += growth.gone(case.lesions, case.earlier) if case.earlier is not None else []
    container.ContentSequence.extend(_comment(words) for words in said)
    return container


def _comment(words: str) -> sr.TextContentItem:
    return sr.TextContentItem(_COMMENT, words, relationship_type=sr.RelationshipTypeValues.CONTAINS)


def _observer(case: Case) -> sr.ObserverContext:
    return sr.ObserverContext(
        observer_type=Code("121007", "DCM", "Device"),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid("device", case.manifest.name, case.manifest.version, case.manifest.digest),
            name="pennode",
            manufacturer_name="pennode",
            model_name=case.manifest.name,
            serial_number=case.manifest.digest,
        ),
    )


def _algorithm(case: Case) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        name=case.manifest.name,
        version=case.manifest.version,
        parameters=["; ".join(f"{name}={value}" for name, value in case.told.items())],
        family=_INTELLIGENCE,
        manufacturer="pennode",
    )
