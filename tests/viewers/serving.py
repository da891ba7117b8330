"""OHIF as a hospital would serve it: its files, a configuration, and the PACS's DICOMweb below the same origin."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

# The browser shares memory between threads, as cornerstone's decoders do, only in pages that are isolated so.
_ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
_PASSED_ON = ("accept", "content-type")


def create_app(files: Path, configuration: Path, pacs: str) -> Starlette:
    """Return OHIF's `files` with `configuration` as its app-config.js, and `pacs`, an URL, at /dicom-web."""

    async def pass_on(request: Request) -> Response:
        target = httpx.URL(pacs).copy_with(path=request.url.path, query=request.url.query.encode())
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        body = await request.body()
        async with httpx.AsyncClient(timeout=60, trust_env=False, verify=False) as client:  # it is plain HTTP
            answer = await client.request(request.method, target, headers=headers, content=body)
        kind = answer.headers.get("content-type", "application/octet-stream")
        return Response(answer.content, answer.status_code, {"Content-Type": kind})

    async def configure(_: Request) -> Response:
        return FileResponse(configuration, media_type="text/javascript", headers=_ISOLATED)

    async def file(request: Request) -> Response:
        wanted = (files / request.path_params["path"]).resolve()
        if not wanted.is_file() or not wanted.is_relative_to(files.resolve()):
            wanted = files / "index.html"  # OHIF's own routes, such as /viewer
        return FileResponse(wanted, headers=_ISOLATED)

    return Starlette(
        routes=[
            Route("/dicom-web/{path:path}", pass_on, methods=["GET", "POST"]),
            Route("/app-config.js", configure),
            Route("/{path:path}", file),
        ]
    )


@contextlib.contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """Serve an application on loopback for the length of the block; yield its URL."""
    config = uvicorn.Config(app, port=0, log_config=None, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the web server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
