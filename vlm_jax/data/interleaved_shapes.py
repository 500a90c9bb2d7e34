"""Pages of the shapes world, made on first use: `shapes:pages` and `shapes:pages_val`; `shapes:told_pages` and `shapes:told_pages_val`, for
language models, which tell in words what is to be seen; `shapes:long_told_pages` and `shapes:long_told_pages_val`, of up to 36 scenes; and
`shapes:pages.model`, the vocabulary of all.

A page shows four to eight scenes, each followed by its text, and has one of three kinds:

    captions    Output: a large red circle
    questions   Question: what colour is the circle? Answer: red
    words       Output: dax                     a word that this page alone gives to one value of an attribute

On pages of words two or three values of one attribute (colour, shape, texture or background) have invented words, drawn anew for every
page: what a word means can only be learned from the scenes before. `WORDS` occur in training; `NEW_WORDS` never do.

A told page has a caption in place of each image, or on pages of words a few words for what is to be seen. There are lists besides, of three
to eight words for values of any attributes, in any order or recited in one. Before a word stands `Output:` or nothing, and every other told
page of words and every other list has words of its own, so that they cannot be learned by heart:

    red circle on grey. Output: dax. blue circle on grey. Output: wug. red star on white. Output: dax.
    striped toma. red sarn. circle dax. red sarn. striped toma.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_jax import files
from vlm_jax.data import records, shapes, tar_index, vocabulary
from vlm_jax.errors import InputError

COUNTS = {
    "pages": 8_000,
    "pages_val": 128,
    "told_pages": 8_000,
    "told_pages_val": 128,
    "long_told_pages": 4_000,
    "long_told_pages_val": 128,
}
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
SHARES = {"words": 0.5, "captions": 0.25, "questions": 0.25}
TOLD_SHARES = {"words": 0.3, "lists": 0.25, "recited": 0.25, "captions": 0.1, "questions": 0.1}
"""Of pages by kind."""
_FACTS = ("size", "texture", "colour", "shape", "background")
_SHARES_OF_FACTS = (0.4, 0.2, 0.2, 0.1, 0.1)
"""Of told pages of words, by how many facts they tell beside the one that counts."""
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def ensure(name: str) -> str:
    """The shard of a split, or the vocabulary, made on first use in the cache folder.

    Raises:
      InputError: the cache folder cannot be written.
    """
    code = hashlib.sha256((shapes.version() + Path(__file__).read_text()).encode()).hexdigest()[:12]
    folder = tar_index.cache_folder().absolute() / f"shapes-pages-{code}"
    path = str(folder / name) if name == TOKENIZER else records.shard_paths(str(folder / name), 1)[0]
    if not os.path.isfile(path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if name == TOKENIZER:
                files.write(path, vocabulary.train(_texts(), PIECES))
            else:
                made = told_page if "told" in name else page
                records.write(str(folder / name), (made(name, index) for index in range(COUNTS[name])), 1)
        except OSError as error:
            raise InputError(f"cache folder {folder}: {error.strerror}; set VLM_JAX_CACHE to one that can be written") from None
    return path


def page(split: str, index: int) -> dict:
    """A page as a record of `sources.documents`, with its kind."""
    kind, told = chunks(split, index)
    items = [item for scene, text in told for item in ({"image": _png(shapes.render(scene).image)}, {"text": text})]
    return {"key": f"{split}-{index:05d}", "kind": kind, "items": items}


def told_page(split: str, index: int) -> dict:
    """A told page as a record of `sources.documents`, with its kind."""
    kind, text = told(split, index)
    return {"key": f"{split}-{index:05d}", "kind": kind, "items": [{"text": text}]}


def chunks(split: str, index: int) -> tuple[str, list[tuple[shapes.Scene, str]]]:
    """The kind of a page, and its scenes with their texts."""
    rng = shapes.generator(0, split, index)
    count = int(rng.integers(4, 9))
    kind = _kind(rng, SHARES)
    if kind == "words":
        return kind, [(scene, f"Output: {word}") for scene, word in words(rng, count, _attribute(rng), WORDS)]
    return kind, [_told(rng, kind) for _ in range(count)]


def told(split: str, index: int) -> tuple[str, str]:
    """The kind of a told page, and its text."""
    rng = shapes.generator(0, split, index)
    count = int(rng.integers(4, 37 if split.startswith("long") else 13))
    kind = _kind(rng, TOLD_SHARES)
    if kind in ("words", "lists", "recited"):
        known = rng.permutation(WORDS).tolist() if rng.random() < 0.5 else _invented(rng, 8)
        bound = _described(rng, count, known) if kind == "words" else _list(rng, 2 * count, known[:8], in_order=kind == "recited")
        joint = ". Output: " if rng.random() < 0.5 else " "
        parts = [description + joint + word for description, word in bound]
    else:
        several = (_told(rng, kind) for _ in range(count))
        parts = [f"{shapes.captions(rng, scene, 1, detail=1.0)[0]}. {text}" for scene, text in several]
    return kind, " ".join(f"{part}." for part in parts)


def words(rng: np.random.Generator, count: int, attribute: str, known: Sequence[str]) -> list[tuple[shapes.Scene, str]]:
    """Scenes, each with the word of its value of an attribute; values and words are drawn for all of them together."""
    ways = int(rng.integers(2, 4))
    values = rng.permutation(ATTRIBUTES[attribute])[:ways].tolist()
    named = rng.permutation(known)[:ways].tolist()
    order = [int(rng.integers(ways)) for _ in range(count)]
    return [(having(rng, attribute, values[i]), named[i]) for i in order]


def seen(scene: shapes.Scene, facts: Sequence[str]) -> str:
    """What is to be seen of the first object, and of the background, in a few words."""
    ground = f"on {scene.background}" if "background" in facts else ""
    return " ".join(filter(None, [*(getattr(scene.objects[0], fact) for fact in _FACTS[:-1] if fact in facts), ground]))


def having(rng: np.random.Generator, attribute: str, value: str) -> shapes.Scene:
    """A scene of one object of a trained pair with this value of the attribute."""
    while True:
        scene = shapes.scene(rng, shapes.draw_labels(rng, 1, shapes.TRAINED))
        if value == (scene.background if attribute == "background" else getattr(scene.objects[0], attribute)):
            return scene


def _kind(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    return list(shares)[int(rng.choice(len(shares), p=list(shares.values())))]


def _attribute(rng: np.random.Generator) -> str:
    return tuple(ATTRIBUTES)[int(rng.integers(len(ATTRIBUTES)))]


def _invented(rng: np.random.Generator, count: int) -> list[str]:
    """Words of one or two syllables."""
    made: list[str] = []
    while len(made) < count:
        letters = [_CONSONANTS, _VOWELS, _CONSONANTS, _VOWELS, _CONSONANTS][: int(rng.integers(3, 6))]
        word = "".join(some[int(rng.integers(len(some)))] for some in letters)
        if word not in (*made, *WORDS, *NEW_WORDS, *shapes.COLOURS):
            made.append(word)
    return made


def _described(rng: np.random.Generator, count: int, known: Sequence[str]) -> list[tuple[str, str]]:
    """What is to be seen on a page of words, each with its word; other facts than the one that counts may be told with it."""
    attribute = _attribute(rng)
    beside = rng.permutation([fact for fact in _FACTS if fact != attribute])[: rng.choice(5, p=_SHARES_OF_FACTS)].tolist()
    return [(seen(scene, [attribute, *beside]), word) for scene, word in words(rng, count, attribute, known)]


def _list(rng: np.random.Generator, count: int, known: Sequence[str], *, in_order: bool) -> list[tuple[str, str]]:
    """Values of any attributes, each with a word of its own, again and again."""
    values = rng.permutation([f"on {value}" if name == "background" else value for name, of in ATTRIBUTES.items() for value in of])
    entries = list(zip(values.tolist(), known, strict=False))[: int(rng.integers(3, len(known) + 1))]
    return [entries[i % len(entries) if in_order else int(rng.integers(len(entries)))] for i in range(count)]


def _texts() -> Iterator[str]:
    """What the vocabulary is made of."""
    for index in range(1_000):
        yield from (text for _, text in chunks("pages", index)[1])
        yield told("told_pages", index)[1]


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
