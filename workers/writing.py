"""Result objects as bytes, and what pydicom and highdicom raise on the way as errors of ours."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from node.errors import InvalidResult
from workers.encoding import Encoder, little_endian
from workers.lenience import lenient

TELL_US = "keep the series and report it: this is a fault of the program"

# What highdicom and pydicom raise for values they do not take and bytes they cannot read.
_REFUSED = (
    InvalidDicomError, BytesLengthException, ValueError, TypeError, KeyError, IndexError, AttributeError,
    OverflowError, RuntimeError, EOFError, struct.error,
)  # fmt: skip


def write(dataset: Dataset, encoder: Encoder | None = None) -> bytes:
    """Return the object as a DICOM file (PS3.10) in the transfer syntax that its file meta information names.

    Objects of one series are written faster by one encoder.

    Raises
    ------
    InvalidResult
        An attribute cannot be encoded.
    """
    with translated():
        meta, plain = dataset.file_meta, dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        if not plain and meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
            buffer = io.BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            return buffer.getvalue()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
        beginning = little_endian()
        write_file_meta_info(beginning, meta, enforce_standard=True)
        body = (encoder or Encoder()).encode(dataset)
        if not plain:  # PS3.5 A.5
            body = zlib.compress(body, wbits=-zlib.MAX_WBITS)
            body += b"\0" * (len(body) % 2)
        return b"".join((bytes(128), b"DICM", beginning.getvalue(), body))


@contextmanager
def translated(what: str = "segmentation") -> Iterator[None]:
    """Raise `InvalidResult` for what highdicom and pydicom raise; its text is dropped, it can quote the header."""
    try:
        with lenient():  # a source's values stay as they are
            yield
    except _REFUSED as error:
        raise InvalidResult(f"no valid {what} object can be written ({type(error).__name__})", TELL_US) from None
