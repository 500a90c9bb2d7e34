"""One picture that shows the shapes world: the 64 classes, scenes with captions and questions, a mask, two clips."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlm_jax.data.shapes import clips, language, render, world

_TILE = 128
_GAP = 8
_LEFT = 72
_WIDTH = _LEFT + 8 * (_TILE + _GAP) + _GAP
_INK, _FAINT, _MARK = (30, 30, 34), (110, 112, 120), (210, 90, 0)


class _Sheet:
    """A page that grows downwards; tiles sit in eight columns."""

    def __init__(self):
        self.page = Image.new("RGB", (_WIDTH, 6000), (255, 255, 255))
        self.draw = ImageDraw.Draw(self.page)
        self.y = _GAP

    def heading(self, text: str) -> None:
        self.draw.text((_GAP, self.y + 8), text, _INK, ImageFont.load_default(17))
        self.y += 36

    def label(self, column: int, text: str, dy: int = 0, colour=_INK) -> None:
        self.draw.text((self.x(column), self.y + dy), text, colour, ImageFont.load_default(12), spacing=2)

    def tile(self, column: int, image: np.ndarray) -> None:
        big = Image.fromarray(image).resize((_TILE, _TILE), Image.Resampling.NEAREST)
        self.page.paste(big, (self.x(column), self.y))
        self.frame(column, (214, 214, 218), 1)

    def frame(self, column: int, colour, width: int) -> None:
        corner = self.x(column), self.y
        self.draw.rectangle((*corner, corner[0] + _TILE - 1, corner[1] + _TILE - 1), outline=colour, width=width)

    def box(self, column: int, box: np.ndarray, image_size: int) -> None:
        x0, y0, x1, y1 = (int(side) * _TILE // image_size for side in box)
        self.draw.rectangle((self.x(column) + x0, self.y + y0, self.x(column) + x1 - 1, self.y + y1 - 1), outline=_MARK)

    def x(self, column: int) -> int:
        return _LEFT + column * (_TILE + _GAP)

    def finish(self) -> Image.Image:
        return self.page.crop((0, 0, _WIDTH, self.y + _GAP))


def contact_sheet(seed: int = 0, image_size: int = 64) -> Image.Image:
    """Draws the sheet; image_size is that of the scenes, which are shown at 128 pixels."""
    sheet = _Sheet()
    _classes(sheet, seed, image_size)
    for objects, rows in ((1, 1), (2, 2), (3, 1), (4, 1)):
        sheet.heading(f"Scenes of {objects} object{'s' * (objects > 1)}, with a caption, a question and its answer")
        for row in range(rows):
            _captioned(sheet, seed, image_size, objects, row)
    _grounded(sheet, seed, image_size)
    for objects in (1, 2):
        film = clips.clip(seed, 8, index=objects, objects=objects, image_size=image_size)
        sheet.heading(f"A clip of 8 frames: {film.captions[0]}")
        for column, frame in enumerate(film.frames):
            sheet.tile(column, frame)
        sheet.y += _TILE + _GAP
    return sheet.finish()


def _classes(sheet: _Sheet, seed: int, image_size: int) -> None:
    sheet.heading("The 64 classes. Framed: the 16 that never occur in training, two of each shape and of each colour")
    for column, shape in enumerate(world.SHAPES):
        sheet.label(column, shape)
    sheet.y += 18
    for row, colour in enumerate(world.COLOURS):
        sheet.draw.text((_GAP, sheet.y + _TILE // 2 - 8), colour, _INK, ImageFont.load_default(14))
        for column in range(8):
            label = 8 * row + column
            rng = world.generator(seed, "contact sheet", label)
            sheet.tile(column, render.render(world.scene(rng, [label], image_size)).image)
            if label in world.HELD_OUT:
                sheet.frame(column, _MARK, 4)
        sheet.y += _TILE + _GAP


def _captioned(sheet: _Sheet, seed: int, image_size: int, objects: int, row: int) -> None:
    deepest = 0
    for column in range(8):
        rng = world.generator(seed, f"contact sheet {objects}", 8 * row + column)
        scene = world.scene(rng, world.draw_labels(rng, objects, world.TRAINED), image_size)
        sheet.tile(column, render.render(scene).image)
        asked = language.questions(rng, scene, world.TRAINED)
        item = asked[int(rng.random() * len(asked))]
        said = textwrap.wrap(language.captions(rng, scene, 1, detail=0.6)[0], 20)
        answer = textwrap.wrap(f"{item['question']} {item['answer']}", 20)
        sheet.label(column, "\n".join(said), _TILE + 3)
        sheet.label(column, "\n".join(answer), _TILE + 7 + 15 * len(said), _FAINT)
        deepest = max(deepest, len(said) + len(answer))
    sheet.y += _TILE + 15 * deepest + 16


def _grounded(sheet: _Sheet, seed: int, image_size: int) -> None:
    sheet.heading("Scenes beside their masks and boxes")
    for pair in range(4):
        rng = world.generator(seed, "contact sheet grounded", pair)
        scene = world.scene(rng, world.draw_labels(rng, pair + 1, world.TRAINED), image_size)
        drawn = render.render(scene)
        sheet.tile(2 * pair, drawn.image)
        painted = np.full_like(drawn.image, 235)
        for mask, thing in zip(drawn.masks, scene.objects, strict=True):
            painted[mask] = world.COLOURS[thing.colour]
        sheet.tile(2 * pair + 1, painted)
        for box in drawn.boxes:
            sheet.box(2 * pair + 1, box, image_size)
    sheet.y += _TILE + _GAP
