"""How long a peer may be silent within a series, learned from how it sent earlier ones.

What counts is the longest gap of a series, not the many short ones: a quiet period that a series outlasts once seals it
too early. Gaps that outlasted the period are counted too, when the late image opens the next revision; so the period
grows back by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from node.records import Instance
from node.settings import Assembly

# Of each peer's last series so many are remembered, and so many must have been seen before anything is concluded.
KEPT = 200
_ENOUGH = 20
# One series in fifty may be odd (a repositioned patient, a stalled network) without slowing all others.
_QUANTILE = 0.98
_MARGIN = 2.0


def longest_gaps(members: Sequence[Instance]) -> dict[str, float]:
    """Return, by calling AE title, the longest wait in s for an image of this series that was not its first."""
    gaps: dict[str, float] = {}
    for before, after in pairwise(sorted(members, key=lambda m: (m.received_at, m.sop_uid))):
        gaps[after.calling_ae] = max(gaps.get(after.calling_ae, 0.0), after.received_at - before.received_at)
    return gaps


def quiet_period(longest: Sequence[float], rules: Assembly) -> float:
    """Return the seconds of silence after which a peer has sent all, by the longest gaps of its earlier series."""
    if len(longest) < _ENOUGH:
        return rules.quiet_s
    usual = sorted(longest)[math.ceil(_QUANTILE * len(longest)) - 1]
    return min(rules.quiet_s, max(rules.quiet_min_s, _MARGIN * usual))
