"""What the images of a series, MPPS and the sender say of its being complete; the order of arrival never matters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from node.evidence import Evidence, Source, Weight
from node.positions import weigh_positions
from node.records import Header, Instance, PerformedSeries

_FOR, _AGAINST, _NEUTRAL = Weight.FOR, Weight.AGAINST, Weight.NEUTRAL
# One acquisition may be split into so many series (water, fat, in and out of phase; echoes; b-values).
_MOST_SPLITS = 6


@dataclass(frozen=True)
class Counted:
    """What a peer answered when asked how many images of a series it has.

    `at`: when the answer came, in seconds since 1970. `number` is None where there is no answer; `trouble` says why.
    """

    peer: str
    at: float
    number: int | None = None
    trouble: str = ""


def weigh(members: Sequence[Instance]) -> tuple[Evidence, ...]:
    """Weigh what the images themselves say."""
    headers = [m.header for m in members]
    frames = _weigh_frames(headers)
    if frames is not None and len(members) == 1:
        return (frames,)
    pieces = (
        frames,
        _weigh_numbers(headers),
        weigh_positions(members),
        _weigh_acquisition(headers),
        _weigh_temporal(headers),
    )
    return tuple(piece for piece in pieces if piece is not None)


def weigh_association(is_open: bool) -> Evidence:
    """Say whether an association that brought images of the series is still at it: neither released nor gone on."""
    if is_open:
        return Evidence(Source.ASSOCIATION, _NEUTRAL, "an association that brought images is open")
    return Evidence(Source.ASSOCIATION, _FOR, "association released or gone on")


def weigh_performed(here: frozenset[str], step: PerformedSeries | None) -> Evidence | None:
    """Weigh what MPPS lists (PS3.3 C.4.14) against the SOP Instance UIDs that came."""
    if step is None:
        return None
    listed = len(step.sop_uids)
    there = len(step.sop_uids & here)
    if step.state not in ("COMPLETED", "DISCONTINUED") or not listed:
        words = "no image is listed" if not listed else f"{listed} images are listed so far"
        return Evidence(Source.MPPS, _NEUTRAL, f"the procedure step is {step.state.lower()}, {words}")
    if there == listed:
        return Evidence(Source.MPPS, _FOR, f"all {listed} images that MPPS lists are here ({step.state.lower()})")
    # What a broken off step lists may never be sent.
    weight = _AGAINST if step.state == "COMPLETED" else _NEUTRAL
    return Evidence(Source.MPPS, weight, f"{there} of {listed} images that MPPS lists are here ({step.state.lower()})")


def weigh_count(here: int, last_at: float, counted: Counted | None) -> Evidence | None:
    """Weigh how many images the sender has (Number of Series Related Instances, PS3.4 C.3.4) against how many came.

    `last_at` is when the last one came: of an older answer only a larger number still counts.
    """
    if counted is None:
        return None
    if counted.number is None:
        return Evidence(Source.COUNT, _NEUTRAL, f"{counted.peer} gives no number of images: {counted.trouble}")
    words = f"{counted.peer} has {counted.number} images, {here} are here"
    if counted.number > here:
        return Evidence(Source.COUNT, _AGAINST, words)
    if counted.at <= last_at or counted.number < here:
        return Evidence(Source.COUNT, _NEUTRAL, words)
    return Evidence(Source.COUNT, _FOR, f"{counted.peer} has as many images, {here}")


def weigh_announced(here: int, archive: str, number: int | None, *, is_coming: bool) -> Evidence | None:
    """Weigh how many images an archive that the series is fetched from said it has against how many are here."""
    if number is None:
        return None
    if here == number:
        return Evidence(Source.FETCH, _FOR, f"all {number} images that {archive} has are here")
    if here > number:
        return Evidence(Source.FETCH, _NEUTRAL, f"{archive} has {number} images, {here} are here")
    more = ", and more come" if is_coming else ""
    return Evidence(Source.FETCH, _AGAINST, f"{here} of {number} images that {archive} has are here{more}")


def _weigh_frames(headers: Sequence[Header]) -> Evidence | None:
    """Weigh multi-frame objects; a concatenation is one object sent as several (PS3.3 C.7.6.16.2.2.4)."""
    count, frames = len(headers), sum(h.number_of_frames for h in headers)
    objects = max((h.concatenation_total or 0 for h in headers), default=0)
    if frames == count and objects < 2:
        return None
    if objects > 1:
        weight = _AGAINST if count < objects else _FOR if count == objects else _NEUTRAL
        return Evidence(Source.FRAMES, weight, f"{count} of {objects} objects of a concatenation")
    if count == 1:
        return Evidence(Source.FRAMES, _FOR, f"one multi-frame object of {frames} frames")
    return Evidence(Source.FRAMES, _NEUTRAL, f"{count} objects of {frames} frames")


def _weigh_numbers(headers: Sequence[Header]) -> Evidence:
    def piece(weight: Weight, text: str) -> Evidence:
        return Evidence(Source.NUMBERS, weight, text)

    if len(headers) < 2:
        return piece(_NEUTRAL, "a single image" if headers else "no image")
    counts = Counter(h.instance_number for h in headers if h.instance_number is not None)
    if sum(counts.values()) < len(headers):
        return piece(_NEUTRAL, "instance numbers are missing")
    present = sorted(counts)
    first, last = present[0], present[-1]
    lacking = last - first + 1 - len(present)
    if lacking > len(present):
        return piece(_NEUTRAL, f"instance numbers are no sequence ({first} to {last})")
    if lacking:
        hole = next(a + 1 for a, b in pairwise(present) if b != a + 1)
        words = f"instance number {hole} is" if lacking == 1 else f"{lacking} instance numbers, {hole} the first, are"
        return piece(_AGAINST, f"{words} missing between {first} and {last}")
    if min(counts.values()) < max(counts.values()):
        return piece(_NEUTRAL, "instance numbers repeat")
    if first not in (0, 1):
        # Where fewer are missing in front than are here they may still come; a series may also be numbered from 101.
        weight = _AGAINST if 1 < first <= len(present) else _NEUTRAL
        return piece(weight, f"instance numbers begin at {first}")
    each = f", each {counts[first]} times" if counts[first] > 1 else ""
    return piece(_FOR, f"instance numbers {first} to {last}{each}")


def _weigh_acquisition(headers: Sequence[Header]) -> Evidence | None:
    """Weigh Images in Acquisition (0020,1002), which some write for an acquisition, and some for all of the series."""

    def piece(weight: Weight, text: str) -> Evidence:
        return Evidence(Source.ACQUISITION, weight, text)

    here = len(headers)
    said = max((h.images_in_acquisition or 0 for h in headers), default=0)
    if said < 1:
        return None
    parts: dict[int | None, list[int]] = {}
    for header in headers:
        parts.setdefault(header.acquisition_number, []).append(header.images_in_acquisition or 0)
    short = [max(part) - len(part) for part in parts.values()]
    if said == here:
        return piece(_FOR, f"{here} images, as Images in Acquisition says")
    if not any(short):
        return piece(_FOR, f"each of {len(parts)} acquisitions has as many images as it says")
    if said > here:
        if said % here == 0 and said // here <= _MOST_SPLITS:
            return piece(_NEUTRAL, f"Images in Acquisition says {said}, {said // here} times as many as are here")
        return piece(_AGAINST, f"{here} images are here, Images in Acquisition says {said}")
    if 0 in short and max(short) > 0:
        return piece(_AGAINST, f"one of {len(parts)} acquisitions lacks {max(short)} images")
    return piece(_NEUTRAL, f"{here} images are here, Images in Acquisition says {said}")


def _weigh_temporal(headers: Sequence[Header]) -> Evidence | None:
    """Weigh Number of Temporal Positions (0020,0105) against the identifiers (0020,0100) that came."""

    def piece(weight: Weight, text: str) -> Evidence:
        return Evidence(Source.TEMPORAL, weight, text)

    said = max((h.temporal_positions or 0 for h in headers), default=0)
    if said < 2:
        return None
    found = Counter(h.temporal_position for h in headers if h.temporal_position is not None)
    if sum(found.values()) < len(headers):
        return piece(_NEUTRAL, f"some images do not say which of {said} temporal positions they belong to")
    if len(found) > said or (len(found) == 1 and 1 not in found):
        # Some send each temporal position as a series of its own.
        return piece(_NEUTRAL, f"{len(found)} temporal positions are here, {said} are said to be")
    if len(found) < said:
        return piece(_AGAINST, f"{len(found)} of {said} temporal positions are here")
    if min(found.values()) < max(found.values()):
        fewest = min(found, key=lambda number: (found[number], number))
        return piece(_AGAINST, f"temporal position {fewest} has fewer images than others")
    return piece(_FOR, f"all {said} temporal positions are here")
