"""`shapes:pages` and `shapes:pages_val`: pages of the shapes world, made on first use; `shapes:pages.model`, the vocabulary of their texts.

A page shows four to eight scenes, each followed by its text, and has one of three kinds:

    captions    Output: a large red circle
    questions   Question: what colour is the circle? Answer: red
    words       Output: dax                     a word that this page alone gives to one value of an attribute

On pages of words two or three values of one attribute (colour, shape, texture or background) have invented words, drawn anew for every
page: what a word means can only be learned from the scenes before. `WORDS` occur in training; `NEW_WORDS` never do.
"""

import io
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vlm_jax import files
from vlm_jax.data import records, shapes, tar_index, vocabulary
from vlm_jax.errors import InputError

COUNTS = {"pages": 4_000, "pages_val": 128}
"""Pages of each split."""
TOKENIZER = "pages.model"
PIECES = 256
"""Of the vocabulary: nearly every word is one, but for `NEW_WORDS`."""
WORDS = ("dax", "blicket", "wug", "fep", "toma", "zib", "koba", "mip", "pelu", "sarn", "gorp", "tiv")
NEW_WORDS = ("lorp", "wibble", "nuz", "kefi")
ATTRIBUTES = {
    "colour": tuple(shapes.COLOURS),
    "shape": tuple(shapes.SHAPES),
    "texture": tuple(shapes.TEXTURES),
    "background": tuple(shapes.BACKGROUNDS),
}
SHARE_OF_WORDS = 0.5
"""Of pages; the others are captions and questions in equal parts."""


def ensure(name: str) -> str:
    """The shard of a split, or the vocabulary, made on first use in the cache folder.

    Raises:
      InputError: the cache folder cannot be written.
    """
    folder = tar_index.cache_folder().absolute() / f"shapes-pages-{shapes.version()}"
    path = str(folder / name) if name == TOKENIZER else records.shard_paths(str(folder / name), 1)[0]
    if not os.path.isfile(path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if name == TOKENIZER:
                files.write(path, vocabulary.train((text for index in range(1_000) for _, text in chunks("pages", index)[1]), PIECES))
            else:
                records.write(str(folder / name), (page(name, index) for index in range(COUNTS[name])), 1)
        except OSError as error:
            raise InputError(f"cache folder {folder}: {error.strerror}; set VLM_JAX_CACHE to one that can be written") from None
    return path


def page(split: str, index: int) -> dict:
    """A page as a record of `sources.documents`, with its kind."""
    kind, told = chunks(split, index)
    items = [item for scene, text in told for item in ({"image": _png(shapes.render(scene).image)}, {"text": text})]
    return {"key": f"{split}-{index:05d}", "kind": kind, "items": items}


def chunks(split: str, index: int) -> tuple[str, list[tuple[shapes.Scene, str]]]:
    """The kind of a page, and its scenes with their texts."""
    rng = shapes.generator(0, split, index)
    count = int(rng.integers(4, 9))
    if rng.random() < SHARE_OF_WORDS:
        return "words", words(rng, count, WORDS)
    kind = "captions" if rng.random() < 0.5 else "questions"
    return kind, [_told(rng, kind) for _ in range(count)]


def words(rng: np.random.Generator, count: int, known: Sequence[str]) -> list[tuple[shapes.Scene, str]]:
    """Scenes with the word of one attribute's value; values and words are drawn for all of them together."""
    attribute = tuple(ATTRIBUTES)[int(rng.integers(len(ATTRIBUTES)))]
    ways = int(rng.integers(2, 4))
    values = rng.permutation(ATTRIBUTES[attribute])[:ways].tolist()
    named = rng.permutation(known)[:ways].tolist()
    order = [int(rng.integers(ways)) for _ in range(count)]
    return [(having(rng, attribute, values[i]), f"Output: {named[i]}") for i in order]


def having(rng: np.random.Generator, attribute: str, value: str) -> shapes.Scene:
    """A scene of one object of a trained pair with this value of the attribute."""
    while True:
        scene = shapes.scene(rng, shapes.draw_labels(rng, 1, shapes.TRAINED))
        if value == (scene.background if attribute == "background" else getattr(scene.objects[0], attribute)):
            return scene


def _told(rng: np.random.Generator, kind: str) -> tuple[shapes.Scene, str]:
    scene = shapes.scene(rng, shapes.draw_labels(rng, 1 if rng.random() < 0.8 else 2, shapes.TRAINED))
    if kind == "captions":
        return scene, f"Output: {shapes.captions(rng, scene, 1)[0]}"
    asked = shapes.questions(rng, scene, shapes.TRAINED)
    one = asked[int(rng.integers(len(asked)))]
    return scene, f"Question: {one['question']} Answer: {one['answer']}"


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()
