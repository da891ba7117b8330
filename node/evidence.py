"""The nouns of assembly: pieces of evidence for and against a series being complete, each with a line of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Weight(StrEnum):
    """Which way a piece of evidence points; NEUTRAL: it was looked at and tells nothing."""

    FOR = "for"
    AGAINST = "against"
    NEUTRAL = "neutral"


class Source(StrEnum):
    """Who says so."""

    ASSOCIATION = "association"
    NUMBERS = "instance numbers"
    POSITIONS = "slice positions"
    ACQUISITION = "images in acquisition"
    TEMPORAL = "temporal positions"
    FRAMES = "frames"
    MPPS = "performed procedure step"
    COUNT = "count at the sender"
    FETCH = "count at the archive"


@dataclass(frozen=True)
class Evidence:
    """One piece: who says it, which way it points, and what exactly. The words never quote a peer's text."""

    source: Source
    weight: Weight
    text: str


class Strength(StrEnum):
    """What all pieces together say of a series being complete."""

    STRONG = "strong"
    WEAK = "weak"
    AGAINST = "against"


# These know how many images were made; the others conclude it from those that came.
COUNTING = frozenset({Source.MPPS, Source.COUNT, Source.FETCH})
# Two of these that agree, and none that disagrees, are enough.
_CONCLUDING = frozenset({Source.NUMBERS, Source.POSITIONS, Source.ACQUISITION, Source.TEMPORAL})


def strength(pieces: Sequence[Evidence]) -> Strength:
    """Weigh pieces of evidence against each other. Whether an association is open does not matter here."""
    speaking = {weight: {p.source for p in pieces if p.weight is weight} for weight in Weight}
    against, agreeing = speaking[Weight.AGAINST], speaking[Weight.FOR]
    if against & COUNTING:
        return Strength.AGAINST
    if agreeing & COUNTING:
        return Strength.STRONG
    if against:
        return Strength.AGAINST
    if Source.FRAMES in agreeing or len(agreeing & _CONCLUDING) >= 2:
        return Strength.STRONG
    return Strength.WEAK


@dataclass(frozen=True)
class Weighing:
    """How one revision of a series was weighed last.

    While it arrives, `outcome` says what is waited for, and `until` when it is sealed at the latest if no image comes,
    in seconds since 1970. Once it is sealed, `outcome` is the reason and `until` is 0. `last_at` is when the last image
    came of those that were weighed.
    """

    series_uid: str
    revision: int
    pieces: tuple[Evidence, ...]
    outcome: str
    last_at: float
    until: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json` and the admin page's API."""
        return asdict(self)
