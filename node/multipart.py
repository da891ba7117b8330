"""Bodies of several parts (RFC 2046 section 5.1), parsed as their bytes come, in bounded memory.

However a body is cut into pieces, the same parts come out. What only begins like a delimiter line is data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from node.errors import InvalidRequest

MAX_HEADERS = 8192
MAX_PREAMBLE = 4096
# RFC 2046 allows 70 characters; Orthanc joins two UUIDs, which makes 73.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,127}[0-9A-Za-z'()+_,./:=?-]")
_TOKEN = re.compile(r"[0-9A-Za-z!#$%&'*+.^_`|~-]+")
# What follows a boundary in a delimiter line: the last one goes on with two hyphens, any may be padded. And what may
# still become that.
_LINE_END = re.compile(rb"--|[ \t]{0,64}\r\n")
_LINE_END_BEGUN = re.compile(rb"-?|[ \t]{0,64}\r?")


@dataclass(frozen=True)
class PartBegins:
    """A part begins; names of its header fields are in lower case."""

    headers: Mapping[str, str]


@dataclass(frozen=True)
class PartEnds:
    """The part that began last is whole."""


Event = PartBegins | memoryview | PartEnds


class Multipart:
    """Parser of one body; memory held is the last piece fed, and at most `MAX_HEADERS` bytes beside.

    Raises
    ------
    InvalidRequest
        On construction: `boundary` is none (RFC 2046 section 5.1.1).
    """

    def __init__(self, boundary: str) -> None:
        if not _BOUNDARY.fullmatch(boundary):
            raise InvalidRequest(
                "the boundary of Content-Type is missing or none", "RFC 2046 section 5.1.1 has the rules"
            )
        self.finished = False  # whether the last delimiter line has come
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        # The body may begin with a delimiter line: as if a line had ended before.
        self._held, self._at = b"\r\n", 0
        self._events = self._parse()

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take the next bytes of the body and yield what they complete: data as views, valid as long as they are held.

        Raises
        ------
        InvalidRequest
            This is no body of parts, or headers are too long.
        """
        self._held, self._at = self._held[self._at :] + data, 0
        for event in self._events:
            if event is None:
                return
            yield event

    def _parse(self) -> Iterator[Event | None]:
        """Yield events; None wherever more bytes are needed to go on."""
        before = 0
        for event in self._until_delimiter():
            before += len(event) if event is not None else 0
            if before > MAX_PREAMBLE:
                raise InvalidRequest(
                    "the body does not begin with its boundary", "compare it with that of Content-Type"
                )
            if event is None:
                yield None
        while not self.finished:
            headers = self._headers()
            while headers is None:
                yield None
                headers = self._headers()
            yield PartBegins(headers)
            yield from self._until_delimiter()
            yield PartEnds()
        while True:  # whatever comes after the last delimiter line means nothing
            self._at = len(self._held)
            yield None

    def _headers(self) -> Mapping[str, str] | None:
        """Return the header fields of a part, which begin after the line end at hand; None: they are not all there."""
        begin = self._at + 2
        end = self._held.find(b"\r\n\r\n", self._at)
        if (len(self._held) if end < 0 else end) - begin > MAX_HEADERS:
            raise InvalidRequest(f"the header of a part is longer than {MAX_HEADERS} bytes", "shorten it")
        if end < 0:
            return None
        self._at = end + 2
        return _fields(self._held[begin:end].decode("latin-1"))

    def _until_delimiter(self) -> Iterator[memoryview | None]:
        """Yield data up to the next delimiter line, and go to that line's end.

        The line end at hand is no data, but may begin the delimiter: `strange` counts what is left of it.
        """
        strange = 2
        while True:
            held, at = self._held, self._at
            found = held.find(self._delimiter, at)
            end, more = None, found < 0
            if more:
                stop = max(at, len(held) - len(self._delimiter) + 1)
            else:
                after = found + len(self._delimiter)
                end = _LINE_END.match(held, after)
                more = end is None and _LINE_END_BEGUN.fullmatch(held, after) is not None
                stop = found if end or more else found + 1
            begin = at + strange
            if stop > begin:
                yield memoryview(held)[begin:stop]
            strange, self._at = max(0, begin - stop), stop
            if end:
                self.finished = end[0] == b"--"
                self._at = end.end() - 2
                return
            if more:
                yield None


def _fields(block: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in re.sub(r"\r\n[ \t]+", " ", block).split("\r\n") if block else ():
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name) or name.lower() in fields:
            raise InvalidRequest("a part's header cannot be read", "one field a line, NAME: VALUE, each name once")
        fields[name.lower()] = value.strip()
    return fields
