"""Examples of the shapes world: the configuration of a data set, its splits, and what a record holds."""

import dataclasses
import functools
import io
import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlm_jax.data.shapes import language, render, world
from vlm_jax.errors import InputError

SPLITS = ("train", "val", "held_out", "trained_pairs", "relations")


@dataclass(frozen=True)
class World:
    """How large a shapes data set is and what its pictures are; the same fields give the same bytes."""

    seed: int = 0
    """Every scene, caption and question follows from it."""
    image_size: int = 64
    """Height and width in pixels, 32 to 1024; objects grow with it."""
    one_object: int = 16_000
    """Training scenes of one object."""
    two_objects: int = 4_000
    """Training scenes of two objects, in a relation."""
    three_objects: int = 0
    """Training scenes of three objects."""
    four_objects: int = 0
    """Training scenes of four objects."""
    val: int = 512
    """Fresh scenes of trained pairs, in training's proportions. A split of 0 scenes is left out."""
    held_out: int = 1024
    """One-object images of the 16 held-out pairs; a multiple of 16."""
    trained_pairs: int = 960
    """Fresh one-object images of the 48 trained pairs; a multiple of 48."""
    relations: int = 256
    """Two-object scenes, each with a caption true of no other; a multiple of 4, at most 4,512."""
    captions: int = 4
    """Captions a scene, each in other words."""
    detail: float = 0.3
    """Share of captions that name more than shapes, colours and the relation: size, texture, position, background."""
    vocabulary: int = 256
    """Pieces of the tokenizer, 96 to 256; with 256 nearly every word is one piece, and two objects take at most 24."""
    shards: int = 4
    """Files of the training split; the other splits are one file each."""

    def __post_init__(self):
        """Raises InputError for what no data set can be made of."""
        if not 32 <= self.image_size <= 1024:
            raise InputError(f"image_size {self.image_size}: objects can be told apart from 32 to 1024 pixels")
        for name in (*_COUNTS, "val", "held_out", "trained_pairs", "relations", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)}: is negative; give 0 or more")
        if sum(self.train_counts) < 1:
            raise InputError("one_object 0, two_objects 0, three_objects 0, four_objects 0: nothing to train on")
        for name, step in (("held_out", 16), ("trained_pairs", 48), ("relations", 4)):
            value = getattr(self, name)
            if value % step:
                raise InputError(f"{name} {value}: {step} does not divide it; {value // step * step} would do")
        if self.relations > _MAX_RELATIONS:
            raise InputError(f"relations {self.relations}: there are only {_MAX_RELATIONS} different ones")
        if not 1 <= self.captions <= len(language.OPENINGS):
            raise InputError(f"captions {self.captions}: a scene has 1 to {len(language.OPENINGS)}")
        if not 0 <= self.detail <= 1:
            raise InputError(f"detail {self.detail}: is a share, between 0 and 1")
        if not 96 <= self.vocabulary <= 256:
            raise InputError(f"vocabulary {self.vocabulary}: the world's words make 96 to 256 pieces")
        if not 1 <= self.shards <= sum(self.train_counts):
            raise InputError(f"shards {self.shards}: give 1 to the number of training scenes, {sum(self.train_counts)}")

    @property
    def train_counts(self) -> tuple[int, int, int, int]:
        """Training scenes by number of objects, from one."""
        return self.one_object, self.two_objects, self.three_objects, self.four_objects

    def size(self, split: str) -> int:
        """Number of examples of a split."""
        return sum(self.train_counts) if split == "train" else getattr(self, split)


_COUNTS = ("one_object", "two_objects", "three_objects", "four_objects")
_MAX_RELATIONS = 4 * (len(world.TRAINED) * (len(world.TRAINED) - 1) // 2)


def example(config: World, split: str, index: int) -> dict:
    """Example `index` of a split: what a record holds.

    "key", "image" (PNG), "masks" (PNG of one channel: k + 1 where object k is seen, 0 elsewhere), "captions", "label"
    (one object: its class among the 64), "scene" (height, width, background, objects: their attributes, class, centre,
    radius, angle, tint, box [x0, y0, x1, y1] in pixels, x1 and y1 exclusive) and "questions".
    """
    rng = world.generator(config.seed, split, index)
    scene, labels = _scene(config, split, index, rng)
    drawn = render.render(scene)
    record = {
        "key": f"{split}-{index:07d}",
        "image": _png(drawn.image),
        "masks": _png((drawn.masks * np.arange(1, len(scene.objects) + 1, dtype=np.uint8)[:, None, None]).max(0)),
        "captions": [language.relation_caption(scene)]
        if split == "relations"
        else language.captions(rng, scene, config.captions, config.detail),
        "scene": {
            "height": scene.image_size,
            "width": scene.image_size,
            "background": scene.background,
            "objects": [_facts(scene, k, drawn.boxes[k].tolist()) for k in range(len(scene.objects))],
        },
        "questions": language.questions(rng, scene, labels),
    }
    if len(scene.objects) == 1:
        record["label"] = scene.objects[0].label
    return record


def read_scene(facts: dict) -> world.Scene:
    """The Scene of a record's "scene": rendering it gives the record's image, `holds` judges captions of it."""
    names = [field.name for field in dataclasses.fields(world.Object)]
    objects = []
    for thing in facts["objects"]:
        x, y = thing["center"]
        known = {**thing, "x": x, "y": y, "tint": tuple(thing["tint"])}
        objects.append(world.Object(**{name: known[name] for name in names}))
    return world.Scene(facts["height"], facts["background"], tuple(objects))


def _scene(config: World, split: str, index: int, rng: np.random.Generator) -> tuple[world.Scene, tuple[int, ...]]:
    """The scene of an example and the labels that its questions may name."""
    if split == "held_out":
        return world.scene(rng, [world.HELD_OUT[index % 16]], config.image_size), world.HELD_OUT
    if split == "trained_pairs":
        return world.scene(rng, [world.TRAINED[index % 48]], config.image_size), world.TRAINED
    if split == "relations":
        relation = tuple(world.RELATIONS)[index % 4]
        labels = _unordered_pairs(config.seed)[index // 4]
        return world.scene(rng, labels, config.image_size, relation), world.TRAINED
    objects = _object_counts(config, split)[index]
    labels = world.draw_labels(rng, objects, world.TRAINED)
    return world.scene(rng, labels, config.image_size), world.TRAINED


@functools.lru_cache(8)
def _object_counts(config: World, split: str) -> np.ndarray:
    """Number of objects of every scene of train or val, shuffled; val has training's shares, rounded."""
    edges = np.cumsum((0, *config.train_counts)) / sum(config.train_counts)
    repeats = np.diff(np.round(edges * config.size(split)).astype(int))
    rng = world.generator(config.seed, f"{split} objects", 0)
    return rng.permutation(np.repeat(np.arange(1, 5), repeats))


@functools.lru_cache(8)
def _unordered_pairs(seed: int) -> list[tuple[int, int]]:
    pairs = list(itertools.combinations(world.TRAINED, 2))
    rng = world.generator(seed, "relations objects", 0)
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _facts(scene: world.Scene, index: int, box: list[int]) -> dict:
    thing = scene.objects[index]
    return {
        "shape": thing.shape,
        "colour": thing.colour,
        "size": thing.size,
        "texture": thing.texture,
        "position": scene.position(index),
        "label": thing.label,
        "center": [thing.x, thing.y],
        "radius": thing.radius,
        "angle": thing.angle,
        "tint": list(thing.tint),
        "box": box,
    }


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()
