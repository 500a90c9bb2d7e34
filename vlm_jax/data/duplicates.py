"""Duplicates: what makes two images the same, as a fingerprint of each."""

import hashlib
from typing import Literal

import numpy as np
from PIL import Image

from vlm_jax.data import decoding

Sameness = Literal["none", "bytes", "pixels", "perceptual"]
"""bytes: the encoded files are equal. pixels: the decoded images are equal. perceptual: brightness rises and falls at the same places
of 8 x 8, as in the same image at another size or quality; images of one colour are all the same then."""


def fingerprint(data: bytes, sameness: Sameness) -> str:
    """Equal for images that are the same.

    Raises:
      RecordError: bytes that are no image, where they must be decoded.
    """
    if sameness == "bytes":
        return hashlib.sha256(data).hexdigest()
    image = decoding.load(data)
    if sameness == "pixels":
        return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    return difference_hash(image)


def difference_hash(image: Image.Image) -> str:
    """128 bits: whether each of 8 x 8 places is brighter than the next one to the right, and than the next one below."""
    bits = []
    for size, axis in (((9, 8), 1), ((8, 9), 0)):
        grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), np.int16)
        bits.append(np.diff(grey, axis=axis) < 0)
    return np.packbits(np.stack([bits[0].ravel(), bits[1].ravel()])).tobytes().hex()
