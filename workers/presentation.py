"""A result as Grayscale Softcopy Presentation States (PS3.3 A.33.1): contours that viewers lay over the source images.

One layer per segment, in its colour, with its outlines along the edges of the pixels and its name on each slice that
shows it; a layer with the notice on all. A presentation state holds one Modality LUT, so that images of another
rescale slope or intercept get a state of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.valuerep import DSfloat

from node.forms import Recipe
from node.records import RESEARCH_NOTICE
from workers.capture import WINDOW
from workers.case import Case
from workers.heading import (
    equip,
    equipment,
    image_of,
    images_of,
    item,
    read_back,
    references_in,
    refuse_unless,
    unexamined,
)
from workers.outlines import Line, hold, moments, regions
from workers.segments import Segment
from workers.writing import translated

MOST_POINTS = 8000  # of one line: an FL with an explicit VR holds 64 KiB; longer lines go on in a second
_NOTICE_BOX = (0.02, 0.93, 0.98, 0.98)  # of the displayed area: left, top, right, bottom
_NAME_HEIGHT, _NAME_WIDTH = 0.035, 0.45
_EVERY = 4

Rescale = tuple[float, float]


def build_presentation(case: Case, recipe: Recipe, _: object) -> Sequence[Dataset]:
    """Return the presentation states of a case, one per rescale slope and intercept of its images.

    Raises
    ------
    Unsuitable
        The mask is empty.
    InvalidResult
        highdicom refuses to build an object.
    """
    frames_of: dict[Rescale, list[int]] = {}
    for frame, rescale in enumerate(case.volume.rescales):
        frames_of.setdefault(rescale, []).append(frame)
    segments = case.segments.listed
    with translated("presentation state"):
        layers = [
            hd.pr.GraphicLayer(
                _layer(segment),
                order=segment.number,
                description=segment.words[:64],
                display_color=_colour(segment),
            )
            for segment in segments
        ]
        notice = hd.pr.GraphicLayer("NOTICE", order=len(segments) + 1, description=RESEARCH_NOTICE)
        return [
            _state(case, recipe, number, rescale, frames, [*layers, notice])
            for number, (rescale, frames) in enumerate(frames_of.items(), 1)
        ]


def _state(
    case: Case, recipe: Recipe, number: int, rescale: Rescale, frames: list[int], layers: list[hd.pr.GraphicLayer]
) -> Dataset:
    images = [case.sources[frame] for frame in frames] if not case.volume.frame_numbers else [case.sources[0]]
    annotations = [
        hd.pr.GraphicAnnotation(
            referenced_images=images,
            referenced_frame_number=_numbers(case, frames),
            graphic_layer=layers[-1],
            text_objects=[_text(RESEARCH_NOTICE, _NOTICE_BOX)],
        )
    ]
    inverse = case.sources[0].get("PhotometricInterpretation") == "MONOCHROME1"
    shape = hd.PresentationLUTShapeValues.INVERSE if inverse else hd.PresentationLUTShapeValues.IDENTITY
    state = hd.pr.GrayscaleSoftcopyPresentationState(
        referenced_images=images,
        series_instance_uid=case.uid(f"{recipe.form} series", recipe),
        series_number=case.series_number(recipe.form),
        sop_instance_uid=case.uid(f"{recipe.form} instance", recipe, str(number)),
        instance_number=number,
        content_label="SPINE_SEG",
        content_description=RESEARCH_NOTICE,
        content_creator_name="pennode^",
        graphic_annotations=annotations,
        graphic_layers=layers,
        modality_lut_transformation=hd.ModalityLUTTransformation(rescale[1], rescale[0], "US"),
        voi_lut_transformations=[_window(case, inverse=inverse)],
        presentation_lut_transformation=hd.PresentationLUTTransformation(presentation_lut_shape=shape),
        specific_character_set=case.sources[0].get("SpecificCharacterSet"),
        manufacturer=equipment(case)["Manufacturer"],
        manufacturer_model_name=case.manifest.name,
        software_versions=tuple(equipment(case)["SoftwareVersions"]),
        device_serial_number=case.manifest.digest,
    )
    if case.volume.frame_numbers and len(frames) < len(case.mask):
        for reference in state.ReferencedSeriesSequence[0].ReferencedImageSequence:
            reference.ReferencedFrameNumber = _numbers(case, frames)
    area = state.DisplayedAreaSelectionSequence[0]
    if "PresentationPixelAspectRatio" in area:
        del area.PresentationPixelAspectRatio
    area.PresentationPixelSpacing = [DSfloat(value, auto_format=True) for value in case.volume.spacing[1:]]
    # Not by highdicom, which looks through the whole standard for each of hundreds of items.
    for frame in frames:
        state.GraphicAnnotationSequence.extend(_drawn(case, frame))
    equip(state, case, recipe)
    for keyword in ("ContentDate", "ContentTime"):  # of no module here
        delattr(state, keyword)
    state.PresentationCreationDate, state.PresentationCreationTime = case.when
    return state


def _numbers(case: Case, frames: Sequence[int]) -> list[int] | None:
    return [case.volume.frame_numbers[frame] for frame in frames] if case.volume.frame_numbers else None


def _drawn(case: Case, frame: int) -> list[Dataset]:
    plane = case.segments.mask[frame]
    annotations: list[Dataset] = []
    for segment in case.segments.listed:
        if case.counts[frame, segment.number]:
            annotations.append(
                item(
                    ReferencedImageSequence=[image_of(case, frame)],
                    GraphicLayer=_layer(segment),
                    GraphicObjectSequence=[_graphic(piece, segment) for piece in _pieces(plane == segment.number)],
                    TextObjectSequence=[_name(segment, len(annotations))],
                )
            )
    return annotations


def _colour(segment: Segment) -> hd.color.CIELabColor:
    return hd.color.CIELabColor.from_rgb(*segment.meaning.colour)


def _layer(segment: Segment) -> str:
    return f"SEGMENT_{segment.number}"


def _pieces(marked: NDArray[np.bool_]) -> list[Line]:
    """Return the lines (n, 2) round regions and holes, as (column, row) with 0 at the first pixel's corner."""
    pieces = []
    for region in regions(marked):
        for line in (region.outer, *region.holes):
            closed = np.concatenate([line, line[:1]])[:, ::-1] + 0.5
            pieces += [closed[start : start + MOST_POINTS] for start in range(0, len(closed) - 1, MOST_POINTS - 1)]
    return pieces


def _graphic(piece: Line, segment: Segment) -> Dataset:
    graphic = item(
        GraphicAnnotationUnits="PIXEL",
        GraphicDimensions=2,
        NumberOfGraphicPoints=len(piece),
        GraphicType="POLYLINE",
        GraphicFilled="N",
        TrackingID=segment.words,
        TrackingUID=segment.tracking_uid,
    )
    graphic.add(unexamined("GraphicData", piece.ravel().tolist()))
    return graphic


def _name(segment: Segment, line: int) -> hd.pr.TextObject:
    top = 0.02 + line * _NAME_HEIGHT
    return _text(segment.words, (0.02, min(top, 0.85), _NAME_WIDTH, min(top, 0.85) + _NAME_HEIGHT))


def _text(words: str, box: tuple[float, float, float, float]) -> hd.pr.TextObject:
    return hd.pr.TextObject(
        words,
        units=hd.pr.AnnotationUnitsValues.DISPLAY,
        bounding_box=box,
        text_justification=hd.pr.TextJustificationValues.LEFT,
    )


def _window(case: Case, *, inverse: bool) -> hd.pr.SoftcopyVOILUTTransformation:
    voxels = case.volume.voxels
    low, high = (float(value) for value in np.percentile(voxels[:, ::_EVERY, ::_EVERY], WINDOW))
    if inverse:  # the voxels of MONOCHROME1 are turned over within their range, the images' values are not
        ends = float(voxels.min()) + float(voxels.max())
        low, high = ends - high, ends - low
    # LINEAR takes a half off the centre and one off the width (PS3.3 C.11.2.1.2.1): much, where values are small.
    return hd.pr.SoftcopyVOILUTTransformation(
        window_center=round((low + high) / 2 + 0.5, 6), window_width=round(max(high - low, 1e-5) + 1, 6)
    )


def check_presentation(data: bytes, case: Case, recipe: Recipe) -> None:
    """Read a presentation state back from its bytes; every slice of it that shows a segment must have its outlines.

    Raises
    ------
    InvalidResult
        Patient, study, references, notice, colours or outlines are not those of the case.
    """
    state = read_back(data, case, recipe, "presentation state")
    with translated("presentation state"):
        rescale = float(state.RescaleSlope), float(state.RescaleIntercept)
        frames = [
            frame for frame, own in enumerate(case.volume.rescales) if np.allclose(own, rescale, rtol=1e-9, atol=1e-12)
        ]
        series = state.ReferencedSeriesSequence[0]
        known = {_key(image_of(case, frame)): frame for frame in frames}
        whole = {_key(image) for image in images_of(case)}
        named = {uid for uid, _ in references_in([series])}
        colours = [list(layer.GraphicLayerRecommendedDisplayCIELabValue) for layer in state.GraphicLayerSequence[:-1]]
        notice = False
        found = np.zeros((len(case.mask), len(case.segments.listed) + 1, 3))
        for annotation in state.GraphicAnnotationSequence:
            layer = str(annotation.GraphicLayer)
            if layer == "NOTICE":
                notice = RESEARCH_NOTICE in [str(text.UnformattedTextValue) for text in annotation.TextObjectSequence]
                continue
            (image,) = annotation.ReferencedImageSequence
            refuse_unless(_key(image) in known, "a written outline lies on an image that is not of its series")
            number = int(layer.rpartition("_")[2])
            for line in _joined(annotation.GraphicObjectSequence):
                found[known[_key(image)], number] += moments(line[:-1, ::-1] - 0.5)
    refuse_unless(
        colours == [list(_colour(segment).value) for segment in case.segments.listed],
        "the layers of the written presentation state have other colours than the segments",
    )
    refuse_unless(notice, "the written presentation state does not say that it is for research")
    refuse_unless(
        str(series.SeriesInstanceUID) == case.volume.series_uid
        and named == {uid for uid, _ in (known if not case.volume.frame_numbers else whole)},
        "the written presentation state does not refer to the images of its series",
    )
    refuse_unless(
        hold(found[frames], case.segments.mask[frames]), "the written outlines do not hold what the mask holds"
    )


def _key(image: Dataset) -> tuple[str, int | None]:
    number = image.get("ReferencedFrameNumber")
    return str(image.ReferencedSOPInstanceUID), None if number is None else int(number)


def _joined(objects: Sequence[Dataset]) -> list[Line]:
    """Return the lines of graphic objects, those cut in pieces whole again."""
    lines: list[Line] = []
    for graphic in objects:
        points = np.array(graphic.GraphicData, np.float64).reshape(-1, 2)
        if lines and not np.array_equal(lines[-1][0], lines[-1][-1]):
            lines[-1] = np.concatenate([lines[-1], points[1:]])
        else:
            lines.append(points)
    return lines
