"""Example pictures of a model for its card: what was marked beside what it found, in real and simulated series.

Which series are shown follows from their scores, not from how they look: the best, the median and the worst of the
real ones, and of the simulated lesions the found one of median size and the largest one missed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion, label

from trt.dataset import Mask
from trt.decision import TOUCHING
from trt.lesions import TUMOUR
from trt.manifest import Label
from trt.scores import Score
from trt.trials import Plan, Rendering, Trial

LIMIT = 300_000  # bytes of a picture
SCALES = (1.5, 1.25, 1.0, 0.8, 0.6)  # pixels of the picture per pixel of the slice, the largest that keeps the limit
LATERAL = 0.2  # share of the marked slices that lie beyond the lateral one
WINDOW = (1.0, 99.7)  # percentiles of the series shown as black and white
LINE, FILL = 1, 0.18  # pixels of a contour, opacity of its area
MARGIN, BAND = 8, 62
NOTICE = "For research, not for diagnosis."
PAPER, INK, QUIET = (16, 18, 22), (232, 234, 238), (150, 156, 166)
COLOURS = {
    "vertebra": (240, 200, 80),
    "spinal canal": (60, 170, 255),
    "intervertebral disc": (240, 90, 140),
    "neoplasm": (230, 40, 40),
}
"""Of labels whose manifest gives none; those of the result objects."""
OTHERS = ((120, 220, 120), (200, 150, 100), (170, 120, 240), (60, 210, 200))

Colour = tuple[int, int, int]
Plane = NDArray[np.uint8]


@dataclass(frozen=True)
class Pick:
    """A series to show: the picture's name, what to say of it, and, of a simulated one, which of its lesions."""

    name: str
    words: str
    score: Score
    lesion: int | None = None


def draw_pictures(
    folder: Path,
    plans: Sequence[Plan],
    scores: Sequence[Score],
    labels: Sequence[Label],
    segment: Callable[[Trial], Mask],
) -> tuple[Path, ...]:
    """Write the pictures of `scores`, made anew from `plans` of the same order; the paths, PNG, below LIMIT each."""
    folder.mkdir(parents=True, exist_ok=True)
    by_name = {plan.name: plan for plan in plans}
    paths = []
    for pick in choose(scores):
        trial = by_name[pick.score.name].build()
        path = folder / f"{pick.name}.png"
        path.write_bytes(render(trial, segment(trial), labels, pick))
        paths.append(path)
    return tuple(paths)


def choose(scores: Sequence[Score]) -> Iterator[Pick]:
    """What to show of the scores; see the module."""
    real = [s for s in scores if s.rendering is Rendering.ACQUIRED and not math.isnan(s.mean_dice)]
    real.sort(key=lambda score: score.mean_dice, reverse=True)
    shown: set[int] = set()
    for name, rank in (("good", 0), ("worst", len(real) - 1), ("typical", len(real) // 2)):
        if real and rank not in shown:
            shown.add(rank)
            yield Pick(
                name, f"{name.capitalize()}: {real[rank].name}, mean Dice {real[rank].mean_dice:.3f}", real[rank]
            )
    every = [
        (lesion, index, score)
        for score in scores
        if score.rendering is Rendering.SIMULATED and score.lesions is not None
        for index, lesion in enumerate(score.lesions.lesions)
    ]
    every.sort(key=lambda item: item[0].diameter_mm)
    found, missed = ([item for item in every if item[0].found is wanted] for wanted in (True, False))
    for name, chosen in (("found", found[len(found) // 2 :][:1]), ("missed", missed[-1:])):
        for lesion, index, score in chosen:
            words = f"Simulated lesion of {lesion.diameter_mm:.0f} mm, {name}: {score.name}"
            yield Pick(f"simulated-{name}", words, score, index)


def render(trial: Trial, found: Mask, labels: Sequence[Label], pick: Pick) -> bytes:
    """PNG of one series: slices in pairs, to the left as marked, to the right as found."""
    palette = _palette(labels)
    for scale in SCALES:
        buffer = io.BytesIO()
        picture = _compose(trial, found, labels, pick, scale)
        picture.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() < LIMIT:
            break
    return buffer.getvalue()


def _compose(trial: Trial, found: Mask, labels: Sequence[Label], pick: Pick, scale: float) -> Image.Image:
    low, high = np.percentile(trial.image, WINDOW)
    spacing = trial.spacing
    size = (round(trial.image.shape[2] * scale), round(trial.image.shape[1] * scale * spacing[1] / spacing[2]))
    panels = []
    for z, words in _slices(trial, pick):
        grey = np.clip((trial.image[z] - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
        for mask, whose in ((trial.mask, "as marked"), (found, "as found")):
            panels.append((_panel(grey, mask[z], labels, size), f"{words}, {whose}"))
    width = len(panels) * (size[0] + MARGIN) + MARGIN
    picture = Image.new("RGB", (width, size[1] + 2 * MARGIN + BAND), PAPER)
    pen = ImageDraw.Draw(picture)
    for index, (panel, caption) in enumerate(panels):
        corner = (MARGIN + index * (size[0] + MARGIN), MARGIN)
        picture.paste(panel, corner)
        pen.text((corner[0] + 6, corner[1] + 4), caption, INK, font=_font(13), stroke_width=2, stroke_fill=PAPER)
    top, x = size[1] + 2 * MARGIN, MARGIN + 2
    pen.text((x, top), pick.words, INK, font=_font(14))
    pen.text((x, top + 20), NOTICE, INK, font=_font(14))
    for name, colour in _colours(labels).values():
        pen.rectangle((x, top + 44, x + 10, top + 54), fill=colour)
        pen.text((x + 16, top + 40), name, QUIET, font=_font(13))
        x += 34 + round(pen.textlength(name, font=_font(13)))
    return picture


def _palette(labels: Sequence[Label]) -> Image.Image:
    """Greys, and each label's colour, pure and laid over greys: chosen by the picture, rare colours would go lost."""
    colours = [colour for _, colour in _colours(labels).values()]
    shades = min(15, 120 // len(colours) - 1)
    mixed = [
        tuple(round(grey + FILL * (part - grey)) for part in colour)
        for colour in colours
        for grey in np.linspace(0, 255, shades)
    ]
    greys = [(grey, grey, grey) for grey in np.linspace(0, 255, 120).round().astype(int).tolist()]
    image = Image.new("P", (1, 1))
    image.putpalette([part for colour in (PAPER, *greys, *colours, *mixed) for part in colour])
    return image


def _slices(trial: Trial, pick: Pick) -> list[tuple[int, str]]:
    """The slices to show and what to call them: the lesion's largest, or the middle and a lateral one."""
    if pick.lesion is not None:
        lesions, _ = label(trial.mask == TUMOUR, TOUCHING)
        z = int((lesions == pick.lesion + 1).sum(axis=(1, 2)).argmax())
        return [(z, f"slice {z + 1}")]
    marked = np.flatnonzero(trial.mask.any(axis=(1, 2)))
    places = {share: int(marked[round(share * (len(marked) - 1))]) for share in (0.5, LATERAL)}
    return [
        (places[0.5], f"middle, slice {places[0.5] + 1}"),
        (places[LATERAL], f"lateral, slice {places[LATERAL] + 1}"),
    ]


def _panel(grey: Plane, values: Plane, labels: Sequence[Label], size: tuple[int, int]) -> Image.Image:
    """One slice: `grey` and label `values` (Y, X) uint8, enlarged to `size` (width, height)."""
    base = Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)
    canvas = np.repeat(np.asarray(base, np.float32)[..., None], 3, axis=2)  # (height, width, RGB)
    for value, (_, colour) in _colours(labels).items():
        share = Image.fromarray(np.where(values == value, 255, 0).astype(np.uint8))
        inside = np.asarray(share.resize(size, Image.Resampling.BILINEAR)) >= 128
        canvas[inside] += FILL * (np.array(colour, np.float32) - canvas[inside])
        canvas[inside & ~binary_erosion(inside, iterations=LINE)] = colour
    return Image.fromarray(canvas.round().astype(np.uint8))


def _colours(labels: Sequence[Label]) -> dict[int, tuple[str, Colour]]:
    """Name and colour of each label value."""
    return {
        item.value: (item.name, item.colour or COLOURS.get(item.name, OTHERS[item.value % len(OTHERS)]))
        for item in labels
    }


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
