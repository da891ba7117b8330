"""Fetches studies from an archive: asks what it has, leaves out what selection would, and has the rest sent here.

Each archive has a thread of its own. Images go through the same reception as those of C-STORE, so that an image that is
here already is a harmless duplicate: what a restart broke off is simply begun again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from node.errors import ConfigurationError, PeerRefused, PeerUnavailable
from node.ledger import Fetch, FetchedSeries, FetchState, Ledger
from node.listener import Door
from node.query import list_series
from node.retrieve import retrieving
from node.scu import Address
from node.settings import Archive, Listener, Selection, Settings
from node.suboperations import FOR_ALL, REACHES_US, Counts, Retrieved, Stopped, Watch, explain
from node.wado import DicomWeb
from node.webservice import WebClient, WebService

log = logging.getLogger(__name__)

_IDLE_S = 2.0
_MOST_ATTEMPTS = 5
# Who sends, where the archive has no AE title.
_WEB_AE = "WADO"

Retrieve = Callable[[FetchedSeries, Watch], Retrieved]


class Fetcher:
    """Works off what is asked of one archive, one study after the other.

    Parameters
    ----------
    listener
        By whose AE title we call, and which the archive sends to by C-MOVE; its limits hold for DICOMweb too.
    rules
        Selection, of which the modalities count here.
    """

    def __init__(
        self,
        archive: Archive,
        ledger: Ledger,
        door: Door,
        listener: Listener,
        rules: Selection,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.name = loop_name(archive.name)
        self._archive = archive
        self._ledger = ledger
        self._door = door
        self._listener = listener
        self._modalities = sorted({modality.upper() for modality in rules.modalities})
        self._now = now
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Break off what runs; it is begun again at the next start."""
        self._stopping.set()

    def tick(self, now: float) -> float:
        """Fetch one study; return the seconds until the next round."""
        asked = None if self._stopping.is_set() else self._ledger.claim_fetch(self._archive.name, now)
        if asked is None:
            return _IDLE_S
        state = FetchState.FAILED
        try:
            if asked.attempts > _MOST_ATTEMPTS:
                raise PeerRefused(f"it was broken off {_MOST_ATTEMPTS} times", "look into the node's log, fetch again")
            state, reason, next_step = self._fetch(asked)
        except (PeerRefused, PeerUnavailable, ConfigurationError) as error:
            reason, next_step = error.reason, error.next_step
        except Stopped:
            log.info("fetch=%d from %s was broken off", asked.number, self._archive.name)
            return 0.0
        self._ledger.end_fetch(asked.number, state, reason, next_step, "fetch", self._now())
        level = logging.INFO if state is FetchState.DONE else logging.WARNING
        log.log(level, "fetch=%d from %s is %s: %s", asked.number, self._archive.name, state, reason)
        return 0.0

    def _fetch(self, asked: Fetch) -> tuple[FetchState, str, str]:
        """Fetch one study; return how that ended, why, and what to do."""
        name = self._archive.name
        if self._door.reception.is_short_of_disk():
            raise PeerUnavailable("less disk is free than listener.free_floor_mb", "free some, and fetch again")
        with self._source(asked.study_uid) as (listed, association):
            if not listed:
                raise PeerRefused(f"{name} has no study of this UID", "check it, and which archive holds the study")
            found = self._choose(asked, listed)
            self._ledger.note_fetched_series(asked, found, self._now())
            series = [one for one in found if not one.left_out]
            if not series:
                raise PeerRefused(
                    f"nothing is left to fetch of {len(found)} series: {found[0].left_out}",
                    "name others, or change selection.modalities",
                )
            counts, troubles = Counts(), list[tuple[str, str]]()
            with association() as retrieve:
                for one in series:
                    try:
                        ended = retrieve(one, self._watch(asked, one, counts))
                    except PeerRefused as error:
                        if not self._archive.url:  # the association is no more
                            raise
                        troubles.append((error.reason, error.next_step))
                        continue
                    counts += ended.counts
                    if any(trouble := self._trouble(one, ended)):
                        troubles.append(trouble)
                    if ended.status in FOR_ALL:
                        break
        others = f"; {len(found) - len(series)} series left out" if len(found) > len(series) else ""
        missing = len(set(asked.wanted) - {one.series_uid for one in listed})
        return self._conclude(series, others, missing, troubles)

    def _choose(self, asked: Fetch, listed: Sequence[FetchedSeries]) -> list[FetchedSeries]:
        """Say of each series why it is left out, if it is; of those that were named, which the archive has not."""
        has = {one.series_uid: one for one in listed}
        named = asked.wanted or sorted(has)
        missing = f"{self._archive.name} has no such series in this study"
        return [
            replace(has[uid], left_out=self._unwanted(has[uid])) if uid in has else FetchedSeries(uid, left_out=missing)
            for uid in named
        ]

    def _unwanted(self, one: FetchedSeries) -> str:
        if one.modality and self._modalities and one.modality.upper() not in self._modalities:
            return f"modality is {one.modality}, not {' or '.join(self._modalities)} (selection.modalities)"
        return ""

    @contextlib.contextmanager
    def _source(
        self, study_uid: str
    ) -> Iterator[tuple[list[FetchedSeries], Callable[[], contextlib.AbstractContextManager[Retrieve]]]]:
        """Yield the series of a study, and what opens the way on which they are retrieved."""
        archive, reception = self._archive, self._door.reception
        max_object = self._listener.max_object_mb * 1_000_000
        if archive.url:

            @contextlib.contextmanager
            def by_web() -> Iterator[Retrieve]:
                with self._door.web_association(_WEB_AE, archive.name, study_uid) as origin:
                    most = self._listener.max_series_instances
                    yield lambda one, watch: web.get(
                        study_uid, one.series_uid, reception, origin, most, max_object, watch
                    )

            with WebClient(WebService.of_archive(archive), archive.timeout_s) as client:
                web = DicomWeb(client)
                yield web.list_series(study_uid), by_web
            return
        ours, title = self._listener.ae_title, str(archive.ae_title)
        peer = Address(title, archive.host, archive.port, archive.calling_ae_title or ours, archive.security)
        by_move = archive.retrieve == "move"

        @contextlib.contextmanager
        def by_association() -> Iterator[Retrieve]:
            with (
                self._door.web_association(title.strip(), archive.host[:64], study_uid) as origin,
                retrieving(
                    peer, by_move=by_move, timeout_s=archive.timeout_s, reception=reception, origin=origin,
                    max_object=max_object,
                ) as retrieval,
            ):  # fmt: skip
                if by_move:
                    yield lambda one, watch: retrieval.move(study_uid, one.series_uid, ours, watch)
                else:
                    yield lambda one, watch: retrieval.get(study_uid, one.series_uid, watch)

        yield list_series(peer, study_uid, archive.timeout_s), by_association

    def _watch(self, asked: Fetch, one: FetchedSeries, before: Counts) -> Watch:
        """Return what notes the progress of a series, and stops its retrieval when the fetch was cancelled."""
        noted: Counts | None = None

        def watch(counts: Counts) -> int:
            nonlocal noted
            if self._stopping.is_set():
                raise Stopped
            if counts != noted:
                whole, noted = before + counts, counts
                goes_on = self._ledger.fetch_progress(
                    asked.number, whole.completed, whole.failed, whole.warned, self._now()
                )
            else:
                goes_on = self._ledger.fetch(asked.number).state is FetchState.RUNNING
            if not goes_on:
                raise Stopped
            return self._ledger.images_here([one.series_uid]).get(one.series_uid, 0)

        return watch

    def _trouble(self, one: FetchedSeries, ended: Retrieved) -> tuple[str, str]:
        """Return why a series did not come as it should, and what to do; empty words where nothing is wrong."""
        failed = ended.counts.failed
        if ended.refusal:  # then a peer may say, with 0xA702, that it could not send: ours is the better reason
            return f"{failed or 'some'} images were not taken here: {ended.refusal}", "mend that, and fetch again"
        reason, step = explain(ended.status, self._listener.ae_title)
        step = step or f"look into the log of {self._archive.name}, and fetch again"
        if self._archive.retrieve == "move" and ended.status not in FOR_ALL:
            step += f"; {REACHES_US}"
        if reason:
            return f"{self._archive.name} does not send the series: {reason}", step
        return (f"{failed} images could not be sent", step) if failed else ("", "")

    def _conclude(
        self, series: Sequence[FetchedSeries], others: str, missing: int, troubles: Sequence[tuple[str, str]]
    ) -> tuple[FetchState, str, str]:
        """Return how a fetch ended: by what is here, whatever was said on the way.

        `others` is what is said of series that were left out; `missing` counts those that were named in vain.
        """
        name = self._archive.name
        here = self._ledger.images_here([one.series_uid for one in series])
        came = sum(here.values())
        # Of a series whose number was not told at least one image must be here.
        least = {one.series_uid: 1 if one.announced is None else one.announced for one in series}
        lacking = [uid for uid, number in least.items() if here.get(uid, 0) < number]
        is_sure = all(one.announced is not None for one in series)
        if lacking or (troubles and not is_sure):
            of = f" of {sum(least.values())}" if is_sure else ""
            nothing_said = f"{name} said that it had sent all", "fetch again"
            reason, step = troubles[0] if troubles else nothing_said
            return FetchState.FAILED, f"{came}{of} images are here: {reason}{others}", step
        if missing:
            reason = f"{came} images are here; {name} has no series of {missing} UIDs that were named"
            return FetchState.FAILED, reason, "check these UIDs"
        also = f"; {troubles[0][0]}" if troubles else ""
        return FetchState.DONE, f"{came} images of {len(series)} series are here{also}{others}", ""


def fetchers(settings: Settings, ledger: Ledger, door: Door) -> list[Fetcher]:
    """Return who fetches from each archive; what is open of archives that are gone from the settings is ended."""
    ledger.end_fetches_of_others([archive.name for archive in settings.archives], time.time())
    return [Fetcher(archive, ledger, door, settings.listener, settings.selection) for archive in settings.archives]


def loop_name(archive: str) -> str:
    """Return what the thread of an archive is called in logs and in health."""
    return f"fetch from {archive}"
