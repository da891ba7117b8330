"""One network in several runtimes, for `tests.contenders`: a torch tensor of patches in, one of logits out.

All run the weights of the ONNX file that serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt.engine import EngineError, Precision, open_engine
from trt.manifest import Manifest

if TYPE_CHECKING:
    from torch import Tensor, nn

Logits = Callable[["Tensor"], "Tensor"]
"""Patches (N, C, H, W) float32 to logits (N, K, H, W), float32 or what the runtime calculates in."""


@dataclass(frozen=True)
class Setting:
    """What all contenders share; `overlap` and `batch` where they have patches."""

    manifest: Manifest
    overlap: float
    batch: int
    threads: int
    precision: Precision = "f32"


Runtime = Callable[[Setting], AbstractContextManager[Logits]]
"""Opens the network; raises `EngineError` where this machine cannot run it."""


def torch_network(setting: Setting) -> nn.Module:
    """The network in torch at the precision of the setting, channels last at bf16.

    Raises `EngineError` when it does not calculate what OpenVINO does.
    """
    import torch

    from trt.network import TorchNetwork

    torch.set_num_threads(setting.threads)
    rebuilt = TorchNetwork(setting.manifest.path)
    patch = np.random.default_rng(0).random((1, setting.manifest.channels, *setting.manifest.patch), np.float32)
    with open_engine(setting.manifest, threads=setting.threads, batch=1) as engine:
        apart = float(np.abs(rebuilt(torch.from_numpy(patch)).numpy() - engine(patch)).max())
    if apart > 1e-3:
        raise EngineError(f"the network rebuilt in torch is {apart:.4f} off OpenVINO's logits")
    if setting.precision == "bf16":
        rebuilt = rebuilt.to(torch.bfloat16, memory_format=torch.channels_last)
    return rebuilt


@contextmanager
def eager(setting: Setting) -> Iterator[Logits]:
    """torch as it is, with channels last at bf16."""
    import torch

    rebuilt = torch_network(setting)
    layout = torch.channels_last if setting.precision == "bf16" else torch.contiguous_format
    kind = next(rebuilt.parameters()).dtype

    yield lambda patches: rebuilt(patches.to(kind, memory_format=layout))


@contextmanager
def compiled(setting: Setting) -> Iterator[Logits]:
    """torch.compile, which needs a C++ compiler."""
    import torch

    rebuilt = torch.compile(torch_network(setting), dynamic=False)
    sample = torch.zeros(setting.batch, setting.manifest.channels, *setting.manifest.patch)
    try:
        with torch.inference_mode():
            rebuilt(sample)
    except RuntimeError as error:
        raise EngineError(f"torch.compile does not work here: {error}") from error
    yield rebuilt


@contextmanager
def onnx_runtime(setting: Setting) -> Iterator[Logits]:
    """ONNX Runtime on the CPU."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    session = onnxruntime.InferenceSession(setting.manifest.path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    yield lambda patches: torch.from_numpy(session.run(None, {name: patches.numpy()})[0])


@contextmanager
def openvino(setting: Setting) -> Iterator[Logits]:
    """OpenVINO, as it serves."""
    import torch

    with open_engine(
        setting.manifest, threads=setting.threads, batch=setting.batch, precision=setting.precision
    ) as engine:
        yield lambda patches: torch.from_numpy(engine(patches.numpy()))
