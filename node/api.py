"""The worker API: claim, heartbeat, input, result and failure over HTTP, under one shared token.

Workers need this one address only; they open neither ledger nor spool nor a DICOM association.
"""

from __future__ import annotations

import hmac
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from node.apirequests import Beat, ClaimRequest, Failure, Greeting
from node.bundle import tar_stream, unpack_result
from node.errors import InvalidResult, LeaseLost, NotFound, OutOfDisk, PennodeError, Permanent, Retryable
from node.forms import demanded, rungs
from node.inspection import Origin
from node.ledger import Ledger
from node.logs import printable
from node.records import Job, Result, Worker
from node.settings import Api, Destination, Dispatch
from node.spool import Spool
from node.states import JobState

log = logging.getLogger(__name__)

_STATUS: list[tuple[type[PennodeError], int]] = [
    (LeaseLost, 409),
    (NotFound, 404),
    (InvalidResult, 422),
    (OutOfDisk, 507),
    (Retryable, 503),
    (Permanent, 400),
]


class WorkerApi:
    """The handlers, bound to what they need.

    Parameters
    ----------
    finished
        Called after results were taken, so that delivery need not wait for its next round.
    """

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool,
        settings: Api,
        rules: Dispatch,
        destinations: Sequence[Destination],
        finished: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._settings = settings
        self._rules = rules
        self._destinations = {d.name: [r.key for r in rungs(d)[0]] for d in destinations}
        self._demanded = tuple(recipe.key for recipe in demanded(destinations))
        self._finished = finished
        self._started_at = time.time()

    async def greet(self, request: Request) -> Response:
        """Note that a worker lives."""
        asked = Greeting.model_validate_json(await request.body())
        seen = Worker(asked.worker, time.time(), asked.version, asked.device, asked.model, asked.models)
        await run_in_threadpool(self._ledger.worker_seen, seen)
        return Response(status_code=204)

    async def claim(self, request: Request) -> Response:
        """Give the job out under a new fence; 409 when it is not to be had."""
        asked = ClaimRequest.model_validate_json(await request.body())
        claim = await run_in_threadpool(
            self._ledger.claim,
            request.path_params["job_id"],
            asked.worker,
            lease_s=self._rules.lease_s,
            max_attempts=self._rules.max_attempts,
            now=time.time(),
            served=asked.models,
            retry_after_s=self._rules.retry_after_s,
        )
        if claim is None:
            return _problem(409, "the job is not to be had", "")
        log.info("claimed job=%s fence=%d by=%s", claim.job_id, claim.fence, printable(asked.worker))
        return JSONResponse(replace(claim, forms=self._demanded).to_json())

    async def heartbeat(self, request: Request) -> Response:
        """Renew the lease."""
        beat = Beat.model_validate_json(await request.body())
        await run_in_threadpool(
            self._ledger.heartbeat,
            request.path_params["job_id"],
            beat.fence,
            lease_s=self._rules.lease_s,
            progress=beat.progress,
            now=time.time(),
        )
        return Response(status_code=204)

    async def input(self, request: Request) -> Response:
        """Stream the job's images as a tar of Part-10 files."""
        paths = await run_in_threadpool(self._ledger.input_paths, request.path_params["job_id"], _fence(request))
        for _, relative in paths:
            self._spool.open_size(relative)
        files = [(f"{sop_uid}.dcm", self._spool.path(relative)) for sop_uid, relative in paths]
        return StreamingResponse(tar_stream(files), media_type="application/x-tar")

    async def earlier(self, request: Request) -> Response:
        """Send the newest earlier segmentation of the same frame of reference, as one Part-10 file; 204: there is none.

        The node knows no patients: the worker has to see whether it is the same one.
        """
        job_id, fence = request.path_params["job_id"], _fence(request)
        relative = await run_in_threadpool(self._ledger.earlier_result, job_id, fence)
        try:
            if relative is not None:
                self._spool.open_size(relative)
        except NotFound:
            log.warning("an earlier result for job=%s is not in the spool any more", printable(job_id))
            relative = None
        if relative is None:
            return Response(status_code=204)
        return FileResponse(self._spool.path(relative), media_type="application/dicom")

    async def result(self, request: Request) -> Response:
        """Take the result bundle: to disk first, then into the ledger."""
        job_id, fence = request.path_params["job_id"], _fence(request)
        scratch = await run_in_threadpool(self._spool.scratch)
        try:
            await self._receive(request, scratch / "bundle.tar")
            await run_in_threadpool(self._take, job_id, fence, scratch)
        finally:
            await run_in_threadpool(shutil.rmtree, scratch, ignore_errors=True)
        self._finished()
        return Response(status_code=204)

    async def fail(self, request: Request) -> Response:
        """Take a failure report."""
        job_id, said = request.path_params["job_id"], Failure.model_validate_json(await request.body())
        await run_in_threadpool(self._fail, job_id, said)
        log.warning("job=%s %s at %s: %s", printable(job_id), said.kind, said.stage, said.reason[:300])
        return Response(status_code=204)

    def _fail(self, job_id: str, said: Failure) -> None:
        now = time.time()
        if said.kind == "retryable":
            self._ledger.give_back(
                job_id, said.fence, said.stage, said.reason, retry_after_s=self._rules.retry_after_s,
                max_attempts=self._rules.max_attempts, now=now,
            )  # fmt: skip
        else:
            state = JobState.REJECTED if said.kind == "rejected" else JobState.FAILED
            self._ledger.fail(job_id, said.fence, state, said.stage, said.reason, said.next_step, now=now)

    async def _receive(self, request: Request, target: Path) -> None:
        limit, size = self._settings.max_result_mb * 1_000_000, 0
        try:
            with target.open("wb") as file:
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > limit:
                        raise InvalidResult("the result is larger than api.max_result_mb", "raise it, if that is right")
                    await run_in_threadpool(file.write, chunk)
        except OSError as error:
            raise OutOfDisk(f"the result cannot be stored ({error.strerror})", "free some space") from error

    def _take(self, job_id: str, fence: int, scratch: Path) -> None:
        found = self._ledger.job(job_id)
        origin = Origin(found.study_uid, found.series_uid, self._ledger.source_uids(found.id))
        try:
            files, manifest = unpack_result(scratch / "bundle.tar", scratch, origin, self._demanded)
        except InvalidResult:
            self._give_back_if_older(found, fence)
            raise
        model, note = printable(str(manifest.get("model", "")), 200), printable(str(manifest.get("note", "")), 500)
        if found.wanted_model and model.partition(" ")[0] != found.wanted_model:
            raise InvalidResult(
                f"the result is of model {model[:64]!r}, not of {found.wanted_model}", "check the worker"
            )
        results = [
            Result(
                sop_uid=f.sop_uid, sop_class_uid=f.sop_class_uid, job_id=found.id,
                path=self._spool.store_result(found.id, fence, f.sop_uid, f.sha256, f.path), size=f.size,
                sha256=f.sha256, form=f.form,
            )
            for f in files
        ]  # fmt: skip
        try:
            self._ledger.finish(
                found.id, fence, results, self._destinations, model=model, note=note or "segmented", now=time.time()
            )
        except LeaseLost:
            self._spool.remove_results(found.id, fence)
            raise
        log.info("segmented job=%s objects=%d", found.id, len(results))

    def _give_back_if_older(self, found: Job, fence: int) -> None:
        """Have a job done again that was claimed before this start: it was told what destinations wanted then.

        Raises
        ------
        LeaseLost
            It was.
        """
        if found.state is JobState.RUNNING and found.updated_at < self._started_at:
            self._ledger.give_back(
                found.id, fence, "result", "it was claimed before the node started anew, and does not fit any more",
                retry_after_s=0.0, max_attempts=self._rules.max_attempts, now=time.time(),
            )  # fmt: skip
            raise LeaseLost("the node was started anew, and the job is done again")


def _fence(request: Request) -> int:
    given = request.query_params.get("fence", "")
    if not (given.isascii() and given.isdecimal() and len(given) < 10):
        raise Permanent("the request names no fence", "add ?fence=N")
    return int(given)


def _problem(status: int, reason: str, next_step: str) -> JSONResponse:
    return JSONResponse({"reason": reason, "next_step": next_step}, status_code=status)


async def _pennode_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PennodeError)
    status = next(code for kind, code in _STATUS if isinstance(error, kind))
    return _problem(status, error.reason, error.next_step)


async def _malformed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    fields = ", ".join(sorted({".".join(map(str, e["loc"])) or "body" for e in error.errors()}))
    return _problem(400, f"the request's {fields} does not fit", "worker and node must be of the same version")


class _TokenRequired:
    """Lets only requests through that carry the token."""

    def __init__(self, app: Callable[..., Awaitable[None]], token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                await _problem(401, "the worker's token is not the node's", "set worker.token")(scope, receive, send)
                return
        await self._app(scope, receive, send)


def create_app(api: WorkerApi, token: str) -> Starlette:
    """Return the worker API as an ASGI application."""
    job = "/v1/jobs/{job_id:str}"
    app = Starlette(
        routes=[
            Route("/v1/workers", api.greet, methods=["POST"]),
            Route(f"{job}/claim", api.claim, methods=["POST"]),
            Route(f"{job}/heartbeat", api.heartbeat, methods=["POST"]),
            Route(f"{job}/input", api.input, methods=["GET"]),
            Route(f"{job}/earlier", api.earlier, methods=["GET"]),
            Route(f"{job}/result", api.result, methods=["PUT"]),
            Route(f"{job}/fail", api.fail, methods=["POST"]),
        ],
        exception_handlers={PennodeError: _pennode_error, ValidationError: _malformed},
    )
    app.add_middleware(_TokenRequired, token=token)
    return app
