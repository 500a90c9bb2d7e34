"""Multi-head attention."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import zeros
from jaxtyping import Array, Bool, Float

from vlm_jax.layers import linear, norm
from vlm_jax.layers.initializers import Initializers
from vlm_jax.ops import attention, rotary

QKNorm = Literal["none", "layer_norm", "rms_norm"]


class KeysValues(NamedTuple):
    """What queries look at: computed once for each token, and kept where more queries will come."""

    key: Float[Array, "*n b s g k"]
    """Turned by its position, where positions are rotary."""
    value: Float[Array, "*n b s g k"]

    def followed_by(self, new: "KeysValues") -> "KeysValues":
        """These tokens, then the new ones, in the dtype of the new ones."""
        return jax.tree.map(lambda old, x: jnp.concatenate([old.astype(x.dtype), x], axis=-3), self, new)


class Attention(nnx.Module):
    """Queries of one sequence attend to another, or to their own.

    Paths: `query`, `key`, `value`, `out` (each kernel, bias); with `qk_norm` also `query_norm`, `key_norm`, over each
    head (Dehghani et al. 2023). Kernels are [d, d], heads major on the side of the heads; with `num_kv_heads` key and value have fewer.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        num_kv_heads: int = 0,
        context_width: int = 0,
        head_dim: int = 0,
        bias: linear.Bias = "learned",
        qk_norm: QKNorm = "none",
        norm_epsilon: float = 1e-6,
        initializers: Initializers,
        rngs: nnx.Rngs,
    ):
        """
        Args:
          num_kv_heads: heads of keys and values, which groups of query heads share (Ainslie et al. 2023); 0: as many as of queries.
          context_width: channels of what is attended to; 0: `width`.
          head_dim: channels of a head; 0: the heads share `width` equally.
        """
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        context, head_dim = context_width or width, head_dim or width // num_heads
        inner, shared = num_heads * head_dim, self.num_kv_heads * head_dim
        init, bias_init = initializers.query_key_value, zeros if bias == "learned" else None
        self.query = linear.Linear(width, inner, kernel_init=init, bias_init=bias_init, rngs=rngs)
        self.key = linear.Linear(context, shared, kernel_init=init, bias_init=bias_init, rngs=rngs)
        self.value = linear.Linear(context, shared, kernel_init=init, bias_init=bias_init, rngs=rngs)
        self.out = linear.Linear(inner, width, kernel_init=initializers.out, bias_init=bias_init, rngs=rngs)
        if qk_norm != "none":
            layer = norm.by_name(qk_norm)
            self.query_norm = layer(head_dim, epsilon=norm_epsilon)
            self.key_norm = layer(head_dim, epsilon=norm_epsilon)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        context: Float[Array, "b s e"] | None = None,
        mask: Bool[Array, "#b #h #t s"] | None = None,
        rotation: Float[Array, "2 #b t f"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Attends from `x` to `context`, or to `x` itself without one, where `mask` is True.

        Args:
          rotation: of `ops.rotary`, for the positions of `x`; only without a context.
        """
        query = self._queries(x, rotation)  # before the keys: the other order takes a TPU 1% more of memory and of cycles
        known = self.keys_values(x if context is None else context, rotation)
        return self._attended(query, known, mask)

    def keys_values(
        self, context: Float[Array, "b s e"], rotation: Float[Array, "2 #b s f"] | None = None
    ) -> KeysValues:
        """What `attend` takes of a context, to be kept where it is attended to again."""
        key = checkpoint_name(self.key(context), "key")
        value = checkpoint_name(self.value(context), "value")
        # Whole rows until here: on TPU a head of 64 is padded to 128 lanes in memory.
        key, value = (y.reshape(*y.shape[:2], self.num_kv_heads, -1) for y in (key, value))
        key = self.key_norm(key) if hasattr(self, "key_norm") else key
        return KeysValues(key if rotation is None else rotary.rotate(key, rotation), value)

    def attend(
        self,
        x: Float[Array, "b t d"],
        known: KeysValues,
        mask: Bool[Array, "#b #h #t s"] | None = None,
        rotation: Float[Array, "2 #b t f"] | None = None,
    ) -> Float[Array, "b t d"]:
        """As a call, with `keys_values` of the context."""
        return self._attended(self._queries(x, rotation), known, mask)

    def _queries(self, x, rotation):
        query = checkpoint_name(self.query(x), "query")
        query = query.reshape(*query.shape[:2], self.num_heads, -1)
        query = self.query_norm(query) if hasattr(self, "query_norm") else query
        return query if rotation is None else rotary.rotate(query, rotation)

    def _attended(self, query, known, mask):
        attended = attention.dot_product_attention(query, known.key, known.value, mask)
        return self.out(checkpoint_name(attended.reshape(*attended.shape[:2], -1), "attended"))
