"""From a sequence of tokens to one vector, or to a few, by learned attention."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vlm_jax.layers import attention, mlp, norm
from vlm_jax.layers.initializers import Initializers
from vlm_jax.ops import activations


class AttentionPool(nnx.Module):
    """Multi-head attention pooling (Zhai et al. 2022, "Scaling Vision Transformers"): a learned probe attends to the tokens.

    y = attention(probe, x), then y + mlp(norm(y)); x is not normalised again. Paths: `probe` [1, d], `attention/...`,
    `norm`, `mlp/...`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        activation: activations.Name,
        norm_epsilon: float,
        initializers: Initializers,
        rngs: nnx.Rngs,
    ):
        self.probe = nnx.Param(initializers.probe(rngs.params(), (1, width), jnp.float32))
        self.attention = attention.Attention(width, num_heads, initializers=initializers, rngs=rngs)
        self.norm = norm.LayerNorm(width, epsilon=norm_epsilon)
        self.mlp = mlp.Mlp(width, mlp_dim, activation=activation, initializers=initializers, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], mask: Bool[Array, "#b #h 1 t"] | None = None) -> Float[Array, "b d"]:
        """`mask` is True for the tokens that count."""
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        y = self.attention(probe, x, mask)[:, 0]
        return y + self.mlp(self.norm(y))


class AttentionalPooler(nnx.Module):
    """Learned queries look at the tokens, which are then as many as there are queries (Yu et al. 2022, CoCa, section 3.2).

    attention(norm(queries), norm(x)): no residual connection and no perceptron, as in open_clip. Paths: `queries` [n, d], `query_norm`,
    `context_norm`, `attention/...`.
    """

    def __init__(
        self,
        width: int,
        context_width: int,
        *,
        queries: int,
        num_heads: int,
        norm_epsilon: float,
        initializers: Initializers,
        rngs: nnx.Rngs,
    ):
        """`width` is that of the queries and of what comes out, `context_width` that of the tokens."""
        self.queries = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (queries, width), jnp.float32))
        self.query_norm = norm.LayerNorm(width, epsilon=norm_epsilon)
        self.context_norm = norm.LayerNorm(context_width, epsilon=norm_epsilon)
        self.attention = attention.Attention(
            width, num_heads, context_width=context_width, initializers=initializers, rngs=rngs
        )

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b n d"]:
        queries = self.query_norm(self.queries[...]).astype(x.dtype)
        queries = jnp.broadcast_to(queries, (x.shape[0], *queries.shape))
        return self.attention(queries, self.context_norm(x))
