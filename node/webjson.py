"""The admin page's answers as JSON, for scripts, and what they share with its pages."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from node.agreement import outlook
from node.errors import NotFound
from node.forms import in_words
from node.ledger import Ledger
from node.peers import Listing, Peers
from node.records import Job, known_at
from node.signin import TokenDoor
from node.states import JobState, Wanted

_SIBLING = ("id", "revision", "state", "model", "wanted_model", "shadow", "created_at")


class JsonSite:
    """The endpoints below ``/api/``, for who sends the token with each request."""

    def __init__(self, ledger: Ledger, door: TokenDoor, now: Callable[[], float], peers: Peers) -> None:
        self._ledger = ledger
        self._door = door
        self._now = now
        self._peers = peers

    def authorise(self, request: Request) -> None:
        """Let a request pass that bears the token."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._door.token_fits(request, given.strip()):
            raise HTTPException(401, "Send the header Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"})

    def jobs(self, request: Request) -> Response:
        """Answer jobs, newest first, by ``state`` (repeatable), ``series``, ``text``, ``limit`` and ``offset``."""
        self.authorise(request)
        query = request.query_params
        unknown = set(query.getlist("state")) - set(JobState)
        if unknown:
            raise HTTPException(400, f"There is no state {min(unknown)!r}; there are {', '.join(JobState)}.")
        jobs = self._ledger.jobs(
            states=[JobState(s) for s in query.getlist("state")] or None,
            limit=number(query.get("limit"), 200, 1, 1000),
            offset=number(query.get("offset"), 0, 0, 10**9),
            text=needle(query.get("text", "")),
            series_uid=needle(query.get("series", "")),
        )
        listed = [job.to_json() for job in jobs]
        receiving, weighings = self._ledger.receiving(), self._ledger.weighings().values()
        body = {"jobs": listed, "counts": self._ledger.counts(), "receiving": len(receiving)}
        return JSONResponse(body | {"weighings": [w.to_json() for w in weighings]})

    def peers(self, request: Request) -> Response:
        """Answer peers as last seen, and callers that are none."""
        self.authorise(request)
        return JSONResponse(listing_of(self._ledger, self._peers).to_json())

    def job(self, request: Request) -> Response:
        """Answer one job with its journal and deliveries, other jobs of its series, and how shadows compare."""
        self.authorise(request)
        job = self._ledger.job(job_id_of(request))
        # Where the spool lies is nobody's business outside the node.
        found = self._ledger.deliveries(job.id)
        deliveries = [{k: v for k, v in asdict(d).items() if k != "path"} | {"what": in_words(d.form)} for d in found]
        journal = [asdict(entry) for entry in self._ledger.journal(job.id)]
        weighings = [w.to_json() for w in self._ledger.weighings_of(job)]
        fetched = self._ledger.announcement(job.series_uid)
        body: dict[str, Any] = {"job": job.to_json(), "journal": journal, "deliveries": deliveries}
        body["weighings"] = weighings
        body["fetched"] = asdict(fetched) if fetched else None
        # Since when every destination is known to hold all of it; null: it is not known.
        body["held_at"] = known_at(found)
        return JSONResponse(body | models_of(self._ledger, job))

    def services(self, request: Request) -> Response:
        """Answer storage commitment requests and performed procedure steps, newest first, at most ``limit`` of each."""
        self.authorise(request)
        limit = number(request.query_params.get("limit"), 200, 1, 1000)
        asked, announced = self._ledger.commitments(limit), self._ledger.steps(limit)
        return JSONResponse({"commitments": [c.to_json() for c in asked], "steps": [s.to_json() for s in announced]})

    def change(self, request: Request) -> Response:
        """Retry or cancel a job, have its delivery proved, or its results read back."""
        self.authorise(request)
        return JSONResponse({"job": change_job(request, self._ledger, self._now()).to_json()})


def models_of(ledger: Ledger, job: Job) -> dict[str, Any]:
    """Return what other models made of a job's series: its other jobs, and how shadows compare, or why they do not."""
    why = outlook(job, ledger.own_job(job)) if job.shadow else ""
    compared = [one.to_json() for one in ledger.comparisons(job)]
    return {
        "siblings": [{k: getattr(one, k) for k in _SIBLING} for one in ledger.siblings(job)],
        "comparisons": compared,
        "not_compared": "" if compared else why,
    }


def listing_of(ledger: Ledger, peers: Peers) -> Listing:
    """Return who may open associations and was last seen when, and who tried."""
    return peers.listing(ledger.callers(), ledger.contacts())


def change_job(request: Request, ledger: Ledger, now: float) -> Job:
    """Do to a job what the path says."""
    job = ledger.job(job_id_of(request))
    by = f"web {request.client.host}" if request.client else "web"
    match request.path_params["verb"]:
        case "retry":
            return ledger.retry(job.id, by, now)
        case "cancel":
            return ledger.cancel(job.id, by, now)
        case "prove":
            return ledger.want_proof(job.id, Wanted.PROOF, by, now)
        case "read-back":
            return ledger.want_proof(job.id, Wanted.READ_BACK, by, now)
    raise HTTPException(404)


def job_id_of(request: Request) -> str:
    """Return the job of the path; `NotFound` when it cannot be one."""
    job_id: str = request.path_params["job_id"]
    if not re.fullmatch(r"[0-9A-Za-z-]{1,64}", job_id):
        raise NotFound("that is no job id", "the list shows all jobs")
    return job_id


def needle(text: str) -> str:
    """Return text to search for; PostgreSQL takes no NUL, and nothing searched is longer than a UID."""
    return text.replace("\0", "").strip()[:64]


def number(text: str | None, default: int, low: int, high: int) -> int:
    """Return a number of a query within its bounds."""
    return min(max(int(text), low), high) if text and re.fullmatch("[0-9]{1,9}", text) else default
