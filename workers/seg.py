"""The mask of a series as a DICOM Segmentation (PS3.3 A.51, C.8.20.2).

The same input gives the same bytes: UIDs are derived, and every date and time is the source series' own, since a clock
would make each repetition of a job another object under the same UID. What remains: another CPU may round differently
inside the engine, so that single voxels at a border could differ while the UID stays the same.
"""

from __future__ import annotations

from importlib.metadata import version

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code

from node.errors import Unsuitable
from node.forms import DEFAULT, Recipe
from node.records import RESEARCH_NOTICE, derived_uid
from trt.manifest import Label, Manifest
from workers import codes
from workers.case import Case
from workers.volume import Volume
from workers.writing import translated

_NOT_FOUND = "no spine structure was found in the series"


def build_segmentation(case: Case, recipe: Recipe = DEFAULT[0]) -> Dataset:
    """Return a BINARY Segmentation, Explicit VR Little Endian, of the case's mask on the grid of its volume.

    Only labels that occur become segments, numbered from 1 without gaps as PS3.3 C.8.20.2 asks: viewers list an empty
    segment as if something had been found.

    Raises
    ------
    Unsuitable
        The mask is empty: an object without any segment is of no use and viewers handle it badly.
    ConfigurationError
        A label of the model has no DICOM code.
    InvalidResult
        highdicom refuses to build the object.
    """
    manifest, volume = case.manifest, case.volume
    found = present_labels(case.mask, manifest)
    if not found:
        raise Unsuitable(_NOT_FOUND, "check that it shows the spine, and in a contrast the model was trained on")
    algorithm = hd.AlgorithmIdentificationSequence(
        name=manifest.name,
        family=Code("123110", "DCM", "Artificial Intelligence"),
        version=manifest.version,
        source="pennode",
        parameters=case.told,
    )
    with translated():
        first = case.sources[0]
        segmentation = hd.seg.Segmentation(
            source_images=case.sources,
            pixel_array=_in_file_order(renumbered(case.mask, found), volume),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _description(number, label, algorithm, volume.series_uid) for number, label in enumerate(found, 1)
            ],
            series_instance_uid=case.uid("SEG series", recipe),
            sop_instance_uid=case.uid("SEG instance", recipe),
            series_number=case.series_number(recipe.form),
            instance_number=1,
            manufacturer="pennode",
            manufacturer_model_name=manifest.name,
            software_versions=(f"pennode {version('pennode')}", f"{manifest.name} {manifest.version}"),
            device_serial_number=manifest.digest,  # software has none; the model's digest tells devices apart
            content_label="SPINE_SEG",
            content_description=RESEARCH_NOTICE,
            content_creator_name="pennode^",
            omit_empty_frames=not recipe.all_frames,
            series_description=case.series_description(recipe),
            specific_character_set=first.get("SpecificCharacterSet"),
        )
        _fix(segmentation, case, recipe)
    return segmentation


def present_labels(mask: NDArray[np.uint8], manifest: Manifest) -> list[Label]:
    """Return the labels that occur in `mask`, in order of their values."""
    counts = np.bincount(mask.ravel(), minlength=256)
    return [label for label in manifest.labels if counts[label.value]]


def _fix(segmentation: Dataset, case: Case, recipe: Recipe) -> None:
    """Replace what highdicom takes from the clock or draws at random, and add what it leaves out."""
    source = case.sources[0]
    segmentation.ContentDate, segmentation.ContentTime = case.when
    segmentation.SeriesDate, segmentation.SeriesTime = case.when
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in segmentation:
            delattr(segmentation, keyword)
    for item in segmentation.ContributingEquipmentSequence:
        if "ContributionDateTime" in item:
            del item.ContributionDateTime
    organization = case.uid("SEG dimensions", recipe)
    segmentation.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for item in segmentation.DimensionIndexSequence:
        item.DimensionOrganizationUID = organization
    if source.get("BodyPartExamined"):
        segmentation.BodyPartExamined = source.BodyPartExamined


def renumbered(mask: NDArray[np.uint8], found: list[Label]) -> NDArray[np.uint8]:
    """Return `mask` with the labels found numbered 1, 2, ... and all else 0."""
    numbers = np.zeros(256, np.uint8)
    for number, label in enumerate(found, 1):
        numbers[label.value] = number
    return numbers[mask]


def _in_file_order(mask: NDArray[np.uint8], volume: Volume) -> NDArray[np.uint8]:
    """Return the frames of `mask` in the order of the source's own frames, which differs for Enhanced MR only."""
    if not volume.frame_numbers:
        return mask
    ordered = np.empty_like(mask)
    ordered[np.array(volume.frame_numbers) - 1] = mask
    return ordered


def _description(
    number: int, label: Label, algorithm: hd.AlgorithmIdentificationSequence, series_uid: str
) -> hd.seg.SegmentDescription:
    meaning = codes.meaning_of(label)
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=meaning.words,
        segmented_property_category=Code(*meaning.category),
        segmented_property_type=Code(*meaning.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        # One structure of one series keeps its identity, whichever model found it (PS3.3 C.8.20.2).
        tracking_uid=derived_uid("tracking", series_uid, label.name),
        tracking_id=meaning.words,
        anatomic_regions=[Code(*meaning.region)] if meaning.region else None,
        display_color=hd.color.CIELabColor.from_rgb(*meaning.colour),
    )
