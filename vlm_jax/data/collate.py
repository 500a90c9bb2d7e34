"""Collate: one example to the arrays of a batch row, and rows to a batch."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

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
    leading_space: float = 0.0,
    rng: np.random.Generator | None,
) -> dict[str, np.ndarray]:
    """An image with one of its captions: {"image": uint8[h, w, 3], "tokens": int32[t], "example": int32[]}.

    Args:
      example: has `image` (encoded bytes) and `captions` (strings).
      index: its place in the source, kept to find it again.
      caption: which caption is taken, by a rule or by number; "random" needs `rng`.
      clean: what is done to it first.
      tokens: which tokens of a caption that is longer than a row are taken.
      leading_space: probability of a space before the caption.
      rng: the example's own generator: the caption is drawn first, then its space, what the transform draws, and tokens. None: the
        first caption, the evaluation form of the transform, and the first tokens.

    Raises:
      RecordError: no image, no caption, or an image that cannot be decoded.
    """
    words = _spaced(captions.choose(example, caption, clean, rng), leading_space, rng)
    if not example.get("image"):
        raise records.RecordError("has no image")
    if not isinstance(example["image"], bytes):
        raise records.RecordError(f"its image is a {type(example['image']).__name__}, not bytes")
    return {
        "image": transform(example["image"], rng),
        "tokens": tokenizer.row(words) if rng is None else tokenizer.part(words, tokens, rng),
        "example": np.array(index, np.int32),
    }


def clips(
    example: Mapping[str, Any],
    index: int,
    *,
    transform: images.Transform,
    tokenizer: "text.LoadedTokenizer",
    caption: captions.Rule | int,
    clean: captions.Cleaning = "none",
    tokens: text.Part = "first",
    leading_space: float = 0.0,
    frames: int,
    offset: Literal["random", "middle"],
    rng: np.random.Generator | None,
) -> dict[str, np.ndarray]:
    """Frames of a clip with one of its captions: {"frames": uint8[f, h, w, 3], "tokens": int32[t], "example": int32[]}.

    The clip is divided into as many parts of equal length as there are frames to take, and from each the frame at the same place is
    taken; a clip of fewer frames shows some of them several times. All frames are cropped and flipped alike.

    Args:
      example: has `frames` (functions that read encoded images) and `captions` (strings).
      offset: the place in each part; "random" needs `rng`.
      rng: the example's own generator: the caption is drawn first, then its space, the place, what the transform draws, and tokens. None:
        the first caption, the middle, and the evaluation form.
      The others are those of `pairs`.

    Raises:
      RecordError: no frames, no caption, or a frame that cannot be decoded.
    """
    words = _spaced(captions.choose(example, caption, clean, rng), leading_space, rng)
    if not example.get("frames"):
        raise records.RecordError("has no frames")
    place = rng.random() if offset == "random" and rng is not None else 0.5
    seed = None if rng is None else int(rng.integers(2**63))
    chosen = np.floor((np.arange(frames) + place) * len(example["frames"]) / frames).astype(int)
    pixels = [transform(example["frames"][i](), None if seed is None else np.random.default_rng(seed)) for i in chosen]
    return {
        "frames": np.stack(pixels),
        "tokens": tokenizer.row(words) if rng is None else tokenizer.part(words, tokens, rng),
        "example": np.array(index, np.int32),
    }


def stack(
    rows: Iterable[Mapping[str, np.ndarray]], count: int, empty: Callable[..., np.ndarray] = np.empty
) -> dict[str, np.ndarray]:
    """Rows with the same fields, shapes and dtypes to one batch.

    Each is copied into the batch as it comes, while the processor's cache holds it and before the next one is made in the same memory.

    Args:
      empty: from shape and dtype to an array, such as one in shared memory.

    Raises:
      ValueError: rows that differ, or fewer than `count` of them.
      IndexError: more.
    """
    batch: dict[str, np.ndarray] = {}
    number = -1
    for number, row in enumerate(rows):
        if number == 0:
            batch = {name: empty((count, *np.shape(value)), np.asarray(value).dtype) for name, value in row.items()}
        for name, values in batch.items():
            value = np.asarray(row[name])
            if (value.shape, value.dtype) != (values.shape[1:], values.dtype):
                raise ValueError(f"{name} of row {number} is {value.dtype} {value.shape}, of the first {values.dtype} {values.shape[1:]}")
            values[number] = value
    if number + 1 != count:
        raise ValueError(f"{number + 1} rows for a batch of {count}")
    return batch


def _spaced(words: str, leading_space: float, rng: np.random.Generator | None) -> str:
    return f" {words}" if leading_space and rng is not None and rng.random() < leading_space else words
