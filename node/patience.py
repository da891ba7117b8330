"""How long a series waits for a further image, given the evidence, and what for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.evidence import COUNTING, Evidence, Source, Strength, Weight, strength
from node.rhythm import Rhythm
from node.settings import Assembly


@dataclass(frozen=True)
class Wait:
    """A series that no image comes to for `seconds` is sealed, for `reason`; until then it waits for `what`."""

    seconds: float
    what: str
    reason: str


def wait_for(pieces: Sequence[Evidence], rhythm: Rhythm, rules: Assembly) -> Wait:
    """Return how long to wait after the last image.

    Without a piece on associations, they are taken as released.
    """
    how = strength(pieces)
    said = {weight: [p for p in pieces if p.weight is weight] for weight in Weight}
    lacking = _words(said[Weight.AGAINST])
    others = _words([p for p in pieces if p.source is not Source.ASSOCIATION]) or "no evidence"
    if how is Strength.STRONG:
        # What is concluded from the images holds of each part of a series in order: who sends it in several
        # associations pauses after a part that seems whole.
        known = _is_counted(said[Weight.FOR])
        seconds = rules.settle_s if known else max(rules.settle_s, rhythm.pause_s)
        wait = Wait(seconds, "a moment without a further image", _words(_deciding(said[Weight.FOR])))
    elif how is Strength.AGAINST:
        seconds = max(rules.settle_s, rules.patience_s, rhythm.quiet_s)
        wait = Wait(seconds, f"what is missing: {lacking}", f"incomplete: {lacking}; {_silence(seconds)}")
    else:
        seconds = max(rules.settle_s, rhythm.quiet_s)
        wait = Wait(seconds, "silence, as the evidence is weak", f"{_silence(seconds)} ({others})")
    is_open = any(p.source is Source.ASSOCIATION and p.weight is not Weight.FOR for p in pieces)
    if not is_open or (how is Strength.STRONG and _is_counted(said[Weight.FOR])):
        return wait
    seconds = max(rules.open_s, wait.seconds)
    silence = f"{_silence(seconds)} on an open association"
    reason = f"incomplete: {lacking}; {silence}" if how is Strength.AGAINST else f"{silence} ({others})"
    return Wait(seconds, "the end of the association that brings it", reason)


def cut_short(pieces: Sequence[Evidence], rules: Assembly) -> Wait:
    """Return what is said of a series whose images did not end within `longest_s`."""
    lacking = _words([p for p in pieces if p.weight is Weight.AGAINST])
    silence = f"images came for {rules.longest_s:g} s without an end"
    reason = f"incomplete: {lacking}; {silence}" if strength(pieces) is Strength.AGAINST else silence
    return Wait(0.0, "nothing more", reason)


def _is_counted(agreeing: Sequence[Evidence]) -> bool:
    """Tell whether it is known how many there are: then neither a pause nor an open association means that more come.

    Images in Acquisition does not tell: of a dynamic series each phase may say so of itself, and look whole.
    """
    return any(p.source in COUNTING or p.source is Source.FRAMES for p in agreeing)


def _silence(seconds: float) -> str:
    return f"nothing came for {round(seconds, 1):g} s"


def _deciding(agreeing: Sequence[Evidence]) -> Sequence[Evidence]:
    """Who counted decides alone: what else agrees is not repeated."""
    return [p for p in agreeing if p.source in COUNTING] or agreeing


def _words(pieces: Sequence[Evidence]) -> str:
    return ", ".join(piece.text for piece in pieces)
