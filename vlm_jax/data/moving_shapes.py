"""`shapes:clips` and `shapes:clips_val`: clips of the shapes world as shards, made on first use."""

import io
import os

import numpy as np
from PIL import Image

from vlm_jax.data import records, shapes, tar_index
from vlm_jax.errors import InputError

COUNTS = {"clips": 512, "clips_val": 64}
"""Clips of each split; one in four has two objects."""
FRAMES = 8


def ensure(split: str) -> str:
    """The shard of a split, made on first use in the cache folder.

    Raises:
      InputError: the cache folder cannot be written.
    """
    prefix = tar_index.cache_folder().absolute() / f"shapes-clips-{shapes.version()}" / split
    (shard,) = records.shard_paths(str(prefix), 1)
    if not os.path.isfile(shard):
        try:
            records.write(str(prefix), (_record(split, index) for index in range(COUNTS[split])), 1)
        except OSError as error:
            raise InputError(f"cache folder {prefix.parent}: {error.strerror}; set VLM_JAX_CACHE to one that can be written") from None
    return shard


def _record(split: str, index: int) -> dict:
    clip = shapes.clip(seed=0, frames=FRAMES, index=index, split=split, objects=2 if index % 4 == 3 else 1)
    return {"key": f"{split}-{index:05d}", "frames": [_png(frame) for frame in clip.frames], "captions": clip.captions}


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()
