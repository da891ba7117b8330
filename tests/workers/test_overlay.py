"""The picture: right colours at the right place, square in millimetres, with its notice."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from node.errors import InvalidResult
from node.records import RESEARCH_NOTICE
from node.settings import Seg
from workers.case import Case
from workers.codes import meaning_of
from workers.legend import Entry, draw_band
from workers.overlay import HEIGHT, MARGIN, MAX_WIDTH, compose, draw, write_picture
from workers.readback import Segment
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
    beside = (pixels[:, MARGIN - 1] == pixels[0, 0]).all(axis=1)  # the margin, down to the band and its letters
    height = len(pixels) - 2 * MARGIN - band_rows(pixels)
    assert beside[: 2 * MARGIN + height].all()
    return pixels[MARGIN : MARGIN + height, left : left + width].astype(int)


def band_rows(pixels):
    return len(draw_band([Entry("Vertebra", (1, 2, 3))], RESEARCH_NOTICE, pixels.shape[1]))


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
    meaning = meaning_of(manifest.labels[1])
    band = draw_band([Entry(meaning.words, meaning.colour)], RESEARCH_NOTICE, pixels.shape[1])
    assert np.abs(pixels[-len(band) :].astype(int) - band).max() <= 2  # colours of an object are CIELAB


def test_neither_legend_nor_notice_is_cut_off(tmp_path, manifest, small):
    _, volume, _ = picture(tmp_path, manifest, small)
    mask = np.ones(volume.voxels.shape, np.uint8)
    segments = [Segment(number, f"Neoplasm {number}", (200, 9 * number, 0)) for number in range(1, 23)]
    narrow = dataclasses.replace(volume, spacing=(0.9, 9.0, 0.9))
    for shown in (volume, narrow):
        pixels = np.asarray(compose(shown, mask, segments))
        band = draw_band([Entry(one.label, one.colour) for one in segments], RESEARCH_NOTICE, pixels.shape[1])
        assert np.array_equal(pixels[-len(band) :], band)
        assert pixels.shape[1] >= 512


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
