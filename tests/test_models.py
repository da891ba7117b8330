"""Several models on one site: rules choose, shadows run beside, with real nodes, workers and peers."""

from __future__ import annotations

import contextlib
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pydicom
import pytest

from node.outgoing import describe
from node.records import Job
from node.scu import Address, send_files
from node.states import JobState
from tests import models
from tests.harness import Site, pennode, site, until
from tests.peers import Orthanc, orthanc, redis_server
from workers.series import write_phantom


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models, each with weights of its own."""
    root = tmp_path_factory.mktemp("models")
    return {name: models.save(root / name, name=name) for name in ("one", "two", "new")}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_phantom(tmp_path_factory.mktemp("few"), shape=(7, 80, 64), seed=1)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_phantom(tmp_path_factory.mktemp("many"), shape=(9, 80, 64), seed=2)


# Series of up to eight slices go to the first, others to the second.
RULES = [{"name": "one", "max_slices": 8}, {"name": "two"}, {"name": "new", "shadow": True}]


def send(text: str, files: Sequence[Path]) -> None:
    title, _, rest = text.partition("@")
    host, port = rest.split(":")
    peer = Address(title, host, int(port), "SCANNER")
    assert send_files([describe(f) for f in files], peer, 20, lambda _f, _n: None) == []


@contextlib.contextmanager
def served(
    tmp_path: Path, rules: Sequence[dict[str, object]], has: Sequence[Path], **environment: str
) -> Iterator[tuple[Site, Orthanc]]:
    """A site with these rules, whose workers have these models, and Orthanc as its destination."""
    with (
        orthanc(tmp_path / "orthanc") as pacs,
        site(
            tmp_path, [("pacs", "ORTHANC", pacs.dicom_port)], PENNODE_MODELS=json.dumps(rules),
            PENNODE_WORKER_MODEL=str(has[0]), PENNODE_WORKER_MODELS=json.dumps([str(p) for p in has[1:]]),
            PENNODE_DISPATCH_RETRY_AFTER_S="1", **environment,
        ) as here,
    ):  # fmt: skip
        yield here, pacs


def finished(here: Site, count: int) -> dict[tuple[int, str], Job]:
    """Wait until so many jobs are at an end; return them by number of images and model."""
    here.wait_finished(count)
    return {(job.instances, job.wanted_model): job for job in here.jobs()}


def held(pacs: Orthanc) -> list[pydicom.Dataset]:
    """All objects in Orthanc."""
    found = json.loads(pacs.get("/instances"))
    return [pydicom.dcmread(io.BytesIO(pacs.get(f"/instances/{one}/file"))) for one in found]


@pytest.mark.parametrize("broker", ["embedded", "redis"])
def test_rules_choose_a_model_and_a_shadow_is_stored_compared_and_not_sent(
    tmp_path: Path, folders: dict[str, Path], few: list[Path], many: list[Path], broker: str
) -> None:
    has = [folders[name] for name in ("one", "two", "new")]
    with contextlib.ExitStack() as stack:
        more = {}
        if broker == "redis":
            more["PENNODE_BROKER_URL"] = stack.enter_context(redis_server(tmp_path / "redis"))[0]
        here, pacs = stack.enter_context(served(tmp_path, RULES, has, **more))
        # given a worker with room for two of its three models
        address = here.start_node("up")
        here.wait_for_worker()
        # when two series come, which differ in what the rules see
        send(address, few)
        send(address, many)
        jobs = finished(here, 4)
        # then each was segmented by its own model, and by the shadow
        assert {key: job.state for key, job in jobs.items()} == {
            (7, "one"): JobState.DELIVERED, (7, "new"): JobState.STORED,
            (9, "two"): JobState.DELIVERED, (9, "new"): JobState.STORED,
        }  # fmt: skip
        assert {job.wanted_model: job.model for job in jobs.values()} == {
            "one": "one 1.0.0", "two": "two 1.0.0", "new": "new 1.0.0",
        }  # fmt: skip
        # and the PACS has one object of each series, of its own model
        objects = held(pacs)
        assert sorted(ds.ManufacturerModelName for ds in objects) == ["one", "two"]
        assert all(f"{ds.ManufacturerModelName} 1.0.0" in ds.SeriesDescription for ds in objects)
        assert {here.ledger.results(job.id)[0].sop_uid for job in jobs.values() if not job.shadow} == {
            ds.SOPInstanceUID for ds in objects
        }
        assert len({r.sop_uid for job in jobs.values() for r in here.ledger.results(job.id)}) == 4
        for images, own in ((7, "one"), (9, "two")):
            shadow = jobs[images, "new"]
            assert here.ledger.deliveries(shadow.id) == []
            (compared,) = until(lambda job=shadow: here.ledger.comparisons(job) or None, "the comparison", 30)
            assert compared.own_id == jobs[images, own].id
            assert compared.reason == ""
            assert compared.segments
            assert all(0 <= segment.dice <= 1 for segment in compared.segments)
            assert any(segment.own_ml > 0 for segment in compared.segments)
        # and both are found by the series
        shadow = jobs[7, "new"]
        listed = pennode("jobs", "list", "--series", shadow.series_uid, "--json", environment=here.environment)
        assert [j["wanted_model"] for j in json.loads(listed.stdout)] == ["one", "new"]
        table = pennode("jobs", "list", "--series", shadow.series_uid, environment=here.environment).stdout
        assert "new 1.0.0 (shadow)" in table
        shown = pennode("jobs", "show", shadow.id, environment=here.environment).stdout
        assert "Dice, own ml, shadow ml" in shown
        assert f"of the same series: job {jobs[7, 'one'].id[:8]}" in shown
        told = json.loads(pennode("jobs", "show", shadow.id, "--json", environment=here.environment).stdout)
        assert told["comparisons"][0]["segments"]
        assert told["deliveries"] == []


def test_a_model_that_no_worker_has_is_waited_for_visibly_and_served_once_one_has_it(
    tmp_path: Path, folders: dict[str, Path], few: list[Path], many: list[Path]
) -> None:
    rules = [{"name": "two", "max_slices": 8}, {"name": "one"}]
    with served(tmp_path, rules, [folders["one"]]) as (here, pacs):
        address = here.start_node()
        here.start("worker")
        here.wait_for_worker()
        # given a worker without the model of the first series
        send(address, few)
        send(address, many)

        def waits() -> Job | None:
            return next((j for j in here.jobs() if j.reason == "no living worker has the model two"), None)

        job = until(waits, f"the job says what it waits for\n{here.log('node')}", 30)
        assert job.state is JobState.READY
        # then the other series is not held up, and health names the model
        done = until(lambda: [j for j in here.jobs() if j.state is JobState.DELIVERED] or None, "the other series", 60)
        assert [j.wanted_model for j in done] == ["one"]
        web = json.loads((here.state / "node.json").read_text())["web"]
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{web}/health", timeout=10)
        assert json.loads(caught.value.read())["components"]["models"] == "degraded"
        # when a worker comes that has it
        here.environment["PENNODE_WORKER_MODELS"] = json.dumps([str(folders["two"])])
        here.kill("worker")
        here.start("worker")
        job = finished(here, 2)[7, "two"]
        assert (job.state, job.model) == (JobState.DELIVERED, "two 1.0.0")
        assert sorted(ds.ManufacturerModelName for ds in held(pacs)) == ["one", "two"]


def test_a_model_that_cannot_be_opened_ends_its_job_by_name(
    tmp_path: Path, folders: dict[str, Path], few: list[Path], many: list[Path]
) -> None:
    broken = models.save(tmp_path / "broken", name="broken")
    rules = [{"name": "broken", "max_slices": 8}, {"name": "one"}]
    with served(tmp_path, rules, [folders["one"], broken], PENNODE_DISPATCH_MAX_ATTEMPTS="1") as (here, _):
        address = here.start_node()
        here.start("worker")
        here.wait_for_worker()
        # given a model that was damaged since the worker began
        (broken / "model.onnx").write_bytes(b"damaged")
        send(address, few)
        send(address, many)
        jobs = finished(here, 2)
        failed = jobs[7, "broken"]
        assert failed.state is JobState.FAILED
        assert "the model broken cannot be opened here" in failed.reason
        assert "given up after 1 attempts" in failed.reason
        assert jobs[9, "one"].state is JobState.DELIVERED


def test_late_images_supersede_what_all_models_made(tmp_path: Path, folders: dict[str, Path], many: list[Path]) -> None:
    rules = [{"name": "one"}, {"name": "new", "shadow": True}]
    with served(tmp_path, rules, [folders["one"], folders["new"]]) as (here, pacs):
        address = here.start_node()
        # given a series that is sealed while no worker is there
        send(address, many[:-1])
        until(lambda: len(here.jobs()) == 2 or None, "the first seal", 90)
        # when an image comes late, and then a worker
        send(address, many[-1:])
        until(lambda: len(here.jobs()) == 4 or None, "the second seal", 90)
        here.start("worker")
        finished(here, 2)
        until(lambda: not [j for j in here.jobs() if j.state is JobState.READY] or None, "all jobs at an end", 60)
        assert sorted((j.revision, j.wanted_model, j.state) for j in here.jobs()) == [
            (1, "new", JobState.SUPERSEDED), (1, "one", JobState.SUPERSEDED),
            (2, "new", JobState.STORED), (2, "one", JobState.DELIVERED),
        ]  # fmt: skip
        assert [ds.ManufacturerModelName for ds in held(pacs)] == ["one"]


def test_a_worker_that_is_given_one_model_twice_or_none_says_so(tmp_path: Path, folders: dict[str, Path]) -> None:
    one = str(folders["one"])
    for further, says in ((one, "are named 'one'"), ("nowhere", "check worker.models")):
        environment = {
            "PENNODE_STATE_DIR": str(tmp_path), "PENNODE_WORKER_MODEL": one, "PENNODE_WORKER_TOKEN": "x",
            "PENNODE_WORKER_NODE_URL": "http://127.0.0.1:9", "PENNODE_WORKER_MODELS": json.dumps([further]),
        }  # fmt: skip
        started = time.monotonic()
        done = pennode("worker", environment=environment)
        assert done.returncode == 1
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - started < 60
