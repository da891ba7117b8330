"""`pennode engine`: build TensorRT engines ahead of time, list those that are there, verify what a worker runs."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from node import configuration
from node.errors import ConfigurationError, EngineFailure
from node.settings import Settings, Worker

if TYPE_CHECKING:
    from trt.build import Library, Progress
    from trt.engine import Precision
    from trt.enginecache import CachedEngine, Entry, Key
    from trt.gate import Gate
    from trt.manifest import Manifest

app = typer.Typer(help="Build, list and verify the engines that models run on.", no_args_is_help=True)

_Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML settings file (or PENNODE_CONFIG).", show_default=False)
]
_Cache = Annotated[
    Path | None, typer.Option("--cache", metavar="DIR", help="folder of engines; without: `engines` in state_dir")
]
_Model = Annotated[
    str | None, typer.Option("--model", help="name or folder of a model; without: worker.model", show_default=False)
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command()
def build(
    model: _Model = None,
    sm: Annotated[
        list[str] | None,
        typer.Option("--sm", help="compute capability, as SM86 or 8.6; may be repeated; without: the GPU here"),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, max=512, help="patches at once; without: worker.batch", show_default=False)
    ] = None,
    precision: Annotated[
        Literal["f16", "f32"] | None,
        typer.Option(help="what the engine calculates in; without: worker.precision, or f16", show_default=False),
    ] = None,
    workspace_mb: Annotated[int, typer.Option("--workspace-mb", min=1, help="memory a layer may use, in MB")] = 1024,
    cache: _Cache = None,
    as_json: _Json = False,
    config: _Config = None,
) -> None:
    """Build the engines of a model and of its finder, where they are not there yet; needs no GPU with TensorRT-RTX."""
    settings = configuration.load(config)
    manifests = _models(settings, model)
    from trt.build import choose_capability, find_library, key_for
    from trt.engine import EngineError
    from trt.manifest import ManifestError

    chosen = precision or ("f32" if settings.worker.precision == "f32" else "f16")
    told = []
    wanted: list[str | None] = [*sm] if sm else [None]
    try:
        library = find_library()
        capabilities = dict.fromkeys(choose_capability(library, name) for name in wanted)
        for manifest, capability in itertools.product(manifests, capabilities):
            key = key_for(manifest, library, capability, batch=batch or settings.worker.batch, precision=chosen)
            engine, built = _build(_folder(settings, cache), key, manifest, library, workspace_mb)
            told.append({"name": key.name, "model": engine.model, "built": built, "bytes": engine.size, **engine.facts})
            if not as_json:
                words = f"built in {engine.facts['build_s']} s" if built else "is there"
                typer.echo(f"{engine.model} for {capability}: {words}, {engine.size / 1e6:.1f} MB\n  {key.name}")
    except EngineError as error:
        raise EngineFailure(str(error)) from error
    except ManifestError as error:  # the file was replaced while this ran
        raise ConfigurationError(str(error)) from error
    if as_json:
        typer.echo(_as_json(told))


@app.command("list")
def list_engines(cache: _Cache = None, as_json: _Json = False, config: _Config = None) -> None:
    """List the engines in the folder: what each is for, whether it was judged, and what is wrong with it."""
    found = _entries(configuration.load(config), cache)
    if as_json:
        typer.echo(_as_json([asdict(entry) | {"gate_passed": _passed(entry)} for entry in found]))
        return
    for entry in found:
        typer.echo(_line(entry))
    if not found:
        typer.echo("no engines yet", err=True)


@app.command()
def verify(model: _Model = None, cache: _Cache = None, as_json: _Json = False, config: _Config = None) -> None:
    """Check the bytes of every engine in the folder, and judge what the worker's backend runs beside float32."""
    from trt.engine import finder_precision

    settings = configuration.load(config)
    manifests = _models(settings, model)
    found = _entries(settings, cache)
    folder = _folder(settings, cache)
    precisions = [settings.worker.precision, finder_precision(settings.worker.precision)]
    gates = [
        _judge(manifest, factor, settings.worker, precision, folder)
        for (manifest, factor), precision in zip(_probed(manifests), precisions, strict=False)
    ]
    if as_json:
        judged = {
            manifest.name: asdict(gate) | {"passed": gate.passed}
            for manifest, gate in zip(manifests, gates, strict=True)
        }
        typer.echo(_as_json({"engines": [asdict(entry) for entry in found], settings.worker.backend: judged}))
    else:
        for entry in found:
            typer.echo(_line(entry))
        for manifest, gate, precision in zip(manifests, gates, precisions, strict=False):
            typer.echo(
                f"{manifest.name} {manifest.version} on {settings.worker.backend} {precision}: "
                f"{'passed' if gate.passed else 'FAILED'}, {gate.agreement:.4%} of pixels agree with {gate.reference} "
                f"(at least {gate.least_agreement:.1%}), logits differ by up to {gate.largest_difference:.2g} "
                f"(at most {gate.tolerance:g})"
            )
    if any(entry.fault for entry in found) or not all(gate.passed for gate in gates):
        raise typer.Exit(1)


@app.command()
def bench(
    rounds: Annotated[int, typer.Option(min=1, help="how often each is timed; medians are told")] = 3,
    as_json: _Json = False,
    config: _Config = None,
) -> None:
    """Time the configured backend: its network alone, with the patches about it, and a whole series."""
    settings = configuration.load(config)
    from workers.benchmark import SHAPE, measure

    speed = measure(settings, rounds)
    if as_json:
        typer.echo(_as_json(asdict(speed) | {"shape": SHAPE}))
        return
    facts = speed.engine
    sides = "x".join(map(str, speed.patch))
    typer.echo(f"{facts['model']} on {facts['backend']} {facts['version']} {facts['precision']}, {facts['device']}")
    typer.echo(f"network alone   {speed.network:8.1f} patches of {sides} per second")
    typer.echo(f"with pipeline   {speed.pipeline:8.1f} patches per second ({speed.patches} a series)")
    typer.echo(f"a series of {'x'.join(map(str, SHAPE))}, from files to a checked SEG: {speed.series_s:.2f} s")
    if speed.shares:
        told = ", ".join(f"{name} {share:.1%}" for name, share in speed.shares.items())
        typer.echo(f"of the device's time: {told}")
    typer.echo(f"ready after {speed.ready_s:.1f} s; medians of {speed.rounds}", err=True)


def _build(
    folder: Path, key: Key, manifest: Manifest, library: Library, workspace_mb: int
) -> tuple[CachedEngine, bool]:
    """The engine of a key, and whether it had to be built."""
    from trt.build import build_engine
    from trt.enginecache import Built, obtain

    ran = []

    def run(timings: bytes) -> Built:
        ran.append(key)
        with _progress(f"{manifest.name} for {key.capability}") as progress:
            return build_engine(manifest, library, key, workspace_mb=workspace_mb, timings=timings, progress=progress)

    engine, _ = obtain(folder, key, f"{manifest.name} {manifest.version}", run)
    return engine, bool(ran)


def _judge(manifest: Manifest, factor: int, worker: Worker, precision: Precision, folder: Path) -> Gate:
    """Judge what the worker's backend runs; of an engine file, into its sidecar."""
    from trt.engine import EngineError, open_engine
    from trt.enginecache import record_gate
    from trt.gate import judge

    try:
        with open_engine(
            manifest,
            worker.backend,
            threads=worker.threads or None,
            batch=worker.batch,
            precision=precision,
            cache=folder,
        ) as engine:
            gate = judge(engine, manifest, precision, factor=factor)
            cached: CachedEngine | None = getattr(engine, "cached", None)
            if cached is not None:
                record_gate(folder, cached, gate)
            return gate
    except EngineError as error:
        raise EngineFailure(str(error), "see worker.backend and worker.precision") from error


def _models(settings: Settings, model: str | None) -> list[Manifest]:
    """The model, and its finder as a model of its own where it has one."""
    from trt.extraction import finder_model
    from trt.manifest import ManifestError, load

    try:
        manifest = load(model or settings.worker.model)
    except ManifestError as error:
        raise ConfigurationError(str(error), "check --model" if model else "check worker.model") from error
    return [manifest] if manifest.finder is None else [manifest, finder_model(manifest)]


def _probed(manifests: list[Manifest]) -> list[tuple[Manifest, int]]:
    """Each with the factor by which slices are shrunk before it sees them."""
    finder = manifests[0].finder
    return [(manifest, 1 if manifest is manifests[0] or finder is None else finder.factor) for manifest in manifests]


def _folder(settings: Settings, cache: Path | None) -> Path:
    return settings.state_dir / "engines" if cache is None else cache


def _entries(settings: Settings, cache: Path | None) -> list[Entry]:
    from trt.enginecache import CacheError, entries

    try:
        return entries(_folder(settings, cache))
    except CacheError as error:
        raise ConfigurationError(str(error), "choose another --cache") from error


def _as_json(document: Any) -> str:
    """JSON that every reader takes: what is not finite, as a difference of logits with NaN among them, is null."""
    return json.dumps(_finite(document), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _passed(entry: Entry) -> bool | None:
    return entry.engine.gate.passed if entry.engine and entry.engine.gate else None


def _line(entry: Entry) -> str:
    if entry.engine is None:
        return f"{entry.name}  DAMAGED: {entry.fault}; build it again, or delete its files"
    engine, gate = entry.engine, {None: "not judged yet", True: "passed", False: "FAILED"}[_passed(entry)]
    batch = engine.key.shape[0]
    return (
        f"{entry.name}  {engine.model}, {engine.key.capability}, {engine.key.precision}, batch {batch}, "
        f"{engine.size / 1e6:.1f} MB, gate: {gate}"
    )


@contextmanager
def _progress(title: str) -> Iterator[Progress | None]:
    """Show the phases of a build in a terminal; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title)
        yield lambda phase, done, steps: bar.update(task, description=f"{title}: {phase}", completed=done, total=steps)
