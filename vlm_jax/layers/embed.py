"""A table of token embeddings."""

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int


class Embed(nnx.Module):
    """Rows of a table [v, d], in the table's dtype."""

    def __init__(self, vocab_size: int, dim: int, *, embedding_init: Initializer, rngs: nnx.Rngs):
        self.embedding = nnx.Param(embedding_init(rngs.params(), (vocab_size, dim), jnp.float32))

    def __call__(self, tokens: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """A token outside the vocabulary becomes NaN, which is noticed, rather than another token, which is not."""
        return jnp.take(self.embedding[...], tokens, axis=0, mode="fill")
