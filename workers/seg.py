"""The mask of a series as a DICOM Segmentation (PS3.3 A.51, C.8.20.2).

The same input gives the same bytes: UIDs are derived, and every date and time is the source series' own, since a clock
would make each repetition of a job another object under the same UID. What remains: another CPU may round differently
inside the engine, so that single voxels at a border could differ while the UID stays the same.

`highdicom` is used here and in `workers.readback`, nowhere else.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.sr.coding import Code

from node.errors import InvalidResult, Unsuitable
from node.forms import DEFAULT, Recipe
from node.records import RESEARCH_NOTICE, derived_uid
from node.settings import Seg
from trt.manifest import Label, Manifest
from workers import codes
from workers.frames import copied
from workers.volume import Volume

# What an engine says of itself but does not change the mask differs between hosts, and stays out of the object.
_HOST_ONLY = frozenset({"threads", "batch", "device"})
# What was found rather than asked: it is told, and another host may find it a little otherwise for the same object.
_GATE = ("gate_agreement", "gate_difference", "gate_reference", "fallback_from")
_FOUND = frozenset((*_GATE, *(f"finder_{name}" for name in _GATE)))
_CHARACTER_SETS = frozenset(v.value for v in hd.SpecificCharacterSetValues)
_UTF8 = "ISO_IR 192"
_NUMBER = re.compile(r"\d{1,12}")
_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
# What highdicom and pydicom raise for values they do not take and bytes they cannot read.
_REFUSED = (
    InvalidDicomError, BytesLengthException, ValueError, TypeError, KeyError, IndexError, AttributeError,
    OverflowError, RuntimeError, EOFError, struct.error,
)  # fmt: skip
_NOT_FOUND = "no spine structure was found in the series"
TELL_US = "keep the series and report it: this is a fault of the program"


def build_segmentation(
    volume: Volume,
    mask: NDArray[np.uint8],
    manifest: Manifest,
    engine_description: Mapping[str, str],
    input_digest: str,
    settings: Seg,
    recipe: Recipe = DEFAULT[0],
) -> Dataset:
    """Return a BINARY Segmentation, Explicit VR Little Endian, of a label map on the grid of `volume`.

    `mask` is (frames, rows, columns) uint8 in the frame order of `volume`, values as in `manifest.labels`. Only labels
    that occur become segments, numbered from 1 without gaps as PS3.3 C.8.20.2 asks: viewers list an empty segment as
    if something had been found. `engine_description` and `input_digest` go into the algorithm's parameters.

    Raises
    ------
    Unsuitable
        The mask is empty: an object without any segment is of no use and viewers handle it badly.
    ConfigurationError
        A label of the model has no DICOM code.
    InvalidResult
        highdicom refuses to build the object.
    """
    if mask.shape != volume.voxels.shape or mask.dtype != np.uint8:
        raise InvalidResult("the mask does not lie on the grid of its series", TELL_US)
    found = present_labels(mask, manifest)
    if not found:
        raise Unsuitable(_NOT_FOUND, "check that it shows the spine, and in a contrast the model was trained on")
    parameters = {k: v for k, v in sorted(engine_description.items()) if k not in _HOST_ONLY}
    parameters |= {"model_sha256": manifest.digest, "input_sha256": input_digest}
    release = version("pennode")
    asked = {k: v for k, v in parameters.items() if k not in _FOUND}
    identity = (volume.series_uid, release, repr(asked), settings.model_dump_json(), recipe.key)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=manifest.name,
        family=Code("123110", "DCM", "Artificial Intelligence"),
        version=manifest.version,
        source="pennode",
        parameters=parameters,
    )
    with translated():
        sources = [_complete(source) for source in volume.sources]
        first = sources[0]
        number = int(_matching(_NUMBER, first.get("SeriesNumber")) or 0)
        segmentation = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=_in_file_order(renumbered(mask, found), volume),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _description(number, label, algorithm, volume.series_uid) for number, label in enumerate(found, 1)
            ],
            series_instance_uid=derived_uid("SEG series", *identity),
            sop_instance_uid=derived_uid("SEG instance", *identity),
            # The source's number leads, so that a PACS lists the result beside it; IS holds 31 bits.
            series_number=number % (2**31 // 100) * 100 + 1,
            instance_number=1,
            manufacturer="pennode",
            manufacturer_model_name=manifest.name,
            software_versions=(f"pennode {release}", f"{manifest.name} {manifest.version}"),
            device_serial_number=manifest.digest,  # software has none; the model's digest tells devices apart
            content_label="SPINE_SEG",
            content_description=RESEARCH_NOTICE,
            content_creator_name="pennode^",
            omit_empty_frames=not recipe.all_frames,
            series_description=settings.series_description,
            specific_character_set=first.get("SpecificCharacterSet"),
        )
        _fix(segmentation, first, identity)
    return segmentation


def write(segmentation: Dataset) -> bytes:
    """Return the object as a DICOM file (PS3.10).

    Raises
    ------
    InvalidResult
        An attribute cannot be encoded.
    """
    buffer = io.BytesIO()
    with translated():
        segmentation.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def present_labels(mask: NDArray[np.uint8], manifest: Manifest) -> list[Label]:
    """Return the labels that occur in `mask`, in order of their values."""
    counts = np.bincount(mask.ravel(), minlength=256)
    return [label for label in manifest.labels if counts[label.value]]


@contextmanager
def translated() -> Iterator[None]:
    """Raise `InvalidResult` for what highdicom and pydicom raise; its text is dropped, it can quote the header."""
    try:
        with warnings.catch_warnings(), disable_value_validation():  # a source's values stay as they are
            warnings.simplefilter("ignore")
            yield
    except _REFUSED as error:
        raise InvalidResult(f"no valid segmentation object can be written ({type(error).__name__})", TELL_US) from None


def _complete(source: Dataset) -> Dataset:
    """Return a copy of a source's header with what highdicom insists on; a value it cannot take is left empty.

    Archives hold headers without Study ID, or with a birth date of free text; neither is a reason to have no result.
    """
    header = copied(source)
    for keyword in ("PatientName", "PatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName"):
        if header.get(keyword) is None:
            setattr(header, keyword, "")
    for keyword in ("PatientBirthDate", "StudyDate"):
        setattr(header, keyword, _matching(_DATE, header.get(keyword)))
    header.StudyTime = _matching(_TIME, header.get("StudyTime"))
    header.PatientSex = _matching(re.compile("[MFO]"), header.get("PatientSex"))
    given = header.get("SpecificCharacterSet")
    if given and not set([given] if isinstance(given, str) else given) <= _CHARACTER_SETS:
        header.SpecificCharacterSet = _UTF8
    return header


def _matching(pattern: re.Pattern[str], value: object) -> str:
    text = "" if value is None else str(value).strip()
    return text if pattern.fullmatch(text) else ""


def _when(source: Dataset) -> tuple[str, str]:
    """Return the date (DA) and time (TM) of a series: the first of its own that is valid."""
    for kind in ("Series", "Acquisition", "Content", "Study"):
        date = _matching(_DATE, source.get(f"{kind}Date"))
        if date:
            return date, _matching(_TIME, source.get(f"{kind}Time")) or "000000"
    return "19000101", "000000"


def _fix(segmentation: Dataset, source: Dataset, identity: tuple[str, ...]) -> None:
    """Replace what highdicom takes from the clock or draws at random, and add what it leaves out."""
    date, time = _when(source)
    segmentation.ContentDate = segmentation.SeriesDate = date
    segmentation.ContentTime = segmentation.SeriesTime = time
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in segmentation:
            delattr(segmentation, keyword)
    for item in segmentation.ContributingEquipmentSequence:
        if "ContributionDateTime" in item:
            del item.ContributionDateTime
    organization = derived_uid("SEG dimensions", *identity)
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
