"""Stages of a device's work: each is told once for each part, sums to the whole, and changes nothing."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from trt.device import predict_mask
from trt.labels import Label
from trt.slabs import Cut
from trt.stages import Stages

pytestmark = pytest.mark.usefixtures("one_thread")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


def test_parts_of_a_stage_add_up_on_the_clock() -> None:
    stages = Stages(torch.device("cpu"))
    for name, pause in (("a", 0.02), ("b", 0.001), ("a", 0.03)):
        with stages(name):
            time.sleep(pause)
    found = stages.seconds()
    assert list(found) == ["a", "b"]
    assert 0.05 <= found["a"] < 1
    assert 0.001 <= found["b"] < found["a"]
    assert stages.seconds() == found


@pytest.mark.parametrize("device", DEVICES)
def test_every_stage_of_a_mask_is_told_and_the_mask_is_the_same(device: str) -> None:
    volume = np.random.default_rng(0).random((5, 40, 36), np.float32)
    there, stages = torch.device(device), Stages(torch.device(device))

    def slow(patches: torch.Tensor) -> torch.Tensor:
        if there.type == "cpu":
            time.sleep(0.01)
        return torch.cat([1 - patches[:, 1:2], patches[:, :1]], dim=1)

    options = {"labels": (Label(1, "vertebra"),), "voxel_mm3": 1.0}
    masks = [
        predict_mask(volume, slow, there, Cut((16, 16), 3, 2, 0.5, 9), stages=watch, **options)  # type: ignore[arg-type]
        for watch in (None, stages)
    ]
    np.testing.assert_array_equal(*masks)
    found = stages.seconds()
    assert list(found) == ["gather", "network", "blend", "label"]
    assert all(seconds > 0 for seconds in found.values())
    if there.type == "cpu":
        assert found["network"] == max(found.values())
