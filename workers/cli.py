"""Commands of `pennode` that need the worker's libraries; those are imported when a command runs, not before."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node import configuration, logs
from node.errors import ConfigurationError
from node.records import RESEARCH_NOTICE

if TYPE_CHECKING:
    from trt.patches import Progress
    from workers.segment import Found, Outcome

_Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML settings file (or PENNODE_CONFIG).", show_default=False)
]
_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="folder with DICOM files, at any depth")]
_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="where results go; made if it is not there")]
_Forms = Annotated[str, typer.Option("--forms", metavar="LIST", help="what to make, as in SEG,LABELMAP")]
_Picture = Annotated[bool, typer.Option("--picture", help="also draw three slices with the result, as PNG")]


def worker(
    config: _Config = None, supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False
) -> None:
    """Run one worker: it takes jobs from the broker and talks to the node."""
    from trt.engine import EngineError, require_precision
    from trt.manifest import ManifestError, load
    from workers.app import run_worker

    settings = configuration.load(config)
    logs.configure(settings.log.level, settings.log.format)
    try:
        manifest = load(settings.worker.model)
        require_precision(manifest, settings.worker.backend, settings.worker.precision)
        _require_any((settings.worker.backend, *settings.worker.fallback))
    except ManifestError as error:
        raise ConfigurationError(f"the model cannot be used: {error}", "check worker.model") from error
    except EngineError as error:
        raise ConfigurationError(str(error), "check worker.backend and worker.precision") from error
    raise typer.Exit(run_worker(settings, supervised=supervised))


def _require_any(backends: Sequence[str]) -> None:
    """Raise the first backend's `EngineError` where none of them can serve here, as far as is seen without CUDA."""
    from trt.engine import EngineError, require_backend
    from trt.gpu import capability_elsewhere

    refused = []
    for backend in backends:
        try:
            require_backend(backend)
            if backend != "openvino":
                capability_elsewhere()
        except EngineError as error:
            refused.append(error)
        else:
            return
    raise refused[0]


def demo(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="DICOM images; without: a phantom")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="where the result and its picture go")] = Path(
        "out"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="print JSON for machines")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="leave node and admin page running until Ctrl-C")] = False,
) -> None:
    """Start everything, send a series, wait for its segmentation, and show it."""
    from workers.demo import run

    if not run(folder, out, as_json=as_json, keep=keep):
        raise typer.Exit(1)


def segment(
    folder: _Folder, out: _Out, config: _Config = None, picture: _Picture = False, forms: _Forms = "SEG"
) -> None:
    """Segment the spine MR series in a folder, here and without a network."""
    settings = configuration.load(config)

    from workers.pipeline import open_pipeline
    from workers.results import require
    from workers.segment import find_series, recipes_of, segment_all

    recipes = recipes_of(forms)
    require(recipes)

    series = find_series(folder, lambda text: typer.echo(text, err=True))
    typer.echo(f"{len(series)} MR series; {RESEARCH_NOTICE}", err=True)
    typer.echo("the rules of [selection] are not applied here: every MR series found is segmented", err=True)
    failed = 0
    with open_pipeline(settings.worker, settings.seg, settings.state_dir / "engines") as pipeline:
        for outcome in segment_all(series, out, pipeline, picture=picture, recipes=recipes, watch=_progress):
            failed += outcome.error is not None
            _tell(outcome)
    if failed:
        raise typer.Exit(1)


@contextmanager
def _progress(found: Found) -> Iterator[Progress | None]:
    """Show a bar in a terminal; elsewhere one line says that a series is begun."""
    if not sys.stderr.isatty():
        typer.echo(f"series {found.name}: {len(found.paths)} files", err=True)
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"series {found.name}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _tell(outcome: Outcome) -> None:
    name = outcome.found.name
    if outcome.error is not None:
        step = f"; {outcome.error.next_step}" if outcome.error.next_step else ""
        typer.echo(f"series {name}: refused: {outcome.error.reason}{step}", err=True)
        return
    if outcome.bundle is not None:
        volumes = ", ".join(f"{label} {ml:.1f} ml" for label, ml in outcome.bundle.volumes_ml.items())
        seconds = sum(outcome.bundle.timings_s.values())
        typer.echo(f"series {name}: {volumes} ({seconds:.1f} s)")
    for path in outcome.written:
        typer.echo(f"  {path}")
