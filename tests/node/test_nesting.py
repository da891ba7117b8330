"""Requests whose sequences hold more than anybody needs are refused before pydicom builds an item of them."""

from __future__ import annotations

import struct
import time

import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from node import statuses
from node.incoming import Origin
from node.nesting import TooManyPieces, check_nesting
from node.operation import Operation, Refusal, items, text

ITEM, END = b"\xfe\xff\x00\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
SYNTAXES = [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]


def operation(data: bytes, syntax: str = uid.ImplicitVRLittleEndian) -> Operation:
    return Operation(Origin(1, "MR1", "PENNODE", "127.0.0.1"), 0x0130, "", "", 1, syntax, data)


def status_of(data: bytes, syntax: str) -> int:
    try:
        operation(data, syntax).data_set()
    except Refusal as refusal:
        return refusal.outcome.status
    return statuses.SUCCESS


def element(group: int, number: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHL", group, number, len(value) if length is None else length) + value


def nested(undefined: bool) -> Dataset:
    """Seven items in all, three deep."""
    inner, outer, ds = Dataset(), Dataset(), Dataset()
    inner.ReferencedSOPInstanceUID = "1.2.3"
    outer.ReferencedImageSequence = [inner, inner]
    outer["ReferencedImageSequence"].is_undefined_length = undefined
    ds.TransactionUID, ds.PerformedSeriesSequence, ds.ReferencedSOPSequence = "1.2", [outer, outer], [inner]
    ds["PerformedSeriesSequence"].is_undefined_length = undefined
    for item in (outer, inner):
        item.is_undefined_length_sequence_item = undefined
    return ds


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_items_are_counted_at_every_depth_in_every_encoding(syntax: uid.UID, undefined: bool) -> None:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    write_dataset(buffer, nested(undefined))
    data = buffer.getvalue()
    order = {"implicit": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
    check_nesting(data, **order, most_items=7)
    with pytest.raises(TooManyPieces):
        check_nesting(data, **order, most_items=6)
    assert operation(data, syntax).data_set(7) == nested(undefined)
    refused = {status_of(data[:length], syntax) for length in range(len(data))}
    assert refused <= {statuses.SUCCESS, statuses.PROCESSING_FAILURE}, "cut between elements it is whole in itself"


@pytest.mark.parametrize(
    "sequence",
    [
        element(8, 0x1199, ITEM * 400_000),
        element(8, 0x1199, ITEM * 400_000 + END, 0xFFFFFFFF),
        element(8, 0x1199, struct.pack("<HHL", 0xFFFE, 0xE000, 3_200_008) + element(8, 0x1140, ITEM * 400_000)),
        element(8, 0x1199, ITEM[:4] + struct.pack("<L", 3_200_000) + element(8, 0x1150, b"") * 400_000),
    ],
    ids=["defined", "undefined", "deeper", "elements"],
)
def test_items_without_number_cost_next_to_nothing(sequence: bytes) -> None:
    begin = time.process_time()
    with pytest.raises(Refusal) as refused:
        operation(sequence).data_set(10_000)
    assert refused.value.outcome.status == statuses.RESOURCE_LIMITATION
    assert time.process_time() - begin < 1.5, "pydicom takes 10 s for as many"


def test_a_tag_of_another_kind_is_no_item() -> None:
    """pydicom would build an item of it."""
    with pytest.raises(Refusal) as refused:
        operation(element(8, 0x1199, element(8, 0x16, b"") * 9)).data_set()
    assert refused.value.outcome.status == statuses.PROCESSING_FAILURE


def test_implicit_items_within_an_explicit_data_set_are_read_as_pydicom_reads_them() -> None:
    item = element(8, 0x1155, b"1.2.34")
    value = ITEM[:4] + struct.pack("<L", len(item)) + item
    data = struct.pack("<HH2sHL", 8, 0x1199, b"SQ", 0, len(value)) + value
    (found,) = items(operation(data, uid.ExplicitVRLittleEndian).data_set(), "ReferencedSOPSequence")
    assert text(found, "ReferencedSOPInstanceUID") == "1.2.34"


def test_a_uid_of_megabytes_is_not_taken_apart() -> None:
    ds = operation(element(8, 0x1195, b"1.2\\" * 500_000)).data_set()
    begin = time.process_time()
    assert text(ds, "TransactionUID") == ""
    assert time.process_time() - begin < 0.1
