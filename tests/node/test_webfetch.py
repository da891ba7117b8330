"""Asking for fetches on the admin page and its JSON, over real HTTP."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator

import httpx
import pytest
import uvicorn

from node.errors import NotFound
from node.ledger import FetchedSeries, FetchState, Ledger
from node.web import Health, create_app
from node.webfetch import Orders
from tests.node.making import SERIES, STUDY, T0, sealed

TOKEN = "correct horse"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
HOSTILE = "<script>alert(1)</script>"


class Page:
    def __init__(self, ledger: Ledger, url: str, asked: list[str]) -> None:
        self.ledger = ledger
        self.asked = asked
        self.api = httpx.Client(base_url=url, headers=BEARER, timeout=10)
        self.browser = httpx.Client(base_url=url, headers={"Origin": url}, timeout=10)


@pytest.fixture
def page(ledger: Ledger) -> Iterator[Page]:
    asked: list[str] = []
    app = create_app(
        ledger,
        token=TOKEN,
        health=lambda: Health(()),
        now=lambda: T0,
        orders=Orders(ledger, ["pacs", "vna"], asked.append),
    )
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    found = Page(ledger, f"http://127.0.0.1:{port}", asked)
    with found.api, found.browser:
        assert found.browser.post("/login", data={"token": TOKEN}).status_code == 303
        yield found
    server.should_exit = True
    thread.join(10)


def csrf(page: Page) -> str:
    found = re.search('name="csrf" value="([^"]+)"', page.browser.get("/fetches").text)
    assert found
    return found[1]


def test_a_person_asks_cancels_and_asks_again(page: Page) -> None:
    secret = csrf(page)
    fields = {"csrf": secret, "archive": "pacs", "study": f" {STUDY} ", "series": f"{SERIES}, 1.2.9\n"}
    assert page.browser.post("/fetches", data=fields).headers["location"] == "/fetches"
    (asked,) = page.ledger.fetches()
    assert (asked.archive, asked.study_uid, asked.wanted) == ("pacs", STUDY, ("1.2.3.10", "1.2.9"))
    assert asked.asked_by == "web 127.0.0.1"
    assert page.asked == ["pacs"]
    assert page.browser.post(f"/fetches/{asked.number}/cancel", data={"csrf": secret}).status_code == 303
    assert page.ledger.fetch(asked.number).state is FetchState.CANCELLED
    assert page.browser.post(f"/fetches/{asked.number}/again", data={"csrf": secret}).status_code == 303
    assert [one.state for one in page.ledger.fetches()] == [FetchState.ASKED, FetchState.CANCELLED]
    assert page.browser.post(f"/fetches/{asked.number}/burn", data={"csrf": secret}).status_code == 404


def test_nothing_is_asked_without_the_session_and_its_secret(page: Page) -> None:
    fields = {"archive": "pacs", "study": STUDY}
    assert page.browser.post("/fetches", data={**fields, "csrf": "guessed"}).status_code == 403
    assert page.browser.post("/fetches", data=fields).status_code == 403
    there = str(page.browser.base_url)
    elsewhere = page.browser.post(
        "/fetches", data={**fields, "csrf": csrf(page)}, headers={"Origin": "http://evil.example"}
    )
    assert elsewhere.status_code == 403
    with httpx.Client(base_url=there, headers={"Origin": there}) as stranger:
        assert stranger.get("/fetches").headers["location"] == "/login?next=%2Ffetches"
        assert stranger.post("/fetches", data=fields).headers["location"] == "/login"
        assert stranger.post("/fetches/1/cancel", data={}).headers["location"] == "/login"
        for method, path in (("GET", ""), ("POST", ""), ("GET", "/1"), ("POST", "/1/cancel")):
            assert stranger.request(method, f"/api/fetches{path}", json=fields).status_code == 401
    assert page.ledger.fetches() == []


@pytest.mark.parametrize(
    ("asked", "status", "error", "step"),
    [
        ({"archive": "pcas", "study": STUDY}, 404, "no archive is called 'pcas'", "did you mean pacs?"),
        ({"archive": HOSTILE, "study": STUDY}, 404, "no archive is called", "there are: pacs, vna"),
        ({"archive": "pacs", "study": "1.2.x"}, 400, "'1.2.x' is no UID of a study", "digits and dots"),
        ({"archive": "pacs", "study": "../../etc"}, 400, "is no UID of a study", "digits and dots"),
        ({"archive": "pacs", "study": STUDY, "series": ["1.2\\1.3"]}, 400, "is no UID of a series", "digits and dots"),
        ({"archive": "pacs", "study": "*"}, 400, "'*' is no UID of a study", "digits and dots"),
        ({"archive": "pacs", "study": STUDY, "series": ["1.2"] * 501}, 400, "more than 500 series", "name none"),
        ({"archive": "pacs"}, 400, "Send {", ""),
        ({"archive": "pacs", "study": 5}, 400, "Send {", ""),
        ({"archive": "pacs", "study": STUDY, "series": {"a": 1}}, 400, "Send {", ""),
        ([], 400, "Send {", ""),
    ],
)
def test_what_cannot_be_fetched_is_told(page: Page, asked: object, status: int, error: str, step: str) -> None:
    answer = page.api.post("/api/fetches", json=asked)
    assert answer.status_code == status
    assert error in answer.json()["error"]
    assert step in answer.json()["next_step"]
    assert page.ledger.fetches() == []
    assert page.asked == []


def test_a_question_without_end_is_refused(page: Page) -> None:
    assert page.api.post("/api/fetches", content=b"x" * 100_000).status_code == 413


def test_a_program_asks_looks_and_cancels(page: Page) -> None:
    answer = page.api.post("/api/fetches", json={"archive": "vna", "study": STUDY, "by": "anna\n" + "x" * 99})
    assert answer.status_code == 202
    asked = answer.json()["fetch"]
    assert (asked["state"], len(asked["asked_by"]), asked["asked_by"][:5]) == ("ASKED", 64, "anna?")
    listed = page.api.get("/api/fetches").json()
    assert (listed["archives"], listed["fetches"]) == (["pacs", "vna"], [asked])
    assert page.api.get(f"/api/fetches/{asked['number']}").json()["fetch"] == asked
    assert page.api.get("/api/fetches/99").status_code == 404
    assert page.api.get("/api/fetches/x").status_code == 404
    cancelled = page.api.post(f"/api/fetches/{asked['number']}/cancel")
    assert cancelled.json()["fetch"]["state"] == "CANCELLED"
    again = page.api.post(f"/api/fetches/{asked['number']}/cancel")
    assert (again.status_code, again.json()["error"]) == (409, f"fetch {asked['number']} is CANCELLED")


def test_pages_show_what_was_fetched_and_escape_what_an_archive_said(page: Page) -> None:
    asked = page.ledger.ask_fetch("pacs", STUDY, [], f"anna {HOSTILE}", T0)
    job = sealed(page.ledger)
    page.ledger.note_fetched_series(
        asked, [FetchedSeries(SERIES, "MR", HOSTILE, 5), FetchedSeries("1.2.9", "CT", "", 1, f"modality {HOSTILE}")], T0
    )
    page.ledger.end_fetch(asked.number, FetchState.FAILED, "3 of 5 images are here", "fetch again", "fetch", T0)
    shown = page.browser.get("/fetches").text
    assert HOSTILE not in shown
    assert html.escape(HOSTILE) in shown
    assert "3 of 5" in shown
    assert "left out" in shown
    assert f'action="/fetches/{asked.number}/again"' in shown
    assert "For research use only" in shown
    of_job = page.browser.get(f"/jobs/{job}").text
    assert "from pacs by" in of_job
    assert HOSTILE not in of_job
    assert page.api.get(f"/api/jobs/{job}").json()["fetched"]["archive"] == "pacs"


def test_without_archives_it_is_said_how_to_name_one(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="name one in the settings") as caught:
        Orders(ledger).ask("pacs", STUDY, [], "anna", T0)
    assert "no archive is called 'pacs'" in str(caught.value)
