"""Attention masks: True where a query may attend to a key. Shapes broadcast to [b, heads, t, s]; combine with `&`."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def causal(t: int) -> Bool[Array, "1 1 t t"]:
    """Every token sees itself and what comes before it."""
    return jnp.tri(t, dtype=bool)[None, None]


def keys(present: Bool[Array, "b s"]) -> Bool[Array, "b 1 1 s"]:
    """Every token sees the keys that are present: no padding."""
    return present[:, None, None, :]


def not_padding(tokens: Int[Array, "b t"], pad_id: int) -> Bool[Array, "b t"]:
    """Which tokens are text."""
    return tokens != pad_id
