"""The pre-norm Transformer block."""

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from vlm_jax.layers import attention, linear, mlp, norm
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
        num_kv_heads: int = 0,
        norm_layer: norm.Name = "layer_norm",
        mlp_kind: mlp.Kind = "plain",
        bias: linear.Bias = "learned",
        qk_norm: attention.QKNorm = "none",
        layer_scale: float = 0.0,
        rngs: nnx.Rngs,
    ):
        """`layer_scale` is the initial factor of both branches; 0 leaves them as they are."""
        self.attention_norm = norm.by_name(norm_layer)(width, epsilon=norm_epsilon)
        self.attention = attention.Attention(
            width,
            num_heads,
            num_kv_heads=num_kv_heads,
            bias=bias,
            qk_norm=qk_norm,
            norm_epsilon=norm_epsilon,
            initializers=initializers,
            rngs=rngs,
        )
        self.mlp_norm = norm.by_name(norm_layer)(width, epsilon=norm_epsilon)
        self.mlp = mlp.Mlp(
            width, mlp_dim, activation=activation, kind=mlp_kind, bias=bias, initializers=initializers, rngs=rngs
        )
        if layer_scale:
            self.attention_scale = nnx.Param(jnp.full(width, layer_scale, jnp.float32))
            self.mlp_scale = nnx.Param(jnp.full(width, layer_scale, jnp.float32))

    def __call__(
        self,
        x: Float[Array, "b t d"],
        mask: Bool[Array, "#b #h #t t"] | None = None,
        rotation: Float[Array, "2 #b t f"] | None = None,
    ) -> Float[Array, "b t d"]:
        """
        Args:
          mask: True where a token may attend.
          rotation: of `ops.rotary`, where positions are rotary.
        """
        y = self.attention(self.attention_norm(x), mask=mask, rotation=rotation)
        return self._after(x, y)

    def cached(
        self,
        x: Float[Array, "b t d"],
        past: attention.KeysValues | None,
        mask: Bool[Array, "#b #h #t s"] | None = None,
        rotation: Float[Array, "2 #b t f"] | None = None,
    ) -> tuple[Float[Array, "b t d"], attention.KeysValues]:
        """As `__call__`, of tokens that follow others; also gives their own keys and values, for those that follow them.

        Args:
          past: keys and values of the tokens before; None: there are none.
          mask: over the tokens before, then those of `x` themselves.
        """
        y = self.attention_norm(x)
        own = self.attention.keys_values(y, rotation)
        known = own if past is None else past.followed_by(own)
        return self._after(x, self.attention.attend(y, known, mask, rotation)), own

    def _after(self, x, attended):
        """The residual connections and the perceptron."""
        x = checkpoint_name(x + self._scaled(attended, "attention_scale"), "attention_residual")
        return x + self._scaled(self.mlp(self.mlp_norm(x)), "mlp_scale")

    def _scaled(self, branch, name):
        return branch * getattr(self, name)[...].astype(branch.dtype) if hasattr(self, name) else branch
