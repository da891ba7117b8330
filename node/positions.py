"""Do the slices that came form whole stacks? Positions along the normal, times images at each (PS3.3 C.7.6.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from node.evidence import Evidence, Source, Weight
from node.records import Header, Instance

# Direction cosines of one stack are written alike, to the third digit at least.
_SAME_COSINE = 2e-3
# More orientations than this are no stacks: radial slices, or noise.
_MOST_STACKS = 64
# Positions are decimal strings: images of one slice may differ in their last digits.
_SAME_PLACE_MM = 0.05
# Gaps of an even stack differ by rounding (some scanners write 0.1 mm) or by 5 %, as the workers tolerate it.
_ROUNDING_MM, _ROUNDING_SHARE, _UNEVEN = 0.18, 0.4, 0.05
# From here on a gap is that of a missing slice.
_MISSING = 1.5


def weigh_positions(members: Sequence[Instance]) -> Evidence:
    """Weigh whether every slice position that the others suggest is there, each with equally many images.

    Several echoes, temporal positions or acquisitions make a grid of positions and repetitions.
    """
    headers = [m.header for m in members]
    if any(len(h.position) != 3 or len(h.orientation) != 6 for h in headers):
        return _piece(Weight.NEUTRAL, "slice positions are missing")
    stacks = _stacks(headers)
    if not stacks:
        return _piece(Weight.NEUTRAL, f"more than {_MOST_STACKS} orientations")
    found = [_weigh_stack(stack) for stack in stacks]
    if len(found) == 1:
        return found[0]
    worst = min(found, key=lambda piece: _BY_WEIGHT.index(piece.weight))
    if worst.weight is Weight.FOR:
        return _piece(Weight.FOR, f"{len(found)} stacks of evenly spaced slices")
    return _piece(worst.weight, f"in one of {len(found)} orientations: {worst.text}")


_BY_WEIGHT = [Weight.AGAINST, Weight.NEUTRAL, Weight.FOR]


def _piece(weight: Weight, text: str) -> Evidence:
    return Evidence(Source.POSITIONS, weight, text)


def _stacks(headers: Sequence[Header]) -> list[list[Header]]:
    """Group slices by orientation, whatever their order; none when there are too many."""
    alike: dict[tuple[float, ...], list[Header]] = {}
    for header in headers:
        alike.setdefault(tuple(round(c, 3) for c in header.orientation), []).append(header)
    if len(alike) > _MOST_STACKS:
        return []
    stacks: dict[tuple[float, ...], list[Header]] = {}
    for cosines in sorted(alike):
        near = (k for k in stacks if all(abs(a - b) <= _SAME_COSINE for a, b in zip(k, cosines, strict=True)))
        stacks.setdefault(next(near, cosines), []).extend(alike[cosines])
    return list(stacks.values())


def _weigh_stack(stack: Sequence[Header]) -> Evidence:
    places = _places(stack)
    counts = [len(images) for images in places.values()]
    if len(places) < 2:
        return _piece(Weight.NEUTRAL, "all images lie at one position")
    most = max(counts)
    if min(counts) < most:
        fewer = sum(count < most for count in counts)
        return _piece(Weight.AGAINST, f"{fewer} of {len(counts)} slice positions have fewer than {most} images")
    gaps = [b - a for a, b in pairwise(places)]
    typical = sorted(gaps)[(len(gaps) - 1) // 2]
    tolerance = max(min(_ROUNDING_MM, _ROUNDING_SHARE * typical), _UNEVEN * typical)
    if all(abs(gap - typical) <= tolerance for gap in gaps):
        each = f", {most} images at each" if most > 1 else ""
        return _piece(Weight.FOR, f"{len(places)} slice positions, {typical:.2f} mm apart{each}")
    words = f"slice positions are uneven: gaps of {min(gaps):.2f} to {max(gaps):.2f} mm"
    if max(gaps) < _MISSING * typical:
        return _piece(Weight.NEUTRAL, words)
    if _numbered_along(list(places.values())):
        # Blocks of slices, as at each intervertebral disc: were one missing within, so were its number.
        return _piece(Weight.NEUTRAL, f"{words}, but numbered through")
    return _piece(Weight.AGAINST, words)


def _places(stack: Sequence[Header]) -> dict[float, list[Header]]:
    """Return the images at each position, by mm along the normal, ascending."""
    rx, ry, rz, cx, cy, cz = min(h.orientation for h in stack)
    normal = (ry * cz - rz * cy, rz * cx - rx * cz, rx * cy - ry * cx)
    along = [(sum(n * p for n, p in zip(normal, h.position, strict=True)), h) for h in stack]
    places: dict[float, list[Header]] = {}
    begin = 0.0
    for place, header in sorted(along, key=lambda pair: pair[0]):
        if not places or place - begin > _SAME_PLACE_MM:
            begin = place
        places.setdefault(begin, []).append(header)
    return places


def _numbered_along(places: Sequence[Sequence[Header]]) -> bool:
    """Tell whether instance numbers go up, or down, by one from position to position."""
    numbers = [images[0].instance_number for images in places if len(images) == 1]
    if len(numbers) < len(places) or None in numbers:
        return False
    return {(b or 0) - (a or 0) for a, b in pairwise(numbers)} in ({1}, {-1})
