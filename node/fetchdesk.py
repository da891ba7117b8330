"""`pennode fetch`: asks the running node to fetch a study from an archive, and looks at how far that is."""

from __future__ import annotations

import contextlib
import getpass
import json
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from node.configuration import load, secret
from node.desk import ConfigOption, JsonOption
from node.errors import ConfigurationError, NodeUnavailable, NotFound, Permanent
from node.ledger import FetchState

fetch_app = typer.Typer(
    help="Fetch a study from one of the configured archives; look at fetches, or cancel them.",
    invoke_without_command=True,
)
_OPEN = (FetchState.ASKED, FetchState.RUNNING)
_POLL_S = 0.5
_TIMEOUT_S = 30.0


@fetch_app.callback()
def ask(
    context: typer.Context,
    study: Annotated[str, typer.Option(help="Study Instance UID.")] = "",
    series: Annotated[list[str] | None, typer.Option(help="Only this Series Instance UID; may be repeated.")] = None,
    archive: Annotated[str, typer.Option("--from", help="Name of the archive.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it has ended; exit code 1 if not all came.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Fetch a study, or some series of it, from an archive."""
    if context.invoked_subcommand is not None:
        return
    if not study or not archive:
        raise ConfigurationError(
            "pennode fetch needs --study UID and --from NAME", "NAME is that of an entry of [[archives]]"
        )
    asked = {"archive": archive, "study": study, "series": series or [], "by": _who()}
    found = _call(config, "POST", "/api/fetches", asked)["fetch"]
    if wait:
        found = _watch(config, found, quiet=as_json)
    _say(found, as_json)
    if wait and found["state"] != FetchState.DONE:
        raise typer.Exit(1)


@fetch_app.command("list")
def fetch_list(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List fetches, newest first."""
    found = _call(config, "GET", "/api/fetches")["fetches"]
    if as_json:
        typer.echo(json.dumps(found))
        return
    for one in found:
        here = sum(series["here"] for series in one["series"] if not series["left_out"])
        why = f"{one['reason']} ({one['next_step']})" if one["next_step"] else one["reason"]
        asked = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["asked_at"]))
        typer.echo(
            "\t".join((str(one["number"]), one["state"], asked, one["archive"], one["asked_by"], f"{here} images", why))
        )


@fetch_app.command("show")
def fetch_show(number: int, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Show one fetch with its series."""
    _say(_call(config, "GET", f"/api/fetches/{number}")["fetch"], as_json)


@fetch_app.command("cancel")
def fetch_cancel(number: int, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Stop a fetch that has not ended; images that came stay."""
    _say(_call(config, "POST", f"/api/fetches/{number}/cancel")["fetch"], as_json)


def _say(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found))
        return
    why = f": {found['reason']}" if found["reason"] else ""
    step = f" ({found['next_step']})" if found["next_step"] else ""
    typer.echo(f"fetch {found['number']} from {found['archive']} is {found['state']}{why}{step}")
    for one in found["series"]:
        if one["left_out"]:
            typer.echo(f"  {one['series_uid']}  left out: {one['left_out']}")
        else:
            of = "" if one["announced"] is None else f" of {one['announced']}"
            typer.echo(f"  {one['series_uid']}  {one['here']}{of} images are here  {one['description']}")


def _watch(config: Path | None, found: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Ask again and again until a fetch has ended, and show how many images are here."""
    from node.cli import progress_bar

    with progress_bar() if not quiet else contextlib.nullcontext() as bar:
        task = bar.add_task(f"from {found['archive']}", total=None) if bar else None
        while found["state"] in _OPEN:
            time.sleep(_POLL_S)
            found = _call(config, "GET", f"/api/fetches/{found['number']}")["fetch"]
            members = [one for one in found["series"] if not one["left_out"]]
            told = [one["announced"] for one in members if one["announced"] is not None]
            total = sum(told) if members and len(told) == len(members) else None
            if bar and task is not None:
                bar.update(task, total=total, completed=sum(one["here"] for one in members))
    return found


def _call(config: Path | None, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the admin page of the node that runs on this state folder.

    Raises
    ------
    NodeUnavailable
        It does not run, or does not answer.
    ConfigurationError
        It serves no admin page, or there is no token for it.
    NotFound, Permanent
        It says no, as it says why.
    """
    settings = load(config)
    try:
        addresses = json.loads((settings.state_dir / "node.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NodeUnavailable(f"no node runs on {settings.state_dir}", "start it: pennode up") from error
    if "web" not in addresses:
        raise ConfigurationError("the node serves no admin page, which this command asks", "set web.enabled = true")
    token = secret(settings.web.token, settings.web.token_file, settings.state_dir / "web.token")
    try:
        with httpx.Client(trust_env=False, timeout=_TIMEOUT_S) as client:
            headers = {"Authorization": f"Bearer {token}"}
            answer = client.request(method, f"{addresses['web']}{path}", headers=headers, json=body)
        found: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise NodeUnavailable("the node does not answer", "is it running? start it: pennode up") from error
    if answer.status_code == 404:
        raise NotFound(found["error"], found["next_step"])
    if answer.status_code == 503:
        raise NodeUnavailable(found["error"], found["next_step"])
    if answer.is_error:
        raise Permanent(found["error"], found["next_step"])
    return found


def _who() -> str:
    try:
        return f"command line, {getpass.getuser()}"
    except (OSError, KeyError, ImportError):  # a user without a name
        return "command line"
