"""Train the coarse spine finder: `python -m trt.finder --data DIR --split FILE --out DIR`; minutes, on one CPU core.

A small PENN on whole sagittal slices at a fraction of the model's resolution, that tells spine from all else. It only
decides where the model runs (`trt.extraction`), so it must miss nothing, in any contrast: the intensities it sees in
training are redrawn so that shape is all that is left to learn. The same seed and steps give the same weights, on one
kind of machine.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from trt.dataset import IGNORED, Case, DatasetError, read_folder, read_split
from trt.engine import EngineError, open_engine
from trt.export import ExportError, export_onnx
from trt.extraction import finder_model, select, shrink
from trt.manifest import (
    DEFAULT_MODEL,
    FINDER_FILE,
    Finder,
    Manifest,
    ManifestError,
    Normalisation,
    finder_fields,
    load,
    sha256,
)
from trt.patches import Array, normalise
from trt.penn import Penn, PennConfig
from trt.recipes import LABELS
from trt.trials import Plan, Rendering

KNOTS = 9  # of the curves that redraw intensities
LEAST_KEPT = 0.999  # of any judged patient's foreground, in any contrast: with less a finder is not written


@dataclass(frozen=True)
class FinderConfig:
    """How the finder is made; all lengths are pixels of the coarse grid unless said otherwise."""

    network: PennConfig = field(default_factory=lambda: PennConfig(channels=1, classes=2, width=8, levels=4))
    factor: int = 4  # pixels of the model's grid along a side of one of the finder's
    side: int = 96  # of the patches it runs on: 360 mm at 3.75 mm
    threshold: float = 0.25  # probability of spine that counts
    margin_mm: float = 11.0
    steps: int = 620
    batch: int = 16
    learning_rate: float = 3e-3  # falls to zero along a cosine
    decay: float = 0.99  # of the moving average of the weights, which is what is kept
    spine_weight: float = 3.0  # of its pixels in the loss: a miss costs more than a patch too many
    seed: int = 0


def prepare(cases: Sequence[Case], normalisation: Normalisation) -> list[tuple[Array, Array]]:
    """Normalised images and spines (Z, Y, X) float32 of the cases; any label is spine, and spine is 1."""
    return [(normalise(case.image, normalisation), (case.mask > 0).astype(np.float32)) for case in cases]


def coarse_slices(volumes: Sequence[tuple[Array, Array]], factor: int) -> list[tuple[Tensor, Tensor]]:
    """Every slice of every volume: image (Y, X) float32 in 0..1 and spine (Y, X) float32 0 or 1, shrunk by `factor`."""
    slices: list[tuple[Tensor, Tensor]] = []
    for image, spine in volumes:
        images = torch.from_numpy(shrink(image, factor))  # (Z, y, x)
        slices.extend(zip(images, torch.from_numpy(shrink(spine, factor)).gt(0).float(), strict=True))
    return slices


def train(slices: Sequence[tuple[Tensor, Tensor]], config: FinderConfig, report: Callable[[int, float], None]) -> Penn:
    """The averaged network in evaluation mode; `report` is told of every step and its loss."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    network = Penn(config.network)
    average: Penn = copy.deepcopy(network).eval()
    weight = torch.tensor([1.0, config.spine_weight])
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-2)
    for step in range(config.steps):
        for group in optimiser.param_groups:
            warm = min(1.0, (step + 1) / 30)
            group["lr"] = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        chosen = torch.randint(len(slices), (config.batch,), generator=generator).tolist()
        images, spine = _deformed([slices[n] for n in chosen], config.side, generator)
        loss = functional.cross_entropy(network(recolour(images, generator)), spine, weight, ignore_index=IGNORED)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        with torch.no_grad():
            decay = min(config.decay, step / (step + 10))
            for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
                if kept.dtype.is_floating_point:
                    kept.lerp_(new, 1 - decay)
                else:
                    kept.copy_(new)
        report(step + 1, loss.item())
    return average


def _deformed(slices: Sequence[tuple[Tensor, Tensor]], side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rotated, scaled and moved slices (N, 1, side, side) float32, and spine (N, side, side) int64 or IGNORED.

    Scales run from a spine at half its size to one half as large again: children and necks are not in the data. Off
    the slice lies its repeated edge, or air.
    """
    draw = torch.rand(len(slices), 6, generator=generator)
    images, targets = [], []
    centre = (torch.arange(side) - (side - 1) / 2)[:, None]
    for (image, spine), (turn, size, aspect, down, along, air) in zip(slices, draw.tolist(), strict=True):
        angle = math.radians(50 * turn - 25)
        scale = 2 ** (1.6 * size - 0.6)  # pixels of the slice per pixel of the patch: 0.66 to 2
        tall, wide = scale * 1.1 ** (2 * aspect - 1), scale * 1.1 ** (1 - 2 * aspect)
        height, width = image.shape
        y, x = centre * tall, centre.T * wide
        rows = y * math.cos(angle) + x * math.sin(angle) + (2 * down - 1) * 0.3 * height
        columns = x * math.cos(angle) - y * math.sin(angle) + (2 * along - 1) * 0.3 * width
        grid = torch.stack((2 * columns / width, 2 * rows / height), dim=-1)[None]  # (1, side, side, x and y)
        padding = "zeros" if air < 0.5 else "border"
        moved = functional.grid_sample(image[None, None], grid, padding_mode=padding, align_corners=False)
        known = grid.abs().amax(-1) < 1  # (1, side, side)
        truth = functional.grid_sample(spine[None, None], grid, align_corners=False)[:, 0] > 0.3
        images.append(moved)
        targets.append(torch.where(known, truth.long(), 0 if air < 0.5 else IGNORED))
    return torch.cat(images), torch.cat(targets)


def recolour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Redraw intensities (N, 1, H, W) in 0..1: curves of every kind, coil shading, bright and dark spots, noise."""
    count, _, height, width = images.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    rising = uniform(0, 1, count, KNOTS).sort(dim=1).values
    rising = (rising - rising[:, :1]) / (rising[:, -1:] - rising[:, :1]).clamp(min=1e-3)
    kind = uniform(0, 1, count, 1)
    curve = torch.where(kind < 0.25, torch.linspace(0, 1, KNOTS).expand(count, -1), rising)
    curve = torch.where(kind > 0.5, 1 - rising, curve)  # inverted
    curve = torch.where(kind > 0.75, uniform(0, 1, count, KNOTS), curve)  # no order at all
    dark = uniform(0, 1, count) < 0.7
    curve[dark, 0] = curve[dark, 0].clamp(max=0.05)  # air and cortical bone are dark in almost every sequence
    place = images.flatten(1) * (KNOTS - 1)  # (N, H W)
    below = place.floor().clamp(max=KNOTS - 2).long()
    share = place - below
    images = (curve.gather(1, below) * (1 - share) + curve.gather(1, below + 1) * share).view_as(images)

    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None, :]
    waves = torch.stack([y + 0 * x, x + 0 * y, y * x, y * y + 0 * x, x * x + 0 * y])  # (5, H, W)
    shading = torch.randn(count, 5, generator=generator) * 0.5
    images = images * torch.einsum("nk,khw->nhw", shading, waves).exp()[:, None]
    for _ in range(2):  # what may lie in a spine and is not in the data: tumours, metal, haemangiomas
        middle, radius = uniform(-0.8, 0.8, 2, count, 1, 1), uniform(0.03, 0.2, 2, count, 1, 1)
        inside = ((y - middle[0]) / radius[0]) ** 2 + ((x - middle[1]) / radius[1]) ** 2 < 1  # (N, H, W)
        inside &= uniform(0, 1, count, 1, 1) < 0.4
        images = torch.where(inside[:, None], 0.7 * uniform(0, 1, count, 1, 1, 1) + 0.3 * images, images)
    noise = torch.randn(images.shape, generator=generator) * uniform(0, 0.1, count, 1, 1, 1)
    stretched = (images + noise).clamp(min=0)
    return (stretched / stretched.flatten(1).quantile(0.995, dim=1).clamp(min=1e-3)[:, None, None, None]).clamp(max=1)


def write_finder(network: Penn, config: FinderConfig, folder: Path) -> Finder:
    """Write finder.onnx into `folder`; returns what a manifest says of it, nothing measured yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FINDER_FILE
    export_onnx(network, config.side, path)
    return Finder(
        path=path,
        digest=sha256(path),
        factor=config.factor,
        patch=(config.side, config.side),
        channels=config.network.channels,
        threshold=config.threshold,
        margin_mm=config.margin_mm,
        kept=0.0,
    )


@dataclass(frozen=True)
class Kept:
    """Of one series in one contrast, the `share` 0..1 of foreground voxels that lie where the model runs.

    `name` tells the series and the contrast. `reason` says why everything runs, which keeps everything; or is empty.
    """

    patient: str
    name: str
    share: float
    reason: str


def judge(cases: Sequence[Case], manifest: Manifest, renderings: Sequence[Rendering]) -> list[Kept]:
    """What the manifest's finder keeps of every case in every rendering."""
    kept = []
    with open_engine(finder_model(manifest), threads=1) as engine:
        for trial in (Plan(case, rendering).build() for case in cases for rendering in renderings):
            selection = select(normalise(trial.image, manifest.normalisation), manifest, "spine", engine)
            spine = trial.mask > 0
            inside = spine if selection.region is None else spine[selection.region]
            share = float(inside.sum() / spine.sum()) if spine.any() else 1.0
            kept.append(Kept(trial.patient, trial.name, share, selection.reason))
    return kept


def install(finder: Finder, folder: Path) -> None:
    """Copy a finder's file into `folder` and tell of it there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FINDER_FILE
    shutil.copyfile(finder.path, path)
    record(replace(finder, path=path), folder)


def record(finder: Finder, folder: Path) -> None:
    """Tell of the finder in `folder`: in its manifest if it holds a model, in finder.json otherwise."""
    fields = finder_fields(finder)
    manifest = folder / "manifest.json"
    if manifest.is_file():
        fields = json.loads(manifest.read_text(encoding="utf-8")) | {"finder": fields}
    path = manifest if manifest.is_file() else folder / "finder.json"
    path.write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(
    data: Annotated[Path, typer.Option(help="Folder of series with image and mask; any label is spine.")],
    split: Annotated[Path, typer.Option(help="split.json: who is trained on, and who judges.")],
    out: Annotated[Path, typer.Option(help="Folder for finder.onnx; a model's folder has its manifest told.")],
    model: Annotated[str, typer.Option(help="Model it is for: its grid and normalisation.")] = DEFAULT_MODEL,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = FinderConfig.steps,
    seed: Annotated[int, typer.Option(help="Draws weights, slices and augmentation.")] = 0,
    label: Annotated[list[str] | None, typer.Option(help="Name of mask value 1, then of 2, ...")] = None,
    least_kept: Annotated[
        float, typer.Option(min=0, max=1, help="Share of each judged patient's foreground; with less, none is written.")
    ] = LEAST_KEPT,
) -> None:
    """Train the finder on the split's training patients and measure what it keeps of those held back.

    These are judged as acquired, inverted and, where the labels begin as the default ones do, T1-like.
    """
    console, config = Console(), FinderConfig(steps=steps, seed=seed)
    label = label or list(LABELS)
    anatomy = tuple(label[:3]) == LABELS[:3]  # by which T1-like contrast is drawn
    renderings = (Rendering.ACQUIRED, Rendering.INVERTED, *([Rendering.T1_LIKE] if anatomy else []))
    try:
        manifest, people = load(model), read_split(split)
        if not people.train or not people.validation:
            raise DatasetError(f"{split}: needs patients to train on and patients held back, who judge the finder")
        learnt, judging = (
            read_folder(data, len(label), patients, names=label, pixels=manifest.spacing_mm)
            for patients in (people.train, people.validation)
        )
        recent: list[float] = []

        def report(step: int, loss: float) -> None:
            recent.append(loss)
            if step % 50 == 0 or step == steps:
                console.print(f"step {step}  loss {np.mean(recent[-50:]):.4f}")

        slices = coarse_slices(prepare(learnt, manifest.normalisation), config.factor)
        with tempfile.TemporaryDirectory(prefix="pennode-") as folder:
            finder = write_finder(train(slices, config, report), config, Path(folder))
            kept = judge(judging, replace(manifest, finder=finder), renderings)
            for one in kept:
                why = f"; everything runs: {one.reason}" if one.reason else ""
                console.print(f"{one.name}: {one.share:.5f} of the foreground kept{why}", soft_wrap=True)
            lost = [f"{one.share:.5f} of patient {one.patient} ({one.name})" for one in kept if one.share < least_kept]
            if lost:
                raise DatasetError(
                    f"the finder keeps only {', '.join(lost)}, less than {least_kept:g}: it is not written; train it "
                    "for more --steps or on more patients"
                )
            # Rounded down: a manifest must not promise more than was measured.
            install(replace(finder, kept=math.floor(min(one.share for one in kept) * 1e5) / 1e5), out)
    except (ManifestError, DatasetError, ExportError, EngineError) as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(main)
