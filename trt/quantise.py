"""A model in eight bits for OpenVINO on CPUs: `python -m trt.quantise --data DIR --model MODEL`.

Weights become int8, one scale for each output channel, and feature maps uint8. Their ranges are those seen while the
model runs on patches of the patients that it was trained on, never of those held back: as acquired, in the other
contrasts of `trt.trials`, and for a model that marks tumours with **simulated** ones, so that what is bright in one
series is not cut off in another. The last layer stays in float32. Writes int8.onnx beside the model and names it in
the manifest; `trt.precisions --record` then tells in the model's card what it costs.

Of a weight's eight bits seven are used. Processors without VNNI add pairs of products in 16 bits, which eight overflow:
other masks would come of the same file. They are slower at it, and yet faster than in float32.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer

from trt.dataset import Case, DatasetError, read_folder, read_split
from trt.engine import EngineError, open_engine
from trt.gate import Gate, judge
from trt.lesions import Weighting
from trt.manifest import (
    DEFAULT_MODEL,
    INT8_FILE,
    Manifest,
    ManifestError,
    Quantised,
    load,
    quantised_fields,
    sha256,
)
from trt.patches import Array, normalise
from trt.scores import knows_tumours
from trt.trials import plan

LEAST_CASES = 4
BATCH = 8


class QuantiseError(RuntimeError):
    """No model in eight bits can be made; the message says what is missing and what to do."""


def calibration_patches(cases: Sequence[Case], manifest: Manifest, count: int, seed: int) -> Array:
    """Patches (count, C, H, W) float32, normalised, drawn anywhere from renditions of the cases, equal for equal seeds.

    Every rendition gives as many, but for one. Raises `ValueError` where there are no cases or no patches.
    """
    plans = plan(cases, int(knows_tumours(manifest.labels)), (Weighting.T1_GADOLINIUM,))
    if not plans or count < 1:
        raise ValueError(f"at least one series and one patch are needed, not {len(cases)} and {count}")
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(np.resize(np.arange(len(plans)), max(count, len(plans))))[:count])
    patches = np.empty((count, manifest.channels, *manifest.patch), np.float32)
    before = manifest.channels // 2
    trial, volume = -1, np.empty((0, 0, 0), np.float32)
    for number, place in enumerate(chosen.tolist()):
        if place != trial:
            trial, image = place, plans[place].build().image
            lacking = [(0, max(side - length, 0)) for side, length in zip(manifest.patch, image.shape[1:], strict=True)]
            volume = np.pad(normalise(image, manifest.normalisation), [(before, before), *lacking], mode="edge")
        z = random.integers(0, volume.shape[0] - manifest.channels + 1)
        y, x = (random.integers(0, volume.shape[axis + 1] - manifest.patch[axis] + 1) for axis in (0, 1))
        patches[number] = volume[z : z + manifest.channels, y : y + manifest.patch[0], x : x + manifest.patch[1]]
    return patches


def require_library() -> None:
    """Tell at once whether ONNX Runtime is installed; raises `QuantiseError` when it is not."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise QuantiseError("ONNX Runtime is not installed: `pip install 'pennode[train]'`") from error


def quantise_onnx(model: Path, patches: Array, out: Path) -> None:
    """Write the model in eight bits, with the ranges that its feature maps have on the patches (N, C, H, W) float32.

    Equal arguments give equal bytes. Raises `QuantiseError` where ONNX Runtime is not installed or refuses the model.
    """
    require_library()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    graph = onnx.load(model).graph
    convolutions = [node.name for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    name = graph.input[0].name

    class Patches(CalibrationDataReader):  # type: ignore[misc]  # the library is not followed by the type checker
        def __init__(self) -> None:
            self.batches = iter(range(0, len(patches), BATCH))

        def get_next(self) -> dict[str, Array] | None:
            first = next(self.batches, None)
            return None if first is None else {name: patches[first : first + BATCH]}

    with _quiet():
        try:
            quantize_static(
                model,
                out,
                Patches(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,  # seven bits of weights: see above
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
                nodes_to_exclude=convolutions[-1:],
            )
        except (ValueError, RuntimeError) as error:
            raise QuantiseError(f"{model}: ONNX Runtime makes no eight bits of it: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice to fold batch normalisation first: exports have none left."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def quantise(manifest: Manifest, patches: Array) -> tuple[Manifest, Gate]:
    """Put the model in eight bits beside it and into its manifest; also how it does beside float32 on a phantom.

    An int8.onnx that is there is replaced; what is refused leaves no file. Raises `QuantiseError`, also where it does
    not pass the gate, and `EngineError` where OpenVINO does not run it.
    """
    folder = manifest.path.parent
    with tempfile.TemporaryDirectory(prefix=".quantise-", dir=folder) as scratch:
        made = Path(scratch) / INT8_FILE
        quantise_onnx(manifest.path, patches, made)
        candidate = Quantised(made, sha256(made), manifest.digest, len(patches))
        with open_engine(replace(manifest, quantised=candidate), batch=1, precision="int8") as engine:
            gate = judge(engine, manifest, "int8")
        if not gate.passed:
            raise QuantiseError(
                f"{manifest.name} in eight bits agrees with float32 on {gate.agreement:.2%} of a phantom's pixels "
                f"(at least {gate.least_agreement:.1%} must), logits differ by up to {gate.largest_difference:.2g} "
                f"(at most {gate.tolerance:g}): calibrate with more --patches, or stay with bf16"
            )
        final = replace(candidate, path=folder / INT8_FILE)
        _tell(folder, None)  # at no moment does the manifest speak of a file that is not there
        made.replace(final.path)
    _tell(folder, final)
    return load(folder), gate


def _tell(folder: Path, quantised: Quantised | None) -> None:
    """Write the manifest in `folder` anew, with the model in eight bits or without one."""
    path = folder / "manifest.json"
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    fields.pop("int8", None)
    if quantised is not None:
        fields["int8"] = quantised_fields(quantised)
    written = path.with_name(".manifest.json")
    written.write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    written.replace(path)


def main(
    data: Annotated[Path, typer.Option(help="Folder of the series that the model was trained on, with their masks.")],
    model: Annotated[str, typer.Option(help="Name or folder of the model; split.json beside it.")] = DEFAULT_MODEL,
    patches: Annotated[int, typer.Option(min=BATCH, help="Patches to calibrate with.")] = 240,
    seed: Annotated[int, typer.Option(min=0, help="Draws them.")] = 1,
) -> None:
    """Make a model in eight bits of one in float32, calibrated on patients that it was trained on."""
    try:
        require_library()
        manifest = load(model, int8=False)
        people = read_split(manifest.path.with_name("split.json"))
        names = [label.name for label in manifest.labels]
        cases = read_folder(data, len(names), people.train, names=names, pixels=manifest.spacing_mm)
        if len(cases) < LEAST_CASES:
            raise QuantiseError(f"{data}: {len(cases)} series to calibrate with, at least {LEAST_CASES} are needed")
        _, gate = quantise(manifest, calibration_patches(cases, manifest, patches, seed))
    except (ManifestError, DatasetError, QuantiseError, EngineError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    path = manifest.path.with_name(INT8_FILE)
    typer.echo(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, calibrated with {patches} patches of {len(cases)} series; "
        f"{gate.agreement:.3%} of a phantom's pixels agree with float32, logits differ by up to "
        f"{gate.largest_difference:.2g}"
    )


if __name__ == "__main__":
    typer.run(main)
