"""The admin page, over real HTTP, on a real ledger."""

import contextlib
import html
import re
import socket
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
import uvicorn

from node import signin
from node.agreement import Agreement, Comparison
from node.callers import Caller
from node.evidence import Evidence, Source, Weighing, Weight
from node.ledger import Commitment, Ledger, ProcedureStep, Reference, StepState
from node.records import RESEARCH_NOTICE, Header, Instance, Result, Worker
from node.settings import Delivery
from node.states import JobState, Proof
from node.web import PAGE_SIZE, Component, Health, create_app

TOKEN = "correct horse"
LINK = "battery staple"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202egnp"
T0 = 1_700_000_000.0


@dataclass
class Site:
    """A served page, with the hands that move its world."""

    url: str
    ledger: Ledger
    database: Path
    time: float = T0
    health: Callable[[], Health] = field(default=lambda: Health((Component("listener", True, "PENNODE on 11112"),)))

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Origin": self.url}, timeout=10)

    @contextlib.contextmanager
    def signed_in(self) -> Iterator[httpx.Client]:
        with self.client() as client:
            assert client.post("/login", data={"token": TOKEN}).status_code == 303
            yield client

    def series(self, number: int, description: str = "t2_sag", images: int = 2, *, seal: bool = True) -> str:
        uid = f"1.2.{number}"
        for i in range(images):
            self.ledger.record(
                Instance(
                    sop_uid=f"{uid}.{i}", sop_class_uid="1.2.840.10008.5.1.4.1.1.4", series_uid=uid,
                    study_uid="1.3", transfer_syntax_uid="1.2.840.10008.1.2.1", sha256=f"{number}-{i}", size=1,
                    path=f"series/{uid}.{i}", calling_ae="SCANNER", called_ae="PENNODE", peer="127.0.0.1",
                    received_at=self.time + number, header=Header(series_description=description),
                )
            )  # fmt: skip
        if not seal:
            return uid
        seen = next(s for s in self.ledger.receiving() if s.series_uid == uid)
        members = self.ledger.series_instances(uid)
        at = self.time + number
        job = self.ledger.seal(seen, members, "complete", wanted=True, verdict="spine", next_step="", now=at)
        assert job is not None
        return job

    def failed(self, number: int, reason: str = "out of memory", next_step: str = "lower worker.batch") -> str:
        job = self.series(number)
        claim = self.ledger.claim(job, "w", lease_s=60, max_attempts=3, now=self.time + number)
        assert claim
        self.ledger.fail(job, claim.fence, JobState.FAILED, "segment", reason, next_step, now=self.time + number)
        return job


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    database = tmp_path / "ledger.sqlite3"
    ledger = Ledger(f"sqlite:///{database}")
    ledger.migrate()
    found = Site("", ledger, database)
    app = create_app(
        ledger,
        token=TOKEN,
        health=lambda: found.health(),
        now=lambda: found.time,
        allowed_hosts=["Node.Hospital"],
        link_token=LINK,
    )
    config = uvicorn.Config(app, port=0, log_config=None, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    found.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield found
    server.should_exit = True
    thread.join()
    ledger.close()


def csrf(page: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    assert found
    return found[1]


# -- signing in


def test_a_stranger_is_sent_to_the_sign_in_page_and_back(site: Site) -> None:
    job = site.series(1)
    with site.client() as client:
        answer = client.get(f"/jobs/{job}")
        assert (answer.status_code, answer.headers["location"]) == (303, f"/login?next=%2Fjobs%2F{job}")
        form = client.get(answer.headers["location"])
        assert f'value="/jobs/{job}"' in form.text
        answer = client.post("/login", data={"token": TOKEN, "next": f"/jobs/{job}"})
        assert answer.headers["location"] == f"/jobs/{job}"
        assert client.get(f"/jobs/{job}").status_code == 200


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "/jobs/../..//evil", "javascript:x", ""])
def test_signing_in_never_leads_to_another_site(site: Site, target: str) -> None:
    with site.client() as client:
        assert client.post("/login", data={"token": TOKEN, "next": target}).headers["location"] == "/"


def test_the_cookie_is_strict_and_out_of_reach_of_scripts(site: Site) -> None:
    with site.client() as client:
        cookie = client.post("/login", data={"token": TOKEN}).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie
    assert TOKEN not in cookie


def test_the_cookie_is_secure_behind_https(site: Site) -> None:
    with site.client() as client:
        # uvicorn believes a proxy on loopback.
        answer = client.post("/login", data={"token": TOKEN}, headers={"X-Forwarded-Proto": "https"})
        assert "secure" in answer.headers["set-cookie"].lower()


def test_wrong_tokens_are_refused_then_throttled_for_a_minute(site: Site) -> None:
    with site.client() as client:
        answers = [client.post("/login", data={"token": "guess"}).status_code for _ in range(11)]
        assert answers == [401] * 10 + [429]
        assert client.post("/login", data={"token": TOKEN}).status_code == 429
        assert client.get("/api/jobs", headers=BEARER).status_code == 429
        site.time += 61
        assert client.post("/login", data={"token": TOKEN}).status_code == 303


def test_the_link_signs_in_once_and_leaves_a_clean_address(site: Site) -> None:
    with site.client() as client:
        answer = client.get("/", params={"token": LINK})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert client.get("/").status_code == 200
        assert client.get("/", params={"token": LINK}).headers["location"] == "/", "signed in already"
    with site.client() as other:
        answer = other.get("/", params={"token": LINK})
        assert answer.headers["location"] == "/login?link=refused"
        assert "set-cookie" not in answer.headers
        assert "used already" in other.get("/login?link=refused").text
        assert other.get("/", params={"token": TOKEN}).headers["location"] == "/login?link=refused"


def test_a_visit_from_another_site_is_repeated_so_that_the_strict_cookie_comes_along(site: Site) -> None:
    with site.client() as client:
        page = client.get("/login?next=/jobs/abc", headers={"Sec-Fetch-Site": "cross-site"}).text
        assert 'content="0;url=/jobs/abc"' in page
        assert "http-equiv" not in client.get("/login?next=/jobs/abc", headers={"Sec-Fetch-Site": "same-origin"}).text


def test_a_session_ends_by_time_and_by_signing_out(site: Site) -> None:
    with site.signed_in() as client:
        site.time += 11 * 3600
        page = client.get("/")
        assert page.status_code == 200
        cookies = dict(client.cookies)
        assert client.post("/logout", data={"csrf": csrf(page.text)}).headers["location"] == "/login"
        client.cookies.update(cookies)
        assert client.get("/").status_code == 303, "the cookie is worth nothing any more"
    with site.signed_in() as client:
        site.time += 12 * 3600 + 1
        assert client.get("/").status_code == 303


# -- the shell around every answer


@pytest.mark.parametrize("path", ["/", "/login", "/health", "/nothing", "/api/jobs", "/jobs/%3Cb%3E"])
def test_every_answer_carries_the_security_headers(site: Site, path: str) -> None:
    with site.signed_in() as client:
        headers = client.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'nonce-")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


def test_the_nonce_fits_the_page_and_is_new_each_time(site: Site) -> None:
    with site.signed_in() as client:
        first, second = client.get("/"), client.get("/")
    nonces = set(re.findall(r'nonce="([^"]+)"', first.text))
    assert len(nonces) == 1
    assert f"'nonce-{nonces.pop()}'" in first.headers["content-security-policy"]
    assert first.headers["content-security-policy"] != second.headers["content-security-policy"]


def test_every_page_says_what_it_may_be_used_for_and_loads_nothing_from_elsewhere(site: Site) -> None:
    job = site.failed(1)
    with site.signed_in() as client:
        for path in ("/", f"/jobs/{job}", "/login", "/nothing", "/jobs/unknown"):
            page = client.get(path).text
            assert RESEARCH_NOTICE in page, path
            assert not re.search(r"""(src|href)=["']?(https?:)?//""", page), path
            assert " style=" not in page, "the policy forbids style attributes"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:11181", 200), ("127.0.0.1", 200), ("[::1]:11181", 200), ("10.1.2.3:80", 200),
        ("node.hospital", 200), ("NODE.hospital:443", 200), ("evil.example", 400), ("127.0.0.1.evil.example", 400),
        ("node.hospital.evil.example", 400), ("", 400), ("[::1", 400),
        ("localhost/x", 400), ("me@localhost", 400), ("localhost:99999", 400), ("localhost:x", 400),
    ],
)  # fmt: skip
def test_only_addresses_and_known_names_are_answered(site: Site, host: str, status: int) -> None:
    with site.client() as client:
        assert client.get("/login", headers={"Host": host}).status_code == status


# -- the pages


def test_the_list_shows_state_reason_and_what_to_do(site: Site) -> None:
    site.failed(1)
    site.series(2, "t1_sag HWS")
    site.series(3, images=5, seal=False)
    site.ledger.worker_seen(Worker("cpu-1", T0, "0.1", "CPU", "penn-spine"))
    site.ledger.worker_seen(Worker("cpu-2", T0 - 600, "0.1", "CPU", "penn-spine"))
    site.health = lambda: Health((Component("disk", False, "0.9 GB free"), Component("listener", True)))
    with site.signed_in() as client:
        page = re.sub(r"\s+", " ", client.get("/").text)
    for shown in (
        'class="tag bad" title="Given up.">FAILED<', "out of memory", "lower worker.batch", "t1_sag HWS",
        "2 images from <bdi>SCANNER</bdi>", "<b>5</b> images from", "cpu-1", "silent for 10 min",
        "1 part of the node needs you", "0.9 GB free", ">All 2<", ">Problems 1<", ">READY 1<",
    ):  # fmt: skip
        assert shown in page, shown


def test_the_evidence_is_shown_of_what_arrives_and_of_what_is_sealed(site: Site) -> None:
    job = site.series(1)
    site.series(3, images=5, seal=False)
    lacks = Evidence(Source.NUMBERS, Weight.AGAINST, "instance number 4 is missing between 1 and 8")
    for number in (1, 3):
        site.ledger.note_weighing(Weighing(f"1.2.{number}", 1, (lacks,), "waits for the rest", T0 + number, T0 + 40))
    with site.signed_in() as client:
        page = re.sub(r"\s+", " ", client.get("/").text)
        shown = re.sub(r"\s+", " ", client.get(f"/jobs/{job}").text)
        listed = client.get("/api/jobs", headers=BEARER).json()
        told = client.get(f"/api/jobs/{job}", headers=BEARER).json()
    evidence = f'<span class="tag warn">against</span> instance numbers: {lacks.text}'
    assert page.count(evidence) == shown.count(evidence) == 1
    assert "waits for the rest" in page
    assert "sealed in 40 s at most, if no image comes" in page
    piece = {"source": "instance numbers", "weight": "against", "text": lacks.text}
    assert [(w["series_uid"], w["pieces"]) for w in listed["weighings"]] == [("1.2.3", [piece])]
    assert [w["pieces"] for w in told["weighings"]] == [[piece]]


def test_a_running_job_shows_its_worker_and_progress(site: Site) -> None:
    job = site.series(1)
    claim = site.ledger.claim(job, "cpu-1", lease_s=60, max_attempts=3, now=T0)
    assert claim
    site.ledger.heartbeat(job, claim.fence, lease_s=60, progress=0.5, now=T0)
    site.ledger.worker_seen(Worker("cpu-1", T0, "0.1", "CPU", "penn-spine"))
    with site.signed_in() as client:
        page = client.get("/").text
    assert "50 % on <bdi>cpu-1</bdi>" in page
    assert f'<a class="tag busy" href="/jobs/{job}">busy</a>' in page


def test_the_list_is_filtered_by_state_and_text(site: Site) -> None:
    failed, ready = site.failed(1), site.series(2, "whole HWS")
    with site.signed_in() as client:
        for query, seen in (
            ("", {failed, ready}), ("?state=FAILED", {failed}), ("?state=problems", {failed}), ("?state=open", {ready}),
            ("?q=hws", {ready}), ("?q=1.2.1", {failed}), ("?state=FAILED&q=hws", set()),
            ("?state=NONSENSE", {failed, ready}), ("?q=%00", {failed, ready}), ("?page=2", set()),
            ("?page=-1", {failed, ready}), (f"?q={ready}", {ready}),
            ("?page=" + "9" * 5000, {failed, ready}),
        ):  # fmt: skip
            assert set(re.findall(r"/jobs/([0-9a-f]+)", client.get(f"/{query}").text)) == seen, query


def test_the_list_is_paged(site: Site) -> None:
    for number in range(PAGE_SIZE + 1):
        site.series(number + 1, images=1)
    with site.signed_in() as client:
        first, second = client.get("/?q=sag").text, client.get("/?q=sag&page=2").text
    assert first.count("t2_sag</bdi>") == PAGE_SIZE
    assert second.count("t2_sag</bdi>") == 1
    assert 'rel="next" href="/?state=&amp;q=sag&amp;page=2"' in first
    assert 'rel="next"' not in second
    assert 'rel="prev" href="/?state=&amp;q=sag&amp;page=1"' in second


def test_a_job_shows_facts_journal_and_deliveries(site: Site) -> None:
    job = site.series(1)
    claim = site.ledger.claim(job, "cpu-1", lease_s=60, max_attempts=3, now=T0)
    assert claim
    result = Result("2.25.123456789012345", "1.2.840.10008.5.1.4.1.1.66.4", job, "results/secret-place", 1, "0")
    site.ledger.finish(
        job, claim.fence, [result], {"PACS": ["SEG"], "VNA": ["SEG"]}, model="penn 1", note="11 vertebrae", now=T0
    )
    first = site.ledger.deliveries(job)[0]
    site.ledger.start_sending(first.id, T0)
    site.ledger.postpone(first.id, "connection refused", T0 + 300, T0)
    with site.signed_in() as client:
        page = client.get(f"/jobs/{job[:8]}").text
        body = client.get(f"/api/jobs/{job}", headers=BEARER).text
    for shown in (
        "first image received",
        "complete",
        "penn 1",
        "cpu-1",
        "VNA",
        "connection refused",
        "Next try in 5 min",
    ):
        assert shown in page, shown
    assert "secret-place" not in page + body, "where the spool lies is nobody's business"


def test_text_of_peers_is_never_markup(site: Site) -> None:
    job = site.series(1, HOSTILE)
    claim = site.ledger.claim(job, HOSTILE, lease_s=60, max_attempts=3, now=T0)
    assert claim
    site.ledger.fail(job, claim.fence, JobState.FAILED, "segment", HOSTILE, HOSTILE, now=T0)
    site.ledger.worker_seen(Worker(HOSTILE, T0, HOSTILE, HOSTILE, HOSTILE))
    with site.signed_in() as client:
        for path in ("/", f"/jobs/{job}", "/?q=" + "<img src=x onerror=alert(2)>", "/jobs/<img%20src=x>"):
            page = client.get(path).text
            assert "<img" not in page, path
            assert "<script>" not in page, path
            assert "\u202e" not in page, "the text must not turn its surroundings around"


def test_callers_are_shown_with_lines_to_add_and_never_as_markup(site: Site) -> None:
    hostile = "<img src=x>"
    site.ledger.note_callers(
        [
            Caller("MR7", "PENNODE", "10.0.0.7", "no peer has this AE title", 4, T0 - 60, T0 - 5),
            Caller(hostile, hostile, "10.0.0.8", hostile, 1, T0, T0 - 7),
            Caller("LOCAL", "PENNODE", "127.0.0.1", "", 2, T0, T0 - 9),
        ],
        [],
    )
    with site.signed_in() as client:
        assert "2 rejected" in client.get("/").text
        page = client.get("/peers").text
        for shown in ("<bdi>MR7</bdi> from 10.0.0.7", "no peer has this AE title", "4 ×", "5 s</time> ago", "let in"):
            assert shown in page, shown
        (block, *_) = re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)
        assert tomllib.loads(html.unescape(block)) == {
            "peers": [{"name": "mr7", "ae_title": "MR7", "networks": ["10.0.0.7"]}]
        }
        assert "<img" not in page + client.get("/").text
        listed = client.get("/api/peers", headers=BEARER).json()
        assert [c["calling_ae"] for c in listed["callers"]] == ["MR7", hostile, "LOCAL"]
    with site.client() as client:
        assert client.get("/peers").status_code == 303
        assert client.get("/api/peers").status_code == 401


@pytest.mark.parametrize("job_id", ["unknown", "%00", "a'b", "%25", "x" * 500])
def test_an_unknown_job_is_a_page_with_a_next_step(site: Site, job_id: str) -> None:
    with site.signed_in() as client:
        page = client.get(f"/jobs/{job_id}")
        assert page.status_code == 404
        assert 'href="/"' in page.text
        assert client.get(f"/api/jobs/{job_id}", headers=BEARER).status_code == 404


def test_a_silent_ledger_is_said_plainly(site: Site) -> None:
    with site.signed_in() as client:
        site.ledger.close()
        for path in site.database.parent.glob("ledger.sqlite3*"):
            path.unlink()
        site.database.mkdir()
        page = client.get("/")
        assert page.status_code == 503
        assert "the ledger does not answer" in page.text
        assert "check the database and its disk" in page.text
        answer = client.get("/api/jobs", headers=BEARER)
        assert answer.status_code == 503
        assert "the ledger does not answer" in answer.json()["error"]
        assert client.get("/health").status_code == 200, "health is told by the node, not by this page"


def test_a_fault_of_the_page_shows_no_details(site: Site) -> None:
    def broken() -> Health:
        raise RuntimeError("inner detail")

    site.health = broken
    with site.signed_in() as client:
        page = client.get("/")
    assert page.status_code == 500
    assert "inner detail" not in page.text
    assert page.headers["x-frame-options"] == "DENY"


# -- deeds


def test_a_failed_job_is_retried_and_cancelled_from_its_page(site: Site) -> None:
    job = site.failed(1)
    with site.signed_in() as client:
        page = client.get(f"/jobs/{job}").text
        assert "/cancel" not in page
        answer = client.post(f"/jobs/{job}/retry", data={"csrf": csrf(page)})
        assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job}")
        assert site.ledger.job(job).state is JobState.READY
        page = client.get(f"/jobs/{job}").text
        assert "/retry" not in page
        client.post(f"/jobs/{job}/cancel", data={"csrf": csrf(page)})
        assert site.ledger.job(job).state is JobState.CANCELLED
    assert site.ledger.journal(job)[-1].by == "web 127.0.0.1"


def test_a_deed_the_state_forbids_is_explained(site: Site) -> None:
    job = site.series(1)
    with site.signed_in() as client:
        key = csrf(client.get(f"/jobs/{job}").text)
        assert client.post(f"/jobs/{job}/retry", data={"csrf": key}).status_code == 409
        assert client.post(f"/jobs/{job}/erase", data={"csrf": key}).status_code == 404
        answer = client.post(f"/api/jobs/{job}/retry", headers=BEARER)
        assert answer.status_code == 409
        assert "cannot be retried" in answer.json()["error"]
    assert site.ledger.job(job).state is JobState.READY


def test_forms_of_other_sites_and_other_sessions_are_refused(site: Site) -> None:
    job = site.failed(1)
    with site.signed_in() as client, site.signed_in() as other:
        key = csrf(client.get(f"/jobs/{job}").text)
        path = f"/jobs/{job}/retry"
        for origin in ("http://evil.example", "null", "", site.url.replace("127.0.0.1", "127.0.0.2")):
            answer = client.post(path, data={"csrf": key}, headers={"Origin": origin})
            assert answer.status_code == 403, origin
        assert client.post(path, data={"csrf": "guess"}).status_code == 403
        assert client.post(path).status_code == 403
        assert other.post(path, data={"csrf": key}).status_code == 403
        assert client.post(path, content=b"csrf=" + b"x" * 9000).status_code == 413
        assert client.get(path).status_code == 405
    with site.client() as stranger:
        assert stranger.post(path, data={"csrf": key}).headers["location"] == "/login"
    assert site.ledger.job(job).state is JobState.FAILED


# -- machines


def test_health_tells_names_and_no_details(site: Site) -> None:
    with site.client() as client:
        answer = client.get("/health", headers={"Host": "probe.example"})
        assert (answer.status_code, answer.json()) == (200, {"status": "ok", "components": {"listener": "ok"}})
        site.health = lambda: Health((Component("ledger", True), Component("disk", False, "inner detail")))
        answer = client.get("/health")
    assert answer.status_code == 503
    assert answer.json() == {"status": "degraded", "components": {"ledger": "ok", "disk": "degraded"}}


def test_the_api_takes_the_token_and_nothing_else(site: Site) -> None:
    job = site.failed(1)
    with site.signed_in() as client:
        for path in ("/api/jobs", f"/api/jobs/{job}"):
            answer = client.get(path)
            assert answer.status_code == 401, "a cookie is no authority here"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.post(f"/api/jobs/{job}/retry").status_code == 401
        assert client.get("/api/jobs", headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401
        assert client.get("/api/jobs", headers={"Authorization": "Bearer"}).status_code == 401
    assert site.ledger.job(job).state is JobState.FAILED


def test_the_api_lists_shows_and_changes_jobs(site: Site) -> None:
    failed, ready = site.failed(1), site.series(2)
    with httpx.Client(base_url=site.url, headers=BEARER) as client:
        body = client.get("/api/jobs").json()
        assert [job["id"] for job in body["jobs"]] == [ready, failed]
        assert body["counts"] == {"FAILED": 1, "READY": 1}
        assert [job["id"] for job in client.get("/api/jobs?limit=1&offset=1").json()["jobs"]] == [failed]
        assert [job["id"] for job in client.get("/api/jobs?state=FAILED&state=RUNNING").json()["jobs"]] == [failed]
        refused = client.get("/api/jobs?state=BROKEN")
        assert refused.status_code == 400
        assert "SUPERSEDED" in refused.json()["error"]
        body = client.get(f"/api/jobs/{failed}").json()
        assert body["job"]["reason"] == "out of memory"
        assert [entry["after"] for entry in body["journal"]][-1] == "FAILED"
        assert body["deliveries"] == []
        assert client.post(f"/api/jobs/{failed}/retry").json()["job"]["state"] == "READY"
        assert client.post(f"/api/jobs/{failed}/cancel").json()["job"]["state"] == "CANCELLED"
        assert client.get("/api/nothing").json()["status"] == 404


# -- what peers asked and announced


def test_what_peers_asked_and_announced_is_shown_with_what_to_do(site: Site) -> None:
    reference = Reference("1.2.840.10008.5.1.4.1.1.4", "1.2.3")
    asked = Commitment("1.2.77", HOSTILE[:16], "192.0.2.7", T0 - 300, T0 + 120, (reference,) * 3)
    number = site.ledger.ask_commitment(asked, 9).number
    assert number is not None
    site.ledger.postpone_commitment(number, "it is not known where MR1 listens", "add [[peers]]", T0 + 120, T0 - 60)
    other = site.ledger.ask_commitment(replace(asked, transaction_uid="1.2.78", calling_ae="MR2"), 9).number
    assert other is not None
    site.ledger.commitment_reported(other, 2, "reported to MR2", T0)
    step = ProcedureStep("1.2.9", "MR1", "192.0.2.7", StepState.COMPLETED, ("1.2.4",), "20260301", "", T0 - 60, T0)
    assert site.ledger.create_step(step, {})
    with site.signed_in() as client:
        assert 'href="/services"' in client.get("/").text
        page = client.get("/services").text
    assert "<script>alert" not in page
    for words in (
        "it is not known where MR1 listens", "add [[peers]]", "Next try in 2 min", "2 not safe", "reported to MR2",
        "192.0.2.7", '<span class="tag wait">PENDING</span>', '<span class="tag good">REPORTED</span>',
        '<span class="tag good">COMPLETED</span>', "<code>1.2.4</code>",
    ):  # fmt: skip
        assert words in page, words
    with site.client() as client:
        assert client.get("/services").headers["location"] == "/login?next=%2Fservices"
        assert client.get("/api/services").status_code == 401
        found = client.get("/api/services", headers=BEARER).json()
        short = client.get("/api/services?limit=1", headers=BEARER).json()
    assert [(c["calling_ae"], c["state"], c["requested"], c["failed"]) for c in found["commitments"]] == [
        ("MR2", "REPORTED", 3, 2), (HOSTILE[:16], "PENDING", 3, 0),
    ]  # fmt: skip
    assert "references" not in found["commitments"][1]
    assert found["steps"] == [{**step.to_json(), "study_uids": ["1.2.4"]}]
    assert len(short["commitments"]) == 1


def test_a_form_whose_body_never_ends_is_answered_in_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signin, "FORM_S", 0.4)
    host = site.url.removeprefix("http://")
    with socket.create_connection((host.rpartition(":")[0], int(host.rpartition(":")[2])), 10) as peer:
        head = f"POST /login HTTP/1.1\r\nHost: {host}\r\nOrigin: {site.url}\r\nContent-Length: 4000\r\n\r\n"
        peer.sendall(head.encode() + b"token=")
        start, said = time.monotonic(), b""
        for _ in range(2):
            time.sleep(0.1)
            peer.sendall(b"x")  # a drip does not make it longer
        while piece := peer.recv(65536):
            said += piece
    assert said.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - start < 5, "and the connection is closed"


def test_the_page_says_what_is_known_of_a_delivery_and_asks_on_request(site: Site) -> None:
    job = site.series(1)
    claim = site.ledger.claim(job, "cpu-1", lease_s=60, max_attempts=3, now=T0)
    assert claim
    result = Result("2.25.123456789012345", "1.2.840.10008.5.1.4.1.1.66.4", job, "results/secret-place", 1, "0")
    forms = {"PACS": ["SEG"], "VNA": ["SEG"], "OLD": ["SEG"]}
    site.ledger.finish(job, claim.fence, [result], forms, model="penn 1", note="11 vertebrae", now=T0)
    rules = Delivery(recheck_s=(60.0,))
    items = {d.destination: d for d in site.ledger.deliveries(job)}
    for item in items.values():
        site.ledger.start_sending(item.id, T0)
        site.ledger.sent(item.id, "stored (0x0000)", T0)
    site.ledger.proved(items["PACS"].id, Proof.COMMITMENT, rules, T0 - 5)
    site.ledger.doubt([items["VNA"].id], "VNA@host:104 does not answer <b>", rules, T0)
    site.ledger.no_proof(items["OLD"].id, "the peer offers no proof", T0)
    with site.signed_in() as client:
        page = client.get(f"/jobs/{job}").text
        for shown in (
            "The PACS holds it, known by storage commitment", "5 s</time> ago", "Next look in 55 s",
            "Not known whether the PACS holds it.", "does not answer &lt;b&gt;", "the peer offers no proof",
        ):  # fmt: skip
            assert shown in page, shown
        for verb, words in (("prove", "asks for 3 object(s)"), ("read-back", "reads back 3 object(s)")):
            assert client.post(f"/jobs/{job}/{verb}", data={"csrf": "guess"}).status_code == 403
            answer = client.post(f"/jobs/{job}/{verb}", data={"csrf": csrf(page)})
            assert answer.status_code == 303
            shown = client.get(f"/jobs/{job}").text
            assert words in shown
            assert shown.count("Is being asked.") == 3
        told = client.get(f"/api/jobs/{job}", headers=BEARER).json()["deliveries"]
        assert {d["destination"]: (d["state"], d["proof"], d["wanted"]) for d in told} == {
            "PACS": ("COMMITTED", "storage commitment", "read-back"),
            "VNA": ("SENT", "", "read-back"),
            "OLD": ("SENT", "none", "read-back"),
        }
        assert client.get(f"/api/jobs/{job}", headers=BEARER).json()["held_at"] is None
        assert "Every destination holds" not in page
        for name in ("VNA", "OLD"):
            site.ledger.proved(items[name].id, Proof.FIND, rules, T0 - 2)
        assert client.get(f"/api/jobs/{job}", headers=BEARER).json()["held_at"] == T0 - 5
        shown = "Every destination holds the results; last known"
        assert re.search(f"{shown} <time [^>]*>5 s</time> ago", client.get(f"/jobs/{job}").text)
        other = site.series(2)
        refused = client.post(f"/api/jobs/{other}/prove", headers=BEARER)
        assert refused.status_code == 409
        assert "no destination has taken a result of this job" in refused.text
        assert 'action="/jobs/' + other + '/prove"' not in client.get(f"/jobs/{other}").text
    site.ledger.read_back(items["PACS"].id, "read back and found different: 3 of 9 voxels", False, rules, T0)
    with site.signed_in() as client:
        page = client.get(f"/jobs/{job}").text
    assert "read back and found different: 3 of 9 voxels" in page
    assert '<span class="tag bad">FAILED</span>' in page
    assert "find out what changes objects there, then retry" in page


# -- several jobs of one series


def compared(site: Site) -> tuple[str, str]:
    """A series with a result of its own and one of a shadow, both compared."""
    uid = site.series(1, seal=False)
    seen = site.ledger.receiving()[0]
    own = site.ledger.seal(
        seen, site.ledger.series_instances(uid), "complete", wanted=True, verdict="spine", next_step="", now=T0,
        model="penn-spine", shadows=["penn-new"],
    )  # fmt: skip
    assert own
    (shadow,) = site.ledger.siblings(site.ledger.job(own))
    for job, model, sop in ((own, "penn-spine", "2.25.1"), (shadow.id, "penn-new", "2.25.2")):
        held = site.ledger.claim(job, "w", lease_s=60, max_attempts=3, now=T0, served=[model])
        assert held
        result = Result(sop, "1.2.840.10008.5.1.4.1.1.66.4", job, f"results/{sop}", 1, "0")
        to = {"PACS": ["SEG"]}
        site.ledger.finish(job, held.fence, [result], to, model=f"{model} 1.0.0", note="n", now=T0)
    return own, shadow.id


def test_a_shadow_is_shown_as_such_with_its_figures(site: Site) -> None:
    own, shadow = compared(site)
    with site.signed_in() as client:
        assert "not compared yet" in client.get(f"/jobs/{shadow}").text
        told = client.get(f"/api/jobs/{shadow}", headers=BEARER).json()
        assert told["comparisons"] == []
        assert told["not_compared"].startswith("not compared yet")
        segment = Agreement(HOSTILE, "51282000", "SCT", "Vertebra", 0.8768, 12.4, 11.5)
        site.ledger.note_comparison(Comparison(shadow, 1, own, 1, T0, (segment,)))
        for job, other in ((own, shadow), (shadow, own)):
            page = client.get(f"/jobs/{job}").text
            assert "0.877" in page
            assert "12.40 ml" in page
            assert "11.50 ml" in page
            assert f'href="/jobs/{other}"' in page
            assert "<script>alert" not in page
            assert "penn-new 1.0.0" in page
            told = client.get(f"/api/jobs/{job}", headers=BEARER).json()
            assert told["comparisons"][0]["segments"][0]["dice"] == 0.8768
            assert [s["id"] for s in told["siblings"]] == [other]
        page = client.get(f"/jobs/{shadow}").text
        assert "Nothing is sent: this job is a shadow." in page
        assert "PACS" not in page
        assert "Retry" not in page
        assert "STORED" in client.get("/").text
        assert "shadow" in client.get("/?state=STORED").text


def test_a_comparison_without_figures_says_why(site: Site) -> None:
    own, shadow = compared(site)
    site.ledger.note_comparison(Comparison(shadow, 1, own, 1, T0, (), "the two results lie on different grids"))
    with site.signed_in() as client:
        for job in (own, shadow):
            page = client.get(f"/jobs/{job}").text
            assert "no figures" in page
            assert "the two results lie on different grids" in page


def test_jobs_of_one_series_or_model_are_found(site: Site) -> None:
    own, shadow = compared(site)
    other = site.series(2)
    with site.signed_in() as client:
        listed = client.get("/api/jobs", params={"series": "1.2.1"}, headers=BEARER).json()["jobs"]
        assert {j["id"] for j in listed} == {own, shadow}
        assert [j["shadow"] for j in listed] == [False, True]
        assert client.get("/api/jobs", params={"series": "1.2"}, headers=BEARER).json()["jobs"] == []
        page = client.get("/?q=penn-new").text
        assert shadow in page
        assert own not in page
        assert other not in page


def test_workers_are_shown_with_all_their_models(site: Site) -> None:
    site.ledger.worker_seen(Worker("cpu-1", T0, "0.1", "CPU", "a 1.0.0", ("a 1.0.0", "b 2.0.0")))
    with site.signed_in() as client:
        assert "a 1.0.0, b 2.0.0" in client.get("/").text


def test_a_job_that_waits_for_a_model_says_what_to_do(site: Site) -> None:
    uid = site.series(1, seal=False)
    seen = site.ledger.receiving()[0]
    site.ledger.seal(
        seen, site.ledger.series_instances(uid), "complete", wanted=True, verdict="spine", next_step="", now=T0,
        model="typo",
    )  # fmt: skip
    assert site.ledger.note_unserved({""}, T0) == {"typo": 1}
    with site.signed_in() as client:
        page = client.get("/").text
    assert "no living worker has the model typo" in page
    assert "worker.models" in page
