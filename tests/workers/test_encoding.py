"""Objects are written as pydicom writes them, byte by byte, in less time."""

from __future__ import annotations

import io

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filewriter import write_data_element
from pydicom.tag import Tag

from node.forms import Form, Recipe
from node.settings import Seg
from workers.encoding import Encoder, little_endian
from workers.results import BUILDERS
from workers.writing import write

KEYS = (
    "SEG", "SEG+deflated", "SEG+all-frames", "LABELMAP", "LABELMAP+rle", "FRACTIONAL",
    "SR:SEG", "SC", "SC-MULTIFRAME", "GSPS", "RTSTRUCT",
)  # fmt: skip


def by_pydicom(dataset):
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("words", ["PENN spine segmentation", "Wirbelsäule 脊椎"])
@pytest.mark.parametrize("given", [None, "ISO_IR 100", ["ISO 2022 IR 6", "ISO 2022 IR 87"]])
def test_every_form_is_the_bytes_of_pydicom(given, words, volume, mask, manifest, small):
    header = volume.sources[0]
    if given is None:
        del header.SpecificCharacterSet
    else:
        header.SpecificCharacterSet = given
        header.PatientName = "Müller^Änne" if given == "ISO_IR 100" else "Yamada^Tarou=山田^太郎"
    case = small.case(volume, mask, manifest, Seg(series_description=words))
    encoder = Encoder()
    made = {"SEG": BUILDERS[Form.SEG](case, Recipe.parse("SEG"), {})[0]}
    for key in KEYS:
        recipe = Recipe.parse(key)
        for dataset in BUILDERS[recipe.form](case, recipe, made):
            assert write(dataset, encoder) == by_pydicom(dataset), key


def test_one_encoder_keeps_character_sets_apart():
    encoder = Encoder()
    for characters in ("ISO_IR 100", "ISO_IR 192", "ISO_IR 100"):
        dataset = Dataset()
        dataset.SpecificCharacterSet, dataset.PatientName = characters, "Müller^Änne"
        found = dcmread(io.BytesIO(encoder.encode(dataset)), force=True)
        assert found.PatientName == "Müller^Änne"


@pytest.mark.parametrize(
    ("tag", "vr", "one", "other"),
    [
        (0x00081030, "LO", None, "None"),
        (0x00081030, "LO", "", "None"),
        (0x00081030, "LO", ["a", "b"], "['a', 'b']"),
        (0x00081030, "LO", [], "[]"),
        (0x00200032, "DS", ["1.0", "2", "3"], ["1.00", "2", "3"]),
        (0x00200013, "IS", "1", "01"),
    ],
)
def test_values_of_one_attribute_that_look_alike_are_told_apart(tag, vr, one, other):
    encoder = Encoder()
    for value in (one, other, one):
        dataset, expected = Dataset(), little_endian()
        dataset.add(DataElement(tag, vr, value))
        write_data_element(expected, dataset[tag])
        assert encoder.encode(dataset) == expected.getvalue()


@pytest.mark.parametrize(("outer", "inner"), [("ISO_IR 100", "ISO_IR 192"), ("ISO_IR 192", "ISO_IR 100")])
def test_an_item_of_its_own_character_set_keeps_it(outer, inner):
    dataset, item = Dataset(), Dataset()
    item.SpecificCharacterSet, item.PatientID = inner, "Müller"
    dataset.SpecificCharacterSet, dataset.PatientName, dataset.OtherPatientIDsSequence = outer, "Müller", [item]
    read = dcmread(io.BytesIO(Encoder().encode(dataset)), force=True)
    assert read.PatientName == read.OtherPatientIDsSequence[0].PatientID == "Müller"


def test_lengths_of_groups_and_what_cannot_be_read_are_left_out_of_items():
    dataset, item = Dataset(), Dataset()
    item.add_new(0x00080000, "UL", 999)
    item.PatientID = "7"
    tag = Tag("Rows")
    item[tag] = RawDataElement(tag, "US", 3, b"abc", 0, False, True)
    dataset.OtherPatientIDsSequence = [item]
    read = dcmread(io.BytesIO(Encoder().encode(dataset)), force=True)
    assert [element.keyword for element in read.OtherPatientIDsSequence[0]] == ["PatientID"]


def test_what_was_never_looked_at_is_written_in_the_characters_of_the_whole():
    dataset = Dataset()
    dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Müller^Änne"
    read = dcmread(io.BytesIO(Encoder().encode(dataset)), force=True)
    assert read.get_item("PatientName").is_raw
    assert Encoder().encode(read) == Encoder().encode(dataset)


def test_elements_of_another_vr_are_told_apart():
    encoder = Encoder()
    one, other = Dataset(), Dataset()
    one.add(DataElement(0x00081030, "LO", "1"))
    other.add(DataElement(0x00081030, "SH", "1"))
    assert encoder.encode(one) != encoder.encode(other)
