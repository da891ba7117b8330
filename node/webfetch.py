"""Asking for fetches, on the admin page and below ``/api/``, and looking at how far they are."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from node.errors import InvalidRequest, NotFound
from node.ledger import Fetch, Ledger
from node.logs import printable
from node.records import is_uid
from node.signin import Session, TokenDoor, form

_SHOWN = 50
_MOST_SERIES = 500
_MOST_BYTES = 65536


class Orders:
    """Takes what people ask to have fetched.

    Parameters
    ----------
    archives
        Names, as the settings have them.
    asked
        Called with the name of an archive when there is something to fetch from it.
    """

    def __init__(
        self,
        ledger: Ledger,
        archives: Sequence[str] = (),
        asked: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._ledger = ledger
        self.archives = tuple(archives)
        self._asked = asked

    def ask(self, archive: str, study_uid: str, series_uids: Sequence[str], by: str, now: float) -> Fetch:
        """Have a study, or the series of it that are named, fetched.

        Raises
        ------
        NotFound
            No archive has this name; the nearest that there is is named.
        InvalidRequest
            A UID is none, or too many series are named.
        Permanent
            Too many fetches are open.
        """
        if archive not in self.archives:
            near = difflib.get_close_matches(archive, self.archives, 1, 0.4)
            known = f"did you mean {near[0]}?" if near else f"there are: {', '.join(self.archives)}"
            step = known if self.archives else "name one in the settings, in [[archives]]"
            raise NotFound(f"no archive is called {printable(archive, 32)!r}", step)
        for what, uid in (("study", study_uid), *(("series", uid) for uid in series_uids)):
            if not is_uid(uid):
                raise InvalidRequest(
                    f"{printable(uid)!r} is no UID of a {what}", "a UID is digits and dots, at most 64 characters"
                )
        if len(series_uids) > _MOST_SERIES:
            raise InvalidRequest(f"more than {_MOST_SERIES} series are named", "name none to fetch all of the study")
        asked = self._ledger.ask_fetch(archive, study_uid, series_uids, by, now)
        self._asked(archive)
        return asked


class Render(Protocol):
    """Makes a page of a template."""

    def __call__(self, request: Request, template: str, status: int = 200, **facts: Any) -> Response:
        """Return the page."""


class FetchSite:
    """The page of fetches, and its JSON.

    Parameters
    ----------
    render, signed_in
        Make a page, and return the session of who asks or lead to the sign-in page.
    authorise
        Raises unless the request bears the token.
    """

    def __init__(
        self,
        ledger: Ledger,
        orders: Orders,
        door: TokenDoor,
        now: Callable[[], float],
        *,
        render: Render,
        signed_in: Callable[[Request], Session],
        authorise: Callable[[Request], None],
    ) -> None:
        self._ledger = ledger
        self._orders = orders
        self._door = door
        self._now = now
        self._render = render
        self._signed_in = signed_in
        self._authorise = authorise

    def routes(self) -> list[Route]:
        """Return all of it."""
        return [
            Route("/fetches", self.page),
            Route("/fetches", form(self.ask_by_form), methods=["POST"]),
            Route("/fetches/{number}/{verb}", form(self.change), methods=["POST"]),
            Route("/api/fetches", self.listing),
            Route("/api/fetches", self.ask, methods=["POST"]),
            Route("/api/fetches/{number}", self.one),
            Route("/api/fetches/{number}/cancel", self.cancel, methods=["POST"]),
        ]

    def page(self, request: Request) -> Response:
        """Show what was fetched and is being fetched, and ask for more."""
        session = self._signed_in(request)
        fetches, archives = self._ledger.fetches(_SHOWN), self._orders.archives
        return self._render(request, "fetches.html", session=session, fetches=fetches, archives=archives)

    def ask_by_form(self, request: Request, fields: dict[str, str]) -> Response:
        """Take the form of the page; series are divided by spaces or commas."""
        if self._door.session_of_form(request, fields) is None:
            return RedirectResponse("/login", 303)
        series = re.split(r"[\s,\\]+", fields.get("series", "").strip())
        named = [uid for uid in series if uid]
        self._orders.ask(fields.get("archive", ""), fields.get("study", "").strip(), named, _who(request), self._now())
        return RedirectResponse("/fetches", 303)

    def change(self, request: Request, fields: dict[str, str]) -> Response:
        """Stop a fetch, or ask for the same again."""
        if self._door.session_of_form(request, fields) is None:
            return RedirectResponse("/login", 303)
        number = _number(request)
        match request.path_params["verb"]:
            case "cancel":
                self._ledger.cancel_fetch(number, _who(request), self._now())
            case "again":
                old = self._ledger.fetch(number)
                self._orders.ask(old.archive, old.study_uid, old.wanted, _who(request), self._now())
            case _:
                raise HTTPException(404)
        return RedirectResponse("/fetches", 303)

    def listing(self, request: Request) -> Response:
        """Answer fetches, newest first."""
        self._authorise(request)
        fetches = [one.to_json() for one in self._ledger.fetches(_SHOWN)]
        return JSONResponse({"fetches": fetches, "archives": list(self._orders.archives)})

    def one(self, request: Request) -> Response:
        """Answer one fetch."""
        self._authorise(request)
        return JSONResponse({"fetch": self._ledger.fetch(_number(request)).to_json()})

    def cancel(self, request: Request) -> Response:
        """Stop a fetch."""
        self._authorise(request)
        cancelled = self._ledger.cancel_fetch(_number(request), _who(request), self._now())
        return JSONResponse({"fetch": cancelled.to_json()})

    async def ask(self, request: Request) -> Response:
        """Take ``{"archive": NAME, "study": UID, "series": [UID...], "by": WHO}``; the last two may be left out."""
        await run_in_threadpool(self._authorise, request)
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > _MOST_BYTES:
                raise HTTPException(413, "The question is too large.")
        try:
            asked = json.loads(body)
            series = asked.get("series") or []
            texts = [asked["archive"], asked["study"], asked.get("by") or "", *series]
            if not isinstance(series, list) or not all(isinstance(text, str) for text in texts):
                raise TypeError
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise HTTPException(400, 'Send {"archive": NAME, "study": UID, "series": [UID...]}.') from error
        by = printable(asked.get("by") or _who(request))
        found = await run_in_threadpool(
            self._orders.ask, asked["archive"], asked["study"].strip(), series, by, self._now()
        )
        return JSONResponse({"fetch": found.to_json()}, 202)


def _who(request: Request) -> str:
    return f"web {request.client.host}" if request.client else "web"


def _number(request: Request) -> int:
    text: str = request.path_params["number"]
    if not re.fullmatch("[0-9]{1,9}", text):
        raise NotFound("that is no number of a fetch", "the list shows all fetches")
    return int(text)
