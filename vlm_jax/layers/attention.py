"""Multi-head attention."""

from typing import Literal

from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from vlm_jax.layers import linear, norm
from vlm_jax.layers.initializers import Initializers
from vlm_jax.ops import attention

QKNorm = Literal["none", "layer_norm", "rms_norm"]


class Attention(nnx.Module):
    """Queries of one sequence attend to another, or to their own.

    Paths: `query`, `key`, `value`, `out` (each kernel, bias); with `qk_norm` also `query_norm`, `key_norm`, over each
    head (Dehghani et al. 2023). Kernels are [d, d], heads major on the side of the heads.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        qk_norm: QKNorm = "none",
        norm_epsilon: float = 1e-6,
        initializers: Initializers,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.query = linear.Linear(width, width, kernel_init=initializers.query_key_value, rngs=rngs)
        self.key = linear.Linear(width, width, kernel_init=initializers.query_key_value, rngs=rngs)
        self.value = linear.Linear(width, width, kernel_init=initializers.query_key_value, rngs=rngs)
        self.out = linear.Linear(width, width, kernel_init=initializers.out, rngs=rngs)
        if qk_norm != "none":
            layer = {"layer_norm": norm.LayerNorm, "rms_norm": norm.RMSNorm}[qk_norm]
            self.query_norm = layer(width // num_heads, epsilon=norm_epsilon)
            self.key_norm = layer(width // num_heads, epsilon=norm_epsilon)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        context: Float[Array, "b s d"] | None = None,
        mask: Bool[Array, "#b #h #t s"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Attends from `x` to `context`, or to `x` itself without one, where `mask` is True."""
        context = x if context is None else context
        query = checkpoint_name(self.query(x), "query")
        key = checkpoint_name(self.key(context), "key")
        value = checkpoint_name(self.value(context), "value")
        # Whole rows until here: on TPU a head of 64 is padded to 128 lanes in memory.
        query, key, value = (y.reshape(*y.shape[:2], self.num_heads, -1) for y in (query, key, value))
        if hasattr(self, "query_norm"):
            query, key = self.query_norm(query), self.key_norm(key)
        attended = attention.dot_product_attention(query, key, value, mask)
        return self.out(checkpoint_name(attended.reshape(x.shape), "attended"))
