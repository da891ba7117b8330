"""A result as pictures, for a PACS that shows no segmentations: contours burnt into copies of the source slices.

Secondary Capture (PS3.3 A.8.1), one instance per slice, or Multi-frame True Color Secondary Capture (A.8.5). Legend and
notice stand in a band below the slice, so that they cover nothing of it. The pictures lie where the slices lie: Image
Plane is no module of a single-frame secondary capture, but viewers sort and cross-reference by it, and an object may
have more than its IOD asks for (Standard Extended, PS3.4). Nobody can measure the mask in them: they are pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.valuerep import DSfloat

from node.errors import InvalidResult
from node.forms import Form, Recipe
from node.records import RESEARCH_NOTICE
from workers.case import Case
from workers.heading import begin, coded, derived_from, image_of, item, numbered, read_back, refuse_unless
from workers.legend import Entry, draw_band
from workers.writing import TELL_US, translated

WINDOW = (1.0, 99.7)  # percentiles of the series that are black and white
WIDTH = 512  # pixels that a picture is to have at least, so that its legend can be read
MOST_ROWS = 1536  # no slice is enlarged beyond
_EVERY = 4  # of rows and columns, enough to know the percentiles of
_DERIVATION = ("113076", "DCM", "Segmentation")

Picture = NDArray[np.uint8]


class Pictures:
    """Draws the slices of a case, all at one scale and with one band below."""

    def __init__(self, case: Case) -> None:
        self._case = case
        rows, columns = case.mask.shape[1:]
        self.scale = max(1, min(-(-WIDTH // columns), MOST_ROWS // rows))
        self.area = (rows * self.scale, columns * self.scale)
        sample = case.volume.voxels[:, ::_EVERY, ::_EVERY]
        low, high = np.percentile(sample, WINDOW)
        self._low, self._gain = np.float32(low), np.float32(255 / max(float(high - low), 1e-6))
        entries = [Entry(segment.words, segment.meaning.colour) for segment in case.segments.listed]
        notice = f"{RESEARCH_NOTICE} Contours by {case.manifest.name} {case.manifest.version}."
        self.band = draw_band(entries, notice, max(self.area[1], WIDTH))
        self.size = (self.area[0] + len(self.band), self.band.shape[1])
        self._colours = np.zeros((256, 3), np.uint8)
        for segment in case.segments.listed:
            self._colours[segment.number] = segment.meaning.colour

    def draw(self, frame: int) -> Picture:
        """Return one slice (rows, columns, RGB) uint8 with the contours of its segments, and the band below it."""
        grey = self._case.volume.voxels[frame] - self._low
        grey *= self._gain
        np.clip(grey, 0, 255, out=grey)
        picture = np.zeros((*self.size, 3), np.uint8)
        area = picture[: self.area[0], : self.area[1]]
        shades = self._enlarged(grey.astype(np.uint8))
        for channel in range(3):  # much faster than to spread them over the last axis at once
            area[..., channel] = shades
        picture[self.area[0] :] = self.band
        mask = self._case.segments.mask[frame]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            near = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            numbers = self._enlarged(mask[near])
            line = rim(numbers)
            shown = area[near[0].start * self.scale :, near[1].start * self.scale :][: len(line), : line.shape[1]]
            shown[line] = self._colours[numbers[line]]
        return picture

    def _enlarged(self, plane: Picture) -> Picture:
        if self.scale == 1:
            return plane
        return plane.repeat(self.scale, axis=0).repeat(self.scale, axis=1)

    def first_pixel(self, frame: int) -> NDArray[np.float64]:
        """Return the centre (3,) in mm of the picture's first pixel: an enlarged one is smaller than the slice's."""
        volume = self._case.volume
        shift = (1 / self.scale - 1) / 2
        return np.asarray(volume.positions[frame] + shift * (volume.affine[:3, 1] + volume.affine[:3, 2]))


def rim(numbers: Picture) -> NDArray[np.bool_]:
    """Return which pixels of a label map (rows, columns) lie on the inner rim of their segment; its edge is a rim."""
    framed = np.pad(numbers, 1)
    middle = framed[1:-1, 1:-1]
    differs = (
        (framed[:-2, 1:-1] != middle)
        | (framed[2:, 1:-1] != middle)
        | (framed[1:-1, :-2] != middle)
        | (framed[1:-1, 2:] != middle)
    )
    return np.asarray(differs & (middle != 0))


def build_captures(case: Case, recipe: Recipe, _: object) -> Sequence[Dataset]:
    """Return the pictures of a case: one instance per slice in their order (SC), or all in one (SC-MULTIFRAME).

    Raises
    ------
    Unsuitable
        The mask is empty.
    InvalidResult
        An object cannot be built.
    """
    pictures, frames = Pictures(case), range(len(case.mask))
    with translated("picture"):
        if recipe.form is Form.SC_MULTIFRAME:
            return (_multiframe(case, recipe, pictures, frames),)
        shared = _begin(case, recipe)
        return [_single(case, recipe, shared, pictures, frame) for frame in frames]


def _single(case: Case, recipe: Recipe, shared: Dataset, pictures: Pictures, frame: int) -> Dataset:
    dataset = numbered(shared, case, recipe, frame + 1)
    dataset.SourceImageSequence = derived_from([image_of(case, frame)])
    dataset.ImagePositionPatient = _decimals(pictures.first_pixel(frame))
    dataset.ImageOrientationPatient = _orientation(case)
    dataset.SliceThickness = _thickness(case, frame)
    dataset.PixelSpacing = _spacing(case, pictures)
    _add_pixels(dataset, pictures.size, [pictures.draw(frame)])
    return dataset


def _multiframe(case: Case, recipe: Recipe, pictures: Pictures, frames: Iterable[int]) -> Dataset:
    dataset = _begin(case, recipe)
    organization = case.uid("SC dimensions", recipe)
    dataset.DimensionOrganizationSequence = [item(DimensionOrganizationUID=organization)]
    dataset.DimensionIndexSequence = [
        item(
            DimensionOrganizationUID=organization,
            DimensionIndexPointer=0x00200032,  # Image Position (Patient)
            FunctionalGroupPointer=0x00209113,  # Plane Position Sequence
            DimensionDescriptionLabel="Position",
        )
    ]
    measures = item(
        PixelSpacing=_spacing(case, pictures),
        SliceThickness=_thickness(case, 0),
        SpacingBetweenSlices=_decimals([case.volume.spacing[0]])[0],
    )
    plane = item(ImageOrientationPatient=_orientation(case))
    dataset.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[plane])]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[item(DimensionIndexValues=[frame + 1], StackID="1", InStackPositionNumber=frame + 1)],
            PlanePositionSequence=[item(ImagePositionPatient=_decimals(pictures.first_pixel(frame)))],
            DerivationImageSequence=[
                item(
                    DerivationCodeSequence=[coded(_DERIVATION)],
                    SourceImageSequence=derived_from([image_of(case, frame)]),
                )
            ],
        )
        for frame in frames
    ]
    dataset.SourceImageSequence = derived_from(
        [image_of(case, frame) for frame in frames] if not case.volume.frame_numbers else [_whole(case)]
    )
    dataset.NumberOfFrames = len(case.mask)
    dataset.FrameIncrementPointer = 0x52009230  # Per-frame Functional Groups Sequence
    _add_pixels(dataset, pictures.size, (pictures.draw(frame) for frame in frames))
    return dataset


def _whole(case: Case) -> Dataset:
    reference = image_of(case, 0)
    del reference.ReferencedFrameNumber
    return reference


def _begin(case: Case, recipe: Recipe) -> Dataset:
    dataset = begin(case, recipe, "OT")
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ConversionType = "WSD"  # workstation
    dataset.BurnedInAnnotation = "YES"
    dataset.DerivationDescription = f"Contours of a segmentation, burnt in. {RESEARCH_NOTICE}"
    dataset.DerivationCodeSequence = [coded(_DERIVATION)]
    dataset.ImageComments = RESEARCH_NOTICE
    dataset.PatientOrientation = ""
    dataset.LossyImageCompression = str(case.sources[0].get("LossyImageCompression", "")) or "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if dataset.LossyImageCompression == "01" and keyword in case.sources[0]:
            dataset[keyword] = case.sources[0][keyword]
    dataset.FrameOfReferenceUID = case.volume.frame_of_reference_uid
    dataset.PositionReferenceIndicator = ""
    return dataset


def _add_pixels(dataset: Dataset, size: tuple[int, int], planes: Iterable[Picture]) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.Rows, dataset.Columns = size
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    data = b"".join(plane.tobytes() for plane in planes)
    dataset.PixelData = data + b"\0" * (len(data) % 2)


def _orientation(case: Case) -> list[DSfloat]:
    directions = case.volume.affine[:3, :3] / np.array(case.volume.spacing)
    return _decimals([*directions[:, 2], *directions[:, 1]])


def _spacing(case: Case, pictures: Pictures) -> list[DSfloat]:
    return _decimals([spacing / pictures.scale for spacing in case.volume.spacing[1:]])


def _thickness(case: Case, frame: int) -> DSfloat:
    """Return the Slice Thickness in mm of the source: with gaps between slices it is less than their distance."""
    if not case.volume.frame_numbers:
        return case.sources[frame].SliceThickness
    shared = case.sources[0].SharedFunctionalGroupsSequence[0]
    return shared.PixelMeasuresSequence[0].SliceThickness


def _decimals(values: Iterable[float]) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in values]


def check_capture(data: bytes, case: Case, recipe: Recipe) -> None:
    """Read pictures back from their bytes; each must show its own slice, with colour where the mask is alone.

    Raises
    ------
    InvalidResult
        Patient, study, reference, place, notice or pixels are not those of the case.
    """
    dataset = read_back(data, case, recipe, "picture")
    with translated("picture"):
        notice = RESEARCH_NOTICE in str(dataset.ImageComments) and dataset.BurnedInAnnotation == "YES"
        planes = np.frombuffer(dataset.PixelData, np.uint8)
        planes = planes[: len(planes) - len(planes) % (int(dataset.Rows) * int(dataset.Columns) * 3)]
        planes = planes.reshape(-1, int(dataset.Rows), int(dataset.Columns), 3)
        if recipe.form is Form.SC_MULTIFRAME:
            groups = list(dataset.PerFrameFunctionalGroupsSequence)
            places = [group.PlanePositionSequence[0].ImagePositionPatient for group in groups]
            named = [group.DerivationImageSequence[0].SourceImageSequence[0] for group in groups]
            spacing = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
            frames = list(range(len(case.mask)))
        else:
            places, named = [dataset.ImagePositionPatient], [dataset.SourceImageSequence[0]]
            spacing, frames = dataset.PixelSpacing, [int(dataset.InstanceNumber) - 1]
        scale = round(case.volume.spacing[1] / float(spacing[0]))
    refuse_unless(notice, "a written picture does not say that it is for research")
    refuse_unless(len(planes) == len(places) == len(frames), "a written picture lacks frames")
    for plane, place, name, frame in zip(planes, places, named, frames, strict=True):
        expected = image_of(case, frame)
        if any(name.get(keyword) != expected.get(keyword) for keyword in _REFERENCE):
            raise InvalidResult("a written picture refers to another image than it shows", TELL_US)
        shift = (1 / scale - 1) / 2 * (case.volume.affine[:3, 1] + case.volume.affine[:3, 2])
        near = np.abs(case.volume.positions[frame] + shift - [float(v) for v in place]).max() < _TOLERANCE_MM
        refuse_unless(bool(near), "a written picture lies elsewhere than the slice it shows")
        _check_colours(plane, case, frame, scale)


_REFERENCE = ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID", "ReferencedFrameNumber")
_TOLERANCE_MM = 0.01


def _check_colours(plane: Picture, case: Case, frame: int, scale: int) -> None:
    mask = case.segments.mask[frame]
    area = plane[: len(mask) * scale, : mask.shape[1] * scale]
    coloured = (area[..., 0] != area[..., 1]) | (area[..., 1] != area[..., 2])
    rows, columns = np.divmod(np.flatnonzero(coloured), area.shape[1])
    numbers = mask[rows // scale, columns // scale]
    refuse_unless(bool(numbers.all()), "a written picture has colour where the mask is empty")
    colours = np.array([(0, 0, 0), *(segment.meaning.colour for segment in case.segments.listed)])
    same = bool((area[rows, columns] == colours[numbers]).all())
    refuse_unless(same, "a written picture shows a segment in another colour than its own")
    grey = {segment.number for segment in case.segments.listed if len(set(segment.meaning.colour)) == 1}
    shown = set(np.unique(numbers).tolist())
    held = set(np.flatnonzero(case.counts[frame]).tolist())
    refuse_unless(held - {0} - grey <= shown, "a written picture does not show a segment of its slice")
