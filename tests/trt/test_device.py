"""Masks from a torch device beside those of the host: resampling, second choices, memory, and what it does without."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trt.decision import decide
from trt.device import predict_mask, slices_within
from trt.engine import OutOfMemory
from trt.geometry import Resampling, in_plane, to_native
from trt.labels import Label
from trt.patches import Array, NonFiniteOutput, predict_slices
from trt.slabs import Cut

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = (Label(1, "vertebra"), Label(2, "canal", least_mm3=3.0), Label(3, "neoplasm", least_mm3=9.0))


def network(patches: Tensor) -> Tensor:
    """Four classes that tell neighbours, rows and columns apart."""
    before, centre, after = patches.unbind(1)
    down, across = centre - centre.roll(1, 1), centre - centre.roll(2, 2)
    return torch.stack([torch.full_like(centre, 0.1), centre - 0.2, 2 * down + before, across - after], dim=1)


def by_numpy(patches: Array) -> Array:
    return network(torch.from_numpy(patches)).numpy()


def on_host(volume: Array, cut: Cut, weights: Resampling, voxel_mm3: float, region: Any = None) -> tuple[Array, Any]:
    """Logits (K, Z, Y, X) on the native grid, and the mask."""
    slices = predict_slices(
        volume, by_numpy, patch=cut.patch, channels=cut.channels, overlap=cut.overlap, batch=cut.batch, region=region
    )
    native = [(z, to_native(logits, weights)) for z, logits in slices]
    shape = len(volume), *native[0][1].shape[1:]
    return np.stack([logits for _, logits in native], axis=1), decide(native, shape, LABELS, voxel_mm3)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 6),
    st.tuples(st.integers(4, 40), st.integers(4, 40)),
    st.tuples(st.sampled_from([0.4, 0.6, 0.9375, 1.2, 1.9]), st.sampled_from([0.4, 0.9375, 1.3])),
    st.sampled_from([0.0, 0.25, 0.75]),
    st.integers(1, 9),
    st.sampled_from([0.05, 0.4, 512]),
    st.booleans(),
)
def test_masks_are_those_of_the_host(
    depth: int,
    size: tuple[int, int],
    spacing: tuple[float, float],
    overlap: float,
    batch: int,
    budget_mb: float,
    everywhere: bool,
) -> None:
    weights = in_plane(size, spacing, (0.9375, 0.9375))
    random = np.random.default_rng(0)
    volume = random.random((depth, *weights.size)).astype(np.float32)
    region = None if everywhere else random.random(volume.shape) < 0.02
    cut = Cut((16, 12), 3, 4, overlap, batch)
    logits, wanted = on_host(volume, cut, weights, 1.0, region)
    found = predict_mask(
        volume, network, CPU, cut,
        labels=LABELS, voxel_mm3=1.0, weights=weights, region=region, budget_mb=budget_mb,  # type: ignore[arg-type]
    )  # fmt: skip
    assert found.dtype == np.uint8
    assert found.shape == (depth, *size) == wanted.shape
    if weights.identity:
        np.testing.assert_array_equal(found, wanted)
    else:  # sums in another order: only what two labels share to the fifth digit may go to the other
        best = np.sort(logits, axis=0)
        settled = best[-1] - best[-2] > 1e-5
        plain = predict_mask(
            volume, network, CPU, cut, labels=LABELS[:1], voxel_mm3=1.0, weights=weights, region=region
        )
        np.testing.assert_array_equal(plain[settled], logits.argmax(axis=0)[settled])
        assert (found != wanted).mean() < 0.02


def test_resampled_logits_are_the_hosts_to_the_fifth_digit() -> None:
    """By way of a mask one cannot see it, so by way of a network whose class depends on the logit itself."""
    weights = in_plane((90, 70), (0.5, 1.4), (0.9375, 0.9375))
    volume = np.random.default_rng(1).random((2, *weights.size)).astype(np.float32)
    wanted = to_native(volume, weights)
    for bar in np.linspace(0.2, 0.8, 7):
        chosen = predict_mask(
            volume,
            lambda patches, bar=bar: torch.stack([torch.full_like(patches[:, 0], bar), patches[:, 0]], dim=1),  # type: ignore[misc]
            CPU,
            Cut((32, 32), 1, 2, 0.5, 4),
            labels=LABELS[:1],
            voxel_mm3=1.0,
            weights=weights,
        )
        sure = np.abs(wanted - bar) > 1e-5
        np.testing.assert_array_equal(chosen[sure], (wanted > bar)[sure])


def test_crumbs_become_what_is_likeliest_next_as_on_the_host() -> None:
    volume = np.random.default_rng(2).random((4, 40, 36)).astype(np.float32)
    weights, cut = in_plane((40, 36), (1.0, 1.0), (1.0, 1.0)), Cut((16, 16), 3, 4, 0.5, 5)
    plain = on_host(volume, cut, weights, 100.0)[1]
    wanted = on_host(volume, cut, weights, 1.0)[1]
    assert (wanted != plain).sum() > 10
    assert set(np.unique(wanted[plain != wanted])) > {0, 1}
    found = predict_mask(volume, network, CPU, cut, labels=LABELS, voxel_mm3=1.0)
    np.testing.assert_array_equal(found, wanted)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made in the block held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self._held = 0, dict[int, tuple[StorageWeakRef, int]]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                self._held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._held.values()))
        return found


@pytest.mark.parametrize("resampled", [False, True])
def test_memory_stays_in_the_budget_and_the_mask_is_that_of_one_slab(resampled: bool) -> None:
    """A series many times larger than its budget, the next slab's pixels and the last one's mask included."""
    native, budget_mb = (224, 208), 14
    weights = in_plane(native, (1.0, 1.0), (1.25, 1.25) if resampled else (1.0, 1.0))
    ramp = np.linspace(0, 1, weights.size[1], dtype=np.float32)
    volume = np.random.default_rng(3).random((44, weights.size[0], 1)).astype(np.float32) * ramp
    cut = Cut((96, 96), 3, 4, 0.0, 4)
    options: dict[str, Any] = {"labels": LABELS, "voxel_mm3": 1.0, "weights": weights}
    with Peak() as free:
        wanted = predict_mask(volume, network, CPU, cut, budget_mb=4096, **options)
    with Peak() as bound:
        found = predict_mask(volume, network, CPU, cut, budget_mb=budget_mb, **options)
    depth = slices_within(budget_mb, cut, weights.size, native, 3)
    assert 1 < depth < 10
    ours = 4 * 8 * cut.batch * 96 * 96  # what the network of this test holds, which is not the pipeline's
    assert bound.bytes < budget_mb * 2**20 + ours
    assert free.bytes > 2 * budget_mb * 2**20
    np.testing.assert_array_equal(found, wanted)


def test_the_series_of_the_requirement_fits_the_default_budget() -> None:
    """400 slices of 1024x1024 at four labels, one of which may be crumbs."""
    depth = slices_within(512, Cut((128, 128), 3, 5, 0.5, 8), (1024, 1024), (1024, 1024), 2)
    assert 5 < depth < 400
    assert slices_within(512, Cut((128, 128), 3, 5, 0.5, 8), (320, 256), (320, 256), 2) > 20
    assert slices_within(1, Cut((128, 128), 3, 5, 0.5, 8), (1024, 1024), (1024, 1024), 2) == 1


def hungry(most: int) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    """A network for which batches above `most` are too much, and what it was given."""
    seen: list[int] = []

    def run(patches: Tensor) -> Tensor:
        seen.append(len(patches))
        if len(patches) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand much more text")
        return network(patches)

    return run, seen


def test_out_of_memory_is_tried_once_more_with_half_the_batch_and_said(caplog: pytest.LogCaptureFixture) -> None:
    volume = np.random.default_rng(4).random((3, 40, 36)).astype(np.float32)
    cut = Cut((16, 16), 3, 4, 0.5, 9)
    run, seen = hungry(4)
    with caplog.at_level(logging.WARNING, "trt.device"):
        found = predict_mask(volume, run, CPU, cut, labels=LABELS, voxel_mm3=1.0)
    assert set(seen) == {9, 4}
    (record,) = caplog.records
    assert "batch of 9: once more with 4: CUDA out of memory" in record.getMessage()
    np.testing.assert_array_equal(found, predict_mask(volume, network, CPU, cut, labels=LABELS, voxel_mm3=1.0))


@pytest.mark.parametrize("batch", [9, 1])
def test_out_of_memory_twice_ends_it(batch: int, caplog: pytest.LogCaptureFixture) -> None:
    run, seen = hungry(0)
    with pytest.raises(OutOfMemory, match=f"not even at a batch of {max(batch // 2, 1)}: CUDA out.*worker.batch"):
        predict_mask(
            np.zeros((2, 20, 20), np.float32), run, CPU, Cut((16, 16), 3, 4, 0.5, batch), labels=LABELS, voxel_mm3=1.0
        )
    assert seen == [batch, max(batch // 2, 1)]
    assert len(caplog.records) == 1


def test_nan_gives_no_mask() -> None:
    def run(patches: Tensor) -> Tensor:
        logits = network(patches).clone()
        logits[-1, -1, -1, -1] = torch.nan
        return logits

    with pytest.raises(NonFiniteOutput):
        predict_mask(
            np.zeros((2, 20, 20), np.float32), run, CPU, Cut((16, 16), 3, 4, 0.5, 3), labels=LABELS, voxel_mm3=1.0
        )
