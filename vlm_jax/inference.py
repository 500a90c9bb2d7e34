"""Embeddings of images and texts with a checkpoint, its preprocessing inside; captions, where its model writes them.

    from vlm_jax import inference

    model = inference.load("runs/demo")
    cosines = model.embed_images(["photo.jpg"]) @ model.embed_texts(["a red circle", "a blue star"]).T

    inference.load("runs/coca_shapes").caption(["photo.jpg"])
"""

import dataclasses
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from vlm_jax import config as configs
from vlm_jax import imported
from vlm_jax.data import records
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, captioning
from vlm_jax.models import generation
from vlm_jax.training import checkpoint, sharding
from vlm_jax.training import state as states

Picture = str | os.PathLike | bytes | PIL.Image.Image | np.ndarray
"""A file, encoded bytes, a Pillow image, or uint8 [h, w, 3]."""


def load(
    path: str | os.PathLike,
    *,
    weights: Literal["auto", "ema", "raw"] = "auto",
    batch_size: int = 64,
    allow_types: Sequence[str] = (),
) -> "Model":
    """A run (its last good checkpoint), one checkpoint of it, or `hf:DIR`, `open_clip:DIR`; on all devices of this machine.

    Args:
      weights: trained ones or their moving average; auto: the average where one is kept.
      batch_size: examples at a time, at most; changes no result.
      allow_types: modules outside vlm_jax whose types the configuration may name.

    Raises:
      InputError: there is no checkpoint, it lacks what is asked for, or its model embeds no images and texts.
      InfrastructureError: it is damaged.
    """
    config, workdir, at = configs.of_checkpoint(imported.resolve(os.fspath(path)), allow=allow_types)
    model, mesh = states.Model.of(config.system), sharding.Mesh().make()
    if not all(hasattr(model.merge(model.params, model.buffers), name) for name in ("embed_image", "embed_text")):
        raise InputError(f"checkpoint {path}: {type(config.system).__name__} does not embed images and texts")
    stored, step = checkpoint.load_weights(workdir, at, states.weights_of(model), mesh, on_corrupt=config.on_corrupt)
    variables = states.cast(states.variables(stored, weights), jnp.dtype(config.precision))
    stream = next(iter(config.streams.values())).kept(str(workdir))
    compiled = base.Compiled(model.graphdef, mesh)
    return Model(base.Subject(compiled, variables, stream.image.evaluation(), stream.tokenizer.load(), batch_size), step)


@dataclasses.dataclass(frozen=True)
class Model:
    """Two towers with their weights, image transform and tokenizer. Compiled at the first call; later ones are fast."""

    subject: base.Subject
    step: int
    """Updates that the weights have seen."""

    @property
    def scale(self) -> float:
        """The learned factor on the cosines."""
        return float(np.exp(self.subject.variables["log_scale"]))

    def embed_images(self, pictures: Sequence[Picture]) -> np.ndarray:
        """L2-normalised embeddings [n, e], float32, in order; resized, cropped and normalised as in evaluation.

        Raises:
          InputError: a picture cannot be read; names which.
        """
        pictures = _listed(pictures)
        return self._sized(len(pictures)).embed_images(self._pixels(i, picture) for i, picture in enumerate(pictures))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """L2-normalised embeddings [n, e], float32, in order.

        Raises:
          InputError: there is none, or not a list of strings.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"texts {str(texts)[:60]!r}: give a list of strings")
        return self._sized(len(texts)).embed_texts(texts)

    def probabilities(self, pictures: Sequence[Picture], texts: Sequence[str]) -> np.ndarray:
        """For each picture how likely each text is among these, [n, m]: softmax of the scaled cosines."""
        cosines = self.embed_images(pictures) @ self.embed_texts(texts).T
        return np.asarray(jax.nn.softmax(self.scale * cosines, axis=-1))

    def caption(
        self, pictures: Sequence[Picture], *, prompt: str = "", decoding: generation.Decoding = generation.Decoding()
    ) -> list[str]:
        """What the model writes of each picture, in order.

        Args:
          prompt: what every caption begins with, such as `a photo of`; part of the result.
          decoding: how words are chosen; a caption ends where a row of the tokenizer would.

        Raises:
          InputError: the model writes no text, there is no list or no room, or a picture cannot be read; names which.
        """
        pictures = _listed(pictures)
        if not pictures:
            return []
        subject = self._sized(len(pictures))
        tokens, decoding = captioning.opening(subject, decoding, prompt)

        def read(own: list[int]) -> Iterable[base.Prompt]:
            return (base.Prompt(self._pixels(i, pictures[i])[None], tokens) for i in own)

        texts = subject.generate(read, len(pictures), decoding, length=len(tokens))
        return [f"{prompt} {text}".strip() for text in texts] if prompt else texts

    def _sized(self, examples: int) -> base.Subject:
        """With batches no larger than needed, of sizes few enough that hardly anything is compiled again."""
        size = 1 << max(examples - 1, 0).bit_length()
        return self.subject if size >= self.subject.batch_size else dataclasses.replace(self.subject, batch_size=size)

    def _pixels(self, index: int, picture: Picture) -> np.ndarray:
        try:
            return self.subject.transform(_encoded(picture))
        except (records.RecordError, OSError, TypeError, ValueError) as error:
            name = picture if isinstance(picture, str | os.PathLike) else f"{index} ({type(picture).__name__})"
            raise InputError(f"picture {name}: {error}") from None


def _listed(pictures: Sequence[Picture]) -> Sequence[Picture]:
    if isinstance(pictures, str | bytes | os.PathLike | PIL.Image.Image):
        raise InputError(f"pictures {str(pictures)[:60]!r}: give a list, of one picture where there is one")
    return pictures


def _encoded(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        return Path(picture).read_bytes()
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"an array of {picture.dtype} {list(picture.shape)}; give uint8 [h, w, 3]")
        picture = PIL.Image.fromarray(picture)
    if not isinstance(picture, PIL.Image.Image):
        raise TypeError("give a file, bytes, a Pillow image, or an array uint8 [h, w, 3]")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
