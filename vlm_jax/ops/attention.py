"""Scaled dot-product attention."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def dot_product_attention(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s g k"],
    value: Float[Array, "b s g k"],
    mask: Bool[Array, "#b #h #t s"] | None = None,
) -> Float[Array, "b t h k"]:
    """softmax(query key^T / sqrt(k) + mask) value, head by head (Vaswani et al. 2017, equation 1).

    With fewer heads of keys and values than of queries, g that divides h, query head i looks at key head i // (h / g) (grouped-query
    attention, Ainslie et al. 2023); the mask is the same for all heads then.

    Logits and softmax are at least float32 whatever the inputs' dtype; the result has the dtype of `value`.

    Args:
      mask: True where a query may attend. A row that may attend nowhere averages all values, and stays finite.
    """
    if key.shape[2] != query.shape[2]:
        return _grouped(query, key, value, mask)
    # Heads before tokens: one batched matrix product per tensor, the faster order on CPU.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bhtk,bhsk->bhts", query, key, preferred_element_type=dtype) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhts,bhsk->bhtk", weights, value).swapaxes(1, 2)


def _grouped(query, key, value, mask):
    """Query heads that share a key head become queries of one head: nothing is repeated but the mask."""
    b, t, h, k = query.shape
    g = key.shape[2]
    query = query.reshape(b, t, g, h // g, k).swapaxes(2, 3).reshape(b, t * (h // g), g, k)
    if mask is not None and mask.shape[2] > 1:
        mask = jnp.repeat(mask, h // g, axis=2)
    attended = dot_product_attention(query, key, value, mask)
    return attended.reshape(b, t, h // g, g, k).swapaxes(2, 3).reshape(b, t, h, k)
