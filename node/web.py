"""The admin page and its JSON: where is this series, why, and what to do about it.

Everything shown comes from the ledger, so it is whole again after a restart. `create_app` lists the whole site;
`node.signin` decides who may see it. Endpoints block on the ledger, hence they are plain functions and run in threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from node.agreement import outlook
from node.display import states_of, templates, verbs, views
from node.errors import InvalidRequest, NotFound, PennodeError, Permanent
from node.ledger import Ledger
from node.peers import Peers
from node.records import WORKER_SILENT_S, known_at
from node.settings import Listener
from node.signin import Guard, Session, TokenDoor, form, own_page, security_headers
from node.states import JobState
from node.webfetch import FetchSite, Orders
from node.webjson import JsonSite, change_job, job_id_of, listing_of, needle, number

PAGE_SIZE = 50
# A worker not heard of for a day has gone; one silent for two minutes deserves a look.
WORKERS_SHOWN_S = 24 * 3600.0
REJECTED_SHOWN_S = 24 * 3600.0


class Component(NamedTuple):
    """One part of the node: its name, whether it works, and a sentence for the admin."""

    name: str
    ok: bool
    text: str = ""


@dataclass(frozen=True)
class Health:
    """How the parts of the node are."""

    components: tuple[Component, ...]

    @property
    def ok(self) -> bool:
        """Whether every part works."""
        return all(component.ok for component in self.components)


def create_app(
    ledger: Ledger,
    *,
    token: str,
    health: Callable[[], Health],
    now: Callable[[], float] = time.time,
    allowed_hosts: Sequence[str] = (),
    link_token: str = "",
    more: Sequence[BaseRoute] = (),
    peers: Peers | None = None,
    orders: Orders | None = None,
) -> Starlette:
    """Build the site.

    Parameters
    ----------
    ledger
        Where everything shown comes from.
    token
        Signs in a person at ``/login``, and a program by ``Authorization: Bearer``.
    health
        Asked on every visit of ``/`` and ``/health``; must not take longer than a second or so.
    now
        Seconds since 1970.
    allowed_hosts
        Names this site answers to, beside ``localhost`` and any bare IP address.
    link_token
        What ``/?token=`` takes, once; empty: `token` itself. One of its own keeps `token` out of logs and histories.
    more
        What else is served on this port, and looks after its own sign-in.
    peers
        Who may open associations; without them, nobody is listed.
    orders
        Takes what is to be fetched; without it there is no archive.
    """
    door = TokenDoor(token, link_token or token, now)
    peers = peers or Peers(Listener(), ())
    site, api = _Site(ledger, door, health, now, peers), JsonSite(ledger, door, now, peers)
    fetches = FetchSite(
        ledger, orders or Orders(ledger), door, now, render=site._page, signed_in=site._signed_in,
        authorise=api.authorise,
    )  # fmt: skip
    return Starlette(
        routes=[
            Route("/", site.jobs),
            Route("/jobs/{job_id}", site.job),
            Route("/jobs/{job_id}/{verb}", form(site.change), methods=["POST"]),
            Route("/peers", site.peers),
            Route("/services", site.services),
            Route("/login", site.login),
            Route("/login", form(site.sign_in), methods=["POST"]),
            Route("/logout", form(site.sign_out), methods=["POST"]),
            Route("/health", site.health),
            Route("/api/peers", api.peers),
            Route("/api/jobs", api.jobs),
            Route("/api/jobs/{job_id}", api.job),
            Route("/api/services", api.services),
            Route("/api/jobs/{job_id}/{verb}", api.change, methods=["POST"]),
            *fetches.routes(),
            *more,
        ],
        middleware=[Middleware(Guard, names=frozenset({"localhost", *(h.lower() for h in allowed_hosts)}))],
        exception_handlers={PennodeError: site.failed, HTTPException: site.refused, 500: site.broken},
    )


class _SignedOut(HTTPException):
    """Raised when a page is asked for without a session; answered with the way to the sign-in page."""


class _Site:
    """The endpoints, and what they need."""

    def __init__(
        self, ledger: Ledger, door: TokenDoor, health: Callable[[], Health], now: Callable[[], float], peers: Peers
    ) -> None:
        self._ledger = ledger
        self._peers = peers
        self._door = door
        self._health = health
        self._now = now
        self._templates = templates()

    def _page(self, request: Request, template: str, status: int = 200, **facts: Any) -> Response:
        facts = {"session": None, "now": self._now(), "nonce": request.state.nonce, **facts}
        return HTMLResponse(self._templates.get_template(template).render(facts), status)

    def _signed_in(self, request: Request) -> Session:
        session = self._door.session(request)
        if session is None:
            query = urlencode({"next": own_page(request.url.path)})
            raise _SignedOut(303, headers={"Location": f"/login?{query}"})
        return session

    def jobs(self, request: Request) -> Response:
        """Show what is received, waits, runs and is done; sign in by a link."""
        given = request.query_params.get("token")
        if given is not None:
            if self._door.session(request):
                return RedirectResponse("/", 303)
            if self._door.link_fits(request, given):
                return self._door.sign_in(request, "/")
            return RedirectResponse("/login?link=refused", 303)
        session = self._signed_in(request)
        view, text = request.query_params.get("state", ""), needle(request.query_params.get("q", ""))
        page = number(request.query_params.get("page"), 1, 1, 10_000)
        states = states_of(view)
        jobs = self._ledger.jobs(states=states, limit=PAGE_SIZE + 1, offset=(page - 1) * PAGE_SIZE, text=text)
        return self._page(
            request,
            "jobs.html",
            session=session,
            jobs=jobs[:PAGE_SIZE],
            views=views(self._ledger.counts(), view),
            view=view if states else "",
            text=text,
            page=page,
            more=len(jobs) > PAGE_SIZE,
            link=lambda **change: "/?" + urlencode({"state": view, "q": text, **change}),
            receiving=self._ledger.receiving(),
            weighings=self._ledger.weighings(),
            workers=self._ledger.workers(self._now() - WORKERS_SHOWN_S),
            busy={job.worker: job for job in self._ledger.jobs(states=[JobState.RUNNING])},
            silent_s=WORKER_SILENT_S,
            rejected=[c for c in self._ledger.callers() if c.rejected and c.last_at > self._now() - REJECTED_SHOWN_S],
            health=self._health(),
        )

    def job(self, request: Request) -> Response:
        """Show everything known about one job."""
        session = self._signed_in(request)
        job = self._ledger.job(job_id_of(request))
        deliveries = self._ledger.deliveries(job.id)
        return self._page(
            request,
            "job.html",
            session=session,
            job=job,
            journal=self._ledger.journal(job.id),
            deliveries=deliveries,
            held_at=known_at(deliveries),
            weighings=self._ledger.weighings_of(job),
            verbs=verbs(job),
            fetched=self._ledger.announcement(job.series_uid),
            siblings=self._ledger.siblings(job),
            comparisons=self._ledger.comparisons(job),
            outlook=outlook(job, self._ledger.own_job(job)) if job.shadow else "",
        )

    def peers(self, request: Request) -> Response:
        """Show who may open associations, who tried, and the settings that would let them in."""
        return self._page(
            request, "peers.html", session=self._signed_in(request), listing=listing_of(self._ledger, self._peers)
        )

    def services(self, request: Request) -> Response:
        """Show what peers asked (storage commitment) and announced (MPPS), newest first."""
        session = self._signed_in(request)
        commitments, steps = self._ledger.commitments(PAGE_SIZE), self._ledger.steps(PAGE_SIZE)
        return self._page(request, "services.html", session=session, commitments=commitments, steps=steps)

    def change(self, request: Request, fields: dict[str, str]) -> Response:
        """Retry or cancel a job, have its delivery proved or its results read back, then show it."""
        if self._door.session_of_form(request, fields) is None:
            return RedirectResponse("/login", 303)
        return RedirectResponse(f"/jobs/{change_job(request, self._ledger, self._now()).id}", 303)

    def login(self, request: Request) -> Response:
        """Ask for the token.

        A link from elsewhere (a ticket, a mail) arrives here even with a session, as browsers keep a strict cookie
        back on such a visit. The page then tries once more by itself, now as a visit from this site.
        """
        path = own_page(request.query_params.get("next", "/"))
        again = request.headers.get("sec-fetch-site") == "cross-site"
        refused = "link" in request.query_params
        wrong = "This sign-in link was used already, or is not from the latest start." if refused else ""
        return self._page(request, "login.html", path=path, again=path if again and not refused else "", wrong=wrong)

    def sign_in(self, request: Request, fields: dict[str, str]) -> Response:
        """Check the token and open a session."""
        path = own_page(fields.get("next", "/"))
        if self._door.token_fits(request, fields.get("token", "").strip()):
            return self._door.sign_in(request, path)
        return self._page(request, "login.html", 401, path=path, again="", wrong="That is not the token.")

    def sign_out(self, request: Request, fields: dict[str, str]) -> Response:
        """End the session."""
        return self._door.sign_out(request, self._door.session_of_form(request, fields))

    def health(self, request: Request) -> Response:
        """Tell probes whether the node works; names, but no details, since anybody may ask."""
        health = self._health()
        parts = {component.name: "ok" if component.ok else "degraded" for component in health.components}
        whole = "ok" if health.ok else "degraded"
        return JSONResponse({"status": whole, "components": parts}, 200 if health.ok else 503)

    def failed(self, request: Request, error: Exception) -> Response:
        """Answer an error of the tree with its reason and next step."""
        if not isinstance(error, PennodeError):
            raise error
        kinds = ((NotFound, 404), (InvalidRequest, 400), (Permanent, 409))
        status = next((code for kind, code in kinds if isinstance(error, kind)), 503)
        return self._error(request, status, error.reason, error.next_step)

    def refused(self, request: Request, error: Exception) -> Response:
        """Answer a refusal made by the site itself."""
        if not isinstance(error, HTTPException):
            raise error
        if isinstance(error, _SignedOut):
            return Response(status_code=error.status_code, headers=error.headers)
        return self._error(request, error.status_code, error.detail, headers=error.headers)

    def broken(self, request: Request, error: Exception) -> Response:
        """Answer a fault of this program; the middleware raises it again afterwards, so the log has the trace."""
        headers = security_headers(request.state.nonce)
        return self._error(request, 500, "The page failed.", "See the node's log.", headers)

    def _error(
        self, request: Request, status: int, reason: str, next_step: str = "", headers: Mapping[str, str] | None = None
    ) -> Response:
        if request.url.path.startswith("/api/"):
            body = {"error": reason, "next_step": next_step, "status": status}
            return JSONResponse(body, status, headers)
        again = status == 503 and request.method == "GET"
        facts = {"heading": HTTPStatus(status).phrase, "reason": reason, "next_step": next_step, "again": again}
        response = self._page(request, "error.html", status, **facts)
        response.headers.update(headers or {})
        return response
