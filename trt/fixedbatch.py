"""A network of one batch size with buffers of its own on a device: the last batch is padded, a CUDA graph replayed.

On torch's CPU device the same code runs without pinned memory, stream and graph; that is how it is tested. It has not
run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from trt.device import on_stream
from trt.engine import EngineError
from trt.patches import Array

Launch: TypeAlias = Callable[[Tensor, Tensor], None]
"""Queues one batch on the device's current stream: reads the first tensor, writes the second, waits for nothing."""

WARM_UPS = 3  # before a graph is captured: libraries allocate, choose and compile at their first runs


class FixedBatch:
    """Patches (N, C, H, W) to logits (N, K, H, W), both float32, for any N, by a `launch` of `shape` (n, C, H, W).

    The buffers never move, so that `launch` and the graph may keep their addresses. On a GPU, `prepare` runs everything
    on `stream` and then captures it; from then on a batch is one graph launch. For one thread at a time.
    """

    def __init__(self, shape: tuple[int, int, int, int], classes: int, device: torch.device) -> None:
        self.device = device
        self.given = torch.zeros(shape, device=device)
        self.answer = torch.zeros((shape[0], classes, *shape[2:]), device=device)
        cuda = device.type == "cuda"
        if cuda:
            # TF32 has ten bits of a float32's 23, and torch allows it to convolutions unless told otherwise.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self.stream = torch.cuda.Stream(device) if cuda else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._launch: Launch | None = None
        # Page-locked: the only memory that copies to and from a GPU without a wait of their own.
        self._outgoing = torch.zeros(shape, pin_memory=cuda)
        self._incoming = torch.zeros(self.answer.shape, pin_memory=cuda)

    @property
    def graphed(self) -> bool:
        """Whether a batch is a CUDA graph's replay."""
        return self._graph is not None

    def prepare(self, launch: Launch, *, capturable: Callable[[torch.cuda.Stream], bool] = lambda _: True) -> None:
        """Take `launch` and run it until it is warm; on a GPU capture it, where it is `capturable` on a stream."""
        if self.stream is not None:  # the buffers, and whatever `launch` holds, come by way of the current stream
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.no_grad(), on_stream(self.stream):
            for _ in range(WARM_UPS if self.stream is not None else 1):
                launch(self.given, self.answer)
        self._launch = launch
        if self.stream is None:
            return
        self.stream.synchronize()  # errors of the warm-up are raised here, not by the capture
        if capturable(self.stream):
            graph = torch.cuda.CUDAGraph()
            with torch.no_grad(), torch.cuda.graph(graph, stream=self.stream):
                launch(self.given, self.answer)
            self._graph = graph
            with on_stream(self.stream):
                graph.replay()  # the first replay uploads it
            self.stream.synchronize()

    def on_device(self, patches: Tensor) -> Tensor:
        """Logits (N, K, H, W) of patches (N, C, H, W) float32 on the device, queued on its current stream.

        The answer to a whole batch or less is overwritten by the next call.
        """
        self._require(tuple(patches.shape), patches.dtype == torch.float32, str(patches.dtype))
        size = len(self.given)
        if len(patches) > size:
            return torch.cat([self.on_device(part).clone() for part in patches.split(size)])
        if len(patches):
            self.given[: len(patches)].copy_(patches, non_blocking=True)
            self._run(len(patches))
        return self.answer[: len(patches)]

    def on_host(self, patches: Array) -> Array:
        """Logits (N, K, H, W) float32 of patches (N, C, H, W) float32, in a new array."""
        self._require(patches.shape, patches.dtype == np.float32, str(patches.dtype))
        size = len(self.given)
        logits = np.empty((len(patches), *self.answer.shape[1:]), np.float32)
        with torch.no_grad(), on_stream(self.stream):
            for first in range(0, len(patches), size):
                part = patches[first : first + size]
                count = len(part)
                self._outgoing.numpy()[:count] = part
                self.given[:count].copy_(self._outgoing[:count], non_blocking=True)
                self._run(count)
                self._incoming[:count].copy_(self.answer[:count], non_blocking=True)
                if self.stream is not None:
                    self.stream.synchronize()  # also before the next part overwrites what is going out
                logits[first : first + count] = self._incoming.numpy()[:count]
        return logits

    def close(self) -> None:
        """Let go of graph and buffers; nothing can be run again."""
        if self.stream is not None:
            self.stream.synchronize()
        self._graph, self._launch = None, None
        self.given, self.answer = self.given[:0], self.answer[:0]
        self._outgoing, self._incoming = self._outgoing[:0], self._incoming[:0]

    def _run(self, count: int) -> None:
        """Run the batch whose first `count` patches are in place; the others repeat the last of them."""
        size = len(self.given)
        if count < size:
            self.given[count:].copy_(self.given[count - 1 : count].expand(size - count, -1, -1, -1))
        if self._graph is not None:
            self._graph.replay()
        elif self._launch is not None:
            self._launch(self.given, self.answer)

    def _require(self, shape: tuple[int, ...], is_float: bool, dtype: str) -> None:
        if self._launch is None:
            raise EngineError("the engine is closed")
        if len(shape) != 4 or shape[1:] != tuple(self.given.shape[1:]) or not is_float:
            raise ValueError(f"patches must be (N, {tuple(self.given.shape[1:])}) float32, not {shape} {dtype}")
