"""What every result object that is not a segmentation begins with, and how it is known again from its bytes.

Patient and study are the source's own (PS3.3 C.7.1, C.7.2); series, equipment and identity are ours. No clock is asked:
dates are those of the source series, so that the same input gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

from pydicom import DataElement, Dataset, FileMetaDataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian

from node.errors import InvalidResult
from node.forms import SOP_CLASSES, Form, Recipe
from workers.case import Case
from workers.frames import copied
from workers.ownership import belongs
from workers.writing import TELL_US, translated

_PATIENT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientIdentityRemoved",
    "DeidentificationMethod", "PatientAge", "PatientSize", "PatientWeight",
)  # fmt: skip
_STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber",
    "StudyDescription",
)  # fmt: skip
_SOURCE_IMAGE = ("121322", "DCM", "Source image for image processing operation")


def begin(case: Case, recipe: Recipe, modality: str, number: int = 1) -> Dataset:
    """Return a data set, Explicit VR Little Endian, with what all objects share; `number` is the instance's.

    The caller adds what the object is about, and may set another transfer syntax.
    """
    first = case.sources[0]
    dataset = Dataset()
    if first.get("SpecificCharacterSet"):
        dataset.SpecificCharacterSet = first.SpecificCharacterSet
    for keyword in (*_PATIENT, *_STUDY):
        if keyword in first:
            dataset[keyword] = first[keyword]
    dataset.SOPClassUID = UID(SOP_CLASSES[recipe.form])
    dataset.SOPInstanceUID = case.uid(f"{recipe.form} instance", recipe, str(number))
    dataset.SeriesInstanceUID = case.uid(f"{recipe.form} series", recipe)
    dataset.SeriesNumber = case.series_number(recipe.form)
    dataset.InstanceNumber = number
    dataset.Modality = modality
    equip(dataset, case, recipe)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def numbered(shared: Dataset, case: Case, recipe: Recipe, number: int) -> Dataset:
    """Return a copy of what `begin` gave, as another instance of the same series."""
    dataset = copied(shared)
    dataset.SOPInstanceUID = case.uid(f"{recipe.form} instance", recipe, str(number))
    dataset.InstanceNumber = number
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = shared.file_meta.TransferSyntaxUID
    return dataset


def equip(dataset: Dataset, case: Case, recipe: Recipe) -> None:
    """Add what tells where an object comes from, and the dates of its source in place of the clock's."""
    dataset.SeriesDescription = case.series_description(recipe)
    dataset.SeriesDate, dataset.SeriesTime = case.when
    dataset.ContentDate, dataset.ContentTime = case.when
    # The series of reports and of structure sets have none (PS3.3 C.17.1, C.8.8.1).
    if case.sources[0].get("BodyPartExamined") and recipe.form not in (Form.SR, Form.RTSTRUCT):
        dataset.BodyPartExamined = case.sources[0].BodyPartExamined
    for keyword, value in equipment(case).items():
        setattr(dataset, keyword, value)
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in dataset:
            delattr(dataset, keyword)
    for item in dataset.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in item:
            del item.ContributionDateTime


def equipment(case: Case) -> dict[str, Any]:
    """Return the attributes of the General Equipment Module (PS3.3 C.7.5.1); the model's digest tells devices apart."""
    manifest = case.manifest
    return {
        "Manufacturer": "pennode",
        "ManufacturerModelName": manifest.name,
        "SoftwareVersions": [f"pennode {version('pennode')}", f"{manifest.name} {manifest.version}"],
        "DeviceSerialNumber": manifest.digest,
    }


def item(**values: Any) -> Dataset:
    """Return an item of a sequence with these attributes."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def unexamined(keyword: str, values: list[Any]) -> DataElement:
    """Return an element of many values that are as they are to be written; pydicom would look at each, and slowly."""
    return DataElement(keyword, dictionary_VR(keyword), values, already_converted=True)


def coded(code: tuple[str, str, str]) -> Dataset:
    """Return a coded entry (PS3.3 8.8) of value, scheme and meaning."""
    return item(CodeValue=code[0], CodingSchemeDesignator=code[1], CodeMeaning=code[2])


def image_of(case: Case, frame: int) -> Dataset:
    """Return a reference to the source image of a frame, and to the frame within it where it holds several."""
    if case.volume.frame_numbers:
        only = case.sources[0]
        return item(
            ReferencedSOPClassUID=only.SOPClassUID,
            ReferencedSOPInstanceUID=only.SOPInstanceUID,
            ReferencedFrameNumber=case.volume.frame_numbers[frame],
        )
    source = case.sources[frame]
    return item(ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID)


def images_of(case: Case) -> list[Dataset]:
    """Return references to all source images."""
    return [
        item(ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID)
        for source in case.sources
    ]


def derived_from(references: Iterable[Dataset]) -> list[Dataset]:
    """Return the items of a Source Image Sequence (PS3.3 C.7.6.1.1.4) for references to images."""
    items = []
    for reference in references:
        reference.PurposeOfReferenceCodeSequence = [coded(_SOURCE_IMAGE)]
        items.append(reference)
    return items


def read_back(data: bytes, case: Case, recipe: Recipe, what: str) -> Dataset:
    """Read an object from its bytes and check that it is of this patient, study and recipe.

    Raises
    ------
    InvalidResult
        It cannot be read, or is somebody else's or something else.
    """
    with translated(what):
        dataset = dcmread(io.BytesIO(data))
        same = belongs(dataset, case.volume.sources[0])
        kind = str(dataset.SOPClassUID)
    refuse_unless(same, f"the written {what} names another patient or study than its series")
    refuse_unless(kind == SOP_CLASSES[recipe.form], f"the written {what} is an object of another class")
    return dataset


def refuse_unless(holds: object, reason: str) -> None:
    """Raise `InvalidResult` for what may not leave the worker."""
    if not holds:
        raise InvalidResult(reason, TELL_US)


def references_in(items: Iterable[Dataset]) -> Iterator[tuple[str, int | None]]:
    """Yield SOP Instance UID and first frame number of every object that items refer to, however deep."""
    for entry in items:
        for element in entry:
            if element.VR == "SQ":
                yield from references_in(element.value)
            elif element.keyword == "ReferencedSOPInstanceUID":
                number = entry.get("ReferencedFrameNumber")
                first = number[0] if isinstance(number, MultiValue) else number
                yield str(element.value), None if first is None else int(first)
