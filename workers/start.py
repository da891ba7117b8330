"""The `pennode worker` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from node import logs
from node.configuration import load
from node.errors import ConfigurationError


def worker(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="TOML settings file (or PENNODE_CONFIG).", show_default=False)
    ] = None,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Run one worker: it takes jobs from the broker and talks to the node."""
    from trt.manifest import ManifestError
    from trt.manifest import load as load_manifest
    from workers.app import run_worker

    settings = load(config)
    logs.configure(settings.log.level, settings.log.format)
    try:
        load_manifest(settings.worker.model)
    except ManifestError as error:
        raise ConfigurationError(f"the model cannot be used: {error}", "check worker.model") from error
    raise typer.Exit(run_worker(settings, supervised=supervised))
