"""Normalisation layers over the last axis. They compute in float32 (or wider) and return the dtype they were given."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Name = Literal["layer_norm", "rms_norm"]


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) scale + bias (Ba et al. 2016), with the population variance."""

    def __init__(self, dim: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + epsilon) scale (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(dim))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...]).astype(x.dtype)


def by_name(name: Name) -> type[LayerNorm] | type[RMSNorm]:
    """The layer called `name`."""
    return {"layer_norm": LayerNorm, "rms_norm": RMSNorm}[name]
