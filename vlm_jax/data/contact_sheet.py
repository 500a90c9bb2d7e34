"""A contact sheet: images of a data set with their captions, as one picture."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TILE, _GAP, _LINE = 160, 12, 15
_INK, _FAINT, _FRAME, _GROUND = (30, 30, 34), (110, 112, 120), (214, 214, 218), (255, 255, 255)
_LINES = 6
"""Of text below an image."""


def draw(images: Sequence[np.ndarray], texts: Sequence[Sequence[str]], columns: int = 6) -> Image.Image:
    """Images uint8[h, w, 3], fitted into squares, each above its texts, the first of which is darker; what does not fit is cut."""
    columns = max(1, min(columns, len(images)))
    font = ImageFont.load_default(12)
    wrapped = [_lines(own) for own in texts]
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    heights = [_TILE + _LINE * max(len(wrapped[i]) for i in row) + _GAP for row in rows]
    sheet = Image.new("RGB", (_GAP + columns * (_TILE + _GAP), _GAP + sum(heights)), _GROUND)
    pen, top = ImageDraw.Draw(sheet), _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = _GAP + column * (_TILE + _GAP)
            image = Image.fromarray(images[i])
            scale = _TILE / max(image.size)
            kernel = Image.Resampling.BICUBIC if scale < 2 else Image.Resampling.NEAREST  # small ones show their pixels
            image = image.resize([max(1, round(side * scale)) for side in image.size], kernel)
            sheet.paste(image, (left + (_TILE - image.width) // 2, top + (_TILE - image.height) // 2))
            pen.rectangle((left, top, left + _TILE - 1, top + _TILE - 1), outline=_FRAME)
            for number, (line, colour) in enumerate(wrapped[i]):
                pen.text((left, top + _TILE + 3 + _LINE * number), line, colour, font)
        top += height
    return sheet


def _lines(texts: Sequence[str]) -> list[tuple[str, tuple[int, int, int]]]:
    lines = []
    for number, text in enumerate(texts):
        clean = "".join(c if c.isprintable() else " " for c in text)
        lines += [(line, _FAINT if number else _INK) for line in textwrap.wrap(clean, 26)]
    return [*lines[: _LINES - 1], ("...", _FAINT)] if len(lines) > _LINES else lines
