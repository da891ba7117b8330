"""Result objects as bytes, and what pydicom and highdicom raise on the way as errors of ours."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from node.errors import InvalidResult
from workers.lenience import lenient

TELL_US = "keep the series and report it: this is a fault of the program"

# What highdicom and pydicom raise for values they do not take and bytes they cannot read.
_REFUSED = (
    InvalidDicomError, BytesLengthException, ValueError, TypeError, KeyError, IndexError, AttributeError,
    OverflowError, RuntimeError, EOFError, struct.error,
)  # fmt: skip


def write(dataset: Dataset) -> bytes:
    """Return the object as a DICOM file (PS3.10) in the transfer syntax that its file meta information names.

    Raises
    ------
    InvalidResult
        An attribute cannot be encoded.
    """
    buffer = io.BytesIO()
    with translated():
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@contextmanager
def translated(what: str = "segmentation") -> Iterator[None]:
    """Raise `InvalidResult` for what highdicom and pydicom raise; its text is dropped, it can quote the header."""
    try:
        with lenient():  # a source's values stay as they are
            yield
    except _REFUSED as error:
        raise InvalidResult(f"no valid {what} object can be written ({type(error).__name__})", TELL_US) from None
