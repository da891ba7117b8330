"""A file on its way out: what negotiation needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pydicom

from node.errors import InvalidInstance
from node.header import UNREADABLE
from node.records import is_uid


@dataclass(frozen=True)
class Outgoing:
    """One Part-10 file to send, as its file meta information describes it."""

    path: Path
    sop_class_uid: str
    sop_uid: str
    transfer_syntax_uid: str


def describe(path: Path) -> Outgoing:
    """Read what negotiation needs of one file.

    Raises
    ------
    InvalidInstance
        It is no DICOM Part-10 file.
    """
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
        outgoing = Outgoing(
            path, str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID), str(meta.TransferSyntaxUID)
        )
    except (FileNotFoundError, PermissionError) as error:
        raise InvalidInstance(f"{path.name} cannot be read ({error.strerror})", "check the file") from error
    except UNREADABLE as error:
        raise InvalidInstance(f"{path.name} is not a DICOM file", "leave it out") from error
    if not all(map(is_uid, (outgoing.sop_class_uid, outgoing.sop_uid, outgoing.transfer_syntax_uid))):
        raise InvalidInstance(f"the file meta information of {path.name} holds no valid UIDs", "leave it out")
    return outgoing
