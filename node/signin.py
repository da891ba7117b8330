"""Who may open the admin page: the host guard, forms from this site only, tokens, and sessions kept in memory."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import secrets
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# One working day; closing the browser ends it earlier.
SESSION_S = 12 * 3600.0
ATTEMPTS_PER_MINUTE = 10
STOW_PATH = "/dicom-web"
_FORM_BYTES = 8192
# Within this the fields of a form must have come.
FORM_S = 10.0
_SESSIONS = 1000
_CLIENTS = 10_000
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?::([0-9]{1,5}))?")
_OWN_PAGE = re.compile(r"/(peers|services|fetches|jobs/[0-9A-Za-z-]{1,64})?")


def own_page(path: str) -> str:
    """Return `path` if it is a page to go to after signing in, else ``/``: never another site."""
    return path if _OWN_PAGE.fullmatch(path) else "/"


def security_headers(nonce: str) -> dict[str, str]:
    """Return what every answer carries; inline style and script run only with this `nonce`."""
    return {
        "Content-Security-Policy": f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        # Not no-referrer: under it browsers send "Origin: null" along with our own forms.
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


_STRANGER = PlainTextResponse(
    "This node does not answer to that name. Open the page by the node's IP address.\n", status_code=400
)


class Guard:
    """Outermost middleware: refuses unknown Host names, and puts the security headers on every answer.

    A foreign site can make a browser send requests here under the foreign *name* (DNS rebinding), never under an IP
    address; so addresses pass, and names must be known. Probes of ``/health`` may use any name, and so may STOW-RS,
    which asks for a token that no browser holds.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        nonce = secrets.token_urlsafe(16)
        scope.setdefault("state", {})["nonce"] = nonce

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(security_headers(nonce))
            await send(message)

        free = scope["path"] == "/health" or scope["path"].startswith(f"{STOW_PATH}/")
        known = free or self._knows(Headers(scope=scope).get("host", ""))
        await (self._app if known else _STRANGER)(scope, receive, guarded)

    def _knows(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if not found or int(found[2] or 0) > 65535:
            return False
        name = found[1].strip("[]").lower()
        try:
            return name in self._names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def form(work: Callable[[Request, dict[str, str]], Response]) -> Callable[[Request], Awaitable[Response]]:
    """Make an endpoint of `work`, which takes the fields of a small form that a page of this site sent."""

    async def endpoint(request: Request) -> Response:
        if urlsplit(request.headers.get("origin", "")).netloc != request.headers.get("host"):
            raise HTTPException(403, "The form was sent from another site, or a proxy changed the Host header.")
        body = b""
        try:
            async with asyncio.timeout(FORM_S):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > _FORM_BYTES:
                        raise HTTPException(413, "The form is too large.")
        except TimeoutError:
            raise HTTPException(408, "The form did not come whole in time.", {"Connection": "close"}) from None
        return await run_in_threadpool(work, request, dict(parse_qsl(body.decode("utf-8", "replace"))))

    return endpoint


@dataclass(frozen=True)
class Session:
    """One signed-in browser. `csrf` is repeated by its forms, so that no other page can send them."""

    id: str
    csrf: str
    until: float


class TokenDoor:
    """Checks tokens, at most ten wrong ones per minute and client, and keeps the sessions.

    Sessions live in memory: a restart of the node signs everybody out, and a stolen disk holds none.
    """

    def __init__(self, token: str, link_token: str, now: Callable[[], float]) -> None:
        self._token = token
        self._link_token = link_token
        self._now = now
        self._lock = threading.Lock()
        self._link_used = False
        self._sessions: dict[str, Session] = {}
        self._wrong: dict[str, list[float]] = {}

    def token_fits(self, request: Request, given: str) -> bool:
        """Tell whether `given` is the token.

        Raises
        ------
        HTTPException
            429: this client sent too many wrong ones within the last minute.
        """
        return self._fits(request, given, self._token)

    def link_fits(self, request: Request, given: str) -> bool:
        """Tell whether `given` is what the sign-in link holds; true once. Raises as `token_fits` does."""
        with self._lock:
            if self._link_used:
                return False
        if not self._fits(request, given, self._link_token):
            return False
        with self._lock:
            first, self._link_used = not self._link_used, True
        return first

    def _fits(self, request: Request, given: str, expected: str) -> bool:
        client = request.client.host if request.client else ""
        now = self._now()
        with self._lock:
            recent = [at for at in self._wrong.get(client, []) if now - at < 60]
            if len(recent) >= ATTEMPTS_PER_MINUTE:
                raise HTTPException(429, "Too many wrong tokens. Wait a minute.", {"Retry-After": "60"})
            if hmac.compare_digest(given.encode(), expected.encode()):
                return True
            if len(self._wrong) >= _CLIENTS:
                self._wrong = {who: times for who, times in self._wrong.items() if now - times[-1] < 60}
            self._wrong[client] = [*recent, now]
        return False

    def sign_in(self, request: Request, path: str) -> Response:
        """Open a session and go to `path`."""
        now = self._now()
        session = Session(secrets.token_urlsafe(32), secrets.token_urlsafe(32), now + SESSION_S)
        with self._lock:
            alive = [s for s in self._sessions.values() if s.until > now][-_SESSIONS + 1 :]
            self._sessions = {s.id: s for s in (*alive, session)}
        response = RedirectResponse(path, 303)
        secure = request.url.scheme == "https"
        response.set_cookie(_cookie(request), session.id, httponly=True, samesite="strict", secure=secure)
        return response

    def session(self, request: Request) -> Session | None:
        """Return the session of the browser that asks, if it has one."""
        session = self._sessions.get(request.cookies.get(_cookie(request), ""))
        return session if session and session.until > self._now() else None

    def session_of_form(self, request: Request, fields: dict[str, str]) -> Session | None:
        """Return the session a form belongs to.

        Raises
        ------
        HTTPException
            403: the form does not repeat the session's secret.
        """
        session = self.session(request)
        if session and not hmac.compare_digest(fields.get("csrf", "").encode(), session.csrf.encode()):
            raise HTTPException(403, "This form belongs to an earlier sign-in. Open the page again.")
        return session

    def sign_out(self, request: Request, session: Session | None) -> Response:
        """End `session` and go to the sign-in page."""
        with self._lock:
            if session:
                self._sessions.pop(session.id, None)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(_cookie(request), httponly=True, samesite="strict")
        return response


def _cookie(request: Request) -> str:
    # Browsers keep cookies by host without the port: two nodes behind tunnels on localhost would sign each other out.
    return f"pennode_{request.url.port or 'session'}"
