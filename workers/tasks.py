"""The one task: take a job, segment its series, bring the result. Here is the system's one broad catch."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from node.errors import (
    Damaged,
    DeviceLost,
    EngineFailure,
    InvalidInstance,
    LeaseLost,
    PennodeError,
    Retryable,
    Unsuitable,
)
from node.forms import Recipe
from node.records import Claim
from workers.benches import Bench, Benches
from workers.nodeclient import Heartbeat, NodeClient

log = logging.getLogger(__name__)

_FOLDER = "pennode-worker-"


def run(job_id: str, benches: Callable[[], Benches], client: NodeClient, name: str) -> None:
    """Do one job. Whatever happens is told to the node; nothing is raised but what must kill the process.

    A job that cannot be claimed is somebody else's, or was cancelled: that is a normal end.
    """
    try:
        # An engine that cannot run leaves the job to a worker whose engine can.
        ready = benches()
        claim = client.claim(job_id, name, ready.claimable())
    except PennodeError as error:
        # Nothing is lost: the node offers the job again.
        log.error("job=%s not taken: %s", job_id, error)
        return
    if claim is None:
        log.info("job=%s is not to be had", job_id)
        return
    try:
        with Heartbeat(client, claim) as beat:
            _work(claim, ready.get(claim.model), client, beat)
    except LeaseLost as error:
        log.info("job=%s left alone: %s", job_id, error)
    except (Unsuitable, InvalidInstance) as error:
        _tell(client, claim, "rejected", error)
    except DeviceLost as error:
        _tell(client, claim, "retryable", error)
        # CUDA's errors stay with a process: the next one in its place starts anew.
        raise SystemExit(1) from error
    except Retryable as error:
        _tell(client, claim, "retryable", error)
    except PennodeError as error:
        _tell(client, claim, "failed", error)
    except Exception as error:
        # The task boundary: one series must never stop the next.
        log.exception("job=%s ended by an unexpected error", job_id)
        unexpected = EngineFailure(
            f"unexpected {type(error).__name__} in the worker", "the worker's log holds the details"
        )
        _tell(client, claim, "failed", unexpected)


def _work(claim: Claim, bench: Bench, client: NodeClient, beat: Heartbeat) -> None:
    recipes = [Recipe.parse(key) for key in claim.forms]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"{_FOLDER}{os.getpid()}-") as folder:
        paths = client.fetch_input(claim, Path(folder))
        earlier = client.fetch_earlier(claim, Path(folder))
        fetched = time.monotonic()
        _require_unchanged(paths, claim)
        bundle = bench.segment(paths, claim.input_digest, recipes, beat.report, earlier)
    beat.check()
    segmented = time.monotonic()
    volumes = ", ".join(f"{label} {ml:.1f} ml" for label, ml in bundle.volumes_ml.items())
    facts = {"model": bench.model, "note": volumes, "timings_s": dict(bundle.timings_s)}
    client.send_result(claim, [(o.form, o.sop_uid, o.data) for o in bundle.objects], facts)
    log.info(
        "job=%s series=%s done fetch=%.2fs segment=%.2fs send=%.2fs",
        claim.job_id, claim.series_uid, fetched - started, segmented - fetched, time.monotonic() - segmented,
    )  # fmt: skip


def _require_unchanged(paths: Sequence[Path], claim: Claim) -> None:
    """Raise `Damaged` unless the images fetched are those that the job is about, byte for byte.

    A result is named by the digest of its input: made of other images, it would be another object under that name.
    """
    from workers.identity import digest_of  # and with it numpy, which the parent process does without

    if digest_of(paths) != claim.input_digest:
        raise Damaged(
            "the images fetched are not those that the job was made for: they changed since, or on their way",
            "it is tried again; if it stays so, send the series again",
        )


def _tell(client: NodeClient, claim: Claim, kind: str, error: PennodeError) -> None:
    log.warning("job=%s %s: %s", claim.job_id, kind, error)
    try:
        client.fail(claim, kind, "segment", error.reason, error.next_step)
    except LeaseLost:
        log.info("job=%s was taken back meanwhile", claim.job_id)
    except PennodeError as untold:
        # The lease runs out by itself then.
        log.warning("job=%s: the node could not be told: %s", claim.job_id, untold)


def sweep() -> None:
    """Remove the images that killed workers of this user left in the temporary folder."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        owner = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)
