"""Dispatch: the window, publish before mark, and real brokers that work, freeze and vanish."""

from __future__ import annotations

import base64
import json
import signal
import time
from pathlib import Path

import pytest
import redis
from celery import Celery

from node.broker import celery_config, queue_of
from node.dispatch import Dispatcher, celery_publisher
from node.errors import BrokerUnavailable, ConfigurationError
from node.ledger import Ledger
from node.records import Worker
from node.settings import Broker, Dispatch, Settings
from node.states import JobState
from tests import peers
from tests.node.making import T0, claim, in_state, sealed, with_shadow


class Site:
    """A dispatcher on a real ledger; what it publishes is collected."""

    def __init__(self, ledger: Ledger, **rules) -> None:
        self.ledger = ledger
        self.published: list[str] = []
        self.models: list[str] = []
        self.now = T0 + 100
        self.broken_after = 10**9
        self.dispatcher = Dispatcher(ledger, Dispatch(**rules), self.publish, clock=lambda: self.now)

    def publish(self, job: str, model: str) -> None:
        if len(self.published) >= self.broken_after:
            raise BrokerUnavailable("gone")
        self.published.append(job)
        self.models.append(model)

    def tick(self, seconds: float = 0.0) -> list[str]:
        """One round after so many seconds; return what it published."""
        self.now += seconds
        before = len(self.published)
        self.dispatcher.tick(self.now)
        return self.published[before:]

    def states(self) -> list[JobState]:
        return [j.state for j in self.ledger.jobs()][::-1]


def many(ledger: Ledger, count: int) -> list[str]:
    return [sealed(ledger, f"1.2.{n}", images=1, now=T0 + n) for n in range(count)]


def test_ready_jobs_are_published_once_and_marked(ledger: Ledger) -> None:
    site, job = Site(ledger), sealed(ledger)
    assert site.tick() == [job]
    assert site.states() == [JobState.QUEUED]
    assert site.tick(1) == []


def test_the_window_is_kept_and_refilled_as_jobs_are_claimed(ledger: Ledger) -> None:
    site, jobs = Site(ledger, window=3), many(ledger, 6)
    assert site.tick() == jobs[:3]
    assert site.tick(1) == []
    claim(ledger, jobs[1], now=site.now)
    assert site.tick(1) == [jobs[3]]


def test_live_workers_widen_the_window_and_silent_ones_do_not(ledger: Ledger) -> None:
    site, jobs = Site(ledger, window=3), many(ledger, 12)
    ledger.worker_seen(Worker("live", site.now, "", "", ""))
    ledger.worker_seen(Worker("other", site.now - 10, "", "", ""))
    ledger.worker_seen(Worker("silent", site.now - 51, "", "", ""))
    assert site.tick() == jobs[:8]


def test_publishing_comes_before_the_mark(ledger: Ledger) -> None:
    site, jobs = Site(ledger), many(ledger, 3)
    seen: list[JobState] = []
    site.dispatcher = Dispatcher(ledger, Dispatch(), lambda job, _model: seen.append(ledger.job(job).state))
    site.dispatcher.tick(site.now)
    assert seen == [JobState.READY] * 3
    assert len(jobs) == 3


def test_what_a_broken_broker_did_not_take_stays_due(ledger: Ledger) -> None:
    site, jobs = Site(ledger), many(ledger, 3)
    site.broken_after = 1
    with pytest.raises(BrokerUnavailable):
        site.tick()
    assert site.states() == [JobState.QUEUED, JobState.READY, JobState.READY]
    site.broken_after = 99
    assert site.tick(1) == jobs[1:]


def test_a_message_nobody_claimed_is_published_again_and_again(ledger: Ledger) -> None:
    site, job = Site(ledger, requeue_after_s=300), sealed(ledger)
    assert site.tick() == [job]
    assert site.tick(300) == []
    assert site.tick(10_000) == [], "without a worker messages would only pile up"
    ledger.worker_seen(Worker("live", site.now + 10**6, "", "", ""))
    assert site.tick(1) == [job]
    assert site.tick(300) == []
    assert site.tick(1) == [job]
    assert site.states() == [JobState.QUEUED]


def test_a_clock_that_is_set_back_holds_nothing_up(ledger: Ledger) -> None:
    site, job, day = Site(ledger), sealed(ledger), 86400
    assert site.tick(day) == [job]
    claim(ledger, job, now=site.now)
    assert site.tick(-day) == []
    assert site.tick(61) == [job], "the lease was given by a clock that was a day ahead"


def test_a_lost_broker_behind_a_full_window_recovers_even_when_an_older_job_waits(ledger: Ledger) -> None:
    """The older READY job must not hide the forgotten ones, or nothing would ever be published again."""
    site, jobs = Site(ledger, window=4, requeue_after_s=300), many(ledger, 6)
    site.tick()
    claim(ledger, jobs[0], now=site.now)
    site.tick()  # fills the window with jobs 1 to 4
    ledger.give_back(jobs[0], 1, "x", "no memory", retry_after_s=0, max_attempts=3, now=site.now)
    ledger.worker_seen(Worker("live", site.now + 10**6, "", "", ""))
    assert site.tick(1) == []
    assert set(site.tick(301)) == set(jobs[1:5])
    assert ledger.job(jobs[0]).state is JobState.READY


def test_jobs_of_silent_workers_are_taken_back_and_offered_again(ledger: Ledger) -> None:
    site, job = Site(ledger), in_state(ledger, JobState.RUNNING)
    assert site.tick() == [job]
    assert ledger.job(job).attempts == 1


@pytest.mark.parametrize("state", sorted(set(JobState) - {JobState.READY, JobState.QUEUED, JobState.RUNNING}))
def test_nothing_else_is_published(ledger: Ledger, state: JobState) -> None:
    job = in_state(ledger, state)
    site = Site(ledger)
    assert job not in site.tick(10**6)


# -- real brokers


def settings(tmp_path: Path, url: str = "") -> Settings:
    return Settings(state_dir=tmp_path, broker=Broker(url=url))


def test_the_embedded_broker_holds_the_job_id_and_nothing_of_the_series(ledger: Ledger, tmp_path: Path) -> None:
    job = sealed(ledger)
    Dispatcher(ledger, Dispatch(), celery_publisher(settings(tmp_path))).tick(T0 + 100)
    (message,) = (tmp_path / "broker" / "queue").iterdir()
    assert_only_a_hint(message.read_text(), job)


def assert_only_a_hint(message: str, job: str) -> None:
    assert job in message
    assert json.loads(message)["headers"]["task"] == "pennode.segment"
    body = base64.b64decode(json.loads(message)["body"]).decode()
    assert json.loads(body)[:2] == [[job], {}]
    for secret in ("1.2.3", "SCANNER", "PENNODE", "t2_sag"):
        assert secret not in message
        assert secret not in body


def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="broker's folder"):
        celery_config(settings(tmp_path, "filesystem:///proc/nowhere"))


def test_the_embedded_brokers_folder_vanishing_is_unavailable(tmp_path: Path) -> None:
    publish = celery_publisher(settings(tmp_path))
    (tmp_path / "broker" / "queue").rmdir()
    (tmp_path / "broker" / "queue").write_text("")
    with pytest.raises(BrokerUnavailable, match="the embedded broker does not take messages"):
        publish("0" * 32, "")


def test_redis_holds_the_hint_and_is_unavailable_when_frozen_or_gone(ledger: Ledger, tmp_path: Path) -> None:
    job = sealed(ledger)
    with peers.redis_server(tmp_path / "redis") as (url, process):
        site = settings(tmp_path, url)
        publish = celery_publisher(site)
        Dispatcher(ledger, Dispatch(), publish).tick(T0 + 100)
        with redis.Redis.from_url(url) as client:
            (message,) = client.lrange("segment", 0, -1)
            assert_only_a_hint(message.decode(), job)
        process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable, match="does not take messages"):
                publish(job, "")
            assert time.monotonic() - began < 40
        finally:
            process.send_signal(signal.SIGCONT)
        publish(job, "")
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable) as caught:
        publish(job, "")
    assert time.monotonic() - began < 10
    assert caught.value.next_step == "jobs wait here until it does"


# -- models and shadows


def greet(ledger: Ledger, *models: str, name: str = "w", at: float = T0 + 10**6) -> None:
    """Have a worker be alive that has these models."""
    ledger.worker_seen(Worker(name, at, "", "", models[0], tuple(f"{model} 1.0.0" for model in models)))


def test_a_job_goes_into_the_queue_of_its_model(ledger: Ledger) -> None:
    site = Site(ledger)
    greet(ledger, "a", "b")
    jobs = [sealed(ledger, f"1.2.{n}", now=T0 + n, model=model) for n, model in enumerate(["b", "", "a"])]
    assert site.tick() == jobs
    assert site.models == ["b", "", "a"]


def test_a_job_whose_model_no_living_worker_has_waits_visibly_and_holds_up_nothing(ledger: Ledger) -> None:
    site = Site(ledger, window=2)
    lost = [sealed(ledger, f"1.2.{n}", now=T0 + n, model="lost") for n in range(5)]
    plain = sealed(ledger, "1.3", now=T0 + 9)
    greet(ledger, "a")
    assert site.tick() == [plain]
    assert site.dispatcher.absent == {"lost": 5}
    found = ledger.job(lost[0])
    assert (found.state, found.reason) == (JobState.READY, "no living worker has the model lost")
    assert "worker.models" in found.next_step
    for _ in range(5):
        assert site.tick(10) == []
    assert len(ledger.journal(lost[0])) == len(ledger.journal(plain)) - 1, "nothing is written while nothing changes"
    greet(ledger, "lost", name="late")
    assert site.tick(1) == lost
    assert site.dispatcher.absent == {}


def test_a_job_whose_model_has_gone_with_its_worker_is_offered_as_soon_as_another_has_it(ledger: Ledger) -> None:
    site, job = Site(ledger), sealed(ledger, model="a")
    greet(ledger, "a", at=site.now)
    assert site.tick() == [job]
    assert site.tick(60) == []
    assert ledger.job(job).state is JobState.READY
    greet(ledger, "a", name="next", at=site.now)
    assert site.tick(1) == [job]
    assert ledger.job(job).state is JobState.QUEUED


def test_shadows_are_offered_only_while_nothing_else_waits(ledger: Ledger) -> None:
    site = Site(ledger)
    greet(ledger, "own", "other")
    pairs = [with_shadow(ledger, f"1.2.{n}", now=T0 + n) for n in range(3)]
    owns, shadows = [p[0] for p in pairs], [p[1] for p in pairs]
    assert site.tick() == owns
    assert site.tick(1) == []
    for own in owns:
        claim(ledger, own, now=site.now)
    assert site.tick(1) == shadows[:1], "not more than the workers could begin"
    assert site.tick(1) == []
    late = sealed(ledger, "1.9", now=site.now, model="own")
    assert site.tick(1) == [late]
    # The shadow's message is there first, and still the other job goes before it.
    assert claim(ledger, shadows[0], now=site.now, served=["", "own", "other"]) is None
    assert claim(ledger, late, now=site.now, served=["", "own", "other"])
    assert site.tick(1) == shadows[:1]


def test_a_shadow_whose_model_nobody_has_is_no_alarm(ledger: Ledger) -> None:
    site = Site(ledger)
    own, shadow = with_shadow(ledger)
    greet(ledger, "own")
    assert site.tick() == [own]
    assert site.dispatcher.absent == {}
    assert ledger.job(shadow).reason == "no living worker has the model other"


def test_own_jobs_that_no_worker_can_take_do_not_hold_up_shadows(ledger: Ledger) -> None:
    site = Site(ledger)
    _, shadow = with_shadow(ledger)
    greet(ledger, "other")
    assert site.tick() == [shadow]


def test_no_two_models_share_a_queue() -> None:
    names = ["a", "a.b", "a_b", "a_pb", "a-b", "a__b", "segment", "a.segment"]
    queues = [queue_of("segment", name) for name in ("", *names)]
    assert len(set(queues)) == len(queues)
    assert all("." not in queue for queue in queues)


def test_the_embedded_broker_keeps_the_queues_of_models_apart(ledger: Ledger, tmp_path: Path) -> None:
    publish = celery_publisher(settings(tmp_path))
    jobs = {model: letter * 32 for model, letter in (("", "a"), ("penn-spine", "b"), ("x.segment", "c"))}
    for model, job in jobs.items():
        publish(job, model)
    app = Celery("reader", set_as_current=False)
    app.conf.update(celery_config(settings(tmp_path)))
    with app.connection_for_read() as connection, connection.channel() as channel:
        for model, job in jobs.items():
            message = channel.basic_get(queue_of("segment", model), no_ack=True)
            assert message.decode()[0] == [job]
            assert channel.basic_get(queue_of("segment", model), no_ack=True) is None
