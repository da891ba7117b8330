"""The band below a picture that says what its colours mean, and that it is for research."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Pixels, of a picture up to _WIDTH wide; wider ones are shown smaller, and have all of it larger.
MARGIN = 8
TEXT, NOTICE = 14, 15  # sizes of the letters
_LINE, _SWATCH, _GAP = 22, 12, 18
_WIDTH = 768
_PAPER, _INK, _WARNING = (16, 18, 22), (232, 234, 238), (255, 196, 60)


@dataclass(frozen=True)
class Entry:
    """Words for people and their colour, sRGB 0..255."""

    words: str
    colour: tuple[int, int, int]


def draw_band(entries: Sequence[Entry], notice: str, width: int) -> NDArray[np.uint8]:
    """Return a band (rows, `width`, RGB) uint8: `notice` first, then one swatch with its words per entry, in lines."""
    unit = max(1.0, width / _WIDTH)
    margin, line_height, swatch, gap = (round(unit * length) for length in (MARGIN, _LINE, _SWATCH, _GAP))
    font, notices = ImageFont.load_default(unit * TEXT), ImageFont.load_default(unit * NOTICE)
    lines: list[list[tuple[int, Entry]]] = [[]]
    x = margin
    for entry in entries:
        length = swatch + swatch // 2 + round(font.getlength(entry.words))
        if x > margin and x + length > width - margin:
            lines.append([])
            x = margin
        lines[-1].append((x, entry))
        x += length + gap
    notice_lines = _wrapped(notice, notices, width - 2 * margin)
    picture = Image.new("RGB", (width, margin + line_height * (len(notice_lines) + len(lines))), _PAPER)
    pen = ImageDraw.Draw(picture)
    y = margin // 2
    for text in notice_lines:
        pen.text((margin, y), text, _WARNING, font=notices)
        y += line_height
    for line in lines:
        for left, entry in line:
            top = y + swatch // 4
            pen.rectangle((left, top, left + swatch, top + swatch), fill=entry.colour)
            pen.text((left + swatch + swatch // 2, y), entry.words, _INK, font=font)
        y += line_height
    return np.asarray(picture)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
