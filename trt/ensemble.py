"""Several models of one kind as one: `python -m trt.ensemble --model A --model B --out DIR`.

The mean of their logits, in one ONNX file: the networks run side by side, and one last layer adds up what theirs did,
each with its share. So whatever runs one of them runs the whole, with no op that they do not have themselves.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from onnx import helper, numpy_helper
from onnx.compose import add_prefix
from onnx.reference import ReferenceEvaluator

from trt.dataset import DatasetError, Split, read_split, write_split
from trt.export import TOLERANCE, ExportError, gather_facts, read_finder
from trt.manifest import INT8_FILE, Manifest, ManifestError, finder_fields, load, sha256

STALE = (INT8_FILE, "figures.json", "pareto.json", "precisions.json", "MODEL_CARD.md")
"""What speaks of the weights that were there before."""

ALIKE = ("labels", "patch", "channels", "stride", "spacing_mm", "normalisation", "overlap")


def join(paths: Sequence[Path]) -> onnx.ModelProto:
    """The mean of the logits of PENN's exports, as one model with their input and output.

    Raises `ExportError` for a model that does not end in a 1x1 convolution with weights and bias, or is of another
    opset or other inputs than the first.
    """
    models = [onnx.load(path) for path in paths]
    first = models[0]
    (given,), (answer,) = first.graph.input, first.graph.output
    nodes: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []
    features, kernels, biases = [], [], []
    for number, (path, model) in enumerate(zip(paths, models, strict=True)):
        if list(model.opset_import) != list(first.opset_import) or list(model.graph.input) != list(first.graph.input):
            raise ExportError(f"{path}: another opset or input than {paths[0]}; export both by one version")
        graph = add_prefix(model, f"m{number}.").graph
        head, weights = graph.node[-1], {item.name: item for item in graph.initializer}
        if head.op_type != "Conv" or len(head.input) != 3 or not set(head.input[1:]) <= weights.keys():
            raise ExportError(f"{path}: ends in {head.op_type}, not in a convolution with weights and bias")
        kernel, bias = (numpy_helper.to_array(weights[name]) for name in head.input[1:])
        if kernel.shape[2:] != (1, 1):
            raise ExportError(f"{path}: its last convolution is {kernel.shape[2:]}, not 1x1")
        for node in graph.node:
            node.input[:] = [given.name if name == graph.input[0].name else name for name in node.input]
        nodes += graph.node[:-1]
        stored += [item for item in graph.initializer if item.name not in head.input]
        features.append(head.input[0])
        kernels.append(kernel / len(models))
        biases.append(bias / len(models))
    shapes = {(kernel.shape[0], bias.shape) for kernel, bias in zip(kernels, biases, strict=True)}
    if len(shapes) != 1:
        raise ExportError("the models have not the same number of classes")
    last = first.graph.node[-1]
    head = helper.make_node("Conv", ["features", "head.weight", "head.bias"], [answer.name], name="head")
    head.attribute.extend(last.attribute)
    stored.append(numpy_helper.from_array(np.concatenate(kernels, axis=1).astype(np.float32), "head.weight"))
    stored.append(numpy_helper.from_array(np.sum(biases, axis=0, dtype=np.float32), "head.bias"))
    nodes += [helper.make_node("Concat", features, ["features"], name="members", axis=1), head]
    joined = helper.make_graph(nodes, "mean of logits", [given], [answer], stored)
    made = helper.make_model(joined, opset_imports=first.opset_import, ir_version=first.ir_version)
    onnx.checker.check_model(made, full_check=True)
    return made


def check(made: onnx.ModelProto, paths: Sequence[Path], shape: tuple[int, ...]) -> float:
    """The largest difference of its logits from the mean of the models', on random patches of `shape` (N, C, H, W).

    Both run on onnx's own reference evaluator. Raises `ExportError` beyond TOLERANCE.
    """
    sample = np.random.default_rng(0).random(shape, np.float32)
    feed = {made.graph.input[0].name: sample}
    wanted = np.mean([ReferenceEvaluator(onnx.load(path)).run(None, feed)[0] for path in paths], axis=0)
    difference = float(np.abs(ReferenceEvaluator(made).run(None, feed)[0] - wanted).max())
    if not difference <= TOLERANCE:
        raise ExportError(f"the joined model is {difference:.2g} off the mean of the models, more than {TOLERANCE}")
    return difference


def write_ensemble(manifests: Sequence[Manifest], folder: Path, facts: dict[str, Any], finder: Path | None) -> Manifest:
    """Write model.onnx, manifest.json, split.json and training.json into `folder`, and read them back.

    `facts` are those of `trt.export.gather_facts`. Raises `ManifestError` or `ExportError` for models that do not
    belong together, `DatasetError` where one held back patients that another was trained on.
    """
    first = manifests[0]
    for other in manifests[1:]:
        for field in ALIKE:
            if getattr(other, field) != getattr(first, field):
                raise ManifestError(f"{other.path.parent}: {field} is not that of {first.path.parent}")
    split = _one_split([manifest.path.with_name("split.json") for manifest in manifests])
    paths = [manifest.path for manifest in manifests]
    made = join(paths)
    check(made, paths, (1, first.channels, *first.patch))
    fields = json.loads(first.path.with_name("manifest.json").read_text(encoding="utf-8"))
    for gone in ("int8", "finder"):
        fields.pop(gone, None)
    found = None if finder is None else read_finder(finder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ensemble-", dir=folder) as name:
        scratch = Path(name)
        onnx.save(made, scratch / "model.onnx")
        fields |= {**facts, "sha256": sha256(scratch / "model.onnx"), "validation": {}}
        if found is not None:
            shutil.copyfile(found.path, scratch / found.path.name)
            fields["finder"] = finder_fields(found)
        text = json.dumps(fields, indent=1, ensure_ascii=False) + "\n"
        (scratch / "manifest.json").write_text(text, encoding="utf-8")
        write_split(split, scratch / "split.json")
        (scratch / "training.json").write_text(json.dumps(_training(manifests), indent=1) + "\n", encoding="utf-8")
        load(scratch)  # what cannot be read back replaces nothing
        for stale in STALE:
            (folder / stale).unlink(missing_ok=True)
        for path in scratch.iterdir():
            path.replace(folder / path.name)
    return load(folder)


def _one_split(paths: Sequence[Path]) -> Split:
    splits = [read_split(path) for path in paths]
    for path, split in zip(paths, splits, strict=True):
        if (split.train, split.validation) != (splits[0].train, splits[0].validation):
            raise DatasetError(f"{path}: not the patients of {paths[0]}: nothing would be held back from both")
    return splits[0]


def _training(manifests: Sequence[Manifest]) -> dict[str, str]:
    """How they were trained, in words: what differs from model to model is told of each."""
    told = []
    for manifest in manifests:
        path = manifest.path.with_name("training.json")
        told.append(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})
    names = list(dict.fromkeys(name for each in told for name in each))
    joined = {"networks": f"{len(manifests)} side by side, the mean of their logits"}
    for name in names:
        values = list(dict.fromkeys(each.get(name, "not told") for each in told))
        joined[name] = " and ".join(values)
    return joined


def main(
    model: Annotated[list[Path], typer.Option(help="Folder of a model; give two or more.")],
    out: Annotated[Path, typer.Option(help="Folder of the model that they make; one that is there is replaced.")],
    facts: Annotated[Path | None, typer.Option(help="JSON file of the manifest's facts; see trt.export.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    version: Annotated[str | None, typer.Option(help="Its version, such as 1.2.3.")] = None,
    training_data: Annotated[str | None, typer.Option(help="What the models were trained on.")] = None,
    licence: Annotated[str | None, typer.Option(help="Terms of its use.")] = None,
    finder: Annotated[Path | None, typer.Option(help="Folder of a finder, or of a model that has one.")] = None,
) -> None:
    """Make one model of several that were trained alike: the mean of their logits."""
    if len(model) < 2:
        raise typer.BadParameter("give --model twice or more: one model needs no other to be itself")
    given = {"name": name, "version": version, "training_data": training_data, "licence": licence}
    try:
        manifests = [load(folder) for folder in model]
        known = gather_facts(facts, given, [label.name for label in manifests[0].labels])
        made = write_ensemble(manifests, out, known, finder)
    except (ManifestError, DatasetError, ExportError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"{made.name} {made.version}, {len(manifests)} networks, sha256 {made.digest}")


if __name__ == "__main__":
    typer.run(main)
