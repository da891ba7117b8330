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
from node.errors import NotFound, OutOfDisk
from node.evidence import Evidence, Strength, Weighing, strength
from node.ledger import Announcement, Ledger
from node.patience import Wait, cut_short, wait_for
from node.records import Instance, PerformedSeries, Series
from node.rhythm import Rhythm, is_piecemeal, longest_gaps, own_gap, rhythm_of, usual_gap
from node.selection import Verdict
from node.settings import Assembly
from node.weighing import weigh, weigh_announced, weigh_association, weigh_count, weigh_performed

log = logging.getLogger(__name__)

# MPPS and the clock do not wake us.
_ROUND_S, _SHORTEST_S, _IDLE_S = 0.5, 0.02, 5.0
# After this a series whose files could not be read is tried again.
_UNREAD_S = 30.0


@dataclass(frozen=True)
class _Images:
    """What is known of a series as long as no further image comes."""

    counted: int
    sop_uids: frozenset[str]
    pieces: tuple[Evidence, ...]
    longest_gaps: Mapping[str, float]
    own_gap: float
    piecemeal: bool


@dataclass
class _Sight:
    """When, by our own clock, one revision of a series was first seen, and since when it has not grown.

    Not by the ledger's times: while our own disk was slow, the sender waited for us; while we were down, nobody could
    send; and a clock that is set back leaves the last image in the future.
    """

    revision: int
    instances: int
    begun: float
    since: float
    not_before: float = 0.0
    unread: bool = False

    def look(self, seen: Series, now: float) -> None:
        """Note how large it is now."""
        if self.instances != seen.instances:
            self.instances, self.since = seen.instances, now
        self.begun, self.since = min(self.begun, now), min(self.since, now)
        self.not_before = min(self.not_before, now + _UNREAD_S)


class Assembler:
    """Seals series whose time has come.

    Parameters
    ----------
    is_open
        Tells whether an association that brought images of this series is still open.
    judge
        Selection, with its rules.
    digest
        Returns the sha256 of an instance's data set; raises `NotFound` where its file is gone and `OutOfDisk` where it
        cannot be read, which holds up that series alone.
    sealed
        Called after each seal, so that dispatch need not wait for its next round.
    performed
        Returns what MPPS says of a series, if anything.
    censuses
        By calling AE title, who is asked how many images of a series there are.
    announced
        Returns what the archive that a series is fetched from said of it, if it is.
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
        announced: Callable[[str], Announcement | None] = lambda _uid: None,
    ) -> None:
        self._ledger = ledger
        self._rules = rules
        self._is_open = is_open
        self._judge = judge
        self._digest = digest
        self._sealed = sealed
        self._performed = performed
        self._censuses = censuses
        self._announced = announced
        self._images: dict[str, _Images] = {}
        self._noted: dict[str, Weighing] = {}
        self._usual: dict[str, float | None] = {}  # gaps by calling AE title
        self._sights: dict[str, _Sight] = {}

    def tick(self, now: float) -> float:
        """Seal what is complete; return the seconds until it is worth looking again."""
        series = self._ledger.receiving()
        uids = {s.series_uid for s in series}
        self._images = {uid: kept for uid, kept in self._images.items() if uid in uids}
        self._noted = {uid: kept for uid, kept in self._noted.items() if uid in uids}
        self._sights = {s.series_uid: self._sight(s, now) for s in series}
        wanted: dict[str, dict[str, Wanted]] = {title: {} for title in self._censuses}
        due = now + _ROUND_S
        for seen in series:
            # A series that is coming in is not weighed for each of its images. An answer should be here in time.
            sight = self._sights[seen.series_uid]
            look = sight.since + self._rules.settle_s / (2 if seen.calling_ae in self._censuses else 1)
            look = max(sight.not_before, min(look, sight.begun + self._rules.longest_s))
            if now >= look:
                look = self._consider(seen, wanted, now)
            due = min(due, look)
        for title, census in self._censuses.items():
            census.want(wanted[title])
        return max(_SHORTEST_S, due - now) if series else _IDLE_S

    def _sight(self, seen: Series, now: float) -> _Sight:
        sight = self._sights.get(seen.series_uid)
        if sight is None or sight.revision != seen.revision:
            return _Sight(seen.revision, seen.instances, now, now)
        sight.look(seen, now)
        return sight

    def _consider(self, seen: Series, wanted: Mapping[str, dict[str, Wanted]], now: float) -> float:
        """Weigh one series, seal it if its time has come, and return when that is."""
        images, is_open, sight = self._look(seen), self._is_open(seen.series_uid), self._sights[seen.series_uid]
        since = sight.since
        rhythm = self._rhythm(images)
        told = weigh_performed(images.sop_uids, self._performed(seen.series_uid))
        fetched = self._weigh_fetched(seen.series_uid, len(images.sop_uids))
        weighed = (weigh_association(is_open), *images.pieces, told, fetched)
        pieces = [piece for piece in weighed if piece is not None]
        census = self._censuses.get(seen.calling_ae)
        # Asked is who is silent for longer than before, where the rest of the evidence does not say that this was all.
        lull_s = min(rhythm.pause_s, rhythm.quiet_s / 2) if images.piecemeal else 0.0
        silent = not is_open and now - since >= lull_s
        if census and silent and strength(pieces) is not Strength.STRONG:
            wanted[seen.calling_ae][seen.series_uid] = Wanted(seen.study_uid, seen.last_at)
            counted = weigh_count(len(images.sop_uids), min(seen.last_at, since), census.answer(seen.series_uid))
            pieces += [counted] if counted else []
        wait = wait_for(pieces, rhythm, self._rules)
        due, end = since + wait.seconds, sight.begun + self._rules.longest_s
        if now >= end and now < due:
            wait, sight.not_before = cut_short(pieces, self._rules), now + _ROUND_S
        if now >= min(due, end):
            try:
                self._seal(seen, pieces, wait, now)
            except OutOfDisk as error:
                self._put_off(seen, pieces, error, now)
        elif now - since >= self._rules.settle_s:
            self._note(seen, pieces, f"waits for {wait.what}", min(due, end))
        return max(sight.not_before, min(max(due, since + self._rules.settle_s), end))

    def _weigh_fetched(self, series_uid: str, here: int) -> Evidence | None:
        said = self._announced(series_uid)
        return weigh_announced(here, said.archive, said.number, is_coming=said.is_coming) if said else None

    def _note(self, seen: Series, pieces: Sequence[Evidence], outcome: str, until: float) -> None:
        weighed = Weighing(seen.series_uid, seen.revision + 1, tuple(pieces), outcome, seen.last_at, until)
        if self._noted.get(seen.series_uid) != weighed:
            self._ledger.note_weighing(weighed)
            self._noted[seen.series_uid] = weighed

    def _put_off(self, seen: Series, pieces: Sequence[Evidence], error: OutOfDisk, now: float) -> None:
        """Try again later to seal a series whose files cannot be read; others do not wait for it."""
        sight = self._sights[seen.series_uid]
        if not sight.unread:
            log.error("series=%s cannot be sealed yet: %s", seen.series_uid, error)
        sight.unread, sight.not_before = True, now + _UNREAD_S
        self._note(seen, pieces, f"waits for its files: {error.reason}", sight.not_before)

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
            now=now, pieces=pieces, model=verdict.model, shadows=verdict.shadows,
        )  # fmt: skip
        if job_id is not None:
            # What was learned of its senders may have changed.
            self._usual.clear()
            log.info("sealed series=%s images=%d job=%s reason=%r", seen.series_uid, len(members), job_id, wait.reason)
            self._sealed()

    def _digested(self, members: Sequence[Instance]) -> list[Instance]:
        """Find the digests that are not known yet: the listener does not wait for what nobody needs before."""
        found: dict[str, str] = {}
        try:
            for one in members:
                if not one.sha256:
                    try:
                        found[one.sop_uid] = self._digest(one)
                    except NotFound:  # the worker will say so of the job
                        log.error("the file of image %s is gone from the spool", one.sop_uid)
        finally:  # what was read need not be read again
            self._ledger.note_digests(found)
        return [replace(one, sha256=found.get(one.sop_uid, one.sha256)) for one in members]
