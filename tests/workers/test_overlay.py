"""The picture: right colours at the right place, square in millimetres, with its notice."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from node.errors import InvalidResult
from node.settings import Seg
from workers.case import Case
from workers.codes import meaning_of
from workers.overlay import BAND, HEIGHT, MARGIN, MAX_WIDTH, draw, write_picture
from workers.seg import build_segmentation
from workers.series import Storage, write_series
from workers.volume import read_series
from workers.writing import write


def picture(folder, manifest, small, *, label=1, spacing=(0.9, 0.9375, 0.9375), storage=None):
    """A block of one label, rows 10..20 and columns 2..9 of the model's axes, in every way to store it."""
    image = small.lopsided()
    volume = read_series(write_series(folder, image, spacing, storage=storage or Storage()))
    turned = np.zeros(image.shape, np.uint8)
    turned[:, 10:20, 2:9] = label
    stored = storage or Storage()
    mask = np.flip(turned, stored.flips).transpose(stored.axes)
    # Frames of a volume run along the normal; those of the array may run against it.
    first = volume.sources[0].InstanceNumber
    mask = mask if (first == 1) != stored.reverse else mask[::-1]
    data = write(build_segmentation(Case(volume, np.ascontiguousarray(mask), manifest, {}, "", Seg())))
    return np.asarray(Image.open(io.BytesIO(draw(volume, data)))), volume, data


def panel(pixels, index):
    width = (pixels.shape[1] - 4 * MARGIN) // 3
    left = MARGIN + index * (width + MARGIN)
    return pixels[MARGIN : pixels.shape[0] - BAND - MARGIN, left : left + width].astype(int)


@pytest.mark.parametrize(
    "storage", [Storage(), Storage(axes=(1, 2, 0), flips=(0, 2)), Storage(axes=(2, 1, 0), flips=(1,), reverse=True)]
)
@pytest.mark.parametrize("label", [1, 2, 3, 4])
def test_the_segments_own_colour_is_where_the_segment_is(label, storage, tmp_path, manifest, small):
    pixels, _, _ = picture(tmp_path, manifest, small, label=label, storage=storage)
    colour = np.array(meaning_of(manifest.labels[label - 1]).colour)
    for index in range(3):
        part = panel(pixels, index)
        line = np.abs(part - colour).max(axis=2) <= 2
        rows, columns = np.flatnonzero(line.any(axis=1)), np.flatnonzero(line.any(axis=0))
        scale = part.shape[0] / 30
        assert rows[[0, -1]] == pytest.approx([10 * scale, 20 * scale], abs=scale / 2)
        assert columns[[0, -1]] == pytest.approx([2 * scale, 9 * scale], abs=scale / 2)
        inside = part[round(15 * scale), round(5.5 * scale)]
        outside = part[round(25 * scale), round(20 * scale)]
        assert np.ptp(inside) > 15, "the area is tinted"
        assert np.ptp(outside) == 0, "the rest stays grey"


def test_pixels_are_square_in_millimetres(tmp_path, manifest, small):
    pixels, _, _ = picture(tmp_path, manifest, small, spacing=(3.0, 0.5, 1.0))
    part = panel(pixels, 0)
    assert part.shape[0] == HEIGHT
    assert part.shape[1] == pytest.approx(HEIGHT * (24 * 1.0) / (30 * 0.5), abs=1)
    wide, _, _ = picture(tmp_path / "wide", manifest, small, spacing=(3.0, 0.1, 2.0))
    assert panel(wide, 0).shape[1] == MAX_WIDTH


def test_the_legend_shows_the_colour_and_the_notice(tmp_path, manifest, small):
    pixels, _, _ = picture(tmp_path, manifest, small, label=2)
    band = pixels[-BAND:].astype(int)
    assert (np.abs(band - meaning_of(manifest.labels[1]).colour).max(axis=2) <= 2).sum() > 200
    assert (band[36:].min(axis=2) > 120).sum() > 300, "the line of the notice"


def test_it_is_written_whole_and_the_same_each_time(tmp_path, manifest, small):
    _, volume, data = picture(tmp_path, manifest, small)
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / "out" / name, volume, data)
    assert (tmp_path / "out" / "a.png").read_bytes() == (tmp_path / "out" / "b.png").read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]


def test_a_segmentation_of_another_series_is_not_drawn(tmp_path, manifest, small):
    _, volume, data = picture(tmp_path, manifest, small)
    with pytest.raises(InvalidResult, match="does not lie on the grid"):
        draw(dataclasses.replace(volume, frame_of_reference_uid="1.2.3"), data)
