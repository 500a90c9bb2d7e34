"""Normalisation of vectors, without parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def l2_normalize(x: Float[Array, "... d"], eps: float = 1e-12) -> Float[Array, "... d"]:
    """x / sqrt(sum(x^2) + eps) along the last axis, in the dtype of x.

    Unlike x / norm(x) it has a finite gradient at a zero row.
    """
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + eps)
