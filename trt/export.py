"""A checkpoint to a model that serves: `python -m trt.export --checkpoint FILE --out DIR`.

Writes model.onnx (dynamic batch, float32, logits only) and the manifest.json that carries its sha256.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer
from onnx.reference import ReferenceEvaluator
from rich.console import Console

from trt.dataset import read_split, write_split
from trt.manifest import DEFAULT_MODEL, Manifest, load, models_dir, sha256
from trt.penn import Penn
from trt.train import NORMALISATION, load_checkpoint

OPSET = 18
TOLERANCE = 1e-3  # of logits, which run to about ten

SPINE: dict[str, Any] = {
    "name": "penn-spine",
    "version": "0.1.0",
    "labels": [
        {"value": 1, "name": "vertebra"},
        {"value": 2, "name": "spinal canal"},
        {"value": 3, "name": "intervertebral disc"},
    ],
    "spacing_mm": [0.9375, 0.9375],
    "overlap": 0.5,
    "orientation": (
        "Sagittal slices; axes Z, Y, X: Z across the patient in either direction, Y from superior to inferior, "
        "X from anterior to posterior."
    ),
    "training_data": (
        "SPIDER (van der Graaf et al., Scientific Data 2024, doi 10.5281/zenodo.10159290, CC BY 4.0), lumbar T2 SPACE, "
        "by way of a PNG conversion, halved in the plane."
    ),
    "licence": "CC BY 4.0; attribute SPIDER (van der Graaf et al., Scientific Data 2024).",
    "intended_use": (
        "For research, not for diagnosis. Lumbar spine MR, sagittal T2; no tumour label. "
        "PENN here is a reconstruction from the paper's abstract (Chen et al., J Bone Oncol 49:100649, 2024)."
    ),
}


class ExportError(RuntimeError):
    """The exported model does not calculate what the checkpoint does."""


def export_onnx(network: Penn, patch: int, path: Path) -> float:
    """Write the network as ONNX, check it, and return the largest difference of logits from torch.

    The comparison runs onnx's own reference evaluator, no runtime that serves; `ExportError` beyond TOLERANCE.
    """
    network = network.eval()
    sample = torch.rand(2, network.config.channels, patch, patch, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter uses what torch deprecates
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


def write_model(network: Penn, patch: int, split: Path, folder: Path, facts: Mapping[str, Any] = SPINE) -> Manifest:
    """Write model.onnx, manifest.json and split.json into `folder` and read them back as serving will.

    `facts` are the manifest's fields that the network does not know; its validation figures are left empty until
    `trt.evaluate --record` has measured them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.onnx"
    export_onnx(network, patch, model)
    fields = {
        **facts,
        "sha256": sha256(model),
        "patch": [patch, patch],
        "channels": network.config.channels,
        "normalisation": {**asdict(NORMALISATION), "clip": list(NORMALISATION.clip)},
        "validation": {},
    }
    (folder / "manifest.json").write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_split(read_split(split), folder / "split.json")
    manifest = load(folder)
    if manifest.classes != network.config.classes:
        raise ExportError(f"the network knows {network.config.classes} classes, the manifest {manifest.classes}")
    return manifest


def main(
    checkpoint: Annotated[Path, typer.Option(help="checkpoint.pt of trt.train, split.json beside it.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the model; the package's own if not given.")] = None,
) -> None:
    """Export a checkpoint as ONNX with its manifest."""
    folder = out or models_dir() / DEFAULT_MODEL
    network, config, steps = load_checkpoint(checkpoint)
    manifest = write_model(network, config.patch, checkpoint.with_name("split.json"), folder)
    Console().print(f"{manifest.name} {manifest.version}, {steps} steps, sha256 {manifest.digest}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
