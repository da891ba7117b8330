"""`pennode demo`: the main job, for real, on this machine: a PACS sends a series and gets the segmentation back.

Every part is the product's own command in a process of its own; nothing is stood in for but the PACS, which is
`pennode sink`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import typer

from node.errors import ConfigurationError, NodeUnavailable, PeerRefused, PennodeError
from node.forms import Form, Recipe
from node.records import RESEARCH_NOTICE
from node.states import FINISHED, JobState

_START_S = 90.0
_JOB_S = 600.0
_POLL_S = 0.1


@dataclass
class _Outcome:
    """What the demo saw of one series; `seg` is the segmentation's file, `others` those of what came with it."""

    job_id: str
    state: str
    reason: str
    timeline: list[dict[str, Any]]
    seconds: float | None = None
    seg: str = ""
    others: list[str] = field(default_factory=list)
    picture: str = ""
    problems: list[str] = field(default_factory=list)


def run(folder: Path | None, out: Path, *, as_json: bool, keep: bool) -> bool:
    """Send the series in `folder`, or a phantom, and tell whether all that was to come back did, in its place."""
    say: Callable[[str], None] = (lambda text: typer.echo(text, err=True)) if as_json else typer.echo
    # Ended from outside, it ends its children and drops its folder as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        work = Path(tempfile.mkdtemp(prefix="pennode-demo-"))
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        say(f"pennode demo. {RESEARCH_NOTICE}")
        source = _source(folder, work, say)
        pacs = stack.enter_context(_child("sink", "--out", str(work / "pacs"), log=work / "pacs.log"))
        node = _start_node(stack, work, _port(pacs), say)
        sent_at = _send(source, node["dicom"], say)
        outcomes = _follow(node, sent_at, say)
        for outcome in outcomes:
            _verify(outcome, node, work / "pacs", source, out, sent_at)
        good = [o for o in outcomes if o.seg and not o.problems]
        _report(outcomes, as_json, say)
        if keep:
            say(f"admin page: {node['sign_in']}\nCtrl-C ends it")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
    return bool(good) and not any(o.problems for o in outcomes)


def _source(folder: Path | None, work: Path, say: Callable[[str], None]) -> Path:
    if folder is None:
        from workers.series import write_phantom

        say("making a phantom: a synthetic lumbar spine, no patient")
        write_phantom(work / "phantom")
        return work / "phantom"
    if not folder.is_dir():
        raise ConfigurationError(f"there is no folder {folder}", "name a folder of DICOM images, or none for a phantom")
    return folder


@contextlib.contextmanager
def _child(*arguments: str, log: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run a command of ours until the end of the block; it stops by SIGTERM, and by force if it must."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "node.cli", *arguments],
            stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | (environment or {}),
        )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(45)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _port(pacs: subprocess.Popen[str]) -> int:
    output: IO[str] | None = pacs.stdout
    line = output.readline() if output is not None else ""
    try:
        return int(json.loads(line)["port"])
    except (ValueError, KeyError) as error:
        raise ConfigurationError("the demo's PACS did not start", "is loopback networking allowed here?") from error


def _start_node(stack: contextlib.ExitStack, work: Path, pacs_port: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Start `pennode up` on free ports; return its addresses and a client of its admin API."""
    token = secrets.token_urlsafe(16)
    state = work / "state"
    # No settings file: this must never touch a ledger or a broker that is in use here.
    (work / "none.toml").touch()
    environment = {
        "PENNODE_CONFIG": str(work / "none.toml"),
        "PENNODE_STATE_DIR": str(state),
        "PENNODE_LISTENER_PORT": "0",
        "PENNODE_API_PORT": "0",
        "PENNODE_WEB_PORT": "0",
        "PENNODE_WEB_TOKEN": token,
        "PENNODE_DESTINATIONS": json.dumps(
            [{"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": pacs_port}]
        ),
    }
    log = work / "node.log"
    process = stack.enter_context(_child("up", log=log, environment=environment))
    started = time.monotonic()
    http = stack.enter_context(httpx.Client(timeout=10, trust_env=False))
    told = False
    while time.monotonic() - started < _START_S:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise ConfigurationError("the node did not start", lines[-1] if lines else "run `pennode up` to see why")
        with contextlib.suppress(OSError, ValueError, httpx.HTTPError):
            node: dict[str, Any] = json.loads((state / "node.json").read_text())
            if not told:
                say(f"node accepts associations as {node['dicom']} after {time.monotonic() - started:.1f} s")
                told = True
            if http.get(f"{node['web']}/health").status_code == 200:
                say(f"worker is ready after {time.monotonic() - started:.1f} s")
                return node | {"http": http, "headers": {"Authorization": f"Bearer {token}"}, "log": log}
        time.sleep(_POLL_S)
    raise ConfigurationError(f"node and worker were not ready within {_START_S:.0f} s", f"see {log}")


def _send(source: Path, address: str, say: Callable[[str], None]) -> float:
    """Send the folder with `pennode send`; return when the last image was acknowledged, in seconds since 1970."""
    command = [sys.executable, "-m", "node.cli", "send", str(source), "--to", address, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise PeerRefused(f"sending {source} failed", "see the lines above")
    told = json.loads(done.stdout)
    say(f"{told['sent']} images sent by C-STORE")
    return float(told["last_image_at"])


def _get(node: dict[str, Any], path: str) -> Any:
    try:
        response = node["http"].get(f"{node['web']}{path}", headers=node["headers"])
        response.raise_for_status()
        return response.json()
    except httpx.HTTPError as error:
        raise NodeUnavailable(f"the node does not answer ({type(error).__name__})", f"see {node['log']}") from error


def _follow(node: dict[str, Any], sent_at: float, say: Callable[[str], None]) -> list[_Outcome]:
    """Show every move of every job until all are at an end."""
    shown: dict[str, int] = {}
    give_up = time.monotonic() + _JOB_S
    details: list[dict[str, Any]] = []
    while time.monotonic() < give_up:
        listing = _get(node, "/api/jobs")
        details = [_get(node, f"/api/jobs/{job['id']}") for job in listing["jobs"]]
        for detail in details:
            journal = detail["journal"]
            for entry in journal[shown.get(detail["job"]["id"], 0) :]:
                say(f"{entry['at'] - sent_at:7.2f} s  {entry['subject']:8} {entry['after']:10} {entry['text']}")
            shown[detail["job"]["id"]] = len(journal)
        states = {JobState(detail["job"]["state"]) for detail in details}
        if details and not listing["receiving"] and states <= FINISHED:
            break
        time.sleep(_POLL_S)
    return [
        _Outcome(
            job_id=d["job"]["id"], state=d["job"]["state"], reason=d["job"]["reason"],
            timeline=[_moment(entry, sent_at) for entry in d["journal"]],
        )
        for d in details
    ]  # fmt: skip


def _moment(entry: dict[str, Any], sent_at: float) -> dict[str, Any]:
    """Return one journal entry on the demo's clock: seconds since the last image was acknowledged."""
    seconds = round(entry["at"] - sent_at, 3)
    return {"seconds": seconds, "subject": entry["subject"], "state": entry["after"], "text": entry["text"]}


def _verify(outcome: _Outcome, node: dict[str, Any], pacs: Path, source: Path, out: Path, sent_at: float) -> None:
    """Read back what the PACS got, and place it on the source by its geometry alone."""
    from workers.overlay import write_picture
    from workers.readback import read_segmentation
    from workers.segment import series_below
    from workers.volume import read_series

    detail = _get(node, f"/api/jobs/{outcome.job_id}")
    if outcome.state != JobState.DELIVERED:
        if outcome.state != JobState.SKIPPED:
            outcome.problems.append(f"{outcome.state}: {outcome.reason}")
        return
    for delivery in detail["deliveries"]:
        received = pacs / f"{delivery['sop_uid']}.dcm"
        if not received.is_file():
            outcome.problems.append("the PACS does not hold the object it acknowledged")
            continue
        out.mkdir(parents=True, exist_ok=True)
        form = Recipe.parse(delivery["form"]).form
        copy = out / f"{outcome.job_id[:8]}.{form.lower()}.dcm"
        copy.write_bytes(data := received.read_bytes())
        if form is not Form.SEG:
            outcome.others.append(str(copy))
            continue
        outcome.seconds = round(received.stat().st_mtime - sent_at, 3)
        files = series_below(source)[detail["job"]["series_uid"]]
        volume = read_series(files)
        try:
            read_segmentation(data, volume)
        except PennodeError as error:
            outcome.problems.append(str(error))
            continue
        picture = copy.with_suffix("").with_suffix(".png")
        write_picture(picture, volume, data)
        outcome.seg, outcome.picture = str(copy), str(picture)


def _report(outcomes: list[_Outcome], as_json: bool, say: Callable[[str], None]) -> None:
    if as_json:
        listed = [vars(o) for o in outcomes]
        best = next((o for o in outcomes if o.seg), None)
        told = {
            "states": [e["state"] for e in (best or outcomes[0]).timeline if e["subject"] == "job"] if outcomes else [],
            "seconds_from_last_image_to_seg": best.seconds if best else None,
            "seg": best.seg if best else None,
            "picture": best.picture if best else None,
            "series": listed,
            "notice": RESEARCH_NOTICE,
        }
        typer.echo(json.dumps(told, indent=2))
        return
    for outcome in outcomes:
        if outcome.seg:
            say(f"the PACS has the segmentation {outcome.seconds:.1f} s after the last image")
            for path in (outcome.seg, *outcome.others):
                say(f"  object   {path}")
            say(f"  picture  {outcome.picture}")
        for problem in outcome.problems:
            say(f"problem: {problem}")
        if not outcome.seg and not outcome.problems:
            say(f"{outcome.state}: {outcome.reason}")
    if not outcomes:
        say("problem: no job came of what was sent")
