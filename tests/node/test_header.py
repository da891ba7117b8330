"""Reading a data set's identity and header, whole or broken."""

from __future__ import annotations

import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset

from node import header as header_module
from node import headerstream
from node.errors import InvalidInstance
from node.header import read_identity
from node.records import Header
from node.scan import read_plain
from tests.node.making import SERIES, STUDY, data_set, encoded, mr
from tests.peers import real_data

EXPLICIT = str(uid.ExplicitVRLittleEndian)
PLAIN = [EXPLICIT, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian]


def nested() -> Dataset:
    """An image with sequences, of defined and undefined length, before its pixels."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "C-B03CF", "SRT", "Gadolinium"
    ds = mr(
        ContrastBolusAgentSequence=[code], AnatomicRegionSequence=[code], PixelSpacing=[0.25, 0.5],
        TemporalPositionIdentifier=2, NumberOfTemporalPositions=5, ImagesInAcquisition=40, InConcatenationTotalNumber=3,
    )  # fmt: skip
    ds["AnatomicRegionSequence"].is_undefined_length = True
    return ds


@cache
def nested_bytes(syntax: str) -> bytes:
    return encoded(nested(), syntax)


def read(data: bytes, syntax: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom has opinions of broken data
        return read_identity(data, syntax)


@pytest.mark.parametrize("syntax", PLAIN)
def test_the_header_says_the_same_in_every_encoding(syntax: str) -> None:
    found = read_identity(nested_bytes(syntax), syntax)
    assert (found.sop_class_uid, found.sop_uid) == (uid.MRImageStorage, f"{SERIES}.1")
    assert (found.series_uid, found.study_uid) == (SERIES, STUDY)
    assert found.header == Header(
        modality="MR", image_type=("ORIGINAL", "PRIMARY", "M"), series_description="t2_sag", study_description="LSPINE",
        body_part="LSPINE", contrast_agent="Gadolinium", manufacturer="Maker", frame_of_reference_uid="1.2.3.99",
        instance_number=1, acquisition_number=1, rows=16, columns=16, orientation=(0, 1, 0, 0, 0, -1),
        position=(4, -100, 100), pixel_spacing=(0.25, 0.5), images_in_acquisition=40, temporal_position=2,
        temporal_positions=5, concatenation_total=3,
    )  # fmt: skip


@pytest.mark.parametrize("syntax", PLAIN)
def test_cut_at_any_byte_it_is_refused_or_says_who_it_is(syntax: str) -> None:
    """Never any other exception; and never accepted once a part of the pixels is missing."""
    whole = nested_bytes(syntax)
    full = read_identity(whole, syntax)
    accepted = []
    for length in range(len(whole)):
        try:
            found = read(whole[:length], syntax)
        except InvalidInstance:
            continue
        assert (found.sop_uid, found.series_uid, found.study_uid) == (full.sop_uid, full.series_uid, full.study_uid)
        accepted.append(length)
    # Cut between two elements a data set is whole in itself: C-STORE's own framing is what notices such a loss.
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        assert accepted in ([], [len(whole) - 1]), "at most the padding is missing"
    else:
        pixels = len(whole) - (8 if syntax == uid.ImplicitVRLittleEndian else 12) - 16 * 16 * 2
        assert len(accepted) <= len(nested()), "one for each element at most"
        assert all(length <= pixels for length in accepted)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PLAIN), st.data())
def test_garbled_at_any_byte_it_is_refused_or_says_who_it_is(syntax: str, data: st.DataObject) -> None:
    whole = bytearray(nested_bytes(syntax))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(bytes(whole), syntax)
    except InvalidInstance:
        return
    assert all((found.sop_uid, found.series_uid, found.study_uid))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([*PLAIN, uid.RLELossless, uid.JPEGLosslessSV1]))
def test_noise_is_refused(noise: bytes, syntax: str) -> None:
    with pytest.raises(InvalidInstance):
        read(noise, syntax)


def encapsulated() -> bytes:
    ds = mr()
    ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + bytes(200), b"\xff\xd8" + bytes(100)])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return encoded(ds)


def test_encapsulated_pixels_without_their_end_are_refused_at_every_byte() -> None:
    whole = encapsulated()
    assert read_identity(whole, uid.JPEGLosslessSV1).header.rows == 16
    start = whole.index(b"\xe0\x7f\x10\x00OB")
    for length in range(start + 1, len(whole)):
        with pytest.raises(InvalidInstance):
            read(whole[:length], uid.JPEGLosslessSV1)


def test_a_deflated_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_module, "_MAX_INFLATED", 1 << 20)
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = deflate.compress(encoded(mr()) + bytes(1 << 22)) + deflate.flush()
    assert len(bomb) < 20_000
    with pytest.raises(InvalidInstance, match="too large"):
        read_identity(bomb, uid.DeflatedExplicitVRLittleEndian)


def test_wherever_the_groups_of_all_frames_are_too_long_those_shared_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, measures, frame = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, frame.FrameContentSequence = [0.25, 0.75], [Dataset(), Dataset()]
    shared.PixelMeasuresSequence = [measures]
    ds = mr(SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=[frame] * 20, NumberOfFrames=20)
    del ds.PixelSpacing
    ds["PerFrameFunctionalGroupsSequence"].is_undefined_length = True  # read item by item, not as one value
    data = encoded(ds)
    begin = data.index(b"\x00\x52\x30\x92")
    for budget in range(begin, begin + 200):
        monkeypatch.setattr(header_module, "_BUDGETS", (budget, 1 << 20))
        assert read(data, EXPLICIT).header.pixel_spacing == (0.25, 0.75)


def hex_of(tag: object) -> str:
    return f"{tag[0]:04X}{tag[1]:04X}" if isinstance(tag, tuple) else ""


def lean() -> Dataset:
    """An image without a spacing of its own, so that the groups are looked into."""
    ds = mr()
    del ds.PixelSpacing
    return ds


def test_a_header_of_items_without_number_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headerstream, "_MOST_READS", 1000)
    item = b"\xfe\xff\x00\xe0\0\0\0\0"
    bomb = b"\x18\0\x12\0\xff\xff\xff\xff" + item * 2000
    with pytest.raises(InvalidInstance, match="header is too long"):
        read(bomb, uid.ImplicitVRLittleEndian)


ITEM = b"\xfe\xff\x00\xe0\0\0\0\0"


def implicit(group: int, element: int, value: bytes) -> bytes:
    return struct.pack("<HHL", group, element, len(value)) + value


def with_element(ds: Dataset, at: bytes, added: bytes) -> bytes:
    data = encoded(ds, uid.ImplicitVRLittleEndian)
    return data.replace(at, added + at, 1)


@pytest.mark.parametrize("tag", [(0x5200, 0x9229), (0x5200, 0x9230), (0x0018, 0x0012)], ids=hex_of)
def test_of_a_sequence_without_end_only_the_first_items_are_built(tag: tuple[int, int]) -> None:
    before = b"\x18\0\x15\0" if tag[0] == 0x18 else b"\xe0\x7f\x10\0"
    data = with_element(lean(), before, implicit(*tag, ITEM * 100_000))
    begin = time.process_time()
    assert read(data, uid.ImplicitVRLittleEndian).header.rows == 16
    assert time.process_time() - begin < 0.5, "pydicom takes 3 s for all of them"


def test_a_first_item_that_holds_too_much_is_refused() -> None:
    within = struct.pack("<HHL", 0x0028, 0x9110, 0xFFFFFFFF) + ITEM * 100_000 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    group = ITEM[:4] + struct.pack("<L", len(within)) + within
    data = with_element(lean(), b"\xe0\x7f\x10\0", implicit(0x5200, 0x9229, group))
    with pytest.raises(InvalidInstance, match="header is too long"):
        read(data, uid.ImplicitVRLittleEndian)


def test_a_value_of_a_million_numbers_is_refused() -> None:
    data = with_element(lean(), b"\xe0\x7f\x10\0", implicit(0x0028, 0x0030, b"1\\" * 500_000))
    with pytest.raises(InvalidInstance, match="header is too long"):
        read(data, uid.ImplicitVRLittleEndian)


def test_heavy_headers_are_read_one_at_a_time_and_light_ones_beside_them() -> None:
    heavy = with_element(lean(), b"\xe0\x7f\x10\0", implicit(0x5200, 0x9230, ITEM * 40_000))
    light = nested_bytes(EXPLICIT)
    with ThreadPoolExecutor(2) as pool, headerstream._HEAVY:
        waiting = [pool.submit(read_identity, heavy, uid.ImplicitVRLittleEndian)]
        assert pool.submit(read_identity, light, EXPLICIT).result(10).header.rows == 16
        assert not waiting[0].done()
        headerstream._HEAVY.release()
        try:
            assert waiting[0].result(10).header.rows == 16
        finally:
            assert headerstream._HEAVY.acquire(timeout=1), "it was given back"


@pytest.mark.parametrize("name", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"])
@pytest.mark.parametrize("bad", [None, "", "../../etc/passwd", "1.2.3/4", "1", "1..2", "1.2.x", "9" * 65, "1.2\\3.4"])
def test_a_missing_or_impossible_uid_is_refused_by_name(name: str, bad: str | None) -> None:
    ds = mr()
    data = encoded(ds)
    if bad is None:
        element = data[(start := data.index(element_of(name))) :][: 8 + data[start + 6]]
        data = data.replace(element, b"")
    else:
        data = with_value(data, element_of(name), bad)
    with pytest.raises(InvalidInstance, match=name):
        read(data, EXPLICIT)


@pytest.mark.parametrize("value", ["1_0", "٣", "1\x94", "1.0", " 7 ", "+7", "7 8", ""])
def test_a_number_in_another_form_is_read_as_pydicom_reads_it(value: str) -> None:
    data = with_value(encoded(mr()), element_of("InstanceNumber")[:4] + b"IS", value)
    start = data.index(b"\xe0\x7f\x10\x00OW")
    quick = read_plain(data, len(data), implicit=False)
    slow = header_module._read_thoroughly(lambda n, at: data[at : at + n], len(data), data, uid.UID(EXPLICIT))
    assert slow[1] == start
    assert quick in (None, slow)


def element_of(name: str) -> bytes:
    """How a UID's element begins in Explicit VR Little Endian."""
    tag = pydicom.tag.Tag(name)
    return tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little") + b"UI"


def with_value(data: bytes, element: bytes, text: str) -> bytes:
    """Explicit VR Little Endian bytes with the value of one short element replaced."""
    assert data.count(element) == 1
    start = data.index(element)
    length = int.from_bytes(data[start + 6 : start + 8], "little")
    value = text.encode() + (b"\0" if element.endswith(b"UI") else b" ") * (len(text) % 2)
    return data[: start + 6] + len(value).to_bytes(2, "little") + value + data[start + 8 + length :]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"PixelSpacing": ["0.5"]}, {"pixel_spacing": ()}),
        ({"SeriesDescription": None, "ImageType": None}, {"series_description": "", "image_type": ()}),
        ({"SeriesDescription": "a\x07[2Jb\x00c\n"}, {"series_description": "a [2Jb c"}),
        ({"SeriesDescription": "x" * 64}, {"series_description": "x" * 64}),
        ({"ImageType": "ORIGINAL"}, {"image_type": ("ORIGINAL",)}),
        ({"SpecificCharacterSet": "ISO_IR 192", "SeriesDescription": "Säule"}, {"series_description": "Säule"}),
    ],
)  # fmt: skip
def test_odd_values_become_what_the_ledger_can_keep(values: dict[str, object], expected: dict[str, object]) -> None:
    found = read_identity(encoded(mr(**values)), EXPLICIT).header
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize("text", ["NaN", "inf", "-INF", "1e400"])
def test_a_position_that_is_no_number_counts_as_absent(text: str) -> None:
    """NaN would pass for an even gap in assembly, and no JSON column of PostgreSQL takes it."""
    changed = with_value(encoded(mr()), b"\x20\x00\x32\x00DS", f"{text}\\2\\3")
    assert read(changed, EXPLICIT).header.position == ()


@pytest.mark.parametrize("text", ["1.5", "abc", "", "99999999999999999999"])
def test_a_number_that_is_none_counts_as_absent_or_is_kept_but_never_breaks(text: str) -> None:
    changed = with_value(encoded(mr()), b"\x20\x00\x13\x00IS", text)
    found = read(changed, EXPLICIT).header.instance_number
    assert found is None or isinstance(found, int)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        Header,
        modality=st.text(max_size=5),
        image_type=st.lists(st.text(max_size=5), max_size=3).map(tuple),
        instance_number=st.none() | st.integers(),
        position=st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
        number_of_frames=st.integers(1),
    )
)
def test_a_header_comes_back_from_json_as_it_was(header: Header) -> None:
    assert Header.from_json(header.to_json()) == header
    assert Header.from_json(header.to_json() | {"of_another_version": 1}) == header


def real_files() -> list[tuple[str, str]]:
    return [("real_rle", uid.RLELossless), ("real_jpegls", uid.JPEGLSLossless)]


@pytest.mark.parametrize(("folder", "syntax"), real_files())
def test_real_compressed_images(folder: str, syntax: str) -> None:
    for path in sorted(real_data("dicom", folder).glob("*.dcm")):
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        assert ds.file_meta.TransferSyntaxUID == syntax
        found = read(data_set(path), syntax)
        assert found.sop_uid == ds.SOPInstanceUID
        assert found.header.rows == ds.Rows
        whole = data_set(path)
        with pytest.raises(InvalidInstance, match="ends early"):
            read(whole[: len(whole) * 9 // 10], syntax)


def test_a_real_enhanced_mr_gives_frames_plane_and_spacing() -> None:
    path: Path = next(iter(real_data("dicom", "real_enhanced_mr").glob("*.dcm")))
    ds = pydicom.dcmread(path)
    found = read(data_set(path), ds.file_meta.TransferSyntaxUID)
    assert found.sop_class_uid == uid.EnhancedMRImageStorage
    assert found.header.number_of_frames == int(ds.NumberOfFrames) > 1
    assert len(found.header.orientation) == 6
    assert len(found.header.pixel_spacing) == 2


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(PLAIN[:2]),
    st.fixed_dictionaries(
        {},
        optional={
            "SeriesDescription": st.text(st.characters(codec="latin-1"), max_size=64),
            "ImageType": st.lists(st.text("AB _0", max_size=6), max_size=4),
            "SpecificCharacterSet": st.sampled_from(["", "ISO_IR 100", "ISO_IR 6", "ISO_IR 192", "ISO_IR 144"]),
            "InstanceNumber": st.none() | st.integers(-(2**31), 2**31 - 1),
            "ImagePositionPatient": st.lists(st.sampled_from(["1", "-2.5", "1e3", "0"]), max_size=4),
            "NumberOfFrames": st.none() | st.integers(0, 3000),
            "ImagesInAcquisition": st.none() | st.integers(0, 3000),
            "TemporalPositionIdentifier": st.none() | st.integers(0, 99),
            "NumberOfTemporalPositions": st.none() | st.integers(0, 99),
            "InConcatenationTotalNumber": st.none() | st.integers(0, 9),
            "ContrastBolusAgent": st.none() | st.just("Gd"),
        },
    ),
)
def test_the_quick_look_says_what_pydicom_says(syntax: str, values: dict[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = encoded(mr(**values), syntax)
        except UnicodeEncodeError:
            return
        plain = read_plain(data, len(data), implicit=syntax == uid.ImplicitVRLittleEndian)
        thorough = header_module._read_thoroughly(lambda n, at: data[at : at + n], len(data), data, syntax)
    assert plain in (None, thorough)


def test_the_quick_look_is_enough_for_classic_images_and_not_for_nested_ones() -> None:
    plain = encoded(mr())
    assert read_plain(plain, len(plain), implicit=False) is not None
    whole = nested_bytes(EXPLICIT)
    assert read_plain(whole, len(whole), implicit=False) is None
    ds = nested()
    del ds.ContrastBolusAgentSequence
    skipped = encoded(ds)
    assert read_plain(skipped, len(skipped), implicit=False) is not None, "other sequences are stepped over"


def test_a_real_header_is_read_quickly_and_the_same() -> None:
    for file in sorted(real_data("dicom", "spine_t2_pt005").glob("*.dcm"))[:3]:
        data = data_set(file)
        syntax = pydicom.dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID
        plain = read_plain(data[:32768], len(data), implicit=syntax.is_implicit_VR)
        thorough = header_module._read_thoroughly(lambda n, at, d=data: d[at : at + n], len(data), data, syntax)
        assert plain == thorough


def test_a_long_header_is_read_in_parts_and_a_huge_one_is_refused() -> None:
    ds, frame = mr(), Dataset()
    frame.add_new(0x00091010, "OB", bytes(40 << 20))
    spacing, measures = Dataset(), Dataset()
    spacing.PixelSpacing = [0.75, 0.5]
    measures.PixelMeasuresSequence = [spacing]
    del ds.PixelSpacing
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [measures], [frame]
    assert read_identity(encoded(ds), EXPLICIT).header.pixel_spacing == (0.75, 0.5)
    frame[0x00091010].value = bytes(70 << 20)
    ds["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    with pytest.raises(InvalidInstance, match="too long"):
        read_identity(encoded(ds), EXPLICIT)
