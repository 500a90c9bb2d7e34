"""Scaled dot-product attention."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def dot_product_attention(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s h k"],
    value: Float[Array, "b s h k"],
    mask: Bool[Array, "#b #h #t s"] | None = None,
) -> Float[Array, "b t h k"]:
    """softmax(query key^T / sqrt(k) + mask) value, head by head (Vaswani et al. 2017, equation 1).

    Logits and softmax are at least float32 whatever the inputs' dtype; the result has the dtype of `value`.

    Args:
      mask: True where a query may attend. A row that may attend nowhere averages all values, and stays finite.
    """
    # Heads before tokens: one batched matrix product per tensor, the faster order on CPU.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bhtk,bhsk->bhts", query, key, preferred_element_type=dtype) * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhts,bhsk->bhtk", weights, value).swapaxes(1, 2)
