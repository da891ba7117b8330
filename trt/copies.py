"""Copies to and from a torch device that nobody waits for: beside its work, on streams of their own.

While a slab is calculated the next one's pixels go up and the last one's mask comes down, by way of pinned memory; a
GPU has an engine for each direction. Events order what must be in order, so that results do not depend on any of this.

On torch's CPU device the same calls copy at once; that is how they are tested. It has not run on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Rising:
    """An array on its way to the device."""

    def __init__(self, tensor: Tensor, copied: torch.cuda.Event | None) -> None:
        self._tensor: Tensor | None = tensor
        self._copied = copied

    def there(self) -> Tensor:
        """The tensor on the device, the caller's alone, once; work queued from now on finds all of it."""
        tensor, self._tensor = self._tensor, None
        assert tensor is not None
        if self._copied is not None:
            stream = torch.cuda.current_stream(tensor.device)
            stream.wait_event(self._copied)
            tensor.record_stream(stream)  # it was allocated on another: not to be given away before this one is done
        return tensor


@dataclass(frozen=True, eq=False)
class Falling:
    """A tensor on its way to the host."""

    _landing: Tensor
    _copied: torch.cuda.Event | None

    def here(self) -> NDArray[Any]:
        """The array; waits for its copy, and for no work that was queued after it."""
        if self._copied is not None:
            self._copied.synchronize()
        return np.asarray(self._landing.numpy())


class Copies:
    """The ways to a device and back. For any number of threads."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        cuda = device.type == "cuda"
        self._up, self._down = (torch.cuda.Stream(device) if cuda else None for _ in range(2))

    def up(self, array: NDArray[Any]) -> Rising:
        """Send an array, which may be changed at once. Raises `torch.OutOfMemoryError`."""
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        if self._up is None:
            return Rising(tensor.clone(), None)
        with torch.cuda.stream(self._up):
            sent = tensor.pin_memory().to(self._device, non_blocking=True)
            return Rising(sent, self._up.record_event())

    def down(self, tensor: Tensor) -> Falling:
        """Fetch what the work queued so far on the current stream makes of a tensor; no later work may change it."""
        if self._down is None:
            return Falling(tensor, None)
        landing = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._down.wait_event(torch.cuda.current_stream(self._device).record_event())
        with torch.cuda.stream(self._down):
            landing.copy_(tensor, non_blocking=True)
            tensor.record_stream(self._down)
            return Falling(landing, self._down.record_event())


@cache
def copies(device: torch.device) -> Copies:
    """The ways to a device, the same for all of this process: streams keep memory of their own."""
    return Copies(device)
