"""What `pennode` lets a person at the node look at and change: jobs, peers, and what peers asked and announced."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from node.configuration import load
from node.errors import ConfigurationError, NotFound, PeerUnavailable
from node.forms import in_words
from node.logs import printable
from node.records import Delivery, Job, is_uid, known_at
from node.states import DeliveryState, JobState, Proof, Wanted

if TYPE_CHECKING:
    from node.agreement import Comparison
    from node.evidence import Weighing
    from node.ledger import Ledger

peers_app = typer.Typer(help="Look at who may open associations, and who tried.", no_args_is_help=True)
jobs_app = typer.Typer(help="Look at jobs, retry or cancel them.", no_args_is_help=True)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML settings file (or PENNODE_CONFIG).", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@jobs_app.command("list")
def jobs_list(
    state: Annotated[list[JobState] | None, typer.Option(help="Only jobs in this state; may be repeated.")] = None,
    series: Annotated[str, typer.Option(metavar="UID", help="Only jobs of this series, of all models.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10000)] = 50,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """List jobs, newest first."""
    if series and not is_uid(series):
        raise NotFound(f"{printable(series, 64)!r} is no Series Instance UID", "pennode jobs show tells that of a job")
    ledger = _ledger(config)
    found = ledger.jobs(states=state or None, limit=limit, series_uid=series)
    if as_json:
        typer.echo(json.dumps([job.to_json() for job in found]))
        return
    rows: list[tuple[str, ...]] = []
    weighings = ledger.weighings()
    for open_ in [] if state else ledger.receiving():
        if series and open_.series_uid != series:
            continue
        weighed = weighings.get(open_.series_uid)
        age, why = _ago(time.time() - open_.first_at), weighed.outcome if weighed else "images are coming in"
        rows.append((open_.series_uid, open_.state, age, str(open_.instances), open_.calling_ae, "", "", why))
    for job in found:
        why = f"{job.reason} ({job.next_step})" if job.next_step else job.reason
        age, model = _ago(time.time() - job.created_at), _model(job)
        rows.append((job.id[:8], job.state, age, str(job.instances), job.calling_ae, job.description, model, why))
    table = Table("job", "state", "age", "images", "from", "series", "model", "why", box=None, pad_edge=False)
    for row in rows:
        if not sys.stdout.isatty():
            typer.echo("\t".join(row))
        table.add_row(*map(Text, row))  # a peer's brackets are no markup
    if sys.stdout.isatty():
        Console().print(table if rows else "no jobs yet")


@jobs_app.command("show")
def jobs_show(
    job_id: Annotated[str, typer.Argument(help="A job's id, its beginning, or a Series Instance UID.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show one job, or a series that still arrives: evidence, journal, deliveries, and what other models made of it."""
    from node.webjson import models_of

    ledger = _ledger(config)
    arriving = next((s for s in ledger.receiving() if s.series_uid == job_id), None)
    if arriving is not None:
        weighed = ledger.weighings().get(job_id)
        _say_facts(asdict(arriving), [weighed] if weighed else [], {}, as_json)
        return
    job = ledger.job(ledger.newest_job(job_id) if is_uid(job_id) else job_id)
    journal, deliveries = ledger.journal(job.id), ledger.deliveries(job.id)
    more: dict[str, Any] = {
        "journal": [vars(e) for e in journal],
        "deliveries": [vars(d) | {"what": in_words(d.form)} for d in deliveries],
    }
    models = models_of(ledger, job)
    more |= models
    more["held_at"] = held_at = known_at(deliveries)
    _say_facts(job.to_json(), ledger.weighings_of(job), more, as_json)
    if as_json:
        return
    for entry in journal:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at))
        typer.echo(f"{stamp}  {entry.subject:9} {entry.before or '-':10} -> {entry.after:10} {entry.by}: {entry.text}")
    if held_at is not None:
        typer.echo(f"every destination holds the results; last known {_ago(time.time() - held_at)} ago")
    for item in deliveries:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.updated_at))
        typer.echo(
            f"{stamp}  to {item.destination}: {in_words(item.form)}, rung {item.rung + 1}: {item.state} after "
            f"{item.attempts} attempt(s) {item.reason}"
        )
        typer.echo(f"   {proof_of(item)}")
    for other in ledger.siblings(job):
        typer.echo(f"of the same series: job {other.id[:8]}, revision {other.revision}, {other.state}, {_model(other)}")
    _say_comparisons(ledger.comparisons(job), models["not_compared"])


def _model(job: Job) -> str:
    return f"{job.model or job.wanted_model or '-'}{' (shadow)' if job.shadow else ''}"


def _say_comparisons(compared: list[Comparison], why: str) -> None:
    for one in compared:
        typer.echo(f"shadow {one.job_id[:8]} compared with {one.own_id[:8]}: {one.reason or 'Dice, own ml, shadow ml'}")
        for segment in one.segments:
            typer.echo(f"  {segment.label:24} {segment.dice:6.4f} {segment.own_ml:10.3f} {segment.shadow_ml:10.3f}")
    if why:
        typer.echo(f"not compared: {why}")


def services(
    limit: Annotated[int, typer.Option(min=1, max=10000, help="Of each kind.")] = 50,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """List what peers asked (storage commitment) and announced (MPPS), newest first."""
    ledger = _ledger(config)
    asked, announced = ledger.commitments(limit), ledger.steps(limit)
    if as_json:
        whole = {"commitments": [c.to_json() for c in asked], "steps": [s.to_json() for s in announced]}
        typer.echo(json.dumps(whole))
        return
    now = time.time()
    for one in asked:
        why = f"{one.reason} ({one.next_step})" if one.next_step else one.reason
        images = f"{one.requested} images, {one.failed} not safe" if one.failed else f"{one.requested} images"
        typer.echo("\t".join(("commitment", one.state, _ago(now - one.asked_at), one.calling_ae, images, why)))
    for step in announced:
        studies = " ".join(step.study_uids)
        typer.echo("\t".join(("step", step.state, _ago(now - step.created_at), step.calling_ae, studies, step.sop_uid)))


def _say_facts(facts: dict[str, Any], weighings: list[Weighing], more: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts | more | {"weighings": [w.to_json() for w in weighings]}))
        return
    for name, value in facts.items():
        typer.echo(f"{name:15} {value}")
    for weighed in weighings:
        left = f", {max(0.0, weighed.until - time.time()):.0f} s at most if no image comes" if weighed.until else ""
        typer.echo(f"revision {weighed.revision}: {weighed.outcome}{left}")
        for piece in weighed.pieces:
            typer.echo(f"  {piece.weight:8} {piece.source}: {piece.text}")


@jobs_app.command("retry")
def jobs_retry(job_id: str, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Try a job again that is FAILED, REJECTED, SKIPPED or CANCELLED."""
    _say(_ledger(config).retry(job_id, "command line", time.time()), as_json)


@jobs_app.command("cancel")
def jobs_cancel(job_id: str, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Stop a job that is not finished."""
    _say(_ledger(config).cancel(job_id, "command line", time.time()), as_json)


@jobs_app.command("prove")
def jobs_prove(
    job_id: Annotated[str, typer.Argument(help="A job's id, or its beginning.")],
    read_back: Annotated[bool, typer.Option("--read-back", help="Fetch the objects and compare them.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the answer.")] = 60.0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Have the running node ask the destinations whether they hold a job's results, or read them back."""
    ledger = _ledger(config)
    job, since = ledger.job(job_id), time.time()
    ledger.want_proof(job.id, Wanted.READ_BACK if read_back else Wanted.PROOF, "command line", since)
    while (asked := [d for d in ledger.deliveries(job.id) if d.wanted]) and time.time() < since + wait:
        time.sleep(0.2)
    deliveries = ledger.deliveries(job.id)
    if as_json:
        typer.echo(json.dumps({"job": ledger.job(job.id).to_json(), "deliveries": [vars(d) for d in deliveries]}))
    else:
        for item in deliveries:
            typer.echo(f"{item.destination}: {in_words(item.form)}: {proof_of(item)}")
    if asked:
        raise PeerUnavailable(
            f"no answer for {len(asked)} object(s) within {wait:g} s", "pennode jobs show tells when it is there"
        )
    if any(d.state is not DeliveryState.COMMITTED for d in deliveries if d.state is not DeliveryState.REPLACED):
        raise typer.Exit(1)


def proof_of(item: Delivery) -> str:
    """Return in words whether the destination holds an object, since when that is known, and how."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.proved_at))
    words = []
    if item.is_held:
        words.append(f"holds the object, known by {item.proof} at {at}")
    elif item.state is DeliveryState.SENT:
        unknown = "not known whether it holds the object"
        words.append(f"{unknown}: {item.doubt}" if item.doubt else unknown)
    elif item.lost:
        words.append(f"did not hold the object {item.lost} time(s)")
    if item.is_held and item.doubt and item.proof != Proof.NONE:
        words.append(f"since then: {item.doubt}")
    if item.read_back:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.read_back_at))
        words.append(f"{item.read_back} at {stamp}")
    return "; ".join(words) or "nothing is known yet"


@peers_app.command("list")
def peers_list(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List the peers and when they were last seen, then who called and is none, with the lines that would let it in."""
    from node.peers import Peers

    settings, ledger = load(config), _ledger(config)
    listing = Peers(settings.listener, settings.peers).listing(ledger.callers(), ledger.contacts())
    if as_json:
        typer.echo(json.dumps(listing.to_json()))
        return
    for peer, contact in listing.peers:
        seen = f"last seen {_ago(time.time() - contact.seen_at)} ago at {contact.address}" if contact else "never seen"
        typer.echo("\t".join((peer.name, peer.ae_title, seen if peer.enabled else f"{seen}; not enabled")))
    if not listing.peers:
        typer.echo("no peers are listed", err=True)
    for caller, lines in listing.callers:
        what = f"rejected: {caller.rejected}" if caller.rejected else "let in, though no peer"
        typer.echo(
            f"\n{caller.calling_ae} called {caller.called_ae} from {caller.address}, {caller.times} time(s), "
            f"last {_ago(time.time() - caller.last_at)} ago; {what}"
        )
        typer.echo(lines or "no settings would let it in: one of its AE titles is none")


def _say(job: Job, as_json: bool) -> None:
    typer.echo(json.dumps(job.to_json()) if as_json else f"job {job.id[:8]} is {job.state}")


def _ledger(config: Path | None) -> Ledger:
    from node.ledger import Ledger

    settings = load(config)
    if not settings.ledger.url and not (settings.state_dir / "ledger.sqlite3").exists():
        raise ConfigurationError(
            f"there is no ledger in {settings.state_dir}", "start the node once, or set PENNODE_STATE_DIR"
        )
    ledger = Ledger(settings.ledger_url)
    ledger.migrate()
    return ledger


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
