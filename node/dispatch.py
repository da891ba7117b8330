"""Dispatch: offers due jobs to the workers through Celery, a window of them at a time.

Publishing comes first and the ledger's mark after: a crash between the two doubles a message, and a doubled message is
harmless. The window keeps queue time short, so that cancelling works on any broker and a lost broker costs little.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from celery import Celery
from kombu.exceptions import KombuError
from kombu.exceptions import OperationalError as KombuOperationalError
from redis.exceptions import RedisError

from node.broker import SEGMENT_TASK, celery_config
from node.errors import BrokerUnavailable
from node.ledger import Ledger
from node.settings import Dispatch, Settings, masked

log = logging.getLogger(__name__)

_ROUND_S = 1.0
# A worker says that it lives every 15 s; after three misses it does not count.
WORKER_SILENT_S = 50.0


def celery_publisher(settings: Settings) -> Callable[[str], None]:
    """Return a function that publishes one job id.

    It raises `BrokerUnavailable`; the message may have been delivered even then.
    """
    app = Celery("pennode", set_as_current=False)
    app.conf.update(celery_config(settings))
    where = masked(settings.broker.url) or "the embedded broker"

    def publish(job_id: str) -> None:
        try:
            app.send_task(SEGMENT_TASK, args=[job_id], queue=settings.broker.queue, ignore_result=True, retry=False)
        except (KombuOperationalError, KombuError, RedisError, OSError) as error:
            raise BrokerUnavailable(
                f"{where} does not take messages ({type(error).__name__})", "jobs wait here until it does"
            ) from error

    return publish


class Dispatcher:
    """Publishes due jobs and takes back those whose worker went silent."""

    def __init__(
        self, ledger: Ledger, rules: Dispatch, publish: Callable[[str], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._ledger = ledger
        self._rules = rules
        self._publish = publish
        self._clock = clock

    def tick(self, now: float) -> float:
        """Do one round; return the seconds until the next.

        Raises
        ------
        BrokerUnavailable, LedgerUnavailable
            What was not published stays due.
        """
        taken_back = self._ledger.expire_leases(now, self._rules.max_attempts)
        if taken_back:
            log.warning("took %d job(s) back from silent workers", taken_back)
        workers = len(self._ledger.workers(now - WORKER_SILENT_S))
        room = max(self._rules.window, 4 * workers) - self._ledger.queued()
        for job in self._ledger.due(now, self._rules.requeue_after_s, max(room, 1)):
            # A forgotten message is repeated even when the window is full: it may be what fills it.
            if room <= 0 and job.state == "READY":
                continue
            self._publish(job.id)
            self._ledger.mark_queued(job.id, self._clock())
            log.info("offered job=%s series=%s", job.id, job.series_uid)
        return _ROUND_S
