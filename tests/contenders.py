"""Ways to segment a series with one network, for `tests.bench_patches`: ours, other libraries', and other runtimes'.

Each is opened for a setting and a shape, and is then called with a normalised volume (Z, Y, X) float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tests.runtimes import Runtime, Setting, compiled, eager, onnx_runtime, openvino
from trt.candidates import open_candidate
from trt.cpu import STREAMS
from trt.decision import decide
from trt.engine import EngineError, Precision, open_engine
from trt.extraction import select
from trt.fitting import fit
from trt.manifest import Manifest
from trt.patches import Array, Predict, bell, count_patches, starts

Shape = tuple[int, int, int]
Mask = NDArray[np.uint8]
Run = Callable[[Array], Mask | None]
Way = Callable[[Runtime, Setting, Shape], AbstractContextManager[Run]]

BARE, OURS = "network alone", "ours"

STRIDE = 32  # whole slices are padded to its multiples where a manifest tells no stride


@dataclass(frozen=True)
class Contender:
    """`open` raises `EngineError` where this machine cannot run it. A `slow` one takes part where it is asked for."""

    name: str
    precision: Precision
    open: Callable[[Setting, Shape], AbstractContextManager[Run]]
    slow: bool = False


def patchwise(setting: Setting, predict: Predict, finder: Predict | None = None) -> Run:
    """Our pipeline about any network; with a finder, as it serves: in patches fitted to the spine that this sees."""
    manifest = setting.manifest

    def run(volume: Array) -> Mask:
        region = select(volume, manifest, "all" if finder is None else "spine", finder, batch=setting.batch).region
        found = fit(
            volume.shape,
            region,
            manifest,
            flexible=finder is not None,
            overlap=setting.overlap,
            batch=setting.batch,
        )
        slices = found.slices(volume, predict, manifest, region)
        return decide(slices, volume.shape, manifest.labels, 1.0)

    return run


@contextmanager
def network(setting: Setting, shape: Shape) -> Iterator[Run]:
    """The network alone: as many patches as a series has, one batch again and again."""
    with open_engine(
        setting.manifest, threads=setting.threads, batch=setting.batch, precision=setting.precision
    ) as engine:
        patches = np.random.default_rng(0).random(
            (setting.batch, setting.manifest.channels, *setting.manifest.patch), np.float32
        )

        def run(volume: Array) -> None:
            count = count_patches(volume.shape, setting.manifest.patch, setting.overlap)
            for _ in range(-(-count // setting.batch)):
                engine(patches)

        yield run


@contextmanager
def ours(setting: Setting, shape: Shape) -> Iterator[Run]:
    """What serves, run everywhere."""
    with open_engine(
        setting.manifest, threads=setting.threads, batch=setting.batch, precision=setting.precision
    ) as engine:
        yield patchwise(setting, engine)


@contextmanager
def as_it_serves(setting: Setting, shape: Shape) -> Iterator[Run]:
    """What serves, as it serves: in patches fitted to the spine that the finder sees."""
    if setting.manifest.finder is None:
        raise EngineError(f"{setting.manifest.name} has no finder")
    with ExitStack() as stack:
        candidate, engine = open_candidate(
            stack, setting.manifest, precision=setting.precision, threads=setting.threads, batch=setting.batch
        )
        yield patchwise(setting, engine, candidate.finder)


@contextmanager
def whole_slices(setting: Setting, shape: Shape) -> Iterator[Run]:
    """No patches: as many slices at a time as run side by side, one in each stream."""
    stride = setting.manifest.stride or STRIDE
    plane = -(-shape[1] // stride) * stride, -(-shape[2] // stride) * stride
    lacking = (0, 0), (0, plane[0] - shape[1]), (0, plane[1] - shape[2])
    manifest = replace(setting.manifest, patch=plane)
    with open_engine(manifest, threads=setting.threads, batch=STREAMS, precision=setting.precision) as engine:

        def slices(volume: Array) -> Iterator[tuple[int, Array]]:
            near = neighbours(volume, manifest)
            for first in range(0, len(volume), STREAMS):
                logits = engine(np.pad(volume[near[first : first + STREAMS]], ((0, 0), *lacking), mode="edge"))
                for number, each in enumerate(logits[..., : shape[1], : shape[2]]):
                    yield first + number, each

        def run(volume: Array) -> Mask:
            return decide(slices(volume), volume.shape, manifest.labels, 1.0)

        yield run


def neighbours(volume: Array, manifest: Manifest) -> NDArray[np.intp]:
    """The slices (Z, C) that are the channels of each slice."""
    offsets = np.arange(manifest.channels) - manifest.channels // 2
    return np.asarray(np.clip(np.arange(len(volume))[:, None] + offsets, 0, len(volume) - 1))


@contextmanager
def patches_about(runtime: Runtime, setting: Setting, shape: Shape) -> Iterator[Run]:
    """Our pipeline about another runtime."""
    import torch

    with runtime(setting) as logits:

        def predict(patches: Array) -> Array:
            with torch.inference_mode():
                return logits(torch.from_numpy(patches)).float().numpy()

        yield patchwise(setting, predict)


@contextmanager
def monai(runtime: Runtime, setting: Setting, shape: Shape) -> Iterator[Run]:
    """MONAI's sliding window over slices, batch by batch of them, with its Gaussian weights."""
    import torch
    from monai.inferers.utils import sliding_window_inference

    with runtime(setting) as logits_of:

        def run(volume: Array) -> Mask:
            near = neighbours(volume, setting.manifest)
            found = np.empty(volume.shape, np.uint8)
            with torch.inference_mode():
                for first in range(0, len(volume), setting.batch):
                    part = slice(first, first + setting.batch)
                    logits = sliding_window_inference(
                        torch.from_numpy(volume[near[part]]),
                        setting.manifest.patch,
                        setting.batch,
                        logits_of,
                        overlap=setting.overlap,
                        mode="gaussian",
                    )
                    found[part] = logits.argmax(1).to(torch.uint8).numpy()
            return found

        yield run


@contextmanager
def one_by_one(runtime: Runtime, setting: Setting, shape: Shape) -> Iterator[Run]:
    """One patch at a time into logits of the whole volume, as nnU-Net does, without its mirroring."""
    import torch

    patch, overlap = setting.manifest.patch, setting.overlap
    weight = torch.from_numpy(np.multiply.outer(bell(patch[0]), bell(patch[1])).astype(np.float32))

    with runtime(replace(setting, batch=1)) as logits_of:

        def run(volume: Array) -> Mask:
            image = torch.from_numpy(volume)
            logits, total = torch.zeros(setting.manifest.classes, *volume.shape), torch.zeros(volume.shape[1:])
            places = [(y, x) for y in starts(shape[1], patch[0], overlap) for x in starts(shape[2], patch[1], overlap)]
            with torch.inference_mode():
                for y, x in places:
                    total[y : y + patch[0], x : x + patch[1]] += weight
                for z, near in enumerate(neighbours(volume, setting.manifest)):
                    for y, x in places:
                        window = slice(y, y + patch[0]), slice(x, x + patch[1])
                        logits[:, z, *window] += logits_of(image[near][None, :, *window])[0] * weight
                logits /= total
                return logits.argmax(0).to(torch.uint8).numpy()

        yield run


def contender(name: str, precision: Precision, way: Way, runtime: Runtime) -> Contender:
    """A way of cutting and blending, about a runtime."""
    return Contender(name, precision, partial(way, runtime), slow=way is one_by_one or runtime is compiled)


CONTENDERS = (
    Contender(BARE, "f32", network),
    Contender(OURS, "f32", ours),
    Contender("ours, as it serves", "f32", as_it_serves),
    Contender("whole slices, OpenVINO", "f32", whole_slices),
    contender("ours, torch.compile", "f32", patches_about, compiled),
    contender("ours, ONNX Runtime", "f32", patches_about, onnx_runtime),
    contender("MONAI, torch", "f32", monai, eager),
    contender("MONAI, torch.compile", "f32", monai, compiled),
    contender("MONAI, ONNX Runtime", "f32", monai, onnx_runtime),
    contender("MONAI, OpenVINO", "f32", monai, openvino),
    contender("one patch at a time, torch", "f32", one_by_one, eager),
    contender("one patch at a time, torch.compile", "f32", one_by_one, compiled),
    contender("one patch at a time, ONNX Runtime", "f32", one_by_one, onnx_runtime),
    contender("one patch at a time, OpenVINO", "f32", one_by_one, openvino),
    Contender(BARE, "bf16", network),
    Contender(OURS, "bf16", ours),
    Contender("ours, as it serves", "bf16", as_it_serves),
    Contender("whole slices, OpenVINO", "bf16", whole_slices),
    contender("MONAI, torch channels_last", "bf16", monai, eager),
    contender("MONAI, OpenVINO", "bf16", monai, openvino),
    Contender(BARE, "int8", network),
    Contender(OURS, "int8", ours),
    Contender("ours, as it serves", "int8", as_it_serves),
    Contender("whole slices, OpenVINO", "int8", whole_slices),
)
