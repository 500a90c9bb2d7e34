"""The shapes world: its attributes, the 64 shape-colour pairs of which 16 are held out, and how scenes are drawn.

A scene is a plain background with one to four objects. Objects of a still scene never overlap; where scenes overlap all
the same (clips), a later object hides an earlier one.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent")
COLOURS = {
    "red": (226, 36, 40),
    "green": (36, 158, 62),
    "blue": (38, 78, 222),
    "yellow": (252, 212, 28),
    "purple": (136, 52, 196),
    "pink": (255, 132, 196),
    "brown": (134, 80, 36),
    "cyan": (34, 206, 218),
}
"""Names that take "a", never "an", so that every class fits every template."""
TEXTURES = ("solid", "striped", "dotted", "checkered")
SIZES = ("small", "medium", "large")
"""Relative to the radii of scenes with that number of objects; see `RADII`."""
BACKGROUNDS = {"white": (248, 248, 246), "grey": (186, 188, 192), "black": (24, 24, 28)}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
"""Label -> (colour, shape), for all 64 classes."""
CLASSES = tuple(f"{colour} {shape}" for colour, shape in PAIRS)
HELD_OUT = tuple(label for label in range(64) if label // 8 in ((3 * label + 1) % 8, (label + 4) % 8))
"""The labels that no training scene, caption or question mentions: two of each shape and two of each colour.

Shape s (`label % 8`) is held out in colours 3s+1 and s+4 (mod 8): permutations that never meet, nor share two shapes.
"""
TRAINED = tuple(label for label in range(64) if label not in HELD_OUT)

RADII = {1: (11.0, 20.0), 2: (9.0, 13.0), 3: (7.0, 10.0), 4: (6.5, 9.0)}
"""Number of objects -> smallest and largest radius in pixels of a 64-pixel image; other image sizes scale it."""
REACH = 1.15
"""No pixel of an object is farther from its centre than this many radii."""
TILT = 0.26
"""Objects are turned by up to this many radians (15 degrees) either way."""
_SIZE_BANDS = ((0.0, 0.25), (0.375, 0.625), (0.75, 1.0))


@dataclass(frozen=True)
class Object:
    """One object: names as in the captions; centre (x, y) and radius in pixels, angle in radians."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float
    tint: tuple[int, int, int]
    """The fill's red, green and blue, within 12 of the colour's."""

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def label(self) -> int:
        return PAIRS.index((self.colour, self.shape))


@dataclass(frozen=True)
class Scene:
    """`image_size` pixels square; objects in drawing order, so a later one hides an earlier one."""

    image_size: int
    background: str
    objects: tuple[Object, ...]

    def position(self, index: int) -> str:
        """Where object `index` is: "top left", "top", ..., "center", ..., "bottom right", by its centre."""
        x, y = self.objects[index].x / self.image_size, self.objects[index].y / self.image_size
        row = "top" if y < 0.43 else "bottom" if y > 0.57 else ""
        column = "left" if x < 0.43 else "right" if x > 0.57 else ""
        return f"{row} {column}".strip() or "center"

    def relation(self, a: int, b: int) -> str | None:
        """How object a lies to object b ("left of" ...); None where the direction is too diagonal to say."""
        dx, dy = self.objects[b].x - self.objects[a].x, self.objects[b].y - self.objects[a].y
        if abs(dy) <= 0.5 * abs(dx):
            return "left of" if dx > 0 else "right of"
        if abs(dx) <= 0.5 * abs(dy):
            return "above" if dy > 0 else "below"
        return None


def generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of example `index` of a split, whoever draws them and in whatever order."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, zlib.crc32(split.encode()), index))))


def scene(
    rng: np.random.Generator,
    labels: Sequence[int],
    image_size: int = 64,
    relation: str | None = None,
) -> Scene:
    """A scene with one object of each label (one to four, no label twice).

    Two objects always have a relation that holds: `relation` of the first to the second, drawn where None.
    """
    unit = image_size / 64
    low, high = RADII[len(labels)]
    drawn = [_attributes(rng, label) for label in labels]
    radii = [unit * (low + (high - low) * fraction) for *_, fraction in drawn]
    reach = [REACH * radius for radius in radii]
    if len(labels) == 1:
        centres = [tuple(reach[0] + (image_size - 2 * reach[0]) * rng.random(2))]
    elif len(labels) == 2:
        centres = _related(rng, reach, image_size, relation or _choice(rng, RELATIONS))
    else:
        centres = _scattered(rng, reach, image_size)
    objects = tuple(
        Object(shape, colour, size, texture, float(x), float(y), radius, float(TILT * (2 * rng.random() - 1)), tint)
        for (colour, shape, size, texture, tint, _), radius, (x, y) in zip(drawn, radii, centres, strict=True)
    )
    return Scene(image_size, _choice(rng, tuple(BACKGROUNDS)), objects)


def draw_labels(rng: np.random.Generator, count: int, labels: Sequence[int]) -> list[int]:
    """`count` different labels out of `labels`."""
    drawn: list[int] = []
    while len(drawn) < count:
        label = _choice(rng, labels)
        if label not in drawn:
            drawn.append(label)
    return drawn


def _choice(rng: np.random.Generator, options: Sequence):
    return options[int(rng.random() * len(options))]


def _attributes(rng: np.random.Generator, label: int) -> tuple:
    colour, shape = PAIRS[label]
    rank = int(rng.random() * len(SIZES))
    low, high = _SIZE_BANDS[rank]
    red, green, blue = (
        min(255, max(0, round(channel + 24 * (u - 0.5))))
        for channel, u in zip(COLOURS[colour], rng.random(3), strict=True)
    )
    fraction = low + (high - low) * float(rng.random())
    return colour, shape, SIZES[rank], _choice(rng, TEXTURES), (red, green, blue), fraction


def _related(rng: np.random.Generator, reach: list[float], image_size: int, relation: str) -> list[tuple[float, float]]:
    """Two centres in the relation: apart along its axis, and at most half as far apart across it."""
    first, second = reach if relation in ("left of", "above") else reach[::-1]
    slack = image_size - 2 * (first + second) - image_size / 64
    before, after = np.sort(slack * rng.random(2))
    along = first + before, image_size - second - (slack - after)
    half = 0.5 * (along[1] - along[0])
    a = first + (image_size - 2 * first) * rng.random()
    low, high = max(second, a - half), min(image_size - second, a + half)
    across = a, low + (high - low) * rng.random()
    points = list(zip(along, across, strict=True))
    if relation in ("right of", "below"):
        points.reverse()
    return points if relation in ("left of", "right of") else [(y, x) for x, y in points]


def _scattered(rng: np.random.Generator, reach: list[float], image_size: int) -> list[tuple[float, float]]:
    """Centres of discs that do not touch: drawn again, from the first one on, where a disc finds no room."""
    gap = image_size / 64
    centres: list[tuple[float, float]] = []
    tries = 0
    while len(centres) < len(reach):
        r = reach[len(centres)]
        x, y = (r + (image_size - 2 * r) * u for u in rng.random(2))
        if all(np.hypot(x - p, y - q) > r + s + gap for (p, q), s in zip(centres, reach, strict=False)):
            centres.append((x, y))
        elif (tries := tries + 1) % 32 == 0:
            centres = []
    return centres
