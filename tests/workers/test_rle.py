"""Run length encoding: what decoders by others make of it."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.pixels.decoders.rle import _rle_decode_frame

from workers.rle import encode_plane


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 127), (3, 128), (3, 129), (2, 257), (22, 19), (40, 640)])
def test_another_decoder_gives_the_plane_back(shape, seed):
    random = np.random.default_rng(seed)
    planes = [
        random.integers(0, 256, shape, np.uint8),  # hardly any runs
        (random.random(shape) < 0.02).astype(np.uint8),  # long ones
        np.zeros(shape, np.uint8),
        np.repeat(random.integers(0, 3, (shape[0], 1), np.uint8), shape[1], axis=1),
    ]
    for plane in planes:
        data = encode_plane(plane)
        assert len(data) % 2 == 0
        decoded = _rle_decode_frame(data, *shape, 1, 8)
        np.testing.assert_array_equal(np.frombuffer(decoded, np.uint8).reshape(shape), plane)
