"""What a result can be: the forms of objects that are made of a mask, and which of them a destination gets.

A destination has rungs. The first holds the forms it is configured to get; where it does not take the segmentation, it
gets the next rung in its place, and the ledger says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, get_args

from pydicom.uid import (
    Comprehensive3DSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

if TYPE_CHECKING:
    from node.settings import Destination

Compression = Literal["none", "rle", "deflated"]
_COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)


class Form(StrEnum):
    """A kind of result object. Segmentations: SEG is BINARY; LABELMAP has a SOP class of its own (DICOM 2024d)."""

    SEG = "SEG"
    LABELMAP = "LABELMAP"
    FRACTIONAL = "FRACTIONAL"
    SR = "SR"
    SC = "SC"
    SC_MULTIFRAME = "SC-MULTIFRAME"
    RTSTRUCT = "RTSTRUCT"
    GSPS = "GSPS"


SEGMENTATIONS = frozenset({Form.SEG, Form.LABELMAP, Form.FRACTIONAL})

SOP_CLASSES: dict[Form, str] = {
    Form.SEG: str(SegmentationStorage),
    Form.LABELMAP: "1.2.840.10008.5.1.4.1.1.66.7",
    Form.FRACTIONAL: str(SegmentationStorage),
    Form.SR: str(Comprehensive3DSRStorage),
    Form.SC: str(SecondaryCaptureImageStorage),
    Form.SC_MULTIFRAME: str(MultiFrameTrueColorSecondaryCaptureImageStorage),
    Form.RTSTRUCT: str(RTStructureSetStorage),
    Form.GSPS: str(GrayscaleSoftcopyPresentationStateStorage),
}


_WORDS: dict[Form, str] = {
    Form.SEG: "segmentation",
    Form.LABELMAP: "label map segmentation",
    Form.FRACTIONAL: "fractional segmentation",
    Form.SR: "measurement report",
    Form.SC: "secondary capture",
    Form.SC_MULTIFRAME: "multi-frame secondary capture",
    Form.RTSTRUCT: "RT structure set",
    Form.GSPS: "presentation state",
}


@dataclass(frozen=True)
class Recipe:
    """One form with what a destination wants of it.

    `all_frames` and `compression` are of segmentations. `of` is the key of the segmentation that a report refers to;
    empty: it refers to the source images alone.
    """

    form: Form
    all_frames: bool = False
    compression: Compression = "none"
    of: str = ""

    @property
    def key(self) -> str:
        """The recipe as one word, by which ledger, claim and bundle name it: ``SEG+all-frames``, ``SR:SEG``, ``SC``."""
        options = ["+all-frames"] if self.all_frames else []
        if self.compression != "none":
            options.append(f"+{self.compression}")
        return "".join([self.form, *options, *([f":{self.of}"] if self.of else [])])

    @classmethod
    def parse(cls, key: str) -> Recipe:
        """Return the recipe that a key names.

        Raises
        ------
        ValueError
            It names none.
        """
        head, _, of = key.partition(":")
        word, *options = head.split("+")
        compression = [option for option in _COMPRESSIONS if option in options]
        recipe = cls(Form(word), "all-frames" in options, compression[0] if compression else "none", of)
        if of:
            parse_segmentation(of)
        if recipe.key != key or (of and recipe.form is not Form.SR):
            raise ValueError(f"{key[:64]!r} is no recipe")
        return recipe


def parse_segmentation(key: str) -> Recipe:
    """Return the recipe of a segmentation that a key names; ValueError where it names another, or none."""
    recipe = Recipe.parse(key)
    if recipe.form not in SEGMENTATIONS:
        raise ValueError(f"{key[:64]!r} is no segmentation")
    return recipe


def in_words(key: str) -> str:
    """Return what a key names in words for people, as in ``segmentation (BINARY)``; the key where it names nothing."""
    try:
        recipe = Recipe.parse(key)
    except ValueError:
        return key[:64]
    options = ["BINARY"] if recipe.form is Form.SEG else []
    options += ["all frames"] if recipe.all_frames else []
    options += [recipe.compression] if recipe.compression != "none" else []
    return f"{_WORDS[recipe.form]} ({', '.join(options)})" if options else _WORDS[recipe.form]


def short(keys: Iterable[str]) -> str:
    """Return the forms that keys name, without their options: ``SEG and SR``."""
    names = list(dict.fromkeys(key.partition(":")[0].partition("+")[0] for key in keys))
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def leads(rung: Iterable[str]) -> frozenset[str]:
    """Return those of a rung's keys that the rung is for: where a destination takes one not, it needs the next rung.

    They are its segmentations; on a rung without any, what shows the mask first. A report shows none.
    """
    recipes = [recipe for recipe in map(Recipe.parse, rung) if recipe.form is not Form.SR]
    segmentations = [recipe.key for recipe in recipes if recipe.form in SEGMENTATIONS]
    return frozenset(segmentations or [recipe.key for recipe in recipes[:1]])


def rungs(destination: Destination) -> tuple[tuple[Recipe, ...], ...]:
    """Return what a destination gets: first its `forms`, then one rung for each form of `instead`.

    A report refers to the first segmentation of its own rung; on a rung without one, to the source images.
    """
    first = _rung(destination.forms, destination)
    also = [form for form in destination.forms if form is Form.SR]
    return (first, *(_rung((form, *also), destination) for form in destination.instead))


def demanded(destinations: Iterable[Destination]) -> tuple[Recipe, ...]:
    """Return all that is to be made of a series: what any rung of any destination holds, segmentations first.

    Without a destination that is `DEFAULT`. A segmentation that a report refers to is among them.
    """
    wanted = {recipe.key: recipe for destination in destinations for rung in rungs(destination) for recipe in rung}
    return tuple(sorted(wanted.values() or DEFAULT, key=lambda r: (r.form not in SEGMENTATIONS, r.key)))


def _rung(forms: Iterable[Form], destination: Destination) -> tuple[Recipe, ...]:
    made = {form: _segmentation(form, destination) for form in forms if form in SEGMENTATIONS}
    of = next((recipe.key for recipe in made.values()), "")
    return tuple(made.get(form) or Recipe(form, of=of if form is Form.SR else "") for form in forms)


def _segmentation(form: Form, destination: Destination) -> Recipe:
    return Recipe(form, not destination.omit_empty_frames, destination.compression)


DEFAULT: tuple[Recipe, ...] = (Recipe(Form.SEG), Recipe(Form.SR, of="SEG"))
