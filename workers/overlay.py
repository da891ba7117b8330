"""A picture of a result for people: slices in grey, segments in the colours the object itself recommends.

The segments are read from the object's bytes and placed by its geometry, as any viewer would: what is wrong in the
object is wrong in the picture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from node.errors import InvalidResult
from node.records import RESEARCH_NOTICE
from workers.grid import to_canonical, turn
from workers.legend import Entry, draw_band
from workers.readback import Segment, read_segmentation
from workers.volume import Volume
from workers.whole import write_whole

HEIGHT = 720  # pixels of a slice; its width follows from its size in mm
MAX_WIDTH = 1280  # of a slice, for fields of view that are wide and flat
WINDOW = (1.0, 99.7)  # percentiles of the series shown as black and white
SHOWN = (0.25, 0.5, 0.75)  # which of the slices that hold a segment
FILL, LINE = 0.32, 2  # opacity of the area, pixels of the contour
MARGIN = 12
LEAST_WIDTH = 512  # of the picture: what the notice needs
_PAPER, _INK = (16, 18, 22), (232, 234, 238)

Plane = NDArray[np.uint8]


def draw(volume: Volume, segmentation: bytes) -> bytes:
    """Return a PNG of three sagittal slices of `volume` side by side with the Segmentation (PS3.10 bytes) on top.

    Raises
    ------
    InvalidResult
        The Segmentation does not belong to the series, or is empty.
    """
    mask, segments = read_segmentation(segmentation, volume)
    buffer = io.BytesIO()
    compose(volume, mask, segments).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_picture(path: Path, volume: Volume, segmentation: bytes) -> None:
    """Write what `draw` returns to `path`, whole or not at all."""
    write_whole(path, draw(volume, segmentation))


def compose(volume: Volume, mask: NDArray[np.uint8], segments: Sequence[Segment]) -> Image.Image:
    """Draw the picture of `mask` (frames, rows, columns) uint8 of segment numbers on `volume`; RGB."""
    canonical = to_canonical(volume)
    turned = turn(mask, canonical.axes, canonical.flips)  # (Z, Y, X)
    covered = np.flatnonzero(turned.any(axis=(1, 2)))
    if not len(covered):
        raise InvalidResult("the segmentation is empty", "there is nothing to draw")
    low, high = np.percentile(canonical.voxels, WINDOW)
    size = _size(canonical.voxels.shape[1:], canonical.spacing[1:])
    panels = []
    for share in SHOWN:
        z = int(covered[round(share * (len(covered) - 1))])
        grey = np.clip((canonical.voxels[z] - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
        panels.append((_panel(grey, turned[z], segments, size), f"slice {z + 1} of {len(turned)}"))
    width = max(LEAST_WIDTH, 3 * size[0] + 4 * MARGIN)
    band = draw_band([Entry(segment.label, segment.colour) for segment in segments], RESEARCH_NOTICE, width)
    picture = Image.new("RGB", (width, size[1] + 2 * MARGIN + len(band)), _PAPER)
    pen = ImageDraw.Draw(picture)
    for index, (panel, caption) in enumerate(panels):
        corner = (MARGIN + index * (size[0] + MARGIN), MARGIN)
        picture.paste(panel, corner)
        pen.text((corner[0] + 8, corner[1] + 6), caption, _INK, font=_font(15), stroke_width=2, stroke_fill=_PAPER)
    picture.paste(Image.fromarray(band), (0, size[1] + 2 * MARGIN))
    return picture


def _size(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, int]:
    """Return (width, height) in pixels of a slice (Y, X), square in mm."""
    height_mm, width_mm = shape[0] * spacing[0], shape[1] * spacing[1]
    scale = min(HEIGHT / height_mm, MAX_WIDTH / width_mm)
    return max(1, round(width_mm * scale)), max(1, round(height_mm * scale))


def _panel(grey: Plane, labels: Plane, segments: Sequence[Segment], size: tuple[int, int]) -> Image.Image:
    """Draw one slice: `grey` and `labels` (Y, X) uint8, enlarged to `size` (width, height)."""
    base = Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)
    canvas = np.repeat(np.asarray(base, np.float32)[..., None], 3, axis=2)  # (height, width, RGB)
    for segment in segments:
        share = Image.fromarray(np.where(labels == segment.number, 255, 0).astype(np.uint8))
        inside = np.asarray(share.resize(size, Image.Resampling.BILINEAR)) >= 128
        colour = np.array(segment.colour, np.float32)
        canvas[inside] += FILL * (colour - canvas[inside])
        canvas[inside & ~_eroded(inside, LINE)] = colour
    return Image.fromarray(canvas.round().astype(np.uint8))


def _eroded(inside: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Return what is left of an area (height, width) when its border of `pixels` is taken off."""
    for _ in range(pixels):
        edge = np.pad(inside, 1)
        inside = inside & edge[:-2, 1:-1] & edge[2:, 1:-1] & edge[1:-1, :-2] & edge[1:-1, 2:]
    return inside


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
