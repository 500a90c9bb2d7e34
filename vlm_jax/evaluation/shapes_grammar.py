"""Whether captions of the shapes world are true, by a parser of its grammar."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.data import shapes
from vlm_jax.errors import InputError


def check(captions: Sequence[str], scenes: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """What is right in each caption of a scene, bool [n] by the name of its mean.

    - `objects_accuracy`: it names all objects and no other, each with its shape and its colour;
    - `shape_accuracy`, `colour_accuracy`: so many of each shape, or of each colour, as there are;
    - `true_share`: all that it says holds, size, texture, place, relation and background too; it need not name every object;
    - `grammatical_share`: it is a sentence of the world's grammar. A caption that is none is wrong in all others.

    Args:
      scenes: as records have them under "scene".

    Raises:
      InputError: a scene is not of the shapes world.
    """
    found = {name: np.zeros(len(captions), bool) for name in NAMES}
    for i, (caption, facts) in enumerate(zip(captions, scenes, strict=True)):
        scene, said = read(facts), shapes.parse(caption)
        if said is None:
            continue
        for name, key in _PARTS.items():
            there = collections.Counter(map(key, scene.objects))
            found[name][i] = collections.Counter(map(key, said.objects)) == there
        found["true_share"][i] = shapes.holds(said, scene)
        found["grammatical_share"][i] = True
    return found


def read(facts: Mapping[str, Any]) -> shapes.Scene:
    """The scene of a record.

    Raises:
      InputError: it is not of the shapes world.
    """
    try:
        return shapes.read_scene(dict(facts))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"grammar 'shapes': {str(facts)[:60]!r} is no scene of the shapes world; set grammar to 'none'") from None


_PARTS = {
    "objects_accuracy": lambda thing: (thing.colour, thing.shape),
    "shape_accuracy": lambda thing: thing.shape,
    "colour_accuracy": lambda thing: thing.colour,
}
NAMES = (*_PARTS, "true_share", "grammatical_share")
