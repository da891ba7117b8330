"""The pipeline on a torch device beside that of numpy, by the same laws; torch's CPU is a device like any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from trt.patches import BACKGROUND, Array, NonFiniteOutput, count_patches, predict_volume
from trt.slabs import Cut, Network, slabs

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]

shapes = st.tuples(st.integers(1, 7), st.integers(1, 37), st.integers(1, 37))
sides = st.tuples(st.integers(1, 19), st.integers(1, 19))
overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.75]) | st.floats(0, 0.75)
settled = settings(max_examples=60, deadline=None, derandomize=True)


def centre(patches: Tensor) -> Tensor:
    middle = patches.shape[1] // 2
    return patches[:, middle : middle + 1]


def volume_of(
    volume: Array | Tensor,
    network: Network,
    patch: tuple[int, int],
    classes: int = 1,
    *,
    channels: int = 3,
    overlap: float = 0.5,
    batch: int = 8,
    depth: int = 1000,
    device: str = "cpu",
    **options: object,
) -> Array:
    """Blended logits (K, Z, Y, X)."""
    cut = Cut(patch, channels, classes, overlap, batch)
    found = slabs(volume, network, torch.device(device), cut, depth=depth, **options)  # type: ignore[arg-type]
    return np.concatenate([logits.permute(1, 0, 2, 3).cpu().numpy().copy() for _, logits in found], axis=1)


@settled
@given(st.data(), shapes, sides, st.sampled_from([1, 3, 5]), overlaps, st.integers(1, 9), st.integers(1, 8))
def test_identity_network_returns_the_volume(
    data: st.DataObject,
    shape: tuple[int, int, int],
    patch: tuple[int, int],
    channels: int,
    overlap: float,
    batch: int,
    depth: int,
) -> None:
    finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
    volume = data.draw(arrays.arrays(np.float32, shape, elements=finite))
    logits = volume_of(volume, centre, patch, channels=channels, overlap=overlap, batch=batch, depth=depth)
    np.testing.assert_array_equal(logits[0], volume)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_identity_holds_at_the_size_that_serves(overlap: float, device: str) -> None:
    volume = np.random.default_rng(0).normal(0, 100, (3, 321, 251)).astype(np.float32)
    np.testing.assert_array_equal(volume_of(volume, centre, (128, 128), overlap=overlap, device=device)[0], volume)


@settled
@given(st.data(), shapes, sides, overlaps, st.integers(1, 9), st.integers(1, 8), st.booleans())
def test_it_gives_what_numpy_gives_bit_for_bit(
    data: st.DataObject,
    shape: tuple[int, int, int],
    patch: tuple[int, int],
    overlap: float,
    batch: int,
    depth: int,
    alike: bool,
) -> None:
    """Any place, weight, neighbour, order or padding that differed would tell."""
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    region = data.draw(st.none() | arrays.arrays(np.bool_, shape[1:] if alike else shape))
    if region is not None:
        region = np.broadcast_to(region, shape)
    scale = np.random.default_rng(1).normal(size=(3, *patch)).astype(np.float32)

    def by_numpy(patches: Array) -> Array:
        first, middle, last = np.moveaxis(patches, 1, 0)
        corner = patches[:, 1, :1, :1]
        return np.stack([first * scale[0] - last, middle * corner, last * scale[1] + corner * scale[2]], axis=1)

    def by_torch(patches: Tensor) -> Tensor:
        return torch.from_numpy(by_numpy(patches.numpy()))

    told: list[tuple[int, int]] = []
    found = volume_of(
        volume, by_torch, patch, 3, overlap=overlap, batch=batch, depth=depth, region=region,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    wanted = predict_volume(volume, by_numpy, patch=patch, channels=3, overlap=overlap, batch=batch, region=region)
    np.testing.assert_array_equal(found, wanted)
    count = max(count_patches(shape, patch, overlap, region), 1)
    assert told[-1] == (count, count)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@settled
@given(shapes, sides, overlaps, st.integers(1, 9), st.integers(1, 8))
def test_a_network_that_is_linear_and_alike_everywhere_may_be_tiled_or_not(
    shape: tuple[int, int, int], patch: tuple[int, int], overlap: float, batch: int, depth: int
) -> None:
    volume = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    mix = torch.tensor([[0.25, -2.0, 0.5], [1.0, 1.0, -3.0]])

    def linear(patches: Tensor) -> Tensor:
        return torch.einsum("kc,nchw->nkhw", mix, patches)

    tiled = volume_of(volume, linear, patch, 2, overlap=overlap, batch=batch, depth=depth)
    whole = volume_of(volume, linear, shape[1:], 2, overlap=0, batch=1)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_a_volume_that_is_on_the_device_already_gives_the_same(device: str) -> None:
    volume = np.random.default_rng(3).normal(size=(5, 30, 41)).astype(np.float32)
    wanted = volume_of(volume, torch.sin, (32, 24), 3, device=device)
    there = torch.from_numpy(volume).to(device)
    np.testing.assert_array_equal(volume_of(there, torch.sin, (32, 24), 3, depth=2, device=device), wanted)
    np.testing.assert_array_equal(there.cpu().numpy(), volume)


def test_every_call_sees_one_shape() -> None:
    seen = set()

    def network(patches: Tensor) -> Tensor:
        seen.add(tuple(patches.shape))
        return centre(patches)

    volume_of(np.zeros((3, 40, 33), np.float32), network, (16, 16), batch=7, depth=2)
    assert seen == {(7, 3, 16, 16)}


def test_the_answer_may_be_overwritten_by_the_next_call() -> None:
    """As the buffers of an engine are, whose CUDA graph writes to one place for ever."""
    answer = torch.empty((4, 1, 16, 16))

    def network(patches: Tensor) -> Tensor:
        return answer.copy_(centre(patches))

    volume = np.random.default_rng(4).normal(size=(6, 40, 33)).astype(np.float32)
    np.testing.assert_array_equal(volume_of(volume, network, (16, 16), batch=4)[0], volume)


def test_an_empty_region_runs_one_patch_and_is_background() -> None:
    calls = []

    def network(patches: Tensor) -> Tensor:
        calls.append(len(patches))
        return torch.ones((len(patches), 2, 8, 8))

    region = np.zeros((4, 20, 20), np.bool_)
    logits = volume_of(np.ones(region.shape, np.float32), network, (8, 8), 2, region=region, batch=3, depth=2)
    assert calls == [3]
    np.testing.assert_array_equal(logits[0], BACKGROUND)
    np.testing.assert_array_equal(logits[1], 0)


def test_the_next_slab_goes_up_before_this_one_is_calculated() -> None:
    told: list[str] = []

    class Watched(np.ndarray):
        def __getitem__(self, key: slice) -> Array:
            told.append(f"up {key.start}")
            return np.asarray(super().__getitem__(key))

    def network(patches: Tensor) -> Tensor:
        told.append("calculated")
        return centre(patches)

    volume = np.random.default_rng(5).normal(size=(6, 8, 8)).astype(np.float32)
    found = slabs(volume.view(Watched), network, CPU, Cut((8, 8), 3, 1, 0.0, 2), depth=2)
    logits = np.concatenate([part.numpy().copy() for _, part in found])
    assert told == ["up 0", "up 1", "calculated", "up 3", "calculated", "calculated"]
    np.testing.assert_array_equal(logits[:, 0], volume)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", range(4))
def test_a_slab_that_is_not_finite_is_told_in_place_of_the_next_but_one(bad: int, device: str) -> None:
    calls = 0

    def network(patches: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return centre(patches) * (torch.nan if calls == bad + 1 else 1)

    volume, cut = np.ones((4, 8, 8), np.float32), Cut((8, 8), 1, 1, 0.0, 1)
    found = slabs(volume, network, torch.device(device), cut, depth=1)
    for _ in range(bad + 1):
        next(found)
    with pytest.raises(NonFiniteOutput):
        next(found)
    assert calls == min(bad + 2, 4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 33])  # the padding, which is cut off again, counts as well
def test_output_that_is_not_finite_is_refused(wrong: float, where: int, device: str) -> None:
    def network(patches: Tensor) -> Tensor:
        logits = centre(patches).clone()
        logits[0].view(-1)[where] = wrong
        return logits

    with pytest.raises(NonFiniteOutput, match="NaN or infinity"):
        volume_of(np.zeros((2, 6, 6), np.float32), network, (8, 8), device=device)


def test_logits_that_float32_cannot_blend_are_refused() -> None:
    signs = iter([1, -1] * 50)

    def network(patches: Tensor) -> Tensor:
        return torch.full((1, 1, 8, 8), 3e38 * next(signs))

    with pytest.raises(NonFiniteOutput, match="too far apart"):
        volume_of(np.zeros((1, 12, 8), np.float32), network, (8, 8), batch=1)


@pytest.mark.parametrize(
    ("volume", "options", "message"),
    [
        (np.zeros((2, 8, 8)), {}, "float32"),
        (np.zeros((8, 8), np.float32), {}, "volume must be"),
        (np.zeros((0, 8, 8), np.float32), {}, "not empty"),
        (np.zeros((2, 8, 8), np.float32), {"region": np.ones((2, 8, 7), np.bool_)}, "region must be"),
        (np.zeros((2, 8, 8), np.float32), {"classes": 2}, "the network returned"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(volume: Array, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        volume_of(volume, centre, (8, 8), **options)  # type: ignore[arg-type]
