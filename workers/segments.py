"""What of a mask becomes a segment of its own, under which number, with which words, codes, colour and identity.

Structures are one segment each, in order of their label values, with two exceptions: each lesion is a segment, and so
is each vertebra whose level is known. Labels that do not occur make none: viewers list an empty segment as if something
had been found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from node.errors import InvalidResult, Unsuitable
from node.records import derived_uid
from trt.cases import plain
from trt.manifest import Label
from workers.box import Box, bounding_box
from workers.codes import Meaning, meaning_of
from workers.lesions import is_abnormal
from workers.levels import LEVELS, Level, name_levels
from workers.writing import TELL_US

if TYPE_CHECKING:
    from workers.case import Case

VERTEBRA, SACRUM = "vertebra", "sacrum"
_DARKER = 0.72  # every other level is this much darker, so that neighbours are told apart
_MOST = 255  # segments that uint8 can number

_Part = tuple[Box, NDArray[np.bool_]]


@dataclass(frozen=True)
class Segment:
    """One segment: its number from 1, the label it is of, and what it says of itself.

    `words` are its SegmentLabel and Tracking ID. `meaning` has its codes and its colour, sRGB 0..255. `level` is that
    of a vertebra whose level is known, `lesion` the index in `Case.lesions`.
    """

    number: int
    label: Label
    words: str
    meaning: Meaning
    tracking_uid: str
    level: str = ""
    lesion: int | None = None


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of a case, and the mask (frames, rows, columns) uint8 of their numbers, 0 background; read-only.

    `box` is where the segments lie in it.
    """

    listed: tuple[Segment, ...]
    mask: NDArray[np.uint8]
    box: Box


def segments_of(case: Case) -> Segments:
    """Return the segments of a case, numbered from 1 without gaps (PS3.3 C.8.20.2); `Case.segments` keeps them.

    Raises
    ------
    Unsuitable
        The mask is empty: an object without any segment is of no use, and viewers handle it badly.
    ConfigurationError
        A label of the model has no DICOM code.
    """
    if not case.mask.any():
        raise Unsuitable(
            "no spine structure was found in the series",
            "check that it shows the spine, and in a contrast the model was trained on",
        )
    # Most of a series is background, and only the rest is looked at.
    box = bounding_box(case.mask)
    inner = case.mask[box]
    counts = {label.value: int(np.count_nonzero(inner == label.value)) for label in case.manifest.labels}
    numbers = np.zeros(256, np.uint8)  # by label value
    listed: list[Segment] = []
    own: list[tuple[int, Box, NDArray[np.bool_]]] = []
    for label in case.manifest.labels:
        for segment, part in _of_label(case, label, counts[label.value]):
            listed.append(replace(segment, number=len(listed) + 1))
            if len(listed) > _MOST:
                raise InvalidResult(f"the mask makes more than {_MOST} segments", TELL_US)
            if part is None:
                numbers[label.value] = len(listed)
            else:
                own.append((len(listed), *part))
    mask = np.zeros_like(case.mask)
    mask[box] = numbers[inner]
    for number, near, inside in own:
        mask[near][inside] = number
    mask.setflags(write=False)  # all forms are made of it
    return Segments(tuple(listed), mask, box)


def _of_label(case: Case, label: Label, voxels: int) -> Iterator[tuple[Segment, _Part | None]]:
    """Yield segments of a label with the part of the mask that is theirs; None: all that is in no other part."""
    if not voxels:
        return
    meaning = meaning_of(label)

    def tracking(*part: str) -> str:
        # One structure of one series keeps its identity, whichever model found it (PS3.3 C.8.20.2).
        return derived_uid("tracking", case.volume.series_uid, label.name, *part)

    if is_abnormal(label):
        for index, lesion in enumerate(case.lesions):
            if lesion.label == label:
                segment = Segment(0, label, lesion.tracking_id, meaning, lesion.tracking_uid, lesion=index)
                yield segment, (lesion.box, lesion.inside)
        return
    levels = _levels(case, label)
    for index, level in reversed(list(enumerate(levels))):  # from above downwards, as people list them
        words = f"{level.name} vertebra"
        colour = meaning.colour if index % 2 == 0 else _darker(meaning.colour)
        own = replace(meaning, words=words, type=(LEVELS[level.name], "SCT", words), colour=colour)
        yield Segment(0, label, words, own, tracking(level.name), level.name), (level.box, level.inside)
    if voxels > sum(int(level.inside.sum()) for level in levels):
        words = f"{meaning.words}, level not known" if levels else meaning.words
        yield Segment(0, label, words, meaning, tracking()), None


def _levels(case: Case, label: Label) -> tuple[Level, ...]:
    sacrum = next((other for other in case.manifest.labels if plain(other.name) == SACRUM), None)
    if plain(label.name) != VERTEBRA or sacrum is None:
        return ()
    return name_levels(case.mask == label.value, case.mask == sacrum.value, case.volume.affine)


def _darker(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (round(value * _DARKER) for value in colour)
    return red, green, blue
