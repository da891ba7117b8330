"""The worker API over real HTTP: what honest workers, late workers and broken ones may do."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import select
import socket
import ssl
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from pydicom import uid

from node import http as node_http
from node.api import WorkerApi, create_app
from node.bundle import pack_result, tar_stream, unpack_result
from node.forms import SOP_CLASSES, Form, Recipe
from node.http import HttpServer
from node.inspection import Origin
from node.ledger import Ledger
from node.records import RESEARCH_NOTICE, Result
from node.settings import Api, Destination, Dispatch
from node.spool import Spool
from node.states import JobState
from tests.authority import Authority
from tests.node.making import SERIES, STUDY, T0, claim, files_below, instance, seal, seg
from tests.node.results import result
from tests.node.stowing import wait_for
from tests.peers import real_data
from tests.waiting import until

TOKEN = "worker token"
PACS = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=104, forms=(Form.SEG,))


class Site:
    """A served worker API, and one sealed series in its spool."""

    def __init__(self, ledger: Ledger, spool: Spool, http: httpx.Client) -> None:
        self.ledger, self.spool, self.http = ledger, spool, http
        self.images = {f"{SERIES}.{n}": bytes([n]) * (1000 * n + n) for n in range(1, 4)}
        for n, (sop_uid, data) in enumerate(self.images.items(), 1):
            digest = hashlib.sha256(data).hexdigest()
            path = spool.store_instance(SERIES, sop_uid, (data,))
            ledger.record(instance(n, sha256=digest, path=path))
        self.job = seal(ledger)
        self.finished = 0

    def post(self, verb: str, **said) -> httpx.Response:
        return self.http.post(f"/v1/jobs/{self.job}/{verb}", json=said)

    def claim(self) -> int:
        answer = self.post("claim", worker="w1")
        assert answer.status_code == 200
        return int(answer.json()["fence"])

    def input(self, fence: int) -> httpx.Response:
        return self.http.get(f"/v1/jobs/{self.job}/input", params={"fence": fence})

    def put(self, fence: int, content: bytes) -> httpx.Response:
        return self.http.put(f"/v1/jobs/{self.job}/result", params={"fence": fence}, content=content)

    def lose_lease(self) -> None:
        with self.ledger._db.write() as connection:
            connection.exec_driver_sql("UPDATE job SET lease_until = 1")
        assert self.ledger.expire_leases(2, 9) == 1

    def debris(self) -> list[Path]:
        """Files beside the images."""
        return [p for p in files_below(self.spool.root) if p.relative_to(self.spool.root).parts[0] != "series"]


@pytest.fixture
def destinations() -> list[Destination]:
    return [PACS]


@pytest.fixture
def site(ledger: Ledger, spool: Spool, closing: ThreadPoolExecutor, destinations: list[Destination]) -> Iterator[Site]:
    found: list[Site] = []
    settings = Api(port=0, max_result_mb=1)

    def finished() -> None:
        found[0].finished += 1

    api = WorkerApi(ledger, spool, settings, Dispatch(max_attempts=2), destinations, finished)
    with contextlib.ExitStack() as stack:
        server = HttpServer(create_app(api, TOKEN), "127.0.0.1", 0, "api", pytest.fail)
        server.start()
        stack.callback(server.stop)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        http = stack.enter_context(httpx.Client(base_url=server.url, headers=headers, timeout=20))
        found.append(Site(ledger, spool, http))
        yield found[0]
        closing.submit(stack.pop_all().close)


def bundle(*objects: tuple[str, str, bytes], **facts) -> bytes:
    return b"".join(pack_result(objects, {"model": "penn sha256:1", "note": "2 vertebrae", **facts}))


def good() -> bytes:
    return bundle(("SEG", "2.25.77", seg()))


async def nothing(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@contextlib.contextmanager
def tls_server(tmp_path: Path) -> Iterator[tuple[int, Callable[[], httpx.Response]]]:
    """A server of TLS: its port, and how to ask it."""
    authority = Authority(tmp_path / "ca")
    own = authority.issue("localhost")
    tls = Api(port=0, tls_certificate=own.certificate, tls_key=own.key)
    server = HttpServer(nothing, "127.0.0.1", 0, "api", pytest.fail, tls)
    server.start()
    wait_for(server.url)
    context = ssl.create_default_context(cafile=authority.certificate)
    try:
        yield int(server.url.rpartition(":")[2]), lambda: httpx.get(server.url, verify=context)
    finally:
        server.stop()


def test_a_tls_handshake_that_does_not_begin_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_http, "HEAD_S", 2.0)
    with tls_server(tmp_path) as (port, ask), socket.create_connection(("127.0.0.1", port), 5) as silent:
        start = time.monotonic()
        assert ask().is_success
        silent.settimeout(20)
        assert silent.recv(1) == b""
        assert time.monotonic() - start < 15, "asyncio alone would give it 60 s"


def test_connections_count_before_they_have_spoken_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_http, "MAX_CONNECTIONS", 16)
    with tls_server(tmp_path) as (port, ask), contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 5, source_address=("127.0.0.9", 0)))
            for _ in range(12)
        ]
        until(lambda: len(select.select(peers, [], [], 0)[0]) >= 8)
        time.sleep(0.2)
        assert len(select.select(peers, [], [], 0)[0]) == 8, "an address has a quarter of the connections"
        assert ask().is_success
        for peer in peers:
            peer.close()


def test_without_the_token_nothing_is_told(site: Site) -> None:
    for header in ({}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Bearer wrong"},
                   {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}):  # fmt: skip
        with httpx.Client(base_url=site.http.base_url, headers=header) as stranger:
            for method, path in [("POST", "/v1/workers"), ("POST", f"/v1/jobs/{site.job}/claim"), ("GET", "/"),
                                 ("GET", f"/v1/jobs/{site.job}/input?fence=1"), ("GET", "/v1/nonsense")]:  # fmt: skip
                answer = stranger.request(method, path, content=b'{"worker": "x"}')
                assert answer.status_code == 401
                assert site.job not in answer.text
    assert site.ledger.job(site.job).state is JobState.READY


def test_a_worker_from_greeting_to_result(site: Site) -> None:
    said = {"worker": "w1", "version": "0.1", "device": "cpu", "model": "penn"}
    assert site.http.post("/v1/workers", json=said).status_code == 204
    (worker,) = site.ledger.workers(0)
    assert (worker.name, worker.version, worker.device, worker.model) == ("w1", "0.1", "cpu", "penn")
    claim = site.post("claim", worker="w1").json()
    assert (claim["job_id"], claim["fence"], claim["instances"], claim["series_uid"]) == (site.job, 1, 3, SERIES)
    assert site.post("heartbeat", fence=1, progress=0.25).status_code == 204
    assert site.ledger.job(site.job).progress == 0.25
    answer = site.input(1)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        received = {m.name: tar.extractfile(m).read() for m in tar}
    assert received == {f"{sop_uid}.dcm": data for sop_uid, data in site.images.items()}
    assert site.put(1, good()).status_code == 204
    assert site.finished == 1
    job = site.ledger.job(site.job)
    assert (job.state, job.model, job.reason) == (JobState.SEGMENTED, "penn sha256:1", "2 vertebrae")
    (item,) = site.ledger.deliveries(site.job)
    assert (item.destination, item.sop_uid) == ("pacs", "2.25.77")
    assert site.spool.path(item.path).read_bytes() == seg()
    assert site.debris() == [site.spool.path(item.path)]


def test_a_result_said_twice_is_taken_once(site: Site) -> None:
    fence = site.claim()
    assert [site.put(fence, good()).status_code for _ in range(2)] == [204, 204]
    assert len(site.debris()) == len(site.ledger.deliveries(site.job)) == 1


@pytest.mark.parametrize("name", ["liver", "partial_overlaps"])
def test_a_segmentation_written_by_others_is_taken(name: str, site: Site) -> None:
    ds = pydicom.dcmread(real_data("seg_by_others", f"{name}.dcm"))
    (referenced,) = ds.ReferencedSeriesSequence
    series = str(referenced.SeriesInstanceUID)
    ds.ContentDescription, whole = RESEARCH_NOTICE, io.BytesIO()
    ds.save_as(whole)
    for number, item in enumerate(referenced.ReferencedInstanceSequence, 1):
        sop_uid = str(item.ReferencedSOPInstanceUID)
        site.ledger.record(instance(number, series, study_uid=str(ds.StudyInstanceUID), sop_uid=sop_uid))
    site.job = seal(site.ledger, series)
    fence = site.claim()
    answer = site.put(fence, bundle(("SEG", str(ds.SOPInstanceUID), whole.getvalue())))
    assert answer.status_code == 204, answer.text


# -- late workers


def test_a_stale_fence_changes_nothing_and_leaves_no_file(site: Site) -> None:
    assert site.claim() == 1
    site.lose_lease()
    assert site.claim() == 2
    before = site.ledger.job(site.job), site.ledger.journal(site.job)
    answers = [
        site.post("heartbeat", fence=1, progress=0.5),
        site.input(1),
        site.put(1, good()),
        site.post("fail", fence=1, kind="failed", reason="late"),
        site.post("fail", fence=1, kind="retryable", reason="late"),
    ]
    assert [a.status_code for a in answers] == [409] * 5
    assert all("RUNNING now" in a.json()["reason"] for a in answers)
    assert (site.ledger.job(site.job), site.ledger.journal(site.job)) == before
    assert site.debris() == []
    assert site.put(2, good()).status_code == 204


def test_a_late_zombie_does_not_touch_the_winners_files(site: Site) -> None:
    site.claim()
    site.lose_lease()
    fence = site.claim()
    assert site.put(fence, good()).status_code == 204
    kept = site.debris()
    assert site.put(1, good()).status_code == 409
    assert site.debris() == kept


def test_the_operators_word_reaches_the_worker(site: Site) -> None:
    fence = site.claim()
    site.ledger.cancel(site.job, "admin", 0)
    answer = site.post("heartbeat", fence=fence)
    assert (answer.status_code, answer.json()["reason"]) == (409, "the job is CANCELLED now")


def test_nobody_claims_what_is_claimed_or_unknown(site: Site) -> None:
    site.claim()
    assert site.post("claim", worker="w2").status_code == 409
    for job in ("f" * 32, "%00", "..%2f..%2fetc", "' OR 1=1"):
        assert site.http.post(f"/v1/jobs/{job}/claim", json={"worker": "w"}).status_code in (404, 409)
        assert site.http.put(f"/v1/jobs/{job}/result?fence=1", content=good()).status_code == 404
    assert site.debris() == []


# -- failures


@pytest.mark.parametrize(
    ("kind", "state"), [("retryable", JobState.READY), ("rejected", JobState.REJECTED), ("failed", JobState.FAILED)]
)
def test_a_failure_ends_or_repeats_the_job_with_its_reason(kind: str, state: JobState, site: Site) -> None:
    fence = site.claim()
    answer = site.post("fail", fence=fence, kind=kind, stage="geo\nmetry", reason="slices\0 overlap", next_step="look")
    assert answer.status_code == 204
    job = site.ledger.job(site.job)
    assert job.state is state
    assert "slices? overlap" in job.reason
    assert "\n" not in job.reason + job.stage


def test_a_failure_at_the_cap_is_final(site: Site) -> None:
    for _ in range(2):
        with site.ledger._db.write() as connection:
            connection.exec_driver_sql("UPDATE job SET not_before = 0")
        fence = site.claim()
        site.post("fail", fence=fence, kind="retryable", reason="out of memory")
    assert site.ledger.job(site.job).state is JobState.FAILED


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("claim", {}),
        ("claim", {"worker": ""}),
        ("claim", {"worker": "x" * 65}),
        ("heartbeat", {"fence": "one"}),
        ("heartbeat", {"fence": -1}),
        ("heartbeat", {"fence": 1 << 80}),
        ("heartbeat", {"fence": 1, "progress": 1.5}),
        ("fail", {"fence": 1, "kind": "SEGMENTED", "reason": "x"}),
        ("fail", {"fence": 1, "kind": "failed"}),
        ("fail", {"fence": 1, "kind": "failed", "reason": "x" * 2001}),
    ],
)
def test_requests_that_do_not_fit_are_named_and_change_nothing(verb: str, said: dict[str, object], site: Site) -> None:
    before = site.ledger.job(site.job)
    answer = site.post(verb, **said)
    assert answer.status_code == 400
    assert "does not fit" in answer.json()["reason"]
    assert site.http.post(f"/v1/jobs/{site.job}/{verb}", content=b"\xff{").status_code == 400
    assert site.ledger.job(site.job) == before


@pytest.mark.parametrize("fence", ["", "x", "-1", "1.0", str(1 << 80), "٣"])
def test_a_request_without_a_usable_fence_is_400(fence: str, site: Site) -> None:
    site.claim()
    assert site.input(fence).status_code == 400
    assert site.put(fence, good()).status_code == 400


def test_an_image_that_left_the_spool_is_404(site: Site) -> None:
    fence = site.claim()
    site.spool.remove(site.ledger.series_instances(SERIES)[1].path)
    answer = site.input(fence)
    assert (answer.status_code, answer.json()["next_step"]) == (404, "send the series again")


# -- broken bundles


def tarred(*members: tuple[tarfile.TarInfo | str, bytes]) -> bytes:
    """A tar of these very members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry, data in members:
            if isinstance(entry, str):
                entry = tarfile.TarInfo(entry)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def manifest(name: str = "0.dcm", **values) -> bytes:
    entry = {
        "name": name,
        "sop_uid": "2.25.77",
        "form": "SEG",
        "sop_class_uid": uid.SegmentationStorage,
        "sha256": hashlib.sha256(seg()).hexdigest(),
    }
    return json.dumps({"objects": [{**entry, **values}]}).encode()


def link(kind: bytes, to: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("0.dcm")
    entry.type, entry.linkname = kind, to
    return entry


def sparse() -> bytes:
    """A member that says it is a terabyte of nothing (GNU sparse 1.0)."""
    entry = tarfile.TarInfo("0.dcm")
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40),
                         "GNU.sparse.name": "0.dcm"}  # fmt: skip
    return tarred(("result.json", manifest()), (entry, b"1\n1099511627775\n1\n".ljust(512, b"\0") + b"x"))


BROKEN: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "noise": lambda: b"\x93" * 5000,
    "cut": lambda: good()[:2000],
    "no manifest": lambda: tarred(("0.dcm", seg())),
    "manifest is a list": lambda: tarred(("result.json", b"[]")),
    "manifest is no text": lambda: tarred(("result.json", b"\xff\xfe")),
    "manifest is too large": lambda: tarred(("result.json", b" " * (1 << 20) + manifest()[:-900])),
    "manifest nests for ever": lambda: tarred(("result.json", b"[" * 100_000)),
    "no objects": lambda: tarred(("result.json", b'{"objects": []}')),
    "objects are a number": lambda: tarred(("result.json", b'{"objects": 5}')),
    "objects are texts": lambda: tarred(("result.json", b'{"objects": ["x"]}')),
    "4097 objects": lambda: bundle(*[("SEG", f"2.25.{n}", b"x") for n in range(4097)]),
    "object is missing": lambda: tarred(("result.json", manifest())),
    "one object twice": lambda: bundle(("SEG", "2.25.77", seg()), ("SEG", "2.25.77", seg())),
    "uid is a path": lambda: tarred(("result.json", manifest(sop_uid="../../../evil")), ("0.dcm", seg())),
    "another uid": lambda: bundle(("SEG", "2.25.78", seg())),
    "another class": lambda: bundle(("SR", "2.25.77", seg())),
    "an image, not a result": lambda: bundle(("SEG", "2.25.77", seg(SOPClassUID=uid.MRImageStorage))),
    "a form nobody asked for": lambda: bundle(("SEG", "2.25.77", seg()), ("SC", "2.25.78", result("SC", "2.25.78"))),
    "none of the form asked for": lambda: bundle(("SC", "2.25.78", result("SC", "2.25.78"))),
    "another recipe": lambda: bundle(("SEG+all-frames", "2.25.77", seg())),
    "a recipe that is none": lambda: tarred(("result.json", manifest(form="PDF")), ("0.dcm", seg())),
    "a recipe that is no text": lambda: tarred(("result.json", manifest(form=[1])), ("0.dcm", seg())),
    "two segmentations of one form": lambda: bundle(("SEG", "2.25.77", seg()), ("SEG", "2.25.78", seg("2.25.78"))),
    "no word of research": lambda: bundle(("SEG", "2.25.77", seg(ContentDescription="Diagnosis"))),
    "another series": lambda: bundle(("SEG", "2.25.77", seg(series="1.2.9"))),
    "another study": lambda: bundle(("SEG", "2.25.77", seg(study="1.2.9"))),
    "no series referenced": lambda: bundle(("SEG", "2.25.77", seg(ReferencedSeriesSequence=[]))),
    "no DICOM": lambda: bundle(("SEG", "2.25.77", b"hello")),
    "symbolic link": lambda: tarred(("result.json", manifest()), (link(tarfile.SYMTYPE, "/etc/passwd"), b"")),
    "link to itself": lambda: tarred(("result.json", manifest()), (link(tarfile.SYMTYPE, "0.dcm"), b"")),
    "hard link": lambda: tarred(("result.json", manifest()), (link(tarfile.LNKTYPE, "result.json"), b"")),
    "folder": lambda: tarred(("result.json", manifest()), (link(tarfile.DIRTYPE, ""), b"")),
    "device": lambda: tarred(("result.json", manifest()), (link(tarfile.CHRTYPE, ""), b"")),
    "sparse": sparse,
    "too large": lambda: bundle(("SEG", "2.25.77", seg() + bytes(1_000_000))),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_bundle_is_422_and_leaves_no_file(kind: str, site: Site, tmp_path: Path) -> None:
    fence = site.claim()
    answer = site.put(fence, BROKEN[kind]())
    assert answer.status_code == 422, answer.text
    assert answer.json()["reason"]
    assert site.debris() == []
    assert not (tmp_path / "evil.dcm").exists()
    assert site.ledger.job(site.job).state is JobState.RUNNING
    assert site.put(fence, good()).status_code == 204, "the worker may mend it under the same fence"


FULL = Destination(
    name="pacs", ae_title="PACS", host="127.0.0.1", port=104, forms=(Form.SEG, Form.SR), instead=(Form.SC, Form.GSPS)
)


def of_every_form() -> list[tuple[str, str, bytes]]:
    """What `FULL` gets on its rungs."""
    objects = []
    for n, key in enumerate(("SEG", "SR:SEG", "SC", "SR", "GSPS"), 77):
        of = "2.25.77" if ":" in key else ""
        objects.append((key, f"2.25.{n}", result(key, f"2.25.{n}", of=of)))
    return objects


@pytest.mark.parametrize("destinations", [[FULL]])
def test_a_bundle_of_every_form_that_any_rung_needs_is_taken_and_the_first_rung_addressed(site: Site) -> None:
    claim = site.post("claim", worker="w1").json()
    assert claim["forms"] == ["SEG", "GSPS", "SC", "SR", "SR:SEG"]
    objects = of_every_form()
    captures = [("SC", f"2.25.{n}", result("SC", f"2.25.{n}")) for n in range(90, 100)]
    for lacking in range(len(objects)):
        answer = site.put(1, bundle(*objects[:lacking], *objects[lacking + 1 :]))
        assert answer.status_code == 422
        assert site.debris() == []
    assert site.put(1, bundle(*objects, *captures)).status_code == 204
    assert [(d.form, d.rung) for d in site.ledger.deliveries(site.job)] == [("SEG", 0), ("SR:SEG", 0)]
    assert len(site.debris()) == 15


@pytest.mark.parametrize("destinations", [[FULL]])
def test_a_report_of_another_segmentation_is_422(site: Site) -> None:
    fence = site.claim()
    objects = of_every_form()
    objects[1] = ("SR:SEG", "2.25.78", result("SR:SEG", "2.25.78", of="2.25.999"))
    answer = site.put(fence, bundle(*objects))
    assert (answer.status_code, answer.json()["reason"]) == (
        422, "a report refers to a segmentation that is not beside it"
    )  # fmt: skip
    assert site.debris() == []


def test_a_job_claimed_before_a_restart_with_other_destinations_is_done_again(site: Site) -> None:
    """Its worker did what it was asked: neither is to fail."""
    fence = site.claim()
    with site.ledger._db.write() as connection:
        connection.exec_driver_sql("UPDATE job SET updated_at = 1")
    answer = site.put(fence, bundle(("SC", "2.25.78", result("SC", "2.25.78"))))
    assert (answer.status_code, answer.json()["reason"]) == (
        409,
        "the node was started anew, and the job is done again",
    )
    job = site.ledger.job(site.job)
    assert (job.state, job.reason) == (
        JobState.READY, "result: it was claimed before the node started anew, and does not fit any more"
    )  # fmt: skip
    assert site.debris() == []
    assert site.put(site.claim(), good()).status_code == 204


@pytest.mark.parametrize("destinations", [[FULL.model_copy(update={"forms": (Form.SEG, Form.SC), "instead": ()})]])
def test_four_thousand_objects_are_checked_in_bounded_memory(site: Site, tmp_path: Path) -> None:
    captures = [("SC", f"2.25.{n}", result("SC", f"2.25.{n}")) for n in range(100, 4195)]
    packed = bundle(("SEG", "2.25.77", seg()), *captures)
    (tmp_path / "bundle.tar").write_bytes(packed)
    (tmp_path / "out").mkdir()
    origin = Origin(STUDY, SERIES, frozenset(site.images))
    tracemalloc.start()
    try:
        files, _ = unpack_result(tmp_path / "bundle.tar", tmp_path / "out", origin, ["SEG", "SC"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(files) == 4096
    assert peak < 32 << 20, f"{peak >> 20} MB"


# -- what was there before


def earlier(site: Site, series: str, *, form: str = "SEG", frame: str = "1.2.3.99", at: float = T0) -> str:
    """Another series with a result; return the job's id."""
    site.ledger.record(instance(1, series, header={"frame_of_reference_uid": frame}))
    job = seal(site.ledger, series, now=at)
    held = claim(site.ledger, job, now=at + 1)
    source = site.spool.scratch() / "a.dcm"
    source.write_bytes(result(form, f"2.25.{series.rpartition('.')[2]}", series=series))
    sop = f"2.25.{series.rpartition('.')[2]}"
    path = site.spool.store_result(job, held.fence, sop, "0" * 64, source)
    made = [Result(sop, SOP_CLASSES[Recipe.parse(form).form], job, path, 10, "0" * 64, form)]
    site.ledger.finish(job, held.fence, made, {}, model="m", note="n", now=at + 2)
    return job


def framed(site: Site, frame: str = "1.2.3.99") -> int:
    """Have a job whose images lie in this frame of reference, made after all others, and claim it."""
    series = f"{SERIES}.77"
    site.ledger.record(instance(1, series, header={"frame_of_reference_uid": frame}))
    site.job = seal(site.ledger, series, now=T0 + 1000)
    return site.claim()


def before(site: Site, fence: int) -> httpx.Response:
    return site.http.get(f"/v1/jobs/{site.job}/earlier", params={"fence": fence})


def test_the_newest_earlier_segmentation_of_the_frame_of_reference_is_sent(site: Site) -> None:
    earlier(site, "1.2.11", at=T0 + 1)
    earlier(site, "1.2.12", at=T0 + 3)
    earlier(site, "1.2.13", at=T0 + 5, frame="1.2.3.100")
    earlier(site, "1.2.14", at=T0 + 7, form="SC")
    answer = before(site, framed(site))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom")
    assert pydicom.dcmread(io.BytesIO(answer.content)).SOPInstanceUID == "2.25.12"
    assert answer.content == result("SEG", "2.25.12", series="1.2.12")


def test_of_one_job_the_binary_segmentation_is_sent(site: Site) -> None:
    job = earlier(site, "1.2.11", form="LABELMAP")
    other = earlier(site, "1.2.12", form="SEG+all-frames", at=T0 - 100)
    with site.ledger._db.write() as connection:
        connection.exec_driver_sql(f"UPDATE result SET job_id = '{job}' WHERE job_id = '{other}'")
    answer = before(site, framed(site))
    assert pydicom.dcmread(io.BytesIO(answer.content)).SOPInstanceUID == "2.25.12"


def test_an_earlier_revision_of_the_same_series_counts(site: Site) -> None:
    earlier(site, SERIES + ".5")
    frame = {"frame_of_reference_uid": "1.2.3.99"}
    site.ledger.record(instance(2, SERIES + ".5", header=frame))
    site.job = seal(site.ledger, SERIES + ".5", now=T0 + 1000)
    answer = before(site, site.claim())
    assert pydicom.dcmread(io.BytesIO(answer.content)).SOPInstanceUID == "2.25.5"


@pytest.mark.parametrize("case", ["none", "another frame", "no frame", "later", "purged", "file gone", "not a UID"])
def test_where_nothing_came_before_there_is_nothing(case: str, site: Site) -> None:
    job = None
    if case != "none":
        job = earlier(
            site, "1.2.11", at=T0 + 2000 if case == "later" else T0,
            frame={"another frame": "1.2.3.100", "no frame": "", "not a UID": "x"}.get(case, "1.2.3.99"),
        )  # fmt: skip
    if case == "purged":
        site.ledger.cancel(job, "test", T0 + 10)
        site.spool.remove(site.ledger.forget_files(site.ledger.job(job), T0 + 11)[0])
    if case == "file gone":
        site.spool.remove_results(job)
    answer = before(site, framed(site, {"no frame": "", "not a UID": "x"}.get(case, "1.2.3.99")))
    assert (answer.status_code, answer.content) == (204, b"")


def test_who_lost_the_job_is_told_nothing_of_before(site: Site) -> None:
    earlier(site, "1.2.11")
    fence = framed(site)
    assert before(site, fence + 1).status_code == 409
    site.job = "f" * 32
    assert before(site, 1).status_code == 409
    site.job = "%00"
    assert before(site, 1).status_code in (404, 409)


def test_a_bundle_damaged_on_its_way_is_sent_again(site: Site) -> None:
    """503, which a worker repeats: a flipped bit must not fail the job."""
    fence = site.claim()
    answer = site.put(fence, good().replace(b"t2_sag", b"t2_sax"))
    assert answer.status_code == 503, answer.text
    assert site.debris() == []
    assert site.put(fence, good()).status_code == 204


@pytest.mark.parametrize("name", ["../../evil.dcm", "/tmp/evil.dcm", "a/../../evil.dcm"])
def test_a_members_name_is_never_a_path(name: str, site: Site, tmp_path: Path) -> None:
    """The name only finds the member; the checked UID names the file."""
    fence = site.claim()
    assert site.put(fence, tarred(("result.json", manifest(name)), (name, seg()))).status_code == 204
    (stored,) = site.debris()
    assert stored.parent == site.spool.root / "results" / site.job / str(fence)
    assert not list(tmp_path.rglob("evil*"))
    assert not Path("/tmp/evil.dcm").exists()


def test_words_of_the_manifest_are_made_fit_for_every_database(site: Site) -> None:
    fence = site.claim()
    assert site.put(fence, bundle(("SEG", "2.25.77", seg()), note="a\0b\ud800c", model="x" * 999)).status_code == 204
    job = site.ledger.job(site.job)
    assert (job.reason, len(job.model)) == ("a?b?c", 200)


def test_a_tar_stream_is_a_tar_for_any_size(tmp_path: Path) -> None:
    sizes = [0, 1, 511, 512, 513, 1 << 20, (1 << 20) + 1]
    files = []
    for size in sizes:
        path = tmp_path / f"{size}.dcm"
        path.write_bytes(bytes([size % 251]) * size)
        files.append((path.name, path))
    with tarfile.open(fileobj=io.BytesIO(b"".join(tar_stream(files)))) as tar:
        assert [(m.name, m.size) for m in tar] == [(f"{size}.dcm", size) for size in sizes]
        assert all(tar.extractfile(name).read() == path.read_bytes() for name, path in files)


# -- models


def chosen(site: Site, model: str = "own", shadows: tuple[str, ...] = ()) -> None:
    """Let the site's series grow, and be for a model."""
    data = b"late"
    path = site.spool.store_instance(SERIES, f"{SERIES}.9", (data,))
    site.ledger.record(instance(9, sha256=hashlib.sha256(data).hexdigest(), path=path))
    site.job = seal(site.ledger, model=model, shadows=shadows)


def test_a_greeting_tells_all_models(site: Site) -> None:
    said = {"worker": "w1", "version": "1", "device": "cpu", "model": "a 1.0.0", "models": ["a 1.0.0", "b 2.0.0\n"]}
    assert site.http.post("/v1/workers", json=said).status_code == 204
    (worker,) = site.ledger.workers(0)
    assert worker.models == ("a 1.0.0", "b 2.0.0?")
    assert worker.served == {"", "a", "b"}


@pytest.mark.parametrize(
    ("models", "status"), [(["own"], 200), (["", "own"], 200), ([""], 409), (["other"], 409), ([], 409), (None, 409)]
)
def test_a_job_is_had_by_who_has_its_model(site: Site, models: list[str] | None, status: int) -> None:
    chosen(site)
    site.ledger.mark_queued(site.job, time.time())
    answer = site.post("claim", worker="w1", **({} if models is None else {"models": models}))
    assert answer.status_code == status
    found = site.ledger.job(site.job)
    if status == 200:
        assert answer.json()["model"] == "own"
    else:
        assert answer.json()["reason"] == "the job is not to be had"
        assert found.state is JobState.READY
        assert found.not_before > time.time()


@pytest.mark.parametrize("models", [["a b"], ["x" * 65], ["../x"], ["a\n"], "own", [7], ["m"] * 257])
def test_odd_names_of_models_are_refused(site: Site, models: object) -> None:
    answer = site.post("claim", worker="w1", models=models)
    assert answer.status_code == 400
    assert "models" in answer.json()["reason"]


@pytest.mark.parametrize(
    ("model", "status"), [("own 1.0.0", 204), ("own", 204), ("other 1.0.0", 422), ("", 422), ("owner 1.0.0", 422)]
)
def test_a_result_of_another_model_than_the_jobs_is_refused(site: Site, model: str, status: int) -> None:
    chosen(site)
    fence = int(site.post("claim", worker="w1", models=["own"]).json()["fence"])
    assert site.put(fence, bundle(("SEG", "2.25.77", seg()), model=model)).status_code == status
    assert site.ledger.job(site.job).state is (JobState.SEGMENTED if status == 204 else JobState.RUNNING)
    assert bool(site.debris()) == (status == 204)


def test_a_shadows_result_is_taken_and_addressed_to_nobody(site: Site) -> None:
    chosen(site, "own", ("other",))
    (shadow,) = (j for j in site.ledger.siblings(site.ledger.job(site.job)) if j.shadow)
    site.job = shadow.id
    fence = int(site.post("claim", worker="w1", models=["other"]).json()["fence"])
    assert site.put(fence, bundle(("SEG", "2.25.77", seg()), model="other 1.0.0")).status_code == 204
    assert site.put(fence, bundle(("SEG", "2.25.77", seg()), model="other 1.0.0")).status_code == 204
    assert site.ledger.job(shadow.id).state is JobState.STORED
    assert site.ledger.deliveries(shadow.id) == []
    assert len(site.ledger.results(shadow.id)) == 1
