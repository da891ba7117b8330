"""A worker's only door to the node: its worker API over HTTP."""

from __future__ import annotations

import logging
import ssl
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import httpx

from node.bundle import pack_result
from node.errors import (
    ConfigurationError,
    InvalidResult,
    LeaseLost,
    NodeUnavailable,
    NotFound,
    OutOfDisk,
    PennodeError,
    Permanent,
)
from node.records import Claim, is_uid

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# A node that restarts is back within seconds; a result is worth waiting much longer for.
_PATIENCE_S = 120.0
_FIRST_PAUSE_S = 0.25
_EARLIER = "earlier.dcm"  # no UID, as images are named
_LONGEST_PAUSE_S = 5.0


class NodeClient:
    """Speaks to one node. Safe to use from several threads.

    Raises
    ------
    NodeUnavailable
        By every method, when the node cannot be reached or answers that it is in trouble.
    LeaseLost
        By the methods that take a `Claim`, when it is worth nothing any more.
    """

    def __init__(self, url: str, token: str, ca_file: Path | None = None, patience_s: float = _PATIENCE_S) -> None:
        try:
            verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=ca_file) if ca_file else True
        except OSError as error:
            raise ConfigurationError(f"worker.ca_file cannot be read ({error.strerror})", "check the path") from error
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=_TIMEOUT,
            verify=verify,
            trust_env=False,
        )
        self._patience_s = patience_s

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def greet(self, worker: str, version: str, device: str, model: str) -> None:
        """Tell the node that this worker lives."""
        self._call("POST", "/v1/workers", json={"worker": worker, "version": version, "device": device, "model": model})

    def claim(self, job_id: str, worker: str) -> Claim | None:
        """Claim a job; None when it is not to be had, which is normal."""
        try:
            response = self._patiently(lambda: self._call("POST", _job(job_id, "claim"), json={"worker": worker}))
        except LeaseLost:
            return None
        told = response.json()
        return Claim(**{**told, "forms": tuple(told["forms"])})

    def heartbeat(self, claim: Claim, progress: float) -> None:
        """Renew the lease of a claim; `progress` runs from 0 to 1."""
        self._call("POST", _job(claim.job_id, "heartbeat"), json={"fence": claim.fence, "progress": progress})

    def fetch_input(self, claim: Claim, folder: Path) -> list[Path]:
        """Download the job's images into `folder`."""
        return self._patiently(lambda: self._fetch(claim, folder))

    def _fetch(self, claim: Claim, folder: Path) -> list[Path]:
        paths: list[Path] = []
        try:
            with self._http.stream("GET", _job(claim.job_id, "input"), params={"fence": claim.fence}) as response:
                if response.status_code >= 400:
                    response.read()
                _check(response)
                with tarfile.open(fileobj=cast("IO[bytes]", _Stream(response.iter_raw())), mode="r|") as tar:
                    for entry in tar:
                        if not entry.isfile() or not is_uid(entry.name.removesuffix(".dcm")):
                            raise Permanent("the node sent something that is no image", "check the node's version")
                        paths.append(_extract(tar, entry, folder))
        except (httpx.HTTPError, tarfile.TarError, EOFError) as error:
            raise _unreachable(error) from error
        if len(paths) != claim.instances:
            raise NodeUnavailable(f"the node sent {len(paths)} of {claim.instances} images", "it is tried again")
        return paths

    def fetch_earlier(self, claim: Claim, folder: Path) -> Path | None:
        """Download a Segmentation to compare the job's with into `folder`; None where the node has none."""
        return self._patiently(lambda: self._fetch_earlier(claim, folder))

    def _fetch_earlier(self, claim: Claim, folder: Path) -> Path | None:
        path = folder / _EARLIER
        try:
            with self._http.stream("GET", _job(claim.job_id, "earlier"), params={"fence": claim.fence}) as response:
                if response.status_code >= 400:
                    response.read()
                _check(response)
                if response.status_code == 204:
                    return None
                _save(response.iter_raw(), path)
        except NotFound:  # a node that is older than this worker has none to give
            return None
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        return path

    def send_result(self, claim: Claim, objects: Iterable[tuple[str, str, bytes]], facts: dict[str, Any]) -> None:
        """Upload `(key of the recipe, SOP Instance UID, Part-10 bytes)` objects; saying it twice is harmless."""
        listed = list(objects)

        def put() -> httpx.Response:
            content = pack_result(listed, facts)
            return self._call("PUT", _job(claim.job_id, "result"), params={"fence": claim.fence}, content=content)

        self._patiently(put)

    def fail(self, claim: Claim, kind: str, stage: str, reason: str, next_step: str) -> None:
        """Give the job back as ``retryable``, ``rejected`` or ``failed``."""
        said = {
            "fence": claim.fence,
            "kind": kind,
            "stage": stage,
            "reason": reason[:2000],
            "next_step": next_step[:2000],
        }
        self._patiently(lambda: self._call("POST", _job(claim.job_id, "fail"), json=said))

    def _call(self, method: str, url: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, url, **arguments)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        _check(response)
        return response

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """Repeat a call while the node is away, for as long as a lease is likely to hold."""
        give_up, pause = time.monotonic() + self._patience_s, _FIRST_PAUSE_S
        while True:
            try:
                return call()
            except NodeUnavailable as error:
                if time.monotonic() + pause > give_up:
                    raise
                log.warning("%s; trying again in %.1f s", error, pause)
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)


class Heartbeat:
    """Keeps a claim alive from a thread of its own while the work goes on in another.

    Use as a context manager. `report` notes the progress; `check` raises `LeaseLost` once the claim is worth nothing.
    """

    def __init__(self, client: NodeClient, claim: Claim) -> None:
        self._client = client
        self._claim = claim
        self._progress = 0.0
        self._lost: LeaseLost | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=5.0)

    def report(self, done: int, total: int) -> None:
        """Note how far the work is, and stop it if it is for nothing.

        Raises
        ------
        LeaseLost
            The job was taken back, cancelled or superseded.
        """
        self._progress = min(1.0, done / max(total, 1))
        self.check()

    def check(self) -> None:
        """Raise `LeaseLost` if the claim is worth nothing any more."""
        if self._lost is not None:
            raise self._lost

    def _beat(self) -> None:
        pause = min(self._claim.lease_s / 3, 5.0)
        while not self._done.wait(pause):
            try:
                self._client.heartbeat(self._claim, self._progress)
            except LeaseLost as error:
                self._lost = error
                return
            except NodeUnavailable as error:
                log.warning("heartbeat: %s", error)
            except PennodeError as error:
                self._lost = LeaseLost(error.reason, error.next_step)
                return


class _Stream:
    """Lets tarfile read from an iterator of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int) -> bytes:
        parts, have = [self._rest], len(self._rest)
        while have < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            parts.append(chunk)
            have += len(chunk)
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]


def _job(job_id: str, verb: str) -> str:
    return f"/v1/jobs/{job_id}/{verb}"


def _extract(tar: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> Path:
    path = folder / entry.name
    source = tar.extractfile(entry)
    assert source is not None
    _save(iter(lambda: source.read(1 << 20), b""), path)
    return path


def _save(chunks: Iterable[bytes], path: Path) -> None:
    try:
        with path.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
    except OSError as error:
        raise OutOfDisk(f"the worker's temporary folder cannot be written ({error.strerror})", "free space") from error


def _unreachable(error: Exception) -> NodeUnavailable:
    return NodeUnavailable(
        f"the node does not answer ({type(error).__name__})", "check that it runs, and worker.node_url"
    )


def _check(response: httpx.Response) -> None:
    if response.status_code < 400:
        return
    try:
        told = response.json()
        reason, next_step = str(told["reason"]), str(told["next_step"])
    except (ValueError, KeyError, TypeError):
        reason, next_step = f"the node answered {response.status_code}", "check that worker.node_url is the worker API"
    match response.status_code:
        case 409:
            raise LeaseLost(reason, next_step)
        case 404:
            raise NotFound(reason, next_step)
        case 422:
            raise InvalidResult(reason, next_step)
        case 401:
            raise ConfigurationError(reason, next_step)
        case status if status >= 500:
            raise NodeUnavailable(reason, next_step)
        case _:
            raise Permanent(reason, next_step)
