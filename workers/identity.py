"""What a file says it is, and what it holds, as the node tells images apart and names the input of a job."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread

from node.records import input_digest
from workers.frames import readable

_IDENTITY = ["SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber"]


@dataclass(frozen=True)
class Identity:
    """What a file says it is, and the sha256 of its data set, the bytes after the file meta group (PS3.10 7.1).

    `series_number` is None where there is none, or not one whole number.
    """

    sop_class_uid: str
    sop_uid: str
    series_uid: str
    series_number: int | None
    sha256: str


def read_identity(path: Path) -> Identity:
    """Read what is needed to tell series apart, and the digest of the data set.

    Raises
    ------
    InvalidInstance
        The file cannot be opened, or is no DICOM file.
    """
    with readable("the file", "is not a DICOM file"), path.open("rb") as file:
        header = dcmread(file, stop_before_pixels=True, specific_tags=_IDENTITY)
        length = header.file_meta.get("FileMetaInformationGroupLength")
        file.seek(0 if length is None else 132 + 12 + int(length))
        return Identity(
            sop_class_uid=str(header.file_meta.MediaStorageSOPClassUID),
            sop_uid=str(header.SOPInstanceUID),
            series_uid=str(header.SeriesInstanceUID),
            series_number=_series_number(header),
            sha256=hashlib.file_digest(file, "sha256").hexdigest(),
        )


def _series_number(header: Dataset) -> int | None:
    """Return the Series Number; it only names a series to people, so that an odd one is no reason to refuse it."""
    try:
        return int(str(header.get("SeriesNumber")))
    except (ValueError, OverflowError):
        return None


def digest_of(paths: Sequence[Path]) -> str:
    """Return the input digest of files as the node calculates it: over SOP Instance UIDs and their data sets' sha256.

    Raises `InvalidInstance` for a file that is not DICOM.
    """
    return input_digest((identity.sop_uid, identity.sha256) for identity in map(read_identity, paths))
