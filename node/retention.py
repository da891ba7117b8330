"""Retention: finished jobs leave the spool by age, and earlier when the disk runs short. Unfinished ones never do.

What peers asked and announced (storage commitment, MPPS), and what was fetched, leaves the ledger by the same age.
"""

from __future__ import annotations

import logging

from node.ledger import Ledger
from node.settings import Retention
from node.spool import Spool
from node.states import JobState

log = logging.getLogger(__name__)

# Under pressure of disk only these go early: a person may still be about to retry the others.
_EARLY = frozenset({JobState.DELIVERED, JobState.STORED, JobState.SKIPPED, JobState.SUPERSEDED, JobState.CANCELLED})


class Caretaker:
    """Removes the files of finished jobs whose time is up."""

    def __init__(self, ledger: Ledger, spool: Spool, rules: Retention) -> None:
        self._ledger = ledger
        self._spool = spool
        self._rules = rules

    def tick(self, now: float) -> float:
        """Do one round; return the seconds until the next."""
        while aged := self._ledger.expendable(now - self._rules.days * 86400):
            for job in aged:
                self._purge(job.id, self._ledger.forget_files(job, now))
        self._spool.drop_aside(now - self._rules.days * 86400)
        self._ledger.forget_commitments(now - self._rules.days * 86400)
        self._ledger.forget_steps(now - self._rules.days * 86400)
        self._ledger.forget_fetches(now - self._rules.days * 86400)
        floor = self._rules.free_floor_mb * 1_000_000
        if self._spool.free_bytes() < floor:
            for job in self._ledger.expendable(now, _EARLY, limit=1000):
                if self._spool.free_bytes() >= floor:
                    break
                self._purge(job.id, self._ledger.forget_files(job, now))
        return self._rules.interval_s

    def _purge(self, job_id: str, paths: list[str]) -> None:
        for path in paths:
            self._spool.remove(path)
        self._spool.remove_results(job_id)
        log.info("retention removed %d file(s) of job=%s", len(paths), job_id)
