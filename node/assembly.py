"""When is a series complete? Nobody says so in C-STORE: evidence does, or in the end silence.

`node.weighing` gathers the evidence, `node.patience` says how long a series waits by it: strong evidence seals after
`settle_s`, weak evidence after a silence that is unusual for the sender, evidence that something is missing after
`patience_s`. A late image opens the next revision, so a seal that came too early costs time, never an image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from node.census import Census, Wanted
from node.errors import NotFound
from node.evidence import Evidence, Strength, Weighing, strength
from node.ledger import Ledger
from node.patience import Wait, wait_for
from node.records import Instance, PerformedSeries, Series
from node.rhythm import Rhythm, is_piecemeal, longest_gaps, own_gap, rhythm_of, usual_gap
from node.selection import Verdict
from node.settings import Assembly
from node.weighing import weigh, weigh_association, weigh_count, weigh_performed

log = logging.getLogger(__name__)

# MPPS and the clock do not wake us.
_ROUND_S, _SHORTEST_S, _IDLE_S = 0.5, 0.02, 5.0


@dataclass(frozen=True)
class _Images:
    """What is known of a series as long as no further image comes."""

    counted: int
    sop_uids: frozenset[str]
    pieces: tuple[Evidence, ...]
    longest_gaps: Mapping[str, float]
    own_gap: float
    piecemeal: bool


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
    performed
        Returns what MPPS says of a series, if anything.
    censuses
        By calling AE title, who is asked how many images of a series there are.
    """

    def __init__(
        self,
        ledger: Ledger,
        rules: Assembly,
        is_open: Callable[[str], bool],
        judge: Callable[[Sequence[Instance]], Verdict],
        digest: Callable[[Instance], str],
        sealed: Callable[[], None],
        *,
        performed: Callable[[str], PerformedSeries | None],
        censuses: Mapping[str, Census],
    ) -> None:
        self._ledger = ledger
        self._rules = rules
        self._is_open = is_open
        self._judge = judge
        self._digest = digest
        self._sealed = sealed
        self._performed = performed
        self._censuses = censuses
        self._images: dict[str, _Images] = {}
        self._noted: dict[str, Weighing] = {}
        self._usual: dict[str, float | None] = {}  # gaps by calling AE title
        self._seen: dict[str, tuple[int, float]] = {}  # how many images, and since when

    def tick(self, now: float) -> float:
        """Seal what is complete; return the seconds until it is worth looking again."""
        series = self._ledger.receiving()
        uids = {s.series_uid for s in series}
        self._images = {uid: kept for uid, kept in self._images.items() if uid in uids}
        self._noted = {uid: kept for uid, kept in self._noted.items() if uid in uids}
        self._seen = {s.series_uid: self._first_seen(s, now) for s in series}
        wanted: dict[str, dict[str, Wanted]] = {title: {} for title in self._censuses}
        due = now + _ROUND_S
        for seen in series:
            # A series that is coming in is not weighed for each of its images. An answer should be here in time.
            look = self._since(seen) + self._rules.settle_s / (2 if seen.calling_ae in self._censuses else 1)
            if now >= look:
                look = self._consider(seen, wanted, now)
            due = min(due, look)
        for title, census in self._censuses.items():
            census.want(wanted[title])
        return max(_SHORTEST_S, due - now) if series else _IDLE_S

    def _first_seen(self, seen: Series, now: float) -> tuple[int, float]:
        before = self._seen.get(seen.series_uid)
        return before if before is not None and before[0] == seen.instances else (seen.instances, now)

    def _since(self, seen: Series) -> float:
        """Return since when nothing came. While our own disk was slow, the sender waited for us."""
        return max(seen.last_at, self._seen[seen.series_uid][1])

    def _consider(self, seen: Series, wanted: Mapping[str, dict[str, Wanted]], now: float) -> float:
        """Weigh one series, seal it if its time has come, and return when that is."""
        images, is_open, since = self._look(seen), self._is_open(seen.series_uid), self._since(seen)
        rhythm = self._rhythm(images)
        told = weigh_performed(images.sop_uids, self._performed(seen.series_uid))
        pieces = [piece for piece in (weigh_association(is_open), *images.pieces, told) if piece is not None]
        census = self._censuses.get(seen.calling_ae)
        # Asked is who is silent for longer than before, where the rest of the evidence does not say that this was all.
        lull_s = min(rhythm.pause_s, rhythm.quiet_s / 2) if images.piecemeal else 0.0
        silent = not is_open and now - since >= lull_s
        if census and silent and strength(pieces) is not Strength.STRONG:
            wanted[seen.calling_ae][seen.series_uid] = Wanted(seen.study_uid, seen.last_at)
            counted = weigh_count(len(images.sop_uids), seen.last_at, census.answer(seen.series_uid))
            pieces += [counted] if counted else []
        wait = wait_for(pieces, rhythm, self._rules)
        if now - since >= wait.seconds:
            self._seal(seen, pieces, wait, now)
        elif now - since >= self._rules.settle_s:
            weighed = Weighing(
                seen.series_uid, seen.revision + 1, tuple(pieces), f"waits for {wait.what}", seen.last_at,
                since + wait.seconds,
            )  # fmt: skip
            if self._noted.get(seen.series_uid) != weighed:
                self._ledger.note_weighing(weighed)
                self._noted[seen.series_uid] = weighed
        return since + (wait.seconds if now - since >= self._rules.settle_s else self._rules.settle_s)

    def _look(self, seen: Series) -> _Images:
        known = self._images.get(seen.series_uid)
        if known is None or known.counted != seen.instances:
            members = self._ledger.series_instances(seen.series_uid)
            senders = dict.fromkeys((m.calling_ae for m in members), 0.0)
            known = _Images(
                seen.instances, frozenset(m.sop_uid for m in members), weigh(members), senders | longest_gaps(members),
                own_gap(members, lambda part: strength(weigh(part)) is Strength.AGAINST), is_piecemeal(members),
            )  # fmt: skip
            self._images[seen.series_uid] = known
        return known

    def _rhythm(self, images: _Images) -> Rhythm:
        for title in images.longest_gaps:
            if title not in self._usual:
                self._usual[title] = usual_gap(self._ledger.longest_gaps(title))
        usual = [self._usual[title] for title in images.longest_gaps]
        return rhythm_of(images.own_gap, usual, self._rules)

    def _seal(self, seen: Series, pieces: Sequence[Evidence], wait: Wait, now: float) -> None:
        members = self._digested(self._ledger.series_instances(seen.series_uid))
        verdict = self._judge(members)
        job_id = self._ledger.seal(
            seen, members, wait.reason, wanted=verdict.wanted, verdict=verdict.reason, next_step=verdict.next_step,
            now=now, pieces=pieces,
        )  # fmt: skip
        if job_id is not None:
            # What was learned of its senders may have changed.
            self._usual.clear()
            log.info("sealed series=%s images=%d job=%s reason=%r", seen.series_uid, len(members), job_id, wait.reason)
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
