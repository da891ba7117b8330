"""A checkpoint to a model that serves: `python -m trt.export --checkpoint FILE --out DIR --facts FILE`.

Writes model.onnx (dynamic batch, float32, logits only) and the manifest.json that carries its sha256. What a model is
called, was trained on and may be used for, only its makers know: they give it as a JSON file or as options. Those of
penn-spine lie beside it, in `trt/models/penn-spine/facts.json`.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer
from onnx.reference import ReferenceEvaluator
from rich.console import Console

from trt.checkpoint import load_checkpoint
from trt.dataset import DatasetError, read_split, write_split
from trt.manifest import (
    FIELDS,
    Finder,
    Manifest,
    ManifestError,
    finder_fields,
    load,
    parse,
    parse_finder,
    sha256,
)
from trt.penn import Penn
from trt.recipes import NORMALISATION, TrainConfig

OPSET = 18
TOLERANCE = 1e-3  # of logits, which run to about ten

# What pennode itself sees to, for every model: its axes, and what it is for.
DEFAULTS: dict[str, Any] = {
    "overlap": 0.25,
    "orientation": (
        "Sagittal slices; axes Z, Y, X: Z across the patient in either direction, Y from superior to inferior, "
        "X from anterior to posterior."
    ),
    "intended_use": "For research, not for diagnosis.",
}
MEASURED = frozenset({"sha256", "patch", "channels", "stride", "spacing_mm", "normalisation", "validation"})
"""What the checkpoint knows and nobody is asked for."""


class ExportError(RuntimeError):
    """The exported model does not calculate what the checkpoint does."""


def export_onnx(network: Penn, patch: int, path: Path) -> float:
    """Write the network as ONNX, check it, and return the largest difference of logits from torch.

    The comparison runs onnx's own reference evaluator, no runtime that serves; `ExportError` beyond TOLERANCE.
    """
    network = network.eval()
    sample = torch.rand(2, network.config.channels, patch, patch, generator=torch.Generator().manual_seed(0))
    with _quiet():
        program = torch.onnx.export(
            network,
            (sample,),
            input_names=["patches"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = _bare(program.model_proto)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    with torch.no_grad():
        wanted = network(sample[:1]).numpy()
    (found,) = ReferenceEvaluator(model).run(None, {"patches": sample[:1].numpy()})
    difference = float(np.abs(found - wanted).max())
    if not difference <= TOLERANCE:
        raise ExportError(f"{path}: logits differ from torch by up to {difference:.2g}, more than {TOLERANCE}")
    return difference


def _bare(model: Any) -> Any:
    """Without the exporter's notes, which hold stack traces and the paths of the machine they come from."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of itself: that it uses what torch deprecates, and finds no torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def gather_facts(file: Path | None, given: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """The manifest's fields that only a model's makers know; what is given wins over the file, that over DEFAULTS.

    A file may say what `labels`, the names that were trained on, are in coded terms and how they are coloured.
    `ManifestError` names the fields that are missing or not theirs to say.
    """
    facts: dict[str, Any] = {}
    if file is not None:
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ManifestError(f"{file}: not readable as JSON: {error}") from error
        if not isinstance(facts, dict):
            raise ManifestError(f"{file}: must be a JSON object")
    facts |= {field: value for field, value in given.items() if value is not None}
    named = {"labels": [{"value": value, "name": name} for value, name in enumerate(labels, 1)]}
    facts |= {field: value for field, value in (DEFAULTS | named).items() if field not in facts}
    wanted = FIELDS - MEASURED
    missing, odd = sorted(wanted - set(facts)), sorted(set(facts) - wanted)
    if missing:
        raise ManifestError(f"facts of the model are missing: {', '.join(missing)}; give them as options or in --facts")
    if odd:
        raise ManifestError(f"no facts to be given of a model: {', '.join(odd)}")
    return facts


def read_finder(path: Path) -> Finder:
    """The finder in a folder, by what finder.json or a model's manifest.json says there; `path` may be a file of it.

    Raises `ManifestError` when there is none, or its file is another.
    """
    folder = path if path.is_dir() else path.parent
    for told in (folder / "finder.json", folder / "manifest.json"):
        if not told.is_file():
            continue
        try:
            fields = json.loads(told.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ManifestError(f"{told}: not readable as JSON: {error}") from error
        fields = fields if told.name == "finder.json" or not isinstance(fields, dict) else fields.get("finder")
        finder = parse_finder(fields, told)
        if not finder.path.is_file() or sha256(finder.path) != finder.digest:
            raise ManifestError(f"{finder.path}: missing, or not the file that {told} speaks of")
        return finder
    raise ManifestError(f"{folder}: no finder; give the folder that trt.finder wrote, or a model that has one")


def describe(config: TrainConfig, steps: int) -> dict[str, str]:
    """How a network was trained, in words for its card."""
    network, mixture = config.network, config.mixture
    optimiser = {
        "sgd": "stochastic gradient descent, Nesterov momentum 0.95, polynomial decay",
        "adamw": "AdamW, cosine",
    }[config.optimiser]
    earlier = {"before": config.start} if config.start else {}
    return earlier | {
        "steps": f"{steps} of {config.batch} patches; the first {config.pretrain:.0%} pre-training (restoring)",
        "patches": "drawn by label, all alike" if config.balanced else "drawn anywhere",
        "optimiser": f"{optimiser}; warm-up {config.warm_up} steps, rate {config.learning_rate:g}, gradients clipped",
        "loss": f"Dice and cross-entropy at {network.side_heads + 1} resolutions of the decoder",
        "weights kept": f"moving average, decay {config.average:g}" if config.average else "the last",
        "renditions": (
            f"{1 - mixture.t1_like - mixture.synthetic:.0%} as acquired, {mixture.t1_like:.0%} T1-like, "
            f"{mixture.synthetic:.0%} synthetic contrast; simulated lesions in {mixture.lesions:.0%} of the series"
        ),
        "network": f"{network.channels} neighbouring slices, width {network.width}, {network.levels} resolutions",
        "seed": str(config.seed),
        "arithmetic": "bfloat16 convolutions" if config.bf16 else "float32",
    }


def write_model(
    network: Penn,
    config: TrainConfig,
    steps: int,
    split: Path,
    folder: Path,
    facts: Mapping[str, Any],
    finder: Finder | None = None,
) -> Manifest:
    """Write model.onnx, manifest.json and split.json into `folder` and read them back as serving will.

    Patch, pixels and names of labels are those of `config`, the training of which goes into training.json; a `finder`
    is copied along. `facts` are those of `gather_facts`; validation figures are left empty until `trt.evaluate
    --record` has measured them. Raises `ManifestError` or `ExportError`, before anything is written, for facts that are
    wrong or do not fit the network.
    """
    fields = {
        **facts,
        "sha256": "0" * 64,
        "patch": [config.patch, config.patch],
        "spacing_mm": list(config.pixels),
        "channels": network.config.channels,
        "stride": network.config.stride,
        "normalisation": {**asdict(NORMALISATION), "clip": list(NORMALISATION.clip)},
        "validation": {},
    }
    manifest = folder / "manifest.json"
    promised = tuple(label.name for label in parse(fields, manifest).labels)
    if promised != config.labels:
        raise ExportError(f"the network was trained on {', '.join(config.labels)}, in this order, not {promised}")
    people = read_split(split)
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(network, config.patch, folder / "model.onnx")
    fields["sha256"] = sha256(folder / "model.onnx")
    if finder is not None:
        copied = folder / finder.path.name
        if not copied.exists() or not copied.samefile(finder.path):
            shutil.copyfile(finder.path, copied)
        fields["finder"] = finder_fields(replace(finder, path=copied))
    manifest.write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_split(people, folder / "split.json")
    (folder / "training.json").write_text(json.dumps(describe(config, steps), indent=1) + "\n", encoding="utf-8")
    return load(folder)


def main(
    checkpoint: Annotated[Path, typer.Option(help="checkpoint.pt of trt.train, split.json beside it.")],
    out: Annotated[Path, typer.Option(help="Folder of the model; a model that is there is replaced.")],
    facts: Annotated[Path | None, typer.Option(help="JSON file of what follows, under the manifest's names.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    version: Annotated[str | None, typer.Option(help="Its version, such as 1.2.3.")] = None,
    training_data: Annotated[str | None, typer.Option(help="What it was trained on.")] = None,
    licence: Annotated[str | None, typer.Option(help="Terms of its use.")] = None,
    intended_use: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    finder: Annotated[
        Path | None, typer.Option(help="Folder of trt.finder, or of a model: its spine finder goes along.")
    ] = None,
) -> None:
    """Export a checkpoint as ONNX with its manifest."""
    given = {
        "name": name,
        "version": version,
        "training_data": training_data,
        "licence": licence,
        "intended_use": intended_use,
    }
    try:
        network, config, steps = load_checkpoint(checkpoint)
        known = gather_facts(facts, given, config.labels)
        found = read_finder(finder) if finder else None
        manifest = write_model(network, config, steps, checkpoint.with_name("split.json"), out, known, found)
    except (ManifestError, DatasetError, ExportError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    Console().print(f"{manifest.name} {manifest.version}, {steps} steps, sha256 {manifest.digest}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
