"""Collate: one example to the arrays of a batch row, and rows to a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.data import captions, images, records, text


def pairs(
    example: Mapping[str, Any],
    index: int,
    *,
    transform: images.Transform,
    tokenizer: "text.LoadedTokenizer",
    caption: captions.Rule | int,
    clean: captions.Cleaning = "none",
    tokens: text.Part = "first",
    rng: np.random.Generator | None,
) -> dict[str, np.ndarray]:
    """An image with one of its captions: {"image": uint8[h, w, 3], "tokens": int32[t], "example": int32[]}.

    Args:
      example: has `image` (encoded bytes) and `captions` (strings).
      index: its place in the source, kept to find it again.
      caption: which caption is taken, by a rule or by number; "random" needs `rng`.
      clean: what is done to it first.
      tokens: which tokens of a caption that is longer than a row are taken.
      rng: the example's own generator: the caption is drawn first, then what the transform draws, then tokens. None: the
        first caption, the evaluation form of the transform, and the first tokens.

    Raises:
      RecordError: no image, no caption, or an image that cannot be decoded.
    """
    words = captions.choose(example, caption, clean, rng)
    if not example.get("image"):
        raise records.RecordError("has no image")
    if not isinstance(example["image"], bytes):
        raise records.RecordError(f"its image is a {type(example['image']).__name__}, not bytes")
    return {
        "image": transform(example["image"], rng),
        "tokens": tokenizer.row(words) if rng is None else tokenizer.part(words, tokens, rng),
        "example": np.array(index, np.int32),
    }


def stack(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows with the same fields and shapes to one batch; no rows are an error of the caller."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
