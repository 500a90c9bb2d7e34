"""Gated cross-attention from text to visual tokens, which starts as nothing at all (Alayrac et al. 2022, Flamingo, section 2.2)."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vlm_jax.layers import attention, mlp, norm, stack
from vlm_jax.layers.initializers import Initializers
from vlm_jax.ops import activations


@dataclass(frozen=True, kw_only=True)
class Config:
    """The blocks; what they are inserted into is not said here."""

    num_heads: int
    """Attention heads."""
    head_dim: int
    """Channels of a head, whatever the width of the text is."""
    mlp_dim: int
    """Channels between the two layers of the MLP; Flamingo has 4 x the width of the text."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """Of the text before each part; visual tokens are not normalised again. Idefics has rms_norm."""
    norm_epsilon: float = 1e-5
    """Of both norms."""
    mlp: Literal["plain", "gated"] = "plain"
    """Two layers, or three with down(activation(gate(x)) * up(x)) as Idefics has them (Shazeer 2020)."""
    activation: activations.Name = "squared_relu"
    """In the MLP: squared_relu in the paper, gelu in most other code, silu in Idefics' gated one."""
    qk_norm: attention.QKNorm = "none"
    """Of queries and keys over each head, against large logits (Dehghani et al. 2023); Idefics has rms_norm."""


class GatedCrossAttention(nnx.Module):
    """y = x + tanh(a) attention(norm(x), visual); then y + tanh(f) mlp(norm(y)).

    The gates a and f begin with 0: the block is the identity to the last bit. No layer has a bias. Paths: `attention_norm`,
    `attention/...`, `attention_gate` [], `mlp_norm`, `mlp/...`, `mlp_gate` [].
    """

    def __init__(self, width: int, visual_width: int, config: Config, *, initializers: Initializers, rngs: nnx.Rngs):
        layer = norm.by_name(config.norm)
        self.attention_norm = layer(width, epsilon=config.norm_epsilon)
        self.attention = attention.Attention(
            width,
            config.num_heads,
            context_width=visual_width,
            head_dim=config.head_dim,
            bias="none",
            qk_norm=config.qk_norm,
            norm_epsilon=config.norm_epsilon,
            initializers=initializers,
            rngs=rngs,
        )
        self.attention_gate = nnx.Param(jnp.zeros(()))
        self.mlp_norm = layer(width, epsilon=config.norm_epsilon)
        self.mlp = mlp.Mlp(
            width,
            config.mlp_dim,
            activation=config.activation,
            kind=config.mlp,
            bias="none",
            initializers=initializers,
            rngs=rngs,
        )
        self.mlp_gate = nnx.Param(jnp.zeros(()))

    def __call__(
        self, x: Float[Array, "b t d"], visual: attention.KeysValues, mask: Bool[Array, "b 1 t s"]
    ) -> Float[Array, "b t d"]:
        """Text after the block.

        Args:
          visual: `attention.keys_values` of the visual tokens.
          mask: which of them a token sees; see `ops.masks.images`. Where it sees none, only the MLP acts.
        """
        y = self.attention.attend(self.attention_norm(x), visual, mask)
        y = jnp.where(mask.any(-1)[:, 0, :, None], y, 0)  # softmax over nothing is uniform
        x = x + _gate(self.attention_gate, y)
        return x + _gate(self.mlp_gate, self.mlp(self.mlp_norm(x)))


class Blocks(nnx.Module):
    """Several such blocks as one. Paths: `blocks/...` (leading axis: their number)."""

    def __init__(
        self, count: int, width: int, visual_width: int, config: Config, *, initializers: Initializers, rngs: nnx.Rngs
    ):
        self.blocks = stack.build(
            lambda rngs: GatedCrossAttention(width, visual_width, config, initializers=initializers, rngs=rngs),
            count,
            rngs=rngs,
        )


def _gate(gate, y):
    return jnp.tanh(gate[...]).astype(y.dtype) * y
