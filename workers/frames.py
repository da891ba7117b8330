"""Frames of MR images as the scanner stored them: headers first, pixels one frame at a time.

Reads MR Image Storage (PS3.3 A.4, one frame per instance) and Enhanced MR Image Storage (PS3.3 A.36, many frames in one
instance), and turns whatever pydicom raises on broken bytes into `InvalidInstance`. Values of a header never enter an
error text, except numbers that identify no patient.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import iter_pixels
from pydicom.tag import BaseTag
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    MRImageStorage,
    RLELossless,
)

from node.errors import InvalidInstance, Unsuitable
from node.records import is_uid
from workers.lenience import lenient

# What pydicom and its decoders raise on bytes that are not what they claim to be.
UNREADABLE = (
    InvalidDicomError,
    BytesLengthException,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
_RESEND = "send the series again from the scanner or the archive"

# pydicom would ask GDCM first, which ends the whole process on some damaged streams. It stays for what only it decodes:
# JPEG lossless and the lossy JPEG processes.
_DECODERS: dict[str, str] = {
    RLELossless: "pydicom",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
}

# Groups that the result or the geometry needs; private, overlay and icon data can be megabytes per instance.
_GROUPS = frozenset({0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0028})
_BULKY = frozenset({0x00081140, 0x00082112, 0x00089092, 0x00089121, 0x00089154, 0x00089237, 0x00880200})

# What tells images at one position apart: words for the reader, keyword, functional group in Enhanced MR.
_TRAITS = (
    ("stack", "StackID", "FrameContentSequence"),
    ("time point", "TemporalPositionIndex", "FrameContentSequence"),
    ("time point", "TemporalPositionIdentifier", ""),
    ("echo time", "EffectiveEchoTime", "MREchoSequence"),
    ("echo time", "EchoTime", ""),
    ("echo number", "EchoNumbers", ""),
    ("inversion time", "InversionTime", ""),
    ("b-value", "DiffusionBValue", "MRDiffusionSequence"),
    ("trigger delay", "NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence"),
    ("trigger time", "TriggerTime", ""),
    ("image type", "ComplexImageComponent", "MRImageFrameTypeSequence"),
    ("image type", "FrameType", "MRImageFrameTypeSequence"),
    ("image type", "ImageType", ""),
    ("acquisition number", "AcquisitionNumber", ""),
)


@dataclass(frozen=True)
class Frame:
    """One plane: position, direction cosines (row, then column) and spacing (rows, columns) in mm, patient LPS.

    `image` counts the sources from 0, `number` the frames of that image from 1, `name` is how an error speaks of it.
    An empty tuple says that the attribute is absent, and `thickness` 0 that there is no Slice Thickness in mm of use;
    `traits` hold what may tell planes at one position apart.
    """

    image: int
    number: int
    name: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float
    slope: float
    intercept: float
    traits: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Image:
    """One SOP instance: its header without pixels, private and bulky attributes, and its frames in stored order."""

    header: Dataset
    name: str
    transfer_syntax_uid: str
    frames: tuple[Frame, ...]


@contextmanager
def readable(name: str, what: str) -> Iterator[None]:
    """Raise `InvalidInstance`, "`name` `what`", for what broken bytes raise when read or looked at.

    The cause is dropped: its text can quote values of the header.
    """
    try:
        # Values are checked here; pydicom's warnings about them would quote them, to the log as well.
        with lenient():
            yield
    except OSError as error:
        raise InvalidInstance(f"{name} cannot be read ({error.strerror or 'input error'})", _RESEND) from None
    except MemoryError:
        raise Unsuitable(f"{name} does not fit into memory", "use a worker with more memory") from None
    except UNREADABLE:
        raise InvalidInstance(f"{name} {what}", _RESEND) from None


def read_image(source: Path | Dataset, index: int, total: int) -> Image:
    """Read the header of one instance, the `index`-th (from 0) of `total`.

    Raises
    ------
    InvalidInstance
        The bytes are no DICOM object, or an attribute cannot be read.
    Unsuitable
        It is another kind of object than an MR image.
    """
    name = f"file {index + 1} of {total}"
    with readable(name, "is not a DICOM file"):
        dataset = source if isinstance(source, Dataset) else dcmread(source, stop_before_pixels=True)
    with readable(name, "is DICOM, but its header is damaged"):
        sop_class = dataset.get("SOPClassUID", "")
        if sop_class not in (MRImageStorage, EnhancedMRImageStorage):
            kind = getattr(sop_class, "name", sop_class)  # its own text, where the dictionary lacks it
            raise Unsuitable(
                f"{name} is {'an object of an unknown kind' if kind == sop_class else kind}, not an MR image",
                "send MR Image Storage or Enhanced MR Image Storage",
            )
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            if not is_uid(str(dataset.get(keyword, ""))):
                raise InvalidInstance(f"{name} has no valid {keyword}", _RESEND)
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        header = copied(dataset, _lean)
        frames = _frames(dataset, index)
    return Image(header, frames[0].name if sop_class == MRImageStorage else "the image", syntax, frames)


def iter_frames(source: Path | Dataset, image: Image) -> Iterator[tuple[int, NDArray[np.integer]]]:
    """Decode one instance: yield frame numbers from 1 and stored values (rows, columns), before any rescale.

    Raises
    ------
    InvalidInstance
        The pixel data is missing, truncated, or no decoder understands it.
    """
    what = "has damaged or incomplete pixel data"
    shape = (int(image.header.Rows), int(image.header.Columns))
    with readable(image.name, what):
        if image.transfer_syntax_uid == DeflatedExplicitVRLittleEndian and not isinstance(source, Dataset):
            source = dcmread(source)  # iter_pixels inflates no file
        pixels = iter_pixels(source, raw=True, decoding_plugin=_DECODERS.get(image.transfer_syntax_uid, ""))
    for number in range(1, len(image.frames) + 1):
        with readable(image.name, what):
            frame = next(pixels, None)
        if frame is None or frame.shape != shape:
            raise InvalidInstance(f"{image.name} {what}", _RESEND)
        yield number, frame


def copied(dataset: Dataset, keep: Callable[[BaseTag], bool] = lambda tag: True) -> Dataset:
    """Return a new data set with those elements that `keep` wants, free to be changed.

    `Dataset(other)` would share all of its contents, and setting an attribute changes the element in place.
    """
    new = Dataset()
    new.set_original_encoding(*dataset.original_encoding, dataset.original_character_set)
    for tag in dataset.keys():  # noqa: SIM118 - iterating a Dataset parses every element
        if keep(tag):
            element = dataset.get_item(tag)
            new[tag] = element if element.is_raw else copy(element)  # what is raw cannot be changed
    return new


def _lean(tag: BaseTag) -> bool:
    """Tell whether an attribute may matter to a result; Enhanced MR's functional groups are written anew later."""
    return tag.group in _GROUPS and int(tag) not in _BULKY


def _frames(dataset: Dataset, image: int) -> tuple[Frame, ...]:
    if dataset.SOPClassUID == MRImageStorage:
        return (_frame(dataset, [dataset], image, 1, _name(dataset, image)),)
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    items: Sequence[Dataset] = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    if not items or len(items) != int(dataset.get("NumberOfFrames") or 0):
        raise InvalidInstance("the image does not describe each of its frames", _RESEND)
    return tuple(
        _frame(dataset, [item, shared[0]], image, number, f"frame {number}") for number, item in enumerate(items, 1)
    )


def _name(dataset: Dataset, image: int) -> str:
    try:
        return f"image {int(str(dataset.get('InstanceNumber')))}"
    except (ValueError, OverflowError):  # absent, or not one number
        return f"file {image + 1}"


def _frame(dataset: Dataset, groups: Sequence[Dataset], image: int, number: int, name: str) -> Frame:
    """Read one frame; `groups` are the functional groups that describe it, nearest first, or the data set itself."""

    def value(keyword: str, sequence: str) -> object:
        for group in groups:
            items = [group] if group is dataset else (group.get(sequence) or []) if sequence else []
            if items and items[0].get(keyword) not in (None, ""):
                return items[0][keyword].value
        return None

    def numbers(keyword: str, sequence: str) -> tuple[float, ...]:
        found = value(keyword, sequence)
        if found is None:
            return ()
        return tuple(float(v) for v in found) if isinstance(found, Sequence) else (float(str(found)),)

    def number_or(default: float, keyword: str) -> float:
        found = numbers(keyword, "PixelValueTransformationSequence")
        return found[0] if found else default

    def thickness() -> float:
        try:
            found = float(str(value("SliceThickness", "PixelMeasuresSequence")))
        except ValueError:  # absent, several values, or text
            return 0.0
        return found if 0 < found < np.inf else 0.0

    traits: dict[str, str] = {}
    for word, keyword, sequence in _TRAITS:
        found = value(keyword, sequence)
        if found is not None and word not in traits:
            traits[word] = (
                str(found) if isinstance(found, str) or not isinstance(found, Sequence) else "/".join(map(str, found))
            )
    return Frame(
        image=image,
        number=number,
        name=name,
        position=numbers("ImagePositionPatient", "PlanePositionSequence"),
        orientation=numbers("ImageOrientationPatient", "PlaneOrientationSequence"),
        spacing=numbers("PixelSpacing", "PixelMeasuresSequence"),
        thickness=thickness(),
        slope=number_or(1.0, "RescaleSlope"),
        intercept=number_or(0.0, "RescaleIntercept"),
        traits=traits,
    )
