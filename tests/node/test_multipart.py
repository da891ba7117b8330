"""Laws of the multipart parser: what was joined comes apart again, however it is cut on its way."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node.errors import InvalidRequest
from node.multipart import MAX_HEADERS, MAX_PREAMBLE, Multipart, PartBegins, PartEnds

BOUNDARY = "ab-c"
DELIMITER = b"\r\n--ab-c"
Part = tuple[dict[str, str], bytes]
# Pieces that a body's grammar turns on, so that chance meets its edges.
fragments = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b"-", b"--", b"--ab", b"--ab-c", DELIMITER, b"a: b", b" ", b"x", b"\0" * 50]
    )
).map(b"".join)
data = fragments.filter(lambda text: not re.search(rb"\r\n--ab-c(--|[ \t]{0,64}\r\n|[ \t]{0,64}\r?$)", b"\r\n" + text))
names = st.from_regex(r"[A-Za-z][A-Za-z-]{0,9}", fullmatch=True)
headers = st.dictionaries(
    names.map(str.lower), st.from_regex(r"([!-~]([ -~]{0,20}[!-~])?)?", fullmatch=True), max_size=3
)
cuts = st.lists(st.integers(1, 9), min_size=1, max_size=40)


def joined(parts: list[Part], preamble: bytes = b"", padding: bytes = b"", epilogue: bytes = b"") -> bytes:
    body = preamble
    for fields, content in parts:
        body += DELIMITER + padding + b"\r\n"
        body += b"".join(f"{name}: {value}\r\n".encode() for name, value in fields.items()) + b"\r\n" + content
    body = body if preamble else body[2:] if parts else b""
    return body + (DELIMITER if body else DELIMITER[2:]) + b"--" + epilogue


def parted(body: bytes, sizes: list[int]) -> tuple[list[Part], bool, str]:
    """The parts that came whole, whether the end came, and an error's text."""
    parser, parts, current = Multipart(BOUNDARY), list[Part](), b""
    fields: dict[str, str] = {}
    at, turn = 0, 0
    try:
        while at < len(body):
            size = sizes[turn % len(sizes)]
            for event in parser.feed(body[at : at + size]):
                match event:
                    case PartBegins(found):
                        fields, current = dict(found), b""
                    case PartEnds():
                        parts.append((fields, current))
                    case piece:
                        assert len(piece) > 0
                        current += piece
            assert len(parser._held) - parser._at <= MAX_HEADERS + 100
            at, turn = at + size, turn + 1
    except InvalidRequest as error:
        return parts, parser.finished, str(error)
    return parts, parser.finished, ""


@given(
    st.lists(st.tuples(headers, data), max_size=4),
    st.sampled_from([b"", b"\r\n", b"a preamble\r\n--ab"]),
    st.sampled_from([b"", b" \t"]),
    st.sampled_from([b"", b"\r\n", b"\r\nepilogue\r\n--ab-c\r\nwith: a\r\n\r\nline"]),
    cuts,
)
def test_what_was_joined_comes_apart_again(
    parts: list[Part], preamble: bytes, padding: bytes, epilogue: bytes, sizes: list[int]
) -> None:
    assert parted(joined(parts, preamble, padding, epilogue), sizes) == (parts, True, "")


@given(fragments, cuts)
@example(b"--ab-c\r\n\r\n--ab-c--", [3])
@example(b"--ab-c\r\na: b\r\n\r\n--ab-c--", [1])
@example(b"--ab-c\r\n\r\n--ab-cx\r\n--ab-c--", [1])
def test_cuts_change_nothing_about_any_body(body: bytes, sizes: list[int]) -> None:
    assert parted(body, sizes) == parted(body, [len(body) or 1])


@given(st.lists(st.tuples(headers, data), min_size=1, max_size=3), st.integers(1, 9), st.integers(0))
def test_a_body_cut_short_has_no_end_and_no_part_that_was_not_sent(parts: list[Part], size: int, lost: int) -> None:
    body = joined(parts)
    found, finished, _ = parted(body[: len(body) - 1 - lost % len(body)], [size])
    assert found == parts[: len(found)]
    assert not finished


def test_a_part_without_content_may_go_straight_to_its_delimiter() -> None:
    assert parted(b"--ab-c\r\na: b\r\n\r\n--ab-c\r\n\r\n--ab-c--", [100]) == ([({"a": "b"}, b""), ({}, b"")], True, "")


def test_another_boundary_that_begins_the_same_is_data() -> None:
    inner = b"--ab-cd\r\nx\r\n--ab-cd--"
    assert parted(b"--ab-c\r\n\r\n" + inner + b"\r\n--ab-c--", [7]) == ([({}, inner)], True, "")


def test_folded_header_lines_are_one() -> None:
    body = b"--ab-c\r\nContent-Type: application/dicom;\r\n\ttransfer-syntax=1.2\r\n\r\nx\r\n--ab-c--"
    assert parted(body, [5])[0] == [({"content-type": "application/dicom; transfer-syntax=1.2"}, b"x")]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"GET / HTTP/1.1\r\n" * 300, "does not begin with its boundary"),
        (b"--ab-c\r\n" + b"a: " + b"b" * 2 * MAX_HEADERS, "longer than"),
        (b"--ab-c\r\n" + b"a: " + b"b" * MAX_HEADERS + b"\r\n\r\nx", "longer than"),
        (b"--ab-c\r\nno field\r\n\r\nx", "cannot be read"),
        (b"--ab-c\r\na: b\r\nA: c\r\n\r\nx", "cannot be read"),
        (b"--ab-c\r\n: b\r\n\r\nx", "cannot be read"),
        (b"--ab-c\r\na\0: b\r\n\r\nx", "cannot be read"),
    ],
)
def test_what_is_no_body_of_parts_is_an_error(body: bytes, says: str) -> None:
    assert says in parted(body, [1000])[2]
    assert parted(body, [1]) == parted(body, [1000])
    assert MAX_PREAMBLE < 4800


@pytest.mark.parametrize("boundary", ["", " ", "a" * 129, "ends with ", "semi;colon", "ä", 'qu"ote', "line\r\n"])
def test_what_is_no_boundary_is_an_error(boundary: str) -> None:
    with pytest.raises(InvalidRequest, match="boundary"):
        Multipart(boundary)


def test_a_body_full_of_what_is_almost_a_delimiter_is_parsed_in_linear_time() -> None:
    content = (DELIMITER + b"x") * 60_000
    parser, size, start = Multipart(BOUNDARY), 0, time.process_time()
    for event in parser.feed(b"--ab-c\r\n\r\n" + content + DELIMITER + b"--"):
        size += len(event) if isinstance(event, memoryview) else 0
    assert (size, parser.finished) == (len(content), True)
    assert time.process_time() - start < 3, "copying what is left at each of them takes several times as long"
