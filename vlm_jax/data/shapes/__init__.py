"""The shapes world: small pictures made from a seed, with everything that can be said and asked of them.

shapes.scene(shapes.generator(0, "train", 7), [5])  a Scene with one object of class 5
shapes.render(scene)                                its image, masks and boxes
shapes.captions(rng, scene, 4), shapes.questions(rng, scene), shapes.parse(caption), shapes.holds(description, scene)
shapes.clip(seed=0, frames=8)                       frames and captions of moving objects
shapes.ensure(None, shapes.World())                 the folder of a whole data set, made on first use
"""

from vlm_jax.data.shapes.clips import Clip, clip
from vlm_jax.data.shapes.contact_sheet import contact_sheet
from vlm_jax.data.shapes.dataset import cache_folder, ensure, make, version
from vlm_jax.data.shapes.examples import SPLITS, World, example, read_scene
from vlm_jax.data.shapes.language import (
    TEMPLATES,
    Description,
    Mention,
    captions,
    clip_captions,
    holds,
    parse,
    questions,
    relation_caption,
)
from vlm_jax.data.shapes.render import Rendered, render
from vlm_jax.data.shapes.world import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    HELD_OUT,
    PAIRS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    TRAINED,
    Object,
    Scene,
    draw_labels,
    generator,
    scene,
)

__all__ = [
    "BACKGROUNDS",
    "CLASSES",
    "COLOURS",
    "HELD_OUT",
    "PAIRS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "TEMPLATES",
    "TEXTURES",
    "TRAINED",
    "Clip",
    "Description",
    "Mention",
    "Object",
    "Rendered",
    "Scene",
    "World",
    "cache_folder",
    "captions",
    "clip",
    "clip_captions",
    "contact_sheet",
    "draw_labels",
    "ensure",
    "example",
    "generator",
    "holds",
    "make",
    "parse",
    "questions",
    "read_scene",
    "relation_caption",
    "render",
    "scene",
    "version",
]
