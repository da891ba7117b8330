"""The `pennode` command."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from node import logs
from node.configuration import effective, load
from node.desk import ConfigOption, JsonOption, jobs_app, peers_app, services
from node.errors import ConfigurationError, InvalidInstance, PennodeError
from node.fetchdesk import fetch_app
from node.records import RESEARCH_NOTICE
from node.settings import AE_PATTERN

app = typer.Typer(
    name="pennode",
    help=f"Spine MR in by C-STORE, PENN segmentations back to the PACS as DICOM SEG. {RESEARCH_NOTICE}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at the configuration.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")
app.add_typer(peers_app, name="peers")
app.add_typer(fetch_app, name="fetch")
app.add_typer(config_app, name="config")

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
    from node.outgoing import Outgoing, describe
    from node.scu import send_files
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


app.command()(services)


@config_app.command("show")
def config_show(config: ConfigOption = None) -> None:
    """Print the effective configuration, secrets masked."""
    typer.echo(json.dumps(effective(load(config)), indent=2))


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
        if message := error.format_message():  # none where no command was named: the help is on the screen then
            typer.echo(f"pennode: {message} (--help shows how)", err=True)
        sys.exit(2)
    except PennodeError as error:
        typer.echo(f"pennode: {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


if __name__ == "__main__":
    main()
