"""The `pennode` command."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from node import logs
from node.configuration import effective, load
from node.errors import ConfigurationError, InvalidInstance, PennodeError
from node.records import RESEARCH_NOTICE, Job, JobState, is_uid
from node.settings import AE_PATTERN

if TYPE_CHECKING:
    from node.evidence import Weighing
    from node.ledger import Ledger

app = typer.Typer(
    name="pennode",
    help=f"Spine MR in by C-STORE, PENN segmentations back to the PACS as DICOM SEG. {RESEARCH_NOTICE}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
peers_app = typer.Typer(help="Look at who may open associations, and who tried.", no_args_is_help=True)
jobs_app = typer.Typer(help="Look at jobs, retry or cancel them.", no_args_is_help=True)
config_app = typer.Typer(help="Look at the configuration.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")
app.add_typer(peers_app, name="peers")
app.add_typer(config_app, name="config")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML settings file (or PENNODE_CONFIG).", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


# Typer names this base of its own errors nowhere; where it comes from differs between versions.
_UsageError: Any = typer.BadParameter.__mro__[1]


@app.callback(invoke_without_command=True)
def top(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Handle options that need no command."""
    if show:
        typer.echo(f"pennode {version('pennode')}")
        raise typer.Exit


@app.command()
def up(config: ConfigOption = None) -> None:
    """Run the node and one local worker."""
    _run(config, with_worker=True)


@app.command()
def node(config: ConfigOption = None) -> None:
    """Run the node alone; workers join from here or elsewhere with `pennode worker`."""
    _run(config, with_worker=False)


def _run(config: Path | None, *, with_worker: bool) -> None:
    from node import service

    settings = load(config)
    os.umask(0o027)  # images and ledger are nobody else's to read
    logs.configure(settings.log.level, settings.log.format)

    def announce(addresses: dict[str, str]) -> None:
        typer.echo(f"pennode {version('pennode')}. {RESEARCH_NOTICE}", err=True)
        for name, words in (("dicom", "DICOM       "), ("dicom_tls", "DICOM, TLS  ")):
            if name in addresses:
                typer.echo(f"  {words}{addresses[name]}", err=True)
        typer.echo(f"  worker API  {addresses['api']}", err=True)
        if "stow" in addresses:
            typer.echo(f"  STOW-RS     {addresses['stow']}", err=True)
        if "sign_in" in addresses:
            typer.echo(f"  admin page  {addresses['sign_in']}", err=True)
        if not settings.destinations:
            typer.echo("  no destination is configured: results stay here until [[destinations]] names one", err=True)

    code = service.run(settings, config=config, with_worker=with_worker, announce=announce)
    # Peers that sit still keep threads of the listener; everything of ours is on disk by now.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


@app.command()
def send(
    folder: Annotated[Path, typer.Argument(help="A folder of DICOM files, or one file.")],
    to: Annotated[str, typer.Option("--to", help="AE@HOST:PORT of the peer.")],
    calling: Annotated[str, typer.Option("--calling", help="Our AE title.")] = "PENNODE_SCU",
    tls_ca: Annotated[Path | None, typer.Option(help="Send over TLS; PEM authority of the peer's certificate.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM chain that we show.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its PEM key.")] = None,
    tls_name: Annotated[str, typer.Option(help="Name in the peer's certificate, where it is not HOST.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Send DICOM files to a peer by C-STORE, each as it is encoded."""
    from node.scu import Outgoing, describe, send_files
    from node.settings import Secured

    if tls_ca is None and (tls_certificate or tls_key or tls_name):
        raise ConfigurationError("the other --tls options need --tls-ca", "without it everything goes in clear text")
    if (tls_certificate is None) != (tls_key is None):
        raise ConfigurationError("--tls-certificate and --tls-key go together", "name both or none")
    security = Secured(
        tls=tls_ca is not None,
        tls_ca_file=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        tls_server_name=tls_name,
    )
    peer = replace(parse_address(to, calling), security=security)
    if not folder.exists():
        raise ConfigurationError(f"there is no {folder}", "name a folder of DICOM files")
    files: list[Outgoing] = []
    for path in sorted(p for p in (folder.rglob("*") if folder.is_dir() else [folder]) if p.is_file()):
        try:
            files.append(describe(path))
        except InvalidInstance as error:
            typer.echo(f"left out: {error.reason}", err=True)
    if not files:
        raise ConfigurationError(f"{folder} holds no DICOM file", "name a folder of DICOM files")
    with progress_bar() as bar:
        task = bar.add_task(f"to {peer.ae_title}", total=len(files))
        refused = send_files(files, peer, 60.0, lambda _file, _note: bar.advance(task))
    done = time.time()
    for outgoing, reason in refused:
        typer.echo(f"refused: {outgoing.path.name}: {reason}", err=True)
    if as_json:
        typer.echo(json.dumps({"sent": len(files) - len(refused), "refused": len(refused), "last_image_at": done}))
    else:
        typer.echo(f"{len(files) - len(refused)} of {len(files)} objects stored by {peer}")
    if refused:
        raise typer.Exit(1)


def parse_address(text: str, calling: str) -> Any:
    """Return the `Address` that ``AE@HOST:PORT`` names.

    Raises
    ------
    ConfigurationError
        It does not read so.
    """
    from node.scu import Address

    title, at, rest = text.partition("@")
    host, colon, port = rest.rpartition(":")
    if not (at and host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigurationError(
            f"{text!r} is no address of a peer", "write it as AE@HOST:PORT, as in PACS@10.0.0.5:104"
        )
    for name in (title, calling):
        if not (0 < len(name) <= 16 and re.fullmatch(AE_PATTERN, name)):
            raise ConfigurationError(f"{name!r} is no AE title", "it has 1 to 16 plain characters, without backslash")
    return Address(title, host.strip("[]"), int(port), calling)


@app.command(hidden=True)
def sink(
    folder: Annotated[Path, typer.Option("--out", help="Where received objects go.")],
    port: Annotated[int, typer.Option(help="0 picks a free port.")] = 0,
    ae_title: Annotated[str, typer.Option("--ae-title")] = "PACS",
) -> None:
    """Stand in for a PACS: store every object that comes, until stopped."""
    from node.sink import serve

    serve(folder, port, ae_title, lambda bound: typer.echo(json.dumps({"port": bound})))


@config_app.command("show")
def config_show(config: ConfigOption = None) -> None:
    """Print the effective configuration, secrets masked."""
    typer.echo(json.dumps(effective(load(config)), indent=2))


@jobs_app.command("list")
def jobs_list(
    state: Annotated[list[JobState] | None, typer.Option(help="Only jobs in this state; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10000)] = 50,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """List jobs, newest first."""
    ledger = _ledger(config)
    found = ledger.jobs(states=state or None, limit=limit)
    if as_json:
        typer.echo(json.dumps([job.to_json() for job in found]))
        return
    rows: list[tuple[str, ...]] = []
    weighings = ledger.weighings()
    for series in [] if state else ledger.receiving():
        weighed = weighings.get(series.series_uid)
        age, why = _ago(time.time() - series.first_at), weighed.outcome if weighed else "images are coming in"
        rows.append((series.series_uid, series.state, age, str(series.instances), series.calling_ae, "", why))
    for job in found:
        why = f"{job.reason} ({job.next_step})" if job.next_step else job.reason
        age = _ago(time.time() - job.created_at)
        rows.append((job.id[:8], job.state, age, str(job.instances), job.calling_ae, job.description, why))
    table = Table("job", "state", "age", "images", "from", "series", "why", box=None, pad_edge=False)
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
    """Show one job, or a series that still arrives: evidence, journal and deliveries."""
    ledger = _ledger(config)
    arriving = next((s for s in ledger.receiving() if s.series_uid == job_id), None)
    if arriving is not None:
        weighed = ledger.weighings().get(job_id)
        _say_facts(asdict(arriving), [weighed] if weighed else [], {}, as_json)
        return
    job = ledger.job(ledger.newest_job(job_id) if is_uid(job_id) else job_id)
    journal, deliveries = ledger.journal(job.id), ledger.deliveries(job.id)
    more = {"journal": [vars(e) for e in journal], "deliveries": [vars(d) for d in deliveries]}
    _say_facts(job.to_json(), ledger.weighings_of(job), more, as_json)
    if as_json:
        return
    for entry in journal:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at))
        typer.echo(f"{stamp}  {entry.subject:9} {entry.before or '-':10} -> {entry.after:10} {entry.by}: {entry.text}")
    for item in deliveries:
        typer.echo(f"to {item.destination}: {item.state} after {item.attempts} attempt(s) {item.reason}")


@app.command()
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


def progress_bar() -> Progress:
    """Return a progress bar for a terminal; elsewhere it stays silent."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def join(program: typer.Typer, entries: Iterable[EntryPoint]) -> None:
    """Add commands, and groups of commands, that come from outside this package."""
    for entry in sorted(entries, key=lambda e: e.name):
        command = entry.load()
        if isinstance(command, typer.Typer):
            program.add_typer(command, name=entry.name)
        else:
            program.command(entry.name)(command)


def main() -> None:
    """Run the command line; every expected error is one readable line and exit code 1."""
    join(app, entry_points(group="pennode.commands"))
    try:
        sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        typer.echo(f"pennode: {error.format_message()} (--help shows how)", err=True)
        sys.exit(2)
    except PennodeError as error:
        typer.echo(f"pennode: {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


if __name__ == "__main__":
    main()
