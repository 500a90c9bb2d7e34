"""Rotary positions (Su et al. 2021): queries and keys turned by angles that grow with their position.

The first half of a head's channels is paired with the second, as transformers keeps LLaMA's weights; the original weights pair neighbours
(2k, 2k + 1), which is the same after a permutation of channels.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def frequencies(head_dim: int, theta: float) -> Float[Array, " f"]:
    """theta^(-2k / head_dim) for each pair of channels, in radians a token."""
    return theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)


def rotation(positions: Int[Array, "b t"], frequencies: Float[Array, " f"]) -> Float[Array, "2 b t f"]:
    """Cosines and sines of the angles at each position: computed once, for all layers."""
    angles = positions[..., None].astype(frequencies.dtype) * frequencies
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def rotate(x: Float[Array, "b t h k"], rotation: Float[Array, "2 #b t f"]) -> Float[Array, "b t h k"]:
    """x with each pair (i, i + k / 2) of channels turned; float32 (or wider) inside, the dtype of x outside."""
    cos, sin = rotation[:, :, :, None, :]
    first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, cos.dtype)), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
