"""Pixels on the device."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from vlm_jax.errors import InputError


def normalize(
    images: Num[Array, "b h w c"], mean: Sequence[float], std: Sequence[float], dtype: DTypeLike = jnp.float32
) -> Float[Array, "b h w c"]:
    """(x / 255 - mean) / std for 8-bit images, by channel. Floating-point images count as normalised and pass unchanged.

    Raises:
      InputError: the images are neither uint8 nor floating point.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    if images.dtype != jnp.uint8:
        raise InputError(f"images have dtype {images.dtype}: pass uint8 pixels, or floats that are normalised")
    centre, spread = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images * (1 / (255 * spread)) - centre / spread).astype(dtype)
