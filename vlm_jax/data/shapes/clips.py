"""Short clips of the shapes world: one or two objects that each move steadily in one direction."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from vlm_jax.data.shapes import language, render, world
from vlm_jax.errors import InputError

MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Clip:
    """Frames, every wording of what happens, and the scene of each frame (render it for boxes and masks).

    Two objects may meet: the second then hides part of the first.
    """

    frames: UInt8[np.ndarray, "frames h w 3"]
    captions: list[str]
    motions: tuple[str, ...]
    scenes: tuple[world.Scene, ...]


def clip(
    seed: int,
    frames: int,
    index: int = 0,
    split: str = "clips",
    objects: int = 1,
    labels: Sequence[int] = world.TRAINED,
    image_size: int = 64,
) -> Clip:
    """Clip `index` of a split: each object crosses at least half of the way that the picture leaves it.

    Raises InputError for fewer than two frames or other than one or two objects.
    """
    if frames < 2:
        raise InputError(f"frames {frames}: movement needs at least 2")
    if objects not in (1, 2):
        raise InputError(f"objects {objects}: a clip has 1 or 2 moving objects")
    rng = world.generator(seed, split, index)
    # As small as among twice as many, so that there is a way to go.
    start = world.scene(rng, world.draw_labels(rng, 2 * objects, labels), image_size)
    things = start.objects[:objects]
    motions = tuple(tuple(MOTIONS)[int(rng.random() * len(MOTIONS))] for _ in things)
    paths = []
    for thing, motion in zip(things, motions, strict=True):
        dx, dy = MOTIONS[motion]
        reach = world.REACH * thing.radius
        way = image_size - 2 * reach
        first, last = 0.25 * way * rng.random(2)
        along = np.linspace(reach + first, image_size - reach - last, frames)
        along = along if dx + dy > 0 else along[::-1]
        paths.append([(float(p), thing.y) if dx else (thing.x, float(p)) for p in along])
    scenes = tuple(
        dataclasses.replace(
            start,
            objects=tuple(
                dataclasses.replace(thing, x=path[frame][0], y=path[frame][1])
                for thing, path in zip(things, paths, strict=True)
            ),
        )
        for frame in range(frames)
    )
    images = np.stack([render.render(scene).image for scene in scenes])
    return Clip(images, language.clip_captions(scenes[0], motions), motions, scenes)
