"""The mask of a series as a DICOM Segmentation (PS3.3 A.51, C.8.20.2): BINARY, LABELMAP (2024d) or FRACTIONAL.

The same input gives the same bytes: UIDs are derived, and every date and time is the source series' own, since a clock
would make each repetition of a job another object under the same UID. What remains: another CPU may round differently
inside the engine, so that single voxels at a border could differ while the UID stays the same.
"""

from __future__ import annotations

import math

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless

from node.forms import DEFAULT, Form, Recipe
from node.records import RESEARCH_NOTICE
from workers.case import Case
from workers.heading import equip, equipment
from workers.rle import encode_planes
from workers.segments import Segment
from workers.volume import Volume
from workers.writing import translated

TYPES = {Form.SEG: "BINARY", Form.LABELMAP: "LABELMAP", Form.FRACTIONAL: "FRACTIONAL"}
SYNTAXES = {"none": ExplicitVRLittleEndian, "rle": RLELossless, "deflated": DeflatedExplicitVRLittleEndian}
FULL = 255  # what a voxel that is wholly inside has in FRACTIONAL, and no other value but 0 occurs


def build_segmentation(case: Case, recipe: Recipe = DEFAULT[0]) -> Dataset:
    """Return the Segmentation of the case's mask on the grid of its volume, in the type and syntax of the recipe.

    FRACTIONAL is of the mask as well, not of the model's probabilities: OCCUPANCY of 0 or `FULL`. The pixels of the
    data set are those to be written; where the recipe says deflated, `workers.writing.write` deflates.

    Raises
    ------
    Unsuitable
        The mask is empty: an object without any segment is of no use and viewers handle it badly.
    ConfigurationError
        A label of the model has no DICOM code.
    InvalidResult
        highdicom refuses to build the object.
    """
    manifest, segments, made = case.manifest, case.segments, equipment(case)
    # highdicom 0.28 multiplies a FRACTIONAL's only segment in place.
    mask = segments.mask.copy() if recipe.form is Form.FRACTIONAL else segments.mask
    algorithm = hd.AlgorithmIdentificationSequence(
        name=manifest.name,
        family=Code("123110", "DCM", "Artificial Intelligence"),
        version=manifest.version,
        source="pennode",
        parameters=case.told,
    )
    with translated():
        segmentation = hd.seg.Segmentation(
            source_images=case.sources,
            pixel_array=_in_file_order(mask, case.volume),
            segmentation_type=TYPES[recipe.form],
            segment_descriptions=[_description(segment, algorithm) for segment in segments.listed],
            series_instance_uid=case.uid("SEG series", recipe),
            sop_instance_uid=case.uid("SEG instance", recipe),
            series_number=case.series_number(recipe.form),
            instance_number=1,
            manufacturer=made["Manufacturer"],
            manufacturer_model_name=made["ManufacturerModelName"],
            software_versions=made["SoftwareVersions"],
            device_serial_number=made["DeviceSerialNumber"],
            fractional_type=hd.seg.SegmentationFractionalTypeValues.OCCUPANCY,
            max_fractional_value=FULL,
            content_label="SPINE_SEG",
            content_description=RESEARCH_NOTICE,
            content_creator_name="pennode^",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            omit_empty_frames=not recipe.all_frames,
            series_description=case.series_description(recipe),
            specific_character_set=case.sources[0].get("SpecificCharacterSet"),
        )
        _fix(segmentation, case, recipe)
        if recipe.compression == "rle":
            size = int(segmentation.NumberOfFrames), int(segmentation.Rows), int(segmentation.Columns)
            pixels = np.frombuffer(segmentation.PixelData, np.uint8, count=math.prod(size))
            segmentation.PixelData = encode_planes(pixels.reshape(size))
        segmentation.file_meta.TransferSyntaxUID = SYNTAXES[recipe.compression]
    return segmentation


def _fix(segmentation: Dataset, case: Case, recipe: Recipe) -> None:
    """Replace what highdicom takes from the clock or draws at random, and add what it leaves out."""
    equip(segmentation, case, recipe)
    organization = case.uid("SEG dimensions", recipe)
    segmentation.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for item in segmentation.DimensionIndexSequence:
        item.DimensionOrganizationUID = organization


def _in_file_order(mask: NDArray[np.uint8], volume: Volume) -> NDArray[np.uint8]:
    """Return the frames of `mask` in the order of the source's own frames, which differs for Enhanced MR only."""
    if not volume.frame_numbers:
        return mask
    ordered = np.empty_like(mask)
    ordered[np.array(volume.frame_numbers) - 1] = mask
    return ordered


def _description(segment: Segment, algorithm: hd.AlgorithmIdentificationSequence) -> hd.seg.SegmentDescription:
    meaning = segment.meaning
    return hd.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.words,
        segmented_property_category=Code(*meaning.category),
        segmented_property_type=Code(*meaning.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=segment.tracking_uid,
        tracking_id=segment.words,
        anatomic_regions=[Code(*meaning.region)] if meaning.region else None,
        display_color=hd.color.CIELabColor.from_rgb(*meaning.colour),
    )
