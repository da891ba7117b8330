"""Asks the system that sends a series how many images of it there are, where the images do not tell.

Each peer has a thread of its own, so that one which does not answer holds up nobody: its series wait as if it had not
been asked, and their evidence says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from node.errors import ConfigurationError, PeerRefused, PeerUnavailable
from node.query import count_images
from node.scu import Address
from node.settings import Settings
from node.weighing import Counted

log = logging.getLogger(__name__)

_ROUND_S = 0.5
_TIMEOUT_S = 10.0
# A question is asked again after 2 s, then twice as long each time, up to the longest.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 2.0, 30.0
# Series in one association.
_AT_ONCE = 32

Count = Callable[[Address, Mapping[str, str], float], dict[str, int]]


@dataclass(frozen=True)
class Wanted:
    """A series whose images are to be counted; `last_at` is when the last of those here came."""

    study_uid: str
    last_at: float


@dataclass
class _Question:
    wanted: Wanted
    not_before: float = 0.0
    asked: int = 0
    answer: Counted | None = None


class Census:
    """Questions to one peer, and its answers.

    Parameters
    ----------
    name
        How the settings call the peer.
    asked
        Called when there is something new to ask, so that the next round begins at once.
    answered
        Called after answers came, so that assembly looks again.
    """

    def __init__(
        self,
        name: str,
        peer: Address,
        asked: Callable[[], None],
        answered: Callable[[], None],
        count: Count = count_images,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._peer = peer
        self._asked = asked
        self._answered = answered
        self._count = count
        self._clock = clock
        self._lock = threading.Lock()
        self._questions: dict[str, _Question] = {}
        self._trouble = ""

    def want(self, wanted: Mapping[str, Wanted]) -> None:
        """Say which series are to be counted from now on, by Series Instance UID; all others are forgotten."""
        with self._lock:
            kept: dict[str, _Question] = {}
            for uid, one in wanted.items():
                before = self._questions.get(uid)
                if before is not None and before.wanted == one:
                    kept[uid] = before
                else:  # more images came: what was answered is kept, and asked again at once
                    kept[uid] = _Question(one, answer=before.answer if before else None)
            news = any(uid not in self._questions or self._questions[uid] is not q for uid, q in kept.items())
            self._questions = kept
        if news:
            self._asked()

    def answer(self, series_uid: str) -> Counted | None:
        """Return what was answered last; None: nothing yet."""
        with self._lock:
            found = self._questions.get(series_uid)
            return found.answer if found else None

    def tick(self, now: float) -> float:
        """Ask what is due; return the seconds until the next round."""
        with self._lock:
            # What is due later than the longest wait is so by a clock that was set back.
            due = {u: q for u, q in self._questions.items() if not now < q.not_before <= now + _LONGEST_WAIT_S}
            due = dict(sorted(due.items(), key=lambda pair: pair[1].not_before)[:_AT_ONCE])
        if due:
            self._ask(due)
            self._answered()
        return _ROUND_S

    def _ask(self, due: Mapping[str, _Question]) -> None:
        begun = self._clock()
        numbers: Mapping[str, int] = {}
        trouble = ""
        try:
            numbers = self._count(self._peer, {uid: q.wanted.study_uid for uid, q in due.items()}, _TIMEOUT_S)
        except (PeerUnavailable, PeerRefused, ConfigurationError) as error:
            trouble = error.reason
            if trouble != self._trouble:
                log.warning("%s cannot be asked how many images it has: %s", self.name, error)
        if self._trouble and not trouble:
            log.info("%s says again how many images it has", self.name)
        self._trouble = trouble
        with self._lock:
            for uid, question in due.items():
                wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(question.asked, 10))
                question.asked, question.not_before = question.asked + 1, self._clock() + wait
                if uid in numbers:
                    # What it had when it was asked: images that came since may be among them, or not.
                    question.answer = Counted(self.name, begun, numbers[uid])
                elif question.answer is None or question.answer.number is None:
                    question.answer = Counted(self.name, begun, trouble=trouble or "it was asked and left it out")


def censuses(settings: Settings, wake: Callable[[str], None]) -> dict[str, Census]:
    """Return who is asked about series from which calling AE title; the first peer of a title counts.

    `wake` begins the next round of the loop of that name at once: "assembly", or that of a census, "count at NAME".
    """
    found: dict[str, Census] = {}
    for peer in settings.peers:
        title = peer.ae_title.strip()
        if peer.count and title not in found:
            address = Address(title, peer.host, peer.port, settings.listener.ae_title, peer.security)
            found[title] = Census(peer.name, address, partial(wake, f"count at {peer.name}"), partial(wake, "assembly"))
    return found
