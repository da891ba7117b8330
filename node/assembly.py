"""When is a series complete? Nobody says so in C-STORE; evidence does, or in the end silence.

Strong evidence (the association is released and the images that came form a whole) seals after a short `settle_s`.
Without it a series is sealed after `quiet_s` of silence. A late image opens the next revision, so a seal that came too
early costs time, never an image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from node.errors import NotFound
from node.ledger import Ledger
from node.records import Instance, Series
from node.selection import Verdict
from node.settings import Assembly

log = logging.getLogger(__name__)

# Positions in a header are decimal strings, often with six digits; gaps differ by far more when a slice is missing.
_POSITION_TOLERANCE_MM = 0.05
_RELATIVE_GAP_TOLERANCE = 0.05


@dataclass(frozen=True)
class Evidence:
    """What the received images themselves say of being all."""

    strong: bool
    reason: str


def weigh(members: Sequence[Instance]) -> Evidence:
    """Weigh whether these instances look like a whole series."""
    if len(members) == 1 and members[0].header.number_of_frames > 1:
        return Evidence(True, f"one multi-frame object of {members[0].header.number_of_frames} frames")
    if len(members) < 2:
        return Evidence(False, "a single image")
    numbers = [m.header.instance_number for m in members]
    present = sorted(n for n in numbers if n is not None)
    if len(present) < len(members):
        return Evidence(False, "instance numbers are missing")
    if len(set(present)) < len(present):
        return Evidence(False, "instance numbers repeat")
    if present[-1] - present[0] + 1 != len(present):
        missing = next(a + 1 for a, b in pairwise(present) if b != a + 1)
        return Evidence(False, f"instance number {missing} is missing between {present[0]} and {present[-1]}")
    if present[0] not in (0, 1):
        return Evidence(False, f"instance numbers begin at {present[0]}")
    expected = max((m.header.images_in_acquisition or 0) for m in members)
    if expected > len(members):
        return Evidence(False, f"Images in Acquisition says {expected}")
    gap = _irregular(members)
    if gap:
        return Evidence(False, gap)
    return Evidence(True, f"instance numbers {present[0]} to {present[-1]} and slice positions are contiguous")


def _irregular(members: Sequence[Instance]) -> str:
    """Say what keeps the slice positions from being evenly spaced; '' when they are."""
    headers = [m.header for m in members]
    if any(len(h.position) != 3 or len(h.orientation) != 6 for h in headers):
        return "slice positions are missing"
    rx, ry, rz, cx, cy, cz = headers[0].orientation
    normal = (ry * cz - rz * cy, rz * cx - rx * cz, rx * cy - ry * cx)
    places = sorted({round(sum(n * p for n, p in zip(normal, h.position, strict=True)), 3) for h in headers})
    if len(places) < 2:
        return "all images lie at one position"
    gaps = [b - a for a, b in pairwise(places)]
    typical = sorted(gaps)[len(gaps) // 2]
    tolerance = max(_POSITION_TOLERANCE_MM, _RELATIVE_GAP_TOLERANCE * typical)
    if any(abs(gap - typical) > tolerance for gap in gaps):
        return f"slice positions are uneven: gaps of {min(gaps):.2f} to {max(gaps):.2f} mm"
    return ""


def seal_reason(silent_s: float, association_open: bool, evidence: Evidence, rules: Assembly) -> str:
    """Return why a series may be sealed now, after `silent_s` seconds without an image; '' when it may not."""
    if association_open:
        if silent_s >= rules.open_s:
            return f"nothing came for {rules.open_s:g} s on an open association ({evidence.reason})"
        return ""
    if evidence.strong and silent_s >= rules.settle_s:
        return f"association released, {evidence.reason}"
    if silent_s >= rules.quiet_s:
        return f"nothing came for {rules.quiet_s:g} s ({evidence.reason})"
    return ""


class Assembler:
    """Seals series whose time has come.

    Parameters
    ----------
    is_open
        Tells whether an association that brought images of this series is still open.
    judge
        Selection, with its rules.
    digest
        Returns the sha256 of an instance's data set; raises `NotFound` where its file is gone.
    sealed
        Called after each seal, so that dispatch need not wait for its next round.
    """

    def __init__(
        self,
        ledger: Ledger,
        rules: Assembly,
        is_open: Callable[[str], bool],
        judge: Callable[[Sequence[Instance]], Verdict],
        digest: Callable[[Instance], str],
        sealed: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._rules = rules
        self._is_open = is_open
        self._judge = judge
        self._digest = digest
        self._sealed = sealed
        self._weighed: dict[str, tuple[int, Evidence]] = {}

    def tick(self, now: float) -> float:
        """Seal what is complete; return the seconds until it is worth looking again."""
        series = self._ledger.receiving()
        self._weighed = {s.series_uid: self._weighed[s.series_uid] for s in series if s.series_uid in self._weighed}
        for item in series:
            if now - item.last_at >= min(self._rules.settle_s, self._rules.quiet_s):
                self._consider(item, now)
        return 0.1 if series else 5.0

    def _consider(self, seen: Series, now: float) -> None:
        count, evidence = self._weighed.get(seen.series_uid, (0, Evidence(False, "")))
        members: list[Instance] | None = None
        if count != seen.instances:
            members = self._ledger.series_instances(seen.series_uid)
            evidence = weigh(members)
            self._weighed[seen.series_uid] = (seen.instances, evidence)
        reason = seal_reason(now - seen.last_at, self._is_open(seen.series_uid), evidence, self._rules)
        if not reason:
            return
        members = members or self._ledger.series_instances(seen.series_uid)
        members = self._digested(members)
        verdict = self._judge(members)
        job_id = self._ledger.seal(
            seen, members, reason, wanted=verdict.wanted, verdict=verdict.reason, next_step=verdict.next_step, now=now
        )
        if job_id is not None:
            log.info("sealed series=%s images=%d job=%s reason=%r", seen.series_uid, len(members), job_id, reason)
            self._sealed()

    def _digested(self, members: Sequence[Instance]) -> list[Instance]:
        """Find the digests that are not known yet: the listener does not wait for what nobody needs before."""
        found: dict[str, str] = {}
        for one in members:
            if not one.sha256:
                try:
                    found[one.sop_uid] = self._digest(one)
                except NotFound:  # the worker will say so of the job
                    log.error("the file of image %s is gone from the spool", one.sop_uid)
        self._ledger.note_digests(found)
        return [replace(one, sha256=found.get(one.sop_uid, one.sha256)) for one in members]
