"""Write a volume as an MR series: phantoms for the demonstration, the benchmark and the tests.

Classic MR Image Storage (PS3.3 A.4), one file per slice. The same volume can be stored in any of the 48 ways its axes
can be exchanged and reversed, tilted, in reverse order, and in a compressed transfer syntax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import DSfloat

from node.records import derived_uid
from workers.grid import MODEL_AXES

DATE, TIME = "20260314", "092653"


@dataclass(frozen=True)
class Storage:
    """How a volume is stored: frames, rows, columns are the model's `axes` (0 Z, 1 Y, 2 X), `flips` reversed.

    `rotation`, nine numbers row by row, turns the whole volume in the patient's LPS system. `reverse` numbers the
    instances against the order of the frames. Stored values are image values less `intercept`, divided by `slope`.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[int, ...] = ()
    rotation: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    reverse: bool = False
    transfer_syntax_uid: str = ExplicitVRLittleEndian
    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True, eq=False)
class Stored:
    """`voxels` (frames, rows, columns) uint16 with their `directions`, unit vectors in LPS, and `spacing` mm per axis.

    `positions` (frames, 3) mm are the centres of each frame's first pixel.
    """

    voxels: NDArray[np.uint16]
    directions: NDArray[np.float64]
    spacing: tuple[float, float, float]
    positions: NDArray[np.float64]


PLAIN = Storage()


def write_phantom(folder: Path, shape: tuple[int, int, int] = (20, 320, 256), seed: int = 0) -> list[Path]:
    """Write a synthetic spine of `shape` (Z, Y, X) as a sagittal series and return its files; see `write_series`."""
    from trt.phantom import spine_phantom

    phantom = spine_phantom(shape, (0.9, 0.9375, 0.9375), seed)
    return write_series(folder, phantom.image, (0.9, 0.9375, 0.9375), seed=seed)


def write_series(
    folder: Path, image: NDArray[np.uint16], spacing: Sequence[float], *, seed: int = 0, storage: Storage = PLAIN
) -> list[Path]:
    """Write `image` (Z, Y, X) uint16 on the model's axes, `spacing` mm, as classic MR instances; return their files.

    UIDs come from `seed` and `storage`: the same call writes the same bytes.
    """
    planes = lay_out(image, spacing, storage)
    folder.mkdir(parents=True, exist_ok=True)
    count, paths = len(planes.voxels), []
    for index, (plane, position) in enumerate(zip(planes.voxels, planes.positions, strict=True)):
        number = count - index if storage.reverse else index + 1
        dataset = header(seed, storage, str(MRImageStorage), number)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
        dataset.InstanceNumber = number
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "SK", ""
        dataset.MRAcquisitionType = "3D"
        dataset.RepetitionTime, dataset.EchoTime, dataset.EchoTrainLength = 1500, 120, 60
        dataset.ImagePositionPatient = decimals(position)
        dataset.ImageOrientationPatient = decimals([*planes.directions[2], *planes.directions[1]])
        dataset.PixelSpacing = decimals(planes.spacing[1:])
        dataset.SliceThickness, dataset.SpacingBetweenSlices = decimals([planes.spacing[0]] * 2)
        dataset.AcquisitionDate, dataset.AcquisitionTime = DATE, TIME
        if (storage.slope, storage.intercept) != (1.0, 0.0):  # not in the classic MR IOD, but common
            dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = storage.slope, storage.intercept, "US"
        dataset.WindowCenter, dataset.WindowWidth = window(image)
        path = folder / f"MR{number:04d}.dcm"
        write_file(path, dataset, plane[None], storage.transfer_syntax_uid)
        paths.append(path)
    return paths


def lay_out(image: NDArray[np.uint16], spacing: Sequence[float], storage: Storage) -> Stored:
    """Exchange, reverse and tilt the axes of `image` (Z, Y, X) as `storage` says; its centre is the origin of LPS."""
    directions = MODEL_AXES.copy()
    directions[list(storage.flips)] *= -1
    directions = directions[list(storage.axes)] @ np.array(storage.rotation, float).reshape(3, 3).T
    voxels = np.flip(image, storage.flips).transpose(storage.axes)
    sizes = [float(spacing[axis]) for axis in storage.axes]
    steps = directions * np.array(sizes)[:, None]
    first = -(np.array(voxels.shape) - 1) / 2 @ steps
    values = (voxels - storage.intercept) / storage.slope
    return Stored(
        voxels=values.round().astype(np.uint16),
        directions=directions,
        spacing=(sizes[0], sizes[1], sizes[2]),
        positions=first + np.arange(len(voxels))[:, None] * steps[0],
    )


def header(seed: int, storage: Storage, sop_class_uid: str, number: int) -> Dataset:
    """Return what every instance of a phantom says; UIDs follow from the arguments."""
    series = derived_uid("phantom", "series", str(seed), repr(storage), sop_class_uid)
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = UID(sop_class_uid)
    dataset.SOPInstanceUID = derived_uid("phantom", "instance", series, str(number))
    dataset.StudyInstanceUID = derived_uid("phantom", "study", str(seed))
    dataset.SeriesInstanceUID = series
    dataset.FrameOfReferenceUID = derived_uid("phantom", "frame of reference", str(seed))
    dataset.PositionReferenceIndicator = ""
    dataset.PatientName, dataset.PatientID = "Phantom^Spine", f"PHANTOM-{seed}"
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = DATE
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = TIME
    dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.StudyID = "", "", "1"
    dataset.StudyDescription, dataset.SeriesDescription = "MR LUMBAR SPINE", "t2_sag_phantom"
    dataset.Modality, dataset.SeriesNumber, dataset.BodyPartExamined = "MR", 3, "LSPINE"
    dataset.PatientPosition = "HFS"
    dataset.Manufacturer, dataset.ManufacturerModelName = "pennode", "phantom"
    dataset.MagneticFieldStrength = 1.5
    return dataset


def write_file(path: Path, dataset: Dataset, pixels: NDArray[np.uint16], transfer_syntax_uid: str) -> None:
    """Write `dataset` with `pixels` (frames, rows, columns) uint16 of 12 bits or more in a transfer syntax."""
    bits = max(12, int(pixels.max()).bit_length())
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[1:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, bits, bits - 1, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset.file_meta = FileMetaDataset()
    syntax = UID(transfer_syntax_uid)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_compressed else syntax
    if syntax.is_encapsulated:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)


def window(image: NDArray[np.uint16]) -> tuple[float, float]:
    """Return the centre and width that show `image` well."""
    top = max(2.0, float(np.percentile(image, 99.5)))
    return round(top / 2, 1), round(top, 1)


def decimals(values: Sequence[float] | NDArray[np.float64]) -> list[DSfloat]:
    """Return decimal strings (PS3.5 6.2); rounded far below what matters, so that none ends in floating-point dust."""
    return [DSfloat(round(float(value), 9) + 0.0, auto_format=True) for value in values]
