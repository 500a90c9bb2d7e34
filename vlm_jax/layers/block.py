"""The pre-norm Transformer block."""

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from vlm_jax.layers import attention, mlp, norm
from vlm_jax.layers.initializers import Initializers
from vlm_jax.ops import activations


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Paths: `attention_norm`, `attention/...`, `mlp_norm`, `mlp/...`; with LayerScale (Touvron et al. 2021, CaiT) also
    `attention_scale`, `mlp_scale` [d].
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
        qk_norm: attention.QKNorm = "none",
        layer_scale: float = 0.0,
        rngs: nnx.Rngs,
    ):
        """`layer_scale` is the initial factor of both branches; 0 leaves them as they are."""
        self.attention_norm = norm.LayerNorm(width, epsilon=norm_epsilon)
        self.attention = attention.Attention(
            width, num_heads, qk_norm=qk_norm, norm_epsilon=norm_epsilon, initializers=initializers, rngs=rngs
        )
        self.mlp_norm = norm.LayerNorm(width, epsilon=norm_epsilon)
        self.mlp = mlp.Mlp(width, mlp_dim, activation=activation, initializers=initializers, rngs=rngs)
        if layer_scale:
            self.attention_scale = nnx.Param(jnp.full(width, layer_scale, jnp.float32))
            self.mlp_scale = nnx.Param(jnp.full(width, layer_scale, jnp.float32))

    def __call__(
        self, x: Float[Array, "b t d"], mask: Bool[Array, "#b #h #t t"] | None = None
    ) -> Float[Array, "b t d"]:
        """`mask` is True where a token may attend."""
        y = self.attention(self.attention_norm(x), mask=mask)
        x = checkpoint_name(x + self._scaled(y, "attention_scale"), "attention_residual")
        return x + self._scaled(self.mlp(self.mlp_norm(x)), "mlp_scale")

    def _scaled(self, branch, name):
        return branch * getattr(self, name)[...].astype(branch.dtype) if hasattr(self, name) else branch
