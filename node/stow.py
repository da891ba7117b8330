"""STOW-RS (PS3.18 section 10.5): images by HTTP, into the same spool and ledger, by the same rules as C-STORE.

Everything a request's head tells is judged before a byte of its body is read. While one runs it is an association: its
end stands for the release. Whatever blocks runs in threads, one at a time for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import Iterator, Sequence
from email.message import Message
from typing import NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from node import statuses, storeresponse
from node.body import RequestBody, RequestTooSlow
from node.errors import InvalidRequest, RequestTooLarge
from node.listener import Door
from node.multipart import Multipart
from node.records import is_uid
from node.settings import Listener, Web
from node.signin import STOW_PATH, TokenDoor
from node.transaction import DICOM, Outcome, Transaction

log = logging.getLogger(__name__)

CALLING_AE = "STOW"
_TAKEN = f'multipart/related; type="{DICOM}", or {DICOM}'
# Asked of a client that is to come again later.
_RETRY_S = "30"
# What a refused client may still send, and how long, before its connection is closed under it: it sees its answer then.
_LINGER_S, _LINGER_BYTES = 1.0, 1 << 20


class _Target(NamedTuple):
    """What the head of a request asks for."""

    study_uid: str
    parser: Multipart | None
    media_type: str


class OriginServer:
    """The ASGI endpoint that `routes` leads to.

    Parameters
    ----------
    token
        What ``Authorization: Bearer`` must hold; no cookie counts, so no other site can have a browser store here.
    """

    def __init__(self, door: Door, settings: Web, limits: Listener, token: str) -> None:
        self._door = door
        self._settings = settings
        self._limits = limits
        self._tokens = TokenDoor(token, token, time.time)
        self._served = 0

    def routes(self) -> list[Route]:
        """Return the resources of PS3.18 table 10.5.1-1, both to be POSTed to."""
        paths = (f"{STOW_PATH}/studies", f"{STOW_PATH}/studies/{{study}}")
        return [Route(path, self, methods=["POST"]) for path in paths]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        address = _address(request)
        body = RequestBody(
            receive, self._settings.max_stow_mb * 1_000_000, self._limits.min_rate, self._limits.pdu_timeout_s
        )
        try:
            response = await self._answer(request, body, address)
        except HTTPException as error:
            log.warning("refused a STOW-RS request from %s: %s (HTTP %d)", address, error.detail, error.status_code)
            response = PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)
        except ClientDisconnect:
            log.warning("a STOW-RS request from %s broke off: what had not come whole is dropped", address)
            return
        await (response(scope, receive, send) if body.whole else _answer_and_close(response, receive, send))

    async def _answer(self, request: Request, body: RequestBody, address: str) -> Response:
        started = time.monotonic()
        target = self._judge(request)
        with self._place():
            if await run_in_threadpool(self._door.reception.is_short_of_disk):
                raise _busy("less disk is free than listener.free_floor_mb")
            outcomes, trouble = await self._store(target, body, address)
        stored = sum(outcome.status == statuses.SUCCESS for outcome in outcomes)
        if trouble and not stored:
            raise trouble
        if trouble:
            log.warning("a STOW-RS request from %s ended early: %s", address, trouble.detail)
        status = storeresponse.http_status(outcomes)
        log.info(
            "STOW-RS from=%s status=%d stored=%d failed=%d bytes=%d seconds=%.3f",
            address, status, stored, len(outcomes) - stored, body.size, time.monotonic() - started,
        )  # fmt: skip
        headers = {"Retry-After": _RETRY_S} if status == 503 else None
        return Response(storeresponse.encode(outcomes, target.media_type), status, headers, target.media_type)

    def _judge(self, request: Request) -> _Target:
        headers = request.headers
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._tokens.token_fits(request, given.strip()):
            hint = "Send the header Authorization: Bearer TOKEN, with the token of web.stow_token."
            raise HTTPException(401, hint, {"WWW-Authenticate": "Bearer"})
        study_uid = request.path_params.get("study", "")
        if study_uid and not is_uid(study_uid):
            raise HTTPException(400, "The study in the path is no UID.")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, "Send the body without Content-Encoding.", {"Accept-Encoding": "identity"})
        parser = _parser(headers.get("content-type", ""))
        media_type = storeresponse.negotiate(headers.get("accept", ""))
        if media_type is None:
            raise HTTPException(406, f"Answers are {storeresponse.JSON} or {storeresponse.XML}.")
        if int(headers.get("content-length", 0)) > self._settings.max_stow_mb * 1_000_000:
            raise HTTPException(413, "The request is larger than web.max_stow_mb: send fewer objects at a time.")
        if not self._door.is_listening():
            raise _busy("the node starts or stops")
        return _Target(study_uid, parser, media_type)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self._served >= self._settings.max_stow_requests:
            raise _busy("web.max_stow_requests are being served")
        self._served += 1
        try:
            yield
        finally:
            self._served -= 1

    async def _store(
        self, target: _Target, body: RequestBody, address: str
    ) -> tuple[Sequence[Outcome], HTTPException | None]:
        """Return what became of the parts, and what ended the body early, which is then the last outcome."""
        trouble, status = None, statuses.CANNOT_UNDERSTAND
        with self._door.web_association(CALLING_AE, address, target.study_uid) as origin:
            transaction = Transaction(
                self._door.reception, origin, target.parser, self._settings.max_stow_parts,
                self._limits.max_object_mb * 1_000_000,
            )  # fmt: skip
            try:
                async for piece in body:
                    await run_in_threadpool(transaction.feed, piece)
                await run_in_threadpool(transaction.finish)
            except InvalidRequest as error:
                trouble = HTTPException(400, str(error))
            except RequestTooSlow as error:
                trouble = HTTPException(408, str(error))
            except RequestTooLarge as error:
                trouble, status = HTTPException(413, str(error)), statuses.OUT_OF_RESOURCES
            finally:
                transaction.close()
        outcomes = transaction.outcomes
        return ([*outcomes, Outcome("", "", status, trouble.detail)] if trouble else outcomes), trouble


def _busy(reason: str) -> HTTPException:
    return HTTPException(503, f"Not now: {reason}.", {"Retry-After": _RETRY_S})


def _address(request: Request) -> str:
    """Return the client's address; behind a proxy it is the proxy's word, and may be any text."""
    try:
        return str(ipaddress.ip_address(request.client.host if request.client else ""))
    except ValueError:
        return "unknown"


def _parser(content_type: str) -> Multipart | None:
    """Return the parser for a body of parts; None: the body is one object."""
    fields = Message()
    fields["content-type"] = content_type
    kind = fields.get_content_type()
    if kind == DICOM:
        return None
    of = str(fields.get_param("type", DICOM)).partition(";")[0].strip().lower()
    if kind != "multipart/related" or of != DICOM:
        raise HTTPException(415, f"Send objects as {_TAKEN}; metadata with bulk data is not taken.", {"Accept": _TAKEN})
    boundary = fields.get_param("boundary", "")
    try:
        return Multipart(boundary if isinstance(boundary, str) else "")
    except InvalidRequest as error:
        raise HTTPException(400, str(error)) from error


async def _answer_and_close(response: Response, receive: Receive, send: Send) -> None:
    """Answer before the body has come, and end the connection; not at once, or its reset may overtake the answer."""
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    left = _LINGER_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
            else:
                await asyncio.sleep(
                    _LINGER_S
                )  # unread, the rest keeps the client waiting, and it may look for the answer
    await send({"type": "http.response.body", "body": b"", "more_body": False})
