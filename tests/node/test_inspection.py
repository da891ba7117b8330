"""What the node demands of result objects, form by form."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from node.errors import InvalidResult
from node.forms import SOP_CLASSES, Recipe
from node.inspection import Origin, check_forms, inspect
from tests.node.making import SERIES, STUDY
from tests.node.results import items, result

ORIGIN = Origin(STUDY, SERIES, frozenset({f"{SERIES}.{n}" for n in range(1, 4)}))
KEYS = [
    "SEG",
    "SEG+all-frames",
    "LABELMAP+rle",
    "FRACTIONAL",
    "SR",
    "SR:SEG",
    "SC",
    "SC-MULTIFRAME",
    "RTSTRUCT",
    "GSPS",
]
OTHER = {"ReferencedSOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "ReferencedSOPInstanceUID": "1.9.9"}


def look(key: str, data: bytes, folder: Path, sop: str = "2.25.77") -> None:
    path = folder / "object.dcm"
    path.write_bytes(data)
    recipe = Recipe.parse(key)
    inspect(path, SOP_CLASSES[recipe.form], sop, recipe, ORIGIN, {"SEG": "2.25.1"})


def made(key: str, **values: object) -> bytes:
    return result(key, "2.25.77", of="2.25.1" if ":" in key else "", **values)


@pytest.mark.parametrize("key", KEYS)
def test_an_object_of_each_form_passes(key: str, tmp_path: Path) -> None:
    look(key, made(key), tmp_path)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"study": "1.2.9"}, "another study or series"),
        ({"series": "1.2.9"}, "another study or series"),
        ({"SOPInstanceUID": "2.25.78"}, "not the one its manifest names"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, "not the one its manifest names"),
    ],
)
def test_an_object_of_another_study_series_or_name_does_not(
    key: str, values: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidResult, match=says):
        look(key, made(key, **values), tmp_path)


@pytest.mark.parametrize(
    ("key", "keyword"),
    [
        ("SEG", "ContentDescription"), ("GSPS", "ContentDescription"), ("RTSTRUCT", "StructureSetDescription"),
        ("SC", "ImageComments"), ("SC-MULTIFRAME", "ImageComments"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("words", ["", "Diagnosis: none"])
def test_an_object_that_does_not_say_it_is_for_research_does_not(
    key: str, keyword: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidResult, match="research only"):
        look(key, made(key, **{keyword: words}), tmp_path)


def test_a_report_that_does_not_say_so_does_not(tmp_path: Path) -> None:
    with pytest.raises(InvalidResult, match="research only"):
        look("SR", made("SR", ContentSequence=items({"ValueType": "TEXT", "TextValue": "all is well"})), tmp_path)


def test_a_report_of_another_segmentation_does_not(tmp_path: Path) -> None:
    for of in ("2.25.2", ""):
        with pytest.raises(InvalidResult, match="not beside it"):
            look("SR:SEG", result("SR:SEG", "2.25.77", of=of), tmp_path)


def frames_of(*sop_uids: str) -> list[Dataset]:
    """Frames, each derived from one of these images."""
    images = [items({"ReferencedSOPInstanceUID": one}) for one in sop_uids]
    return items(*({"DerivationImageSequence": items({"SourceImageSequence": image})} for image in images))


def series_of(*sop_uids: str, keyword: str = "ReferencedInstanceSequence") -> list[Dataset]:
    """What refers to the series and to these images of it."""
    images = items(*({"ReferencedSOPInstanceUID": one} for one in sop_uids))
    return items({"SeriesInstanceUID": SERIES, keyword: images})


@pytest.mark.parametrize("key", ["SEG", "LABELMAP", "FRACTIONAL"])
def test_each_frame_of_a_segmentation_is_of_an_image_of_the_series(key: str, tmp_path: Path) -> None:
    mine = [f"{SERIES}.1", f"{SERIES}.2", f"{SERIES}.1"]
    look(key, made(key, PerFrameFunctionalGroupsSequence=frames_of(*mine)), tmp_path)
    with pytest.raises(InvalidResult, match="another study or series"):
        look(key, made(key, PerFrameFunctionalGroupsSequence=frames_of(*mine, "1.9.9")), tmp_path)


@pytest.mark.parametrize("key", ["SEG", "LABELMAP", "FRACTIONAL", "GSPS"])
def test_what_refers_to_the_series_refers_to_its_images_and_to_no_other(key: str, tmp_path: Path) -> None:
    keyword = "ReferencedImageSequence" if key == "GSPS" else "ReferencedInstanceSequence"
    look(key, made(key, ReferencedSeriesSequence=series_of(*ORIGIN.sop_uids, keyword=keyword)), tmp_path)
    foreign = [
        series_of(f"{SERIES}.1", "1.9.9", keyword=keyword),
        [*series_of(f"{SERIES}.1", keyword=keyword), *items({"SeriesInstanceUID": "1.2.9"})],
        [*series_of(f"{SERIES}.1", keyword=keyword), *series_of(f"{SERIES}.2", keyword=keyword)],
    ]
    for named in foreign:
        with pytest.raises(InvalidResult, match="another study or series"):
            look(key, made(key, ReferencedSeriesSequence=named), tmp_path)


@pytest.mark.parametrize("keyword", ["MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID"])
@pytest.mark.parametrize("key", KEYS)
def test_file_meta_information_names_what_the_data_set_is(key: str, keyword: str, tmp_path: Path) -> None:
    dataset = dcmread(BytesIO(made(key)))
    setattr(dataset.file_meta, keyword, "1.2.840.10008.5.1.4.1.1.2")
    buffer = BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(InvalidResult, match="not the one its manifest names"):
        look(key, buffer.getvalue(), tmp_path)


BROKEN: dict[str, tuple[str, Callable[[], bytes]]] = {
    "secondary capture of an image that is not of the series": (
        "SC", lambda: made("SC", SourceImageSequence=items(
            {"ReferencedSOPInstanceUID": f"{SERIES}.1"}, {"ReferencedSOPInstanceUID": "1.9.9"}
        ))
    ),
    "secondary capture of nothing": ("SC", lambda: made("SC", SourceImageSequence=[])),
    "secondary capture without a source": ("SC", lambda: made("SEG", SOPClassUID=SOP_CLASSES[Recipe.parse("SC").form])),
    "report without evidence": ("SR", lambda: made("SR", CurrentRequestedProcedureEvidenceSequence=[])),
    "report whose evidence has no study": (
        "SR", lambda: made("SR", CurrentRequestedProcedureEvidenceSequence=items({}))
    ),
    "structure set without a study": (
        "RTSTRUCT", lambda: made("RTSTRUCT", ReferencedFrameOfReferenceSequence=items({}))
    ),
    "presentation state of nothing": ("GSPS", lambda: made("GSPS", ReferencedSeriesSequence=[])),
    "no DICOM": ("SEG", lambda: b"hello"),
    "nothing": ("SR", lambda: b""),
    "cut in its head": ("SR", lambda: made("SR")[:200]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_objects_are_refused_with_a_reason(kind: str, tmp_path: Path) -> None:
    key, data = BROKEN[kind]
    with pytest.raises(InvalidResult) as caught:
        look(key, data(), tmp_path)
    assert caught.value.next_step == "check the worker"
    assert "Secretname" not in str(caught.value)


@pytest.mark.parametrize(
    ("forms", "says"),
    [
        (["SEG"], "lacks what was asked for: SC, SR:SEG"),
        (["SEG", "SR:SEG", "SC", "GSPS"], "holds what nobody asked for: GSPS"),
        (["SEG", "SEG", "SR:SEG", "SC"], "one form twice"),
        (["SEG", "SR:SEG", "SR:SEG", "SC"], "one form twice"),
    ],
)
def test_there_must_be_what_was_asked_for_and_nothing_else(forms: list[str], says: str) -> None:
    with pytest.raises(InvalidResult, match=says):
        check_forms(forms, ["SEG", "SR:SEG", "SC"])


def test_captures_may_be_many() -> None:
    check_forms(["SEG", "SR:SEG", "SC", "SC", "SC"], ["SEG", "SR:SEG", "SC"])
