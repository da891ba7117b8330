"""The band below a picture that says what its colours mean, and that it is for research."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MARGIN = 8  # pixels
TEXT, NOTICE = 14, 15  # pixels, sizes of the letters
_LINE = 22
_SWATCH = 12
_GAP = 18
_PAPER, _INK, _WARNING = (16, 18, 22), (232, 234, 238), (255, 196, 60)


@dataclass(frozen=True)
class Entry:
    """Words for people and their colour, sRGB 0..255."""

    words: str
    colour: tuple[int, int, int]


def draw_band(entries: Sequence[Entry], notice: str, width: int) -> NDArray[np.uint8]:
    """Return a band (rows, `width`, RGB) uint8: `notice` first, then one swatch with its words per entry, in lines."""
    font, notices = ImageFont.load_default(TEXT), ImageFont.load_default(NOTICE)
    lines: list[list[tuple[int, Entry]]] = [[]]
    x = MARGIN
    for entry in entries:
        length = _SWATCH + 6 + round(font.getlength(entry.words))
        if x > MARGIN and x + length > width - MARGIN:
            lines.append([])
            x = MARGIN
        lines[-1].append((x, entry))
        x += length + _GAP
    notice_lines = _wrapped(notice, notices, width - 2 * MARGIN)
    picture = Image.new("RGB", (width, MARGIN + _LINE * (len(notice_lines) + len(lines))), _PAPER)
    pen = ImageDraw.Draw(picture)
    y = MARGIN // 2
    for text in notice_lines:
        pen.text((MARGIN, y), text, _WARNING, font=notices)
        y += _LINE
    for line in lines:
        for left, entry in line:
            pen.rectangle((left, y + 3, left + _SWATCH, y + 3 + _SWATCH), fill=entry.colour)
            pen.text((left + _SWATCH + 6, y), entry.words, _INK, font=font)
        y += _LINE
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
