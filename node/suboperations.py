"""The sub-operations of a retrieval, one for each object: their counts, how it ended, and what a status means.

PS3.7 section 9.1.3.1, PS3.4 tables C.4-2 and C.4-3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node import statuses


@dataclass(frozen=True)
class Counts:
    """Sub-operations of one retrieval; `remaining` is None where the peer does not tell."""

    remaining: int | None = None
    completed: int = 0
    failed: int = 0
    warned: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Return both together; what remains is that of `other`, which came later."""
        return Counts(
            other.remaining, self.completed + other.completed, self.failed + other.failed, self.warned + other.warned
        )


@dataclass(frozen=True)
class Retrieved:
    """How the peer ended a retrieval, with the first reason for which we refused one of its objects."""

    status: int
    counts: Counts
    refusal: str = ""


class Stopped(Exception):
    """Raised by a `Watch` that wants no more of it."""


Watch = Callable[[Counts], int]
"""Called now and then while images come; returns a number that changes as long as anything does."""

CANCELLED = 0xFE00
SOME_FAILED = 0xB000

# What a final status says, and what to do; {destination} is the AE title of a C-MOVE.
_WORDS: dict[int, tuple[str, str]] = {
    0x0122: ("its retrieve service is switched off", "switch it on there, or set another way to retrieve"),
    0x0124: ("we are not authorised", "let our AE title retrieve"),
    0x0211: ("it does not know this operation", "set another way to retrieve"),
    0xA701: ("it is out of resources and could not count the images", "look into its log, and try again later"),
    0xA702: (
        "it is out of resources and could not send the images",
        "look into its log, whether it reaches us, and try again",
    ),
    0xA801: (
        "it does not know the move destination {destination}",
        "add that AE title with our host and port there, or set retrieve = 'get'",
    ),
    0xA900: ("it says that the question does not fit its service", "look into its log"),
    CANCELLED: ("it cancelled the retrieval, which we had not asked it to", "look into its log, and try again"),
}

# Goes with the next step of a C-MOVE: however a peer puts it, where it cannot reach us, or we reject it, nothing comes.
REACHES_US = "does it know our host and port, and is it let in (pennode peers list tells)?"

# Statuses that would end every other retrieval from that peer likewise. 0xA702 is none of them: a peer also says so of
# a series of which we took nothing.
FOR_ALL = frozenset({0x0122, 0x0124, 0x0211, 0xA801, CANCELLED})


def explain(status: int, destination: str) -> tuple[str, str]:
    """Return why a peer ended a retrieval so, and what to do; empty words where it ended well, or with single failures.

    `destination` is where a C-MOVE was to go.
    """
    if status in (statuses.SUCCESS, SOME_FAILED):
        return "", ""
    unable = ("it is unable to process the request", "look into its log, and try again")
    words, step = _WORDS.get(status, unable)
    return f"{words.format(destination=destination)} (0x{status:04X})", step
