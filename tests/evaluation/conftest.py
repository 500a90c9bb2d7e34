"""A tiny model, its data and its classes, for evaluators to evaluate."""

import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax import nnx

from vlm_jax.data import images, records
from vlm_jax.evaluation import base
from vlm_jax.training import sharding

NAMES = ["red", "green", "blue", "yellow", "cyan", "purple", "black"]
COLOURS = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0], [0, 250, 250], [250, 0, 250], [9, 9, 9]])
WORDS = ["a", "photo", "picture", "of", *NAMES]


class Tokenizer:
    """Words to ids by their place in a list; 0 for any other and for padding."""

    length = 6

    def __call__(self, texts):
        rows = np.zeros((len(texts), self.length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [WORDS.index(word) + 1 if word in WORDS else 0 for word in text.split()[: self.length]]
            row[: len(ids)] = ids
        return rows


class Model(nnx.Module):
    """Embeds an image as its mean colour and a text as the sum of its words, and so knows the colours' names."""

    def __init__(self, *, rngs: nnx.Rngs):
        words = jax.random.normal(rngs.params(), (len(WORDS) + 1, 4)) * 0.05
        self.log_scale = nnx.Param(jnp.log(jnp.asarray(20.0)))
        self.words = nnx.Param(words.at[5:, :3].add(COLOURS / 250).at[5:, 3].add(0.3))

    def embed_image(self, image):
        return self._unit(jnp.pad(image.mean((1, 2)) / 250, ((0, 0), (0, 1)), constant_values=0.3))

    def image_features(self, image):
        return jnp.concatenate([image.mean((1, 2)) / 25, image.std((1, 2))], 1)

    def embed_text(self, tokens):
        return self._unit(self.project_text(tokens))

    def project_text(self, tokens):
        return self.words[tokens].sum(1)

    def _unit(self, x):
        return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def example(i: int) -> dict:
    """One noisy image of a colour, so noisy that the model errs on some."""
    rng = np.random.default_rng(i)
    label = i % len(NAMES)
    pixels = np.clip(COLOURS[label] + rng.normal(0, 60, (1, 1, 3)) + rng.normal(0, 20, (8, 8, 3)), 0, 255)
    captions = [f"a photo of a {NAMES[label]}", f"picture {i} {NAMES[label]}", f"{NAMES[label]} of {'a ' * (i % 3)}"]
    return {"key": f"k{i}", "image": png(pixels), "captions": captions, "label": label, "name": NAMES[label]}


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> str:
    """Shards with 27 images of seven colours, three captions each, some of them alike."""
    prefix = str(tmp_path_factory.mktemp("data") / "val")
    return "::".join(records.write(prefix, map(example, range(27)), 2))


@pytest.fixture(scope="session")
def classes(tmp_path_factory) -> str:
    path = Path(tmp_path_factory.mktemp("classes")) / "classes.json"
    path.write_text(json.dumps({"names": NAMES, "templates": ["a photo of a {}", "picture of {}", "{c}"]}))
    return str(path)


@pytest.fixture(scope="session")
def make_subject():
    """A function from a number of devices and a batch size to the tiny model under evaluation."""
    graphdef, variables = nnx.split(Model(rngs=nnx.Rngs(0)))

    def make(devices: int = 1, batch_size: int = 10, mesh: sharding.Mesh | None = None) -> base.Subject:
        mesh = (mesh or sharding.Mesh()).make(jax.devices()[:devices])
        compiled = base.Compiled(graphdef, mesh)
        return base.Subject(compiled, nnx.to_pure_dict(variables), images.Transform(size=8), Tokenizer(), batch_size)

    return make
