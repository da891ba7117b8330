"""How long a peer may be silent within a series, learned from how it sent earlier ones.

Only waits from one association to the next count: as long as one is open, it tells by itself that more may come. And of
a series only its longest, not its many short ones: a quiet period that a series outlasts once seals it too early. Gaps
that outlasted the period are counted too, when the late image opens the next revision, so the period grows back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from node.records import Instance
from node.settings import Assembly

# Of each peer's last series so many are remembered, and so many must have been seen before anything is concluded.
KEPT = 200
_ENOUGH = 20
# One series in fifty may be odd (a repositioned patient, a stalled network) without slowing all others.
_QUANTILE = 0.98
# How much longer a pause may be than what is usual with a peer, or than the longest so far of a series.
_MARGIN = 2.0
# Gaps of a series that are asked about.
_LOOKED_AT = 3


@dataclass(frozen=True)
class Rhythm:
    """How long those who send a series may pause, in s.

    `quiet_s`: after it they have sent all, even if nothing else says so. `pause_s`: so long they may be silent though
    no association is open and nothing seems to be missing, which is so after each part of a series sent in order; 0 for
    those whose series come by one association.
    """

    quiet_s: float
    pause_s: float


def longest_gaps(members: Sequence[Instance]) -> dict[str, float]:
    """Return, by calling AE title, the longest wait in s for an image that came by another association.

    A sender whose images came by one association has 0, one of a single image nothing.
    """
    gaps: dict[str, float] = {}
    for before, after in pairwise(sorted(members, key=lambda m: (m.received_at, m.sop_uid))):
        apart = before.association != after.association
        gap = after.received_at - before.received_at if apart else 0.0
        gaps[after.calling_ae] = max(gaps.get(after.calling_ae, 0.0), gap)
    return gaps


def usual_gap(longest: Sequence[float]) -> float | None:
    """Return what the longest gaps of a sender's series hardly ever exceed; None where too few were seen."""
    if len(longest) < _ENOUGH:
        return None
    return sorted(longest)[math.ceil(_QUANTILE * len(longest)) - 1]


def is_piecemeal(members: Sequence[Instance]) -> bool:
    """Tell whether a series comes by associations of one or two images: then the end of one tells nothing."""
    return 1 < len(members) <= 2 * len({(m.peer, m.association) for m in members})


def own_gap(members: Sequence[Instance], lacks: Callable[[Sequence[Instance]], bool]) -> float:
    """Return the longest wait in s of a series that shows how it is sent.

    Where something was missing before an image came by another association, that image was late, as after a transfer
    that failed: such a gap says nothing of the next one. Only the longest few are looked at so: `lacks` has its cost.
    """
    ordered = sorted(members, key=lambda m: (m.received_at, m.sop_uid))
    gaps = [
        (after.received_at - before.received_at, at)
        for at, (before, after) in enumerate(pairwise(ordered), start=1)
        if before.association != after.association
    ]
    for rank, (gap, at) in enumerate(sorted(gaps, reverse=True)):
        if rank >= _LOOKED_AT or not lacks(ordered[:at]):
            return gap
    return 0.0


def rhythm_of(own_s: float, usual: Sequence[float | None], rules: Assembly) -> Rhythm:
    """Return what to expect of the senders of a series.

    Parameters
    ----------
    own_s
        The longest gap of this series so far; see `own_gap`.
    usual
        The usual gap of each of its senders.
    """
    known = [gap for gap in usual if gap is not None]
    gap_s = _MARGIN * max([own_s, *known])
    quiet_s = max(rules.quiet_min_s, gap_s) if usual and len(known) == len(usual) else rules.quiet_s
    return Rhythm(min(quiet_s, rules.quiet_s), min(gap_s, rules.quiet_s))
