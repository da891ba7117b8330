"""The head of a file, as we write it and as others do."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import uid

from node.errors import InvalidInstance
from node.part10 import MAX_HEAD, Head, file_head, read_head
from tests import peers
from tests.node.making import encoded, mr, write

HEAD = file_head(uid.MRImageStorage, "1.2.3", uid.ExplicitVRLittleEndian, "SCANNER")
REST = encoded(mr())
VERSION, PREFIX_END = 144, 132
SOP_UID_AT = HEAD.index(b"\2\0\3\0UI")


def grown(head: bytes, at: int, element: bytes) -> bytes:
    """The head with one more element."""
    length = int.from_bytes(head[140:144], "little") + len(element)
    return head[:140] + length.to_bytes(4, "little") + head[144:at] + element + head[at:]


def without(head: bytes, at: int) -> bytes:
    size = 8 + int.from_bytes(head[at + 6 : at + 8], "little")
    length = int.from_bytes(head[140:144], "little") - size
    return head[:140] + length.to_bytes(4, "little") + head[144:at] + head[at + size :]


def test_what_we_write_is_what_we_read() -> None:
    assert read_head(HEAD + REST) == Head(uid.MRImageStorage, "1.2.3", uid.ExplicitVRLittleEndian, len(HEAD))
    assert read_head(HEAD) == read_head(HEAD + REST)


@given(st.integers(0, len(HEAD) - 1))
def test_a_beginning_asks_for_more(length: int) -> None:
    assert read_head(HEAD[:length]) is None


def test_a_head_without_group_length_ends_where_its_group_does() -> None:
    bare = HEAD[:PREFIX_END] + HEAD[VERSION:]
    for data_set in (REST, encoded(mr(), uid.ExplicitVRBigEndian)):
        found = read_head(bare + data_set)
        assert found is not None
        assert (found.sop_uid, found.length) == ("1.2.3", len(bare))
    assert read_head(bare) is None
    assert read_head(bare + b"\2") is None


def test_with_a_group_length_the_data_set_may_begin_with_anything() -> None:
    found = read_head(HEAD + b"\2\0\2\0UI")
    assert found is not None
    assert found.length == len(HEAD)


def test_private_information_may_be_long_but_not_endless() -> None:
    def private(size: int) -> bytes:
        return b"\2\0\2\1OB\0\0" + size.to_bytes(4, "little") + bytes(size)

    long = grown(HEAD, len(HEAD), private(60_000))
    assert read_head(long[:30_000]) is None
    found = read_head(long)
    assert found is not None
    assert found.length == len(long)
    with pytest.raises(InvalidInstance, match="too long"):
        read_head(grown(HEAD, len(HEAD), private(70_000))[:1000])
    bare = HEAD[:PREFIX_END] + HEAD[VERSION:]
    with pytest.raises(InvalidInstance, match="too long"):
        read_head(bare + private(0)[:8] + (1 << 31).to_bytes(4, "little") + bytes(MAX_HEAD))


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (REST, "does not begin as a DICOM file"),
        (bytes(128) + b"DICM\x08\0", "lacks Media Storage SOP Class UID"),
        (bytes(128) + b"MCID", "does not begin as a DICOM file"),
        (HEAD[:140] + b"\0\0\0\0" + HEAD[144:], "lacks"),
        (HEAD[:140] + b"\x07\0\0\0" + HEAD[144:], "has not the length"),
        (HEAD[:140] + (len(HEAD) - 140).to_bytes(4, "little") + HEAD[144:] + REST, "malformed"),
        (without(HEAD, SOP_UID_AT), "lacks Media Storage SOP Instance UID"),
        (grown(HEAD, VERSION, b"\2\0\2\1\0\0\0\0"), "malformed"),
        (grown(HEAD, VERSION, b"\2\0\2\1ob\0\0"), "malformed"),
    ],
)
def test_what_is_no_head_is_an_error_that_names_it(head: bytes, says: str) -> None:
    with pytest.raises(InvalidInstance, match=says):
        read_head(head)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_a_head_an_error_or_a_beginning(garbage: bytes, prefixed: bool) -> None:
    try:
        found = read_head(bytes(128) + b"DICM" * prefixed + garbage)
    except InvalidInstance:
        return
    assert found is None or found.length <= 132 + len(garbage)


@pytest.mark.parametrize(
    ("option", "syntax"),
    [("+te", uid.ExplicitVRLittleEndian), ("+ti", uid.ImplicitVRLittleEndian), ("+tb", uid.ExplicitVRBigEndian)],
)
def test_what_dcmtk_writes_is_read(option: str, syntax: str, tmp_path: Path) -> None:
    write(mr(7), tmp_path / "ours.dcm")
    convert = [peers.program("dcmconv", "dcmtk"), option, str(tmp_path / "ours.dcm"), str(tmp_path / "theirs.dcm")]
    subprocess.run(convert, check=True)
    file = (tmp_path / "theirs.dcm").read_bytes()
    found = read_head(file)
    assert found is not None
    assert (found.sop_class_uid, found.sop_uid, found.transfer_syntax_uid) == (
        uid.MRImageStorage, mr(7).SOPInstanceUID, syntax,
    )  # fmt: skip
    assert file[found.length :] == encoded(mr(7), syntax)
