"""A result as an RT Structure Set (PS3.3 A.19), for systems that take contours rather than segmentations.

One ROI per segment, one closed contour per region and slice, along the edges of the pixels. A hole is joined to its
outer line by a channel of no width (keyhole, PS3.3 C.8.8.6.3): readers need not know that contours may cut each other
out. Implicit VR Little Endian, since a long contour has no place in an explicit VR of 64 KiB. The interpreted type of
lesions stays empty: GTV and its kin are a physician's to say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from node.forms import Recipe
from node.records import RESEARCH_NOTICE
from workers.case import Case
from workers.heading import (
    begin,
    coded,
    image_of,
    images_of,
    item,
    read_back,
    references_in,
    refuse_unless,
    unexamined,
)
from workers.lesions import frame_ml, is_abnormal
from workers.outlines import hold, in_mm, keyhole, moments, regions
from workers.segments import Segment
from workers.writing import translated

_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, retired, but asked for (PS3.3 C.8.8.5)
_DIGITS = 4  # of a mm


def build_structure_set(case: Case, recipe: Recipe, _: object) -> Sequence[Dataset]:
    """Return the structure set of a case.

    Raises
    ------
    Unsuitable
        The mask is empty.
    InvalidResult
        The object cannot be built.
    """
    segments = case.segments
    with translated("structure set"):
        dataset = begin(case, recipe, "RTSTRUCT")
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        for keyword in ("ContentDate", "ContentTime"):  # of no module here
            delattr(dataset, keyword)
        dataset.OperatorsName = ""
        dataset.FrameOfReferenceUID = case.volume.frame_of_reference_uid
        dataset.PositionReferenceIndicator = ""
        dataset.StructureSetLabel = "SPINE_SEG"
        dataset.StructureSetName = f"{case.manifest.name} {case.manifest.version}"[:64]
        dataset.StructureSetDescription = RESEARCH_NOTICE
        dataset.StructureSetDate, dataset.StructureSetTime = case.when
        series = item(SeriesInstanceUID=case.volume.series_uid, ContourImageSequence=images_of(case))
        study = item(
            ReferencedSOPClassUID=_STUDY_CLASS,
            ReferencedSOPInstanceUID=case.sources[0].StudyInstanceUID,
            RTReferencedSeriesSequence=[series],
        )
        dataset.ReferencedFrameOfReferenceSequence = [
            item(FrameOfReferenceUID=case.volume.frame_of_reference_uid, RTReferencedStudySequence=[study])
        ]
        dataset.StructureSetROISequence = [_roi(case, segment) for segment in segments.listed]
        dataset.ROIContourSequence = [_contours(case, segment) for segment in segments.listed]
        dataset.RTROIObservationsSequence = [_observation(segment) for segment in segments.listed]
        dataset.ApprovalStatus = "UNAPPROVED"
    return (dataset,)


def _roi(case: Case, segment: Segment) -> Dataset:
    inside = case.counts[:, segment.number]
    return item(
        ROINumber=segment.number,
        ReferencedFrameOfReferenceUID=case.volume.frame_of_reference_uid,
        ROIName=segment.words,
        ROIDescription=RESEARCH_NOTICE,
        ROIVolume=f"{float(inside @ frame_ml(case.volume)):.6g}",
        ROIGenerationAlgorithm="AUTOMATIC",
        ROIGenerationDescription=f"{case.manifest.name} {case.manifest.version}"[:64],
    )


def _contours(case: Case, segment: Segment) -> Dataset:
    volume, items = case.volume, list[Dataset]()
    for frame in np.flatnonzero(case.counts[:, segment.number]).tolist():
        for region in regions(case.segments.mask[frame] == segment.number):
            points = in_mm(keyhole(region), volume.positions[frame], volume.affine)
            contour = item(
                ContourNumber=len(items) + 1,
                ContourImageSequence=[image_of(case, frame)],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
            )
            decimals = [f"{value:.{_DIGITS}f}" for value in points.ravel().tolist()]
            contour.add(unexamined("ContourData", decimals))
            items.append(contour)
    return item(ROIDisplayColor=list(segment.meaning.colour), ContourSequence=items, ReferencedROINumber=segment.number)


def _observation(segment: Segment) -> Dataset:
    return item(
        ObservationNumber=segment.number,
        ReferencedROINumber=segment.number,
        RTROIIdentificationCodeSequence=[coded(segment.meaning.type)],
        RTROIInterpretedType="" if is_abnormal(segment.label) else "ORGAN",
        ROIInterpreter="",
    )


def check_structure_set(data: bytes, case: Case, recipe: Recipe) -> None:
    """Read a structure set back from its bytes, and compare area and centre of its contours with the mask, by slices.

    Raises
    ------
    InvalidResult
        Patient, study, frame of reference, references, notice, ROIs, colours or contours are not those of the case.
    """
    dataset = read_back(data, case, recipe, "structure set")
    volume, mask = case.volume, case.segments.mask
    with translated("structure set"):
        frame_of_reference = dataset.ReferencedFrameOfReferenceSequence[0]
        study = frame_of_reference.RTReferencedStudySequence[0]
        series = study.RTReferencedSeriesSequence[0]
        notice = dataset.StructureSetDescription == RESEARCH_NOTICE
        names = [str(roi.ROIName) for roi in dataset.StructureSetROISequence]
        colours = [tuple(roi.ROIDisplayColor) for roi in dataset.ROIContourSequence]
        named = {uid for uid, _ in references_in([series])}
        places = {
            (str(ref.ReferencedSOPInstanceUID), ref.get("ReferencedFrameNumber")): frame
            for frame, ref in ((frame, image_of(case, frame)) for frame in range(len(mask)))
        }
        found = np.zeros((len(mask), len(case.segments.listed) + 1, 3))
        off, inverse = 0.0, np.linalg.inv(volume.affine[:3, :3]).T
        for roi in dataset.ROIContourSequence:
            for contour in roi.ContourSequence:
                image = contour.ContourImageSequence[0]
                key = (str(image.ReferencedSOPInstanceUID), image.get("ReferencedFrameNumber"))
                frame = places.get(key, -1)
                refuse_unless(frame >= 0, "a written contour refers to an image that is none of its series")
                # As bytes: pydicom makes an object of every number, which takes longer than all else.
                numbers = [float(number) for number in contour.get_item("ContourData").value.split(b"\\")]
                points = np.array(numbers).reshape(-1, 3) - volume.positions[frame]
                index = points @ inverse  # (frames, rows, columns)
                off = max(off, float(np.abs(index[:, 0]).max()) * volume.spacing[0])
                sums = moments(index[:, 1:])  # holes that a keyhole leads into run the other way
                found[frame, int(roi.ReferencedROINumber)] += sums * np.sign(sums[0])
    refuse_unless(notice, "the written structure set does not say that it is for research")
    refuse_unless(
        str(frame_of_reference.FrameOfReferenceUID) == volume.frame_of_reference_uid
        and str(series.SeriesInstanceUID) == volume.series_uid
        and named == {str(source.SOPInstanceUID) for source in volume.sources},
        "the written structure set does not refer to all images of its series",
    )
    refuse_unless(
        names == [segment.words for segment in case.segments.listed]
        and colours == [segment.meaning.colour for segment in case.segments.listed],
        "the ROIs of the written structure set are not the segments of the mask",
    )
    refuse_unless(off < _OFF_MM, "a written contour lies outside the slice that it refers to")
    refuse_unless(hold(found, mask), "the written contours do not hold what the mask holds")


_OFF_MM = 0.01
