"""Dispatch: offers due jobs to the workers through Celery, a window of them at a time.

Publishing comes first and the ledger's mark after: a crash between the two doubles a message, and a doubled message is
harmless. The window keeps queue time short, so that cancelling works on any broker and a lost broker costs little.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

from celery import Celery
from kombu.exceptions import KombuError
from kombu.exceptions import OperationalError as KombuOperationalError
from redis.exceptions import RedisError

from node.broker import SEGMENT_TASK, celery_config, queue_of
from node.errors import BrokerUnavailable
from node.ledger import Ledger
from node.records import WORKER_SILENT_S
from node.settings import Dispatch, Settings
from node.states import JobState
from node.urls import masked

log = logging.getLogger(__name__)

_ROUND_S = 1.0
_CLOCK_STEP_S = 1.0


def celery_publisher(settings: Settings) -> Callable[[str, str], None]:
    """Return a function that publishes one job id for the workers that have one model; empty: for all.

    It raises `BrokerUnavailable`; the message may have been delivered even then.
    """
    app = Celery("pennode", set_as_current=False)
    app.conf.update(celery_config(settings))
    where = masked(settings.broker.url) or "the embedded broker"

    def publish(job_id: str, model: str) -> None:
        queue = queue_of(settings.broker.queue, model)
        try:
            app.send_task(SEGMENT_TASK, args=[job_id], queue=queue, ignore_result=True, retry=False)
        except (KombuOperationalError, KombuError, RedisError, OSError) as error:
            raise BrokerUnavailable(
                f"{where} does not take messages ({type(error).__name__})", "jobs wait here until it does"
            ) from error

    return publish


class Dispatcher:
    """Publishes due jobs, for whose models there is a living worker, and takes back those whose worker went silent.

    Shadows are published while nothing else waits, and not more than the workers could begin.
    """

    def __init__(
        self, ledger: Ledger, rules: Dispatch, publish: Callable[[str, str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._rules = rules
        self._publish = publish
        self._clock = clock
        self._last = 0.0
        self.absent: dict[str, int] = {}  # how many jobs wait for each model that no living worker has

    def tick(self, now: float) -> float:
        """Do one round; return the seconds until the next.

        Raises
        ------
        BrokerUnavailable, LedgerUnavailable
            What was not published stays due.
        """
        if now < self._last - _CLOCK_STEP_S:
            log.warning("the clock was set back by %.0f s", self._last - now)
            self._ledger.clamp_times(now, self._rules.lease_s)
        self._last = now
        taken_back = self._ledger.expire_leases(now, self._rules.max_attempts)
        if taken_back:
            log.warning("took %d job(s) back from silent workers", taken_back)
        workers = self._ledger.workers(now - WORKER_SILENT_S)
        served = frozenset({""}).union(*(worker.served for worker in workers))
        self.absent = self._ledger.note_unserved(served, now)
        # Without a worker nobody takes messages, and repeating them would only pile them up.
        requeue_after_s = self._rules.requeue_after_s if workers else now
        self._offer(now, requeue_after_s, served, max(self._rules.window, 4 * len(workers)), shadow=False)
        if not self._ledger.waiting(served, now):
            self._offer(now, requeue_after_s, served, max(1, len(workers)), shadow=True)
        return _ROUND_S

    def _offer(self, now: float, requeue_after_s: float, served: Collection[str], window: int, *, shadow: bool) -> None:
        room = window - self._ledger.queued(shadow=shadow)
        for job in self._ledger.due(now, requeue_after_s, window, served=served, shadow=shadow):
            # A forgotten message is repeated even when the window is full: it may be what fills it.
            if job.state is JobState.READY:
                if room <= 0:
                    continue
                room -= 1
            self._publish(job.id, job.wanted_model)
            self._ledger.mark_queued(job.id, self._clock())
            log.info("offered job=%s series=%s model=%s", job.id, job.series_uid, job.wanted_model or "any")
