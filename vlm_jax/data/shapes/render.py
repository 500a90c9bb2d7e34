"""Scenes to pixels: every shape is a signed distance, so edges are anti-aliased and masks exact; pure numpy.

A pixel belongs to an object where the object covers at least half of it and no later object does.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vlm_jax.data.shapes import world

Array = np.ndarray

OUTLINE = 1.3
"""Width in pixels of a 64-pixel image of the rim (darker than the fill, lighter on black) that sets objects off."""


@dataclass(frozen=True)
class Rendered:
    """A picture with the truth about it.

    Boxes are [x0, y0, x1, y1] in pixels, tight around the visible mask, x1 and y1 exclusive; zeros for a hidden object.
    """

    image: UInt8[Array, "h w 3"]
    masks: Bool[Array, "objects h w"]
    boxes: Int[Array, "objects 4"]


def render(scene: world.Scene) -> Rendered:
    """Draws a scene. Later objects hide earlier ones; masks are of what is visible, so they never overlap."""
    size = scene.image_size
    image = np.empty((size, size, 3), np.float32)
    image[:] = world.BACKGROUNDS[scene.background]
    masks = np.zeros((len(scene.objects), size, size), bool)
    for index, thing in enumerate(scene.objects):
        reach = world.REACH * thing.radius + 1
        x0, y0 = max(0, int(thing.x - reach)), max(0, int(thing.y - reach))
        x1, y1 = min(size, int(thing.x + reach) + 1), min(size, int(thing.y + reach) + 1)
        if x0 >= x1 or y0 >= y1:
            continue
        coverage, colour = _shade(thing, scene.background, x0, y0, x1, y1, OUTLINE * size / 64)
        window = image[y0:y1, x0:x1]
        window += coverage[..., None] * (colour - window)
        covered = coverage >= 0.5
        masks[:index, y0:y1, x0:x1] &= ~covered
        masks[index, y0:y1, x0:x1] = covered
    return Rendered((image + 0.5).astype(np.uint8), masks, np.stack([box(mask) for mask in masks]))


def box(mask: Bool[Array, "h w"]) -> Int[Array, "4"]:
    """The tight box [x0, y0, x1, y1] of a mask, x1 and y1 exclusive; zeros where the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros(4, np.int32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.int32)


def _shade(thing: world.Object, background: str, x0: int, y0: int, x1: int, y1: int, outline: float):
    """Coverage [h, w] in 0..1 and colour [h, w, 3] of one object over a window of pixels."""
    x = (np.arange(x0, x1, dtype=np.float32) + np.float32(0.5 - thing.x)) / np.float32(thing.radius)
    y = (np.arange(y0, y1, dtype=np.float32) + np.float32(0.5 - thing.y))[:, None] / np.float32(thing.radius)
    cos, sin = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
    u, v = cos * x + sin * y, cos * y - sin * x
    radius = np.float32(thing.radius)
    distance = DISTANCES[thing.shape](u, v) * radius
    inside = np.clip(np.float32(0.5 - outline) - distance, 0, 1)
    tint = np.array(thing.tint, np.float32)
    rim = 0.5 * tint + 110 if background == "black" else 0.45 * tint
    if thing.texture == "solid":
        colour = rim + inside[..., None] * (tint - rim)
    else:
        light = inside * _PATTERNS[thing.texture](u, v, radius)
        colour = rim + inside[..., None] * (tint - rim) + light[..., None] * (0.75 * (255 - tint))
    return np.clip(0.5 - distance, 0, 1), colour


Grid = Float[Array, "h w"]


def _circle(u: Grid, v: Grid) -> Grid:
    return np.sqrt(u * u + v * v) - 0.95


def _square(u: Grid, v: Grid) -> Grid:
    return np.maximum(np.abs(u), np.abs(v)) - 0.8


def _triangle(u: Grid, v: Grid) -> Grid:
    slope = np.float32(np.sqrt(3) / 2)
    return np.maximum(slope * np.abs(u) - 0.5 * v, v) - 0.55


def _star(u: Grid, v: Grid) -> Grid:
    """Five points: folded onto one tenth of the turn, where its outline is one straight edge."""
    tenth = np.float32(np.pi / 5)
    angle = np.abs((np.arctan2(u, -v) / (2 * tenth) + 0.5) % 1 - 0.5) * (2 * tenth)
    length = np.sqrt(u * u + v * v)
    edge = np.array([0.48 * np.cos(np.pi / 5) - 1.1, 0.48 * np.sin(np.pi / 5)], np.float32)
    edge /= np.hypot(*edge)
    return (length * np.cos(angle) - 1.1) * edge[1] - length * np.sin(angle) * edge[0]


def _heart(u: Grid, v: Grid) -> Grid:
    """A square on its corner and a disc on each of its two upper sides."""
    u, v = np.abs(u), v + 0.02
    half, root = 0.56, np.float32(np.sqrt(0.5))
    diamond = np.maximum(root * (u + v) - half, root * np.abs(u - v) - half)
    shift = np.float32(half * np.sqrt(0.5))
    lobe = np.sqrt((u - shift) ** 2 + (v + shift) ** 2) - half
    return np.minimum(diamond, lobe)


def _cross(u: Grid, v: Grid) -> Grid:
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 1.05, v - 0.34), np.maximum(u - 0.34, v - 1.05))


def _ring(u: Grid, v: Grid) -> Grid:
    return np.abs(np.sqrt(u * u + v * v) - 0.72) - 0.26


def _crescent(u: Grid, v: Grid) -> Grid:
    return np.maximum(np.sqrt(u * u + v * v) - 1, 0.74 - np.sqrt((u - 0.5) ** 2 + v * v))


DISTANCES: dict[str, Callable[[Grid, Grid], Grid]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
}
"""Shape -> signed distance to its outline, negative inside, in radii; +v points down."""


def _bands(u: Grid, radius: np.float32, period: float) -> Grid:
    """1 on every other band of half a period, with edges one pixel wide."""
    return np.clip(0.5 + (np.abs((u / period) % 1 - 0.5) - 0.25) * (period * radius), 0, 1)


def _striped(u: Grid, v: Grid, radius: np.float32) -> Grid:
    return _bands(v + 0.5 * u, radius, 0.56)


def _dotted(u: Grid, v: Grid, radius: np.float32) -> Grid:
    spacing = 0.56
    p, q = (u / spacing) % 1 - 0.5, (v / spacing) % 1 - 0.5
    return np.clip(0.5 - (np.sqrt(p * p + q * q) - 0.3) * (spacing * radius), 0, 1)


def _checkered(u: Grid, v: Grid, radius: np.float32) -> Grid:
    a, b = _bands(u, radius, 0.8), _bands(v, radius, 0.8)
    return a + b - 2 * a * b


_PATTERNS = {"striped": _striped, "dotted": _dotted, "checkered": _checkered}
