"""From a sequence of tokens to one vector, by learned attention."""

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
