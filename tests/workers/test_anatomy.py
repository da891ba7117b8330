"""Where things lie in the patient, told without any of our own geometry.

Analytic ellipsoids in LPS millimetres, DICOM written with pydicom alone, and results read with pydicom alone: nothing
here would share a mistake with `workers.series`, `workers.volume` or `workers.grid`.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from node import settings
from workers.grid import to_canonical
from workers.identity import digest_of
from workers.pipeline import Pipeline
from workers.volume import read_series

# Patient LPS: x to the left, y to the back, z to the head. A large body, off centre, and a small one in it that lies
# to the right, in front and above.
CENTRE, RADII = np.array([6.0, -11.0, 17.0]), np.array([24.0, 30.0, 36.0])
SMALL_CENTRE, SMALL_RADII = CENTRE + np.array([-7.0, -8.0, 10.0]), np.array([12.0, 14.0, 16.0])

# Row direction (along columns) and column direction (along rows) in LPS, as a scanner writes them.
PLANES = {
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "sagittal, upside down": ((0, 1, 0), (0, 0, 1)),
    "sagittal, face to the right": ((0, -1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "coronal, mirrored": ((-1, 0, 0), (0, 0, -1)),
    "axial": ((1, 0, 0), (0, 1, 0)),
    "axial, from above": ((-1, 0, 0), (0, 1, 0)),
    "sagittal, oblique": ((0.26, 0.9656086, 0), (0.2, -0.0538525, -0.978315)),
}
SPACING = (2.0, 1.5, 4.0)  # mm between rows, between columns, between slices
SHAPE = (22, 64, 80)  # slices, rows, columns


def inside(points, centre, radii):
    return (((points - centre) / radii) ** 2).sum(axis=-1) <= 1


def write(folder, name, backwards):
    """One file per slice; each pixel is judged at the point that PS3.3 C.7.6.2.1.1 gives it."""
    along_row, along_column = (np.array(v, float) / np.linalg.norm(v) for v in PLANES[name])
    slice_step = np.cross(along_row, along_column) * SPACING[2] * (-1 if backwards else 1)
    row_step, column_step = along_column * SPACING[0], along_row * SPACING[1]
    middle = [(n - 1) / 2 for n in SHAPE]
    first = (
        CENTRE + np.array([1.0, 2.0, -1.5]) - slice_step * middle[0] - row_step * middle[1] - column_step * middle[2]
    )
    paths = []
    for number in range(SHAPE[0]):
        corner = first + number * slice_step
        rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
        points = corner + rows[..., None] * row_step + columns[..., None] * column_step
        pixels = 40 + 500 * inside(points, CENTRE, RADII) + 400 * inside(points, SMALL_CENTRE, SMALL_RADII)
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, f"1.2.826.0.1.3680043.10.999.1.{number + 1}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (
            "1.2.826.0.1.3680043.10.999.2",
            "1.2.826.0.1.3680043.10.999.3",
        )
        dataset.FrameOfReferenceUID, dataset.Modality = "1.2.826.0.1.3680043.10.999.4", "MR"
        dataset.PatientName, dataset.PatientID, dataset.InstanceNumber = "A^B", "1", number + 1
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in corner]
        dataset.ImageOrientationPatient = [f"{v:.8f}" for v in (*along_row, *along_column)]
        dataset.PixelSpacing = [str(SPACING[0]), str(SPACING[1])]
        dataset.Rows, dataset.Columns = SHAPE[1:]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.PixelData = pixels.astype("<u2").tobytes()
        paths.append(folder / f"{number}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def brightness(patches):
    """Label 1 is what the large body shows, label 2 the small one in it."""
    centre = patches[:, patches.shape[1] // 2]
    none = np.full_like(centre, -9.0)
    return np.stack([0.3 - abs(centre), 0.3 - abs(centre - 0.55), 0.3 - abs(centre - 1), none, none], axis=1)


class Brightness:
    backend = "formula"
    flexible = True

    def __call__(self, patches):
        return brightness(patches)

    def describe(self):
        return {"backend": "formula"}

    def close(self):
        pass


def points_of(dataset, segment):
    """The LPS points of a segment's pixels, from each frame's own position and the shared orientation and spacing."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    between_rows, between_columns = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    found = []
    for plane, group in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment:
            corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
            rows, columns = np.nonzero(plane)
            found.append(
                corner
                + rows[:, None] * between_rows * orientation[3:]
                + columns[:, None] * between_columns * orientation[:3]
            )
    return np.concatenate(found)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", PLANES)
def test_the_result_lies_in_the_patient_where_the_body_lies(name, backwards, tmp_path, manifest):
    paths = write(tmp_path, name, backwards)
    pipeline = Pipeline(Brightness(), manifest, settings.Worker(), settings.Seg())
    dataset = dcmread(io.BytesIO(pipeline.segment(paths, digest_of(paths)).objects[0].data))
    assert dataset.FrameOfReferenceUID == "1.2.826.0.1.3680043.10.999.4"
    large, small = points_of(dataset, 1), points_of(dataset, 2)
    both = np.concatenate([large, small])
    np.testing.assert_allclose(both.mean(axis=0), CENTRE, atol=0.4)
    np.testing.assert_allclose(small.mean(axis=0), SMALL_CENTRE, atol=1.0)
    assert inside(both, CENTRE, RADII + 3).all()
    volume = len(both) * np.prod(SPACING)
    assert volume == pytest.approx(4 / 3 * np.pi * np.prod(RADII), rel=0.06)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", PLANES)
def test_the_network_sees_right_before_left_head_up_and_face_to_the_left(name, backwards, tmp_path):
    canonical = to_canonical(read_series(write(tmp_path, name, backwards)))
    middle = [np.argwhere(canonical.voxels > level).mean(axis=0) for level in (300, 700)]
    assert (middle[1] < middle[0] - 0.5).all(), "the small body lies to the right, above and in front of the large one"
