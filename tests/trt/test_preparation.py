"""Series prepared on a torch device beside those prepared on the host."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trt import extraction
from trt.engine import open_engine
from trt.extraction import finder_model
from trt.geometry import in_plane, to_model
from trt.manifest import Manifest, Normalisation, load
from trt.patches import Array, normalise
from trt.phantom import spine_phantom
from trt.preparation import percentiles, prepare, select, send

pytestmark = pytest.mark.usefixtures("one_thread")
settled = settings(max_examples=60, deadline=None, derandomize=True)


class Device:
    """An engine of torch's CPU as far as preparing asks for one."""

    device, stream = torch.device("cpu"), None

    def __call__(self, patches: Array) -> Array:
        raise AssertionError

    def on_device(self, patches: Any) -> Any:
        raise AssertionError


@settled
@given(
    arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)),
    st.lists(st.sampled_from([0.0, 0.5, 2.0, 37.7, 50.0, 99.5, 100.0]), min_size=1, max_size=3),
)
def test_percentiles_are_numpys(values: Array, wanted: list[float]) -> None:
    found = percentiles(torch.from_numpy(values), tuple(wanted))
    np.testing.assert_allclose(found, np.percentile(values, wanted), rtol=1e-6, atol=1e-6 * np.ptp(values))


@settled
@given(
    st.integers(1, 4),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.sampled_from([0.5, 0.9375, 1.9]), st.sampled_from([0.7, 0.9375])),
    st.booleans(),
)
def test_what_is_prepared_is_what_the_host_prepares(
    depth: int, size: tuple[int, int], spacing: tuple[float, float], flat: bool
) -> None:
    weights = in_plane(size, spacing, (0.9375, 0.9375))
    rule = Normalisation(0.5, 99.5, (0.0, 1.25))
    voxels = np.random.default_rng(0).gamma(2, 300, (depth, *size)).astype(np.float32)
    if flat:
        voxels[:] = 7
    kept = voxels.copy()
    found = prepare(voxels, weights, rule, Device())
    assert found is not None
    ahead = prepare(voxels, weights, rule, Device(), rising=send(voxels, Device(), 1))
    assert ahead is not None
    np.testing.assert_array_equal(ahead.numpy(), found.numpy())
    wanted = normalise(to_model(voxels, weights), rule)
    np.testing.assert_array_equal(voxels, kept)
    if weights.identity:
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-6)
    elif not flat:  # resampling leaves no flat volume flat to the last bit
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(wrong: float) -> None:
    voxels = np.ones((2, 8, 8), np.float32)
    voxels[1, 3, 3] = wrong
    with pytest.raises(ValueError, match="NaN or infinity"):
        prepare(voxels, in_plane((8, 8), (1, 1), (1, 1)), Normalisation(0.5, 99.5, (0, 1)), Device())


def test_what_does_not_fit_is_left_to_the_host(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    weights, rule = in_plane((256, 256), (1, 1), (1, 1)), Normalisation(0.5, 99.5, (0, 1))
    voxels = np.random.default_rng(0).random((17, 256, 256), np.float32)  # 4.25 MB
    assert prepare(voxels, weights, rule, Device(), budget_mb=16) is None
    assert prepare(voxels, weights, rule, Device(), budget_mb=18) is not None

    assert send(voxels, Device(), 4.2) is None
    assert send(voxels, Device(), 4.3) is not None

    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nand more")

    monkeypatch.setattr(torch, "empty", no_memory)
    with caplog.at_level(logging.WARNING):
        assert prepare(voxels, weights, rule, Device()) is None
    assert "the host does: CUDA out of memory" in caplog.text
    monkeypatch.setattr(torch, "from_numpy", no_memory)
    with caplog.at_level(logging.WARNING):
        assert send(voxels, Device(), 512) is None
    assert "to send a series ahead to: CUDA out of memory" in caplog.text


@settled
@given(st.data(), st.tuples(st.integers(1, 6), st.integers(1, 50), st.integers(1, 50)), st.sampled_from([1, 3, 5]))
def test_tissue_is_the_hosts(data: st.DataObject, shape: tuple[int, int, int], channels: int) -> None:
    elements = st.sampled_from([0.0, 0.005, 0.01, 0.015, 0.03, 0.9])
    volume = data.draw(arrays.arrays(np.float32, shape, elements=elements))
    manifest = dataclasses.replace(load(), channels=channels)
    found = select(torch.from_numpy(volume), manifest, "tissue", None, Device())
    wanted = extraction.select(volume, manifest, "tissue")
    assert (found.extraction, found.reason) == (wanted.extraction, wanted.reason)
    if wanted.region is None:
        assert found.region is None
    else:
        np.testing.assert_array_equal(found.region, wanted.region)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return load()


@pytest.fixture(scope="module")
def phantom(manifest: Manifest) -> Array:
    image = spine_phantom((5, 321, 250), (4.0, *manifest.spacing_mm), seed=1).image
    return normalise(image, manifest.normalisation)


def test_the_finder_finds_the_same_spine(manifest: Manifest, phantom: Array) -> None:
    pixels = torch.from_numpy(phantom)
    with (
        open_engine(finder_model(manifest), "torch", batch=4, device="cpu") as on_torch,
        open_engine(finder_model(manifest), threads=1, batch=4) as on_host,
    ):
        wanted = extraction.select(phantom, manifest, "spine", on_host, batch=4)
        assert wanted.region is not None
        found = select(pixels, manifest, "spine", on_torch, Device(), batch=4)
        other = select(pixels, manifest, "spine", on_host, Device(), batch=4)  # on another device than the model
        low = select(pixels[:, :100], manifest, "spine", on_torch, Device(), batch=4)
    for selection in (found, other):
        assert selection.extraction == "spine"
        assert (selection.region != wanted.region).mean() < 1e-3
        assert selection.region is not None
        assert selection.region.strides[0] == 0  # one plane for all slices
    assert low.region is None
    assert "too low" in low.reason


def test_a_finder_for_whom_the_device_has_no_memory_runs_by_way_of_the_host(
    manifest: Manifest, phantom: Array, caplog: pytest.LogCaptureFixture
) -> None:
    class Hungry(Device):
        def __call__(self, patches: Array) -> Array:
            return engine(patches)

        def on_device(self, patches: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with open_engine(finder_model(manifest), threads=1, batch=4) as engine:
        found = select(torch.from_numpy(phantom), manifest, "spine", Hungry(), Device(), batch=4)
        wanted = extraction.select(phantom, manifest, "spine", engine, batch=4)
    np.testing.assert_array_equal(found.region, wanted.region)  # type: ignore[arg-type]
    assert "the host does: CUDA out of memory" in caplog.text


def test_everything_is_everything(manifest: Manifest, phantom: Array) -> None:
    assert select(torch.from_numpy(phantom), manifest, "all", None, Device()).region is None
