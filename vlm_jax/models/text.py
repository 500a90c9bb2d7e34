"""Transformer text towers: CLIP's causal one, SigLIP's bidirectional one, and what lies between.

One pre-norm Transformer over tokens; how it attends and which token it takes are fields of `Config`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.errors import InputError
from vlm_jax.layers import block, embed, initializers, linear, norm, pooling, stack
from vlm_jax.models import choices, sizes
from vlm_jax.ops import activations, masks, sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A text tower."""

    vocab_size: int
    """Rows of the token table; at least the tokenizer's."""
    length: int
    """Tokens of the longest text."""
    width: int
    """Channels of a token."""
    depth: int
    """Number of blocks."""
    mlp_dim: int
    """Channels between the two layers of an MLP."""
    num_heads: int
    """Attention heads; they share `width` equally."""
    attention: Literal["bidirectional", "causal"] = "bidirectional"
    """What a token sees: every token, or itself and those before."""
    pool: Literal["eos", "argmax", "last", "first", "mean", "map"] = "last"
    """From tokens to one vector: the first token equal to `eos_id`, the token with the largest id (OpenAI's CLIP, whose end
    token that is), the last (of the text, with padding_mask "pad") or first one, the mean, or attention with a learned probe."""
    eos_id: int | None = None
    """The tokenizer's end token, for pool "eos"."""
    pad_id: int | None = None
    """The tokenizer's padding, for padding_mask "pad"."""
    padding_mask: Literal["none", "pad"] = "none"
    """Whether padding is hidden from attention and pooling. SigLIP shows it; to CLIP's causal tower it makes no difference."""
    activation: activations.Name = "gelu_tanh"
    """In the MLPs; pretrained weights need the one they were trained with."""
    norm_epsilon: float = 1e-6
    """Of every norm; CLIP has 1e-5."""
    projection_dim: int = 0
    """Channels of a final projection, the embedding; 0 leaves it out."""
    projection_bias: Literal["none", "learned"] = "none"
    """Whether the projection has a bias; SigLIP's has one."""
    loop: stack.Loop = "scan"
    """Whether the blocks are compiled as one in a loop, or unrolled: faster steps on CPU, longer compilation with depth."""
    remat: stack.Remat = "none"
    """What the backward pass computes again instead of keeping; see `layers.stack`."""
    init: initializers.Name = "big_vision"
    """Whose initial distributions."""

    def __post_init__(self):
        choices.check(self)
        sizes.check(width=self.width, depth=self.depth, mlp_dim=self.mlp_dim, num_heads=self.num_heads)
        if self.vocab_size < 1 or self.length < 1:
            raise InputError(f"vocab_size {self.vocab_size}, length {self.length}: both must be at least 1")
        for field, needed in (("eos_id", self.pool == "eos"), ("pad_id", self.padding_mask == "pad")):
            value = getattr(self, field)
            if needed and value is None:
                cause = "pool 'eos'" if field == "eos_id" else "padding_mask 'pad'"
                raise InputError(f"{field} is not set: {cause} needs the tokenizer's")
            if value is not None and not 0 <= value < self.vocab_size:
                raise InputError(
                    f"{field} {value} is not in a vocabulary of {self.vocab_size}: correct it or vocab_size"
                )
        if self.padding_mask == "pad" and self.pad_id == self.eos_id:
            raise InputError(
                f"pad_id {self.pad_id} is also eos_id: padding_mask 'pad' would hide the end of the text; use 'none'"
            )
        if self.projection_bias == "learned" and not self.projection_dim:
            raise InputError("projection_bias 'learned' has no projection: set projection_dim")

    @property
    def output_dim(self) -> int:
        """Channels of the embedding."""
        return self.projection_dim or self.width

    def build(self, *, rngs: nnx.Rngs) -> "Text":
        """A freshly initialised tower."""
        return Text(self, rngs=rngs)

    def adapt(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Parameters by path of this tower at another length, made to fit: of more positions, the first ones are taken.

        Raises:
          InputError: there are fewer positions than `length`.
        """
        if "positions" not in weights:
            return dict(weights)
        have = weights["positions"].shape[0]
        if have < self.length:
            raise InputError(
                f"length {self.length}: the weights have positions for {have} tokens, and the others cannot be made up; set "
                f"length {have}. A stage with short texts keeps the full length here and shortens data.tokenizer.length"
            )
        return dict(weights) | {"positions": weights["positions"][: self.length]}


def preset(name: str, *, vocab_size: int, length: int, **overrides) -> Config:
    """A published size by its name: Ti S M B L So400m H g G.

    Raises:
      InputError: no size has this name.
    """
    return dataclasses.replace(Config(vocab_size=vocab_size, length=length, **sizes.by_name(name)), **overrides)


class Text(nnx.Module):
    """Tokens to one vector.

    Paths: `token_embed/embedding` [v, d], `positions` [length, d], `blocks/...` (leading axis: depth), `norm`, `head/...` (with
    pool "map"), `projection`.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        init = (
            initializers.big_vision(width=width)
            if config.init == "big_vision"
            else initializers.clip_text(width=width, depth=config.depth, mlp_dim=config.mlp_dim)
        )
        self.token_embed = embed.Embed(config.vocab_size, width, embedding_init=init.embedding, rngs=rngs)
        self.positions = nnx.Param(init.positions(rngs.params(), (config.length, width), jnp.float32))
        self.blocks = stack.build(
            lambda rngs: block.Block(
                width,
                config.num_heads,
                config.mlp_dim,
                activation=config.activation,
                norm_epsilon=config.norm_epsilon,
                initializers=init,
                rngs=rngs,
            ),
            config.depth,
            rngs=rngs,
        )
        self.norm = norm.LayerNorm(width, epsilon=config.norm_epsilon)
        if config.pool == "map":
            self.head = pooling.AttentionPool(
                width,
                config.num_heads,
                config.mlp_dim,
                activation=config.activation,
                norm_epsilon=config.norm_epsilon,
                initializers=init,
                rngs=rngs,
            )
        if config.projection_dim:
            self.projection = linear.Linear(
                width,
                config.projection_dim,
                kernel_init=init.projection,
                bias_init=nnx.initializers.zeros if config.projection_bias == "learned" else None,
                rngs=rngs,
            )

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """The embedding: tokens, pooled and projected. A text without the end token is pooled at its first token.

        Raises:
          InputError: the texts are longer than `length`.
        """
        x, present = self.hidden(tokens), self._present(tokens)
        if self.config.pool == "mean":
            x = _mean(self.norm(x), present)
        elif self.config.pool == "map":
            x = self.head(self.norm(x), None if present is None else masks.keys(present))
        else:
            index = self._pooled_index(tokens, present)
            x = self.norm(jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0])
        return self.projection(x) if self.config.projection_dim else x

    def encode(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """All tokens after the final norm.

        Raises:
          InputError: the texts are longer than `length`.
        """
        return self.norm(self.hidden(tokens))

    def hidden(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """All tokens after the last block, before the final norm.

        Raises:
          InputError: the texts are longer than `length`.
        """
        t = tokens.shape[1]
        if t > self.config.length:
            raise InputError(f"texts of {t} tokens are longer than length {self.config.length}: cut them")
        x = self.token_embed(tokens)
        x = sharding.shard_batch(x + self.positions[:t].astype(x.dtype))
        mask = masks.causal(t) if self.config.attention == "causal" else None
        present = self._present(tokens)
        if present is not None:
            mask = masks.keys(present) if mask is None else mask & masks.keys(present)
        return stack.apply(self.blocks, x, mask, loop=self.config.loop, remat=self.config.remat)

    def _present(self, tokens) -> Bool[Array, "b t"] | None:
        """Tokens that are not padding; None where all count."""
        if self.config.padding_mask == "none" or self.config.pad_id is None:
            return None
        return masks.not_padding(tokens, self.config.pad_id)

    def _pooled_index(self, tokens, present) -> Int[Array, " b"]:
        """Position of the token that stands for the text."""
        b, t = tokens.shape
        if self.config.pool == "eos":
            return jnp.argmax(tokens == self.config.eos_id, axis=1)
        if self.config.pool == "argmax":
            return jnp.argmax(tokens, axis=1)
        if self.config.pool == "first":
            return jnp.zeros(b, jnp.int32)
        if present is None:
            return jnp.full(b, t - 1)
        return jnp.max(jnp.where(present, jnp.arange(t), 0), axis=1)


def _mean(x, present):
    """Over the tokens that are present; zero for a text of nothing but padding."""
    if present is None:
        return x.mean(1)
    return (x.sum(1, where=present[..., None]) / jnp.maximum(present.sum(1, keepdims=True), 1)).astype(x.dtype)
