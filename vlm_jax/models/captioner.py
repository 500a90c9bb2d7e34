"""CoCa's text decoder (Yu et al. 2022), cut in half: the lower blocks see text only, the upper ones also an image.

A class token after the text takes an embedding of it from the lower half; the upper half says of the image what comes next.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.errors import InputError
from vlm_jax.layers import attention, block, embed, initializers, linear, mlp, norm, stack
from vlm_jax.models import choices, lm, sizes
from vlm_jax.ops import activations, masks, rows, sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A text decoder in two halves."""

    vocab_size: int
    """Rows of the token table; at least the tokenizer's."""
    length: int
    """Tokens of the longest text, its begin token included; the class token has a position of its own."""
    width: int
    """Channels of a token."""
    depth: int
    """Blocks of the lower half, which do not see the image."""
    decoder_depth: int
    """Pairs of blocks of the upper half: one over the text, one from the text to the image."""
    mlp_dim: int
    """Channels between the two layers of an MLP."""
    num_heads: int
    """Attention heads; they share `width` equally."""
    context_width: int = 0
    """Channels of the image's tokens; 0: `width`."""
    pad_id: int = 0
    """The tokenizer's padding: hidden from the class token, and never predicted."""
    class_mask: Literal["correct", "legacy"] = "correct"
    """Which tokens the class token sees: the text, or what open_clip's released weights were trained with, one place off."""
    activation: activations.Name = "gelu_tanh"
    """In the MLPs; pretrained weights need the one they were trained with."""
    norm_epsilon: float = 1e-6
    """Of every norm; open_clip has 1e-5."""
    projection_dim: int = 0
    """Channels of a final projection without bias, the embedding of a text; 0 leaves it out."""
    loop: stack.Loop = "scan"
    """Whether the blocks are compiled as one in a loop, or unrolled: faster steps on CPU, longer compilation with depth."""
    remat: stack.Remat = "none"
    """What the backward pass computes again instead of keeping; see `layers.stack`."""
    init: initializers.Name = "big_vision"
    """Whose initial distributions."""

    def __post_init__(self):
        choices.check(self)
        for depth in (self.depth, self.decoder_depth):
            sizes.check(width=self.width, depth=depth, mlp_dim=self.mlp_dim, num_heads=self.num_heads)
        if self.vocab_size < 1 or self.length < 1:
            raise InputError(f"vocab_size {self.vocab_size}, length {self.length}: both must be at least 1")
        if min(self.context_width, self.projection_dim) < 0:
            raise InputError(f"context_width {self.context_width}, projection_dim {self.projection_dim}: 0 at least")
        if not 0 <= self.pad_id < self.vocab_size:
            raise InputError(f"pad_id {self.pad_id} is not in a vocabulary of {self.vocab_size}: correct it or vocab_size")

    @property
    def output_dim(self) -> int:
        """Channels of the embedding of a text."""
        return self.projection_dim or self.width

    def build(self, *, rngs: nnx.Rngs) -> "Captioner":
        """A freshly initialised decoder."""
        return Captioner(self, rngs=rngs)


class CrossBlock(nnx.Module):
    """x + attention(norm(x), norm(context)), then x + mlp(norm(x)).

    Paths: `attention_norm`, `context_norm`, `attention/...`, `mlp_norm`, `mlp/...`.
    """

    def __init__(self, config: Config, init: initializers.Initializers, *, rngs: nnx.Rngs):
        width, context, epsilon = config.width, config.context_width or config.width, config.norm_epsilon
        self.attention_norm = norm.LayerNorm(width, epsilon=epsilon)
        self.context_norm = norm.LayerNorm(context, epsilon=epsilon)
        self.attention = attention.Attention(width, config.num_heads, context_width=context, initializers=init, rngs=rngs)
        self.mlp_norm = norm.LayerNorm(width, epsilon=epsilon)
        self.mlp = mlp.Mlp(width, config.mlp_dim, activation=config.activation, initializers=init, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], known: attention.KeysValues) -> Float[Array, "b t d"]:
        """`known` is what `keys_values` gives of the context."""
        x = x + self.attention.attend(self.attention_norm(x), known)
        return x + self.mlp(self.mlp_norm(x))

    def keys_values(self, context: Float[Array, "b n c"]) -> attention.KeysValues:
        """What the block looks at, the same for every token."""
        return self.attention.keys_values(self.context_norm(context))


class DecoderBlock(nnx.Module):
    """A block over the text, then one from the text to the image. Paths: `causal/...`, `cross/...`."""

    def __init__(self, config: Config, init: initializers.Initializers, *, rngs: nnx.Rngs):
        self.causal = _block(config, init, rngs)
        self.cross = CrossBlock(config, init, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], mask, context: Float[Array, "b n c"]) -> Float[Array, "b t d"]:
        return self.cross(self.causal(x, mask), self.cross.keys_values(context))


    def cached(
        self,
        x: Float[Array, "b t d"],
        past: attention.KeysValues | None,
        mask: Bool[Array, "#b #h #t s"],
        context: attention.KeysValues,
    ) -> tuple[Float[Array, "b t d"], attention.KeysValues]:
        """As `Block.cached`; `context` is what the block over the image looks at."""
        x, own = self.causal.cached(x, past, mask)
        return self.cross(x, context), own


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What is kept of the tokens that were seen, and of the image."""

    text: lm.Cache
    """Of the blocks of both halves, the lower ones first."""
    context: attention.KeysValues
    """Of the image, for each block that looks at it: [depth, b, n, h, k]."""

    def take(self, numbers: Int[Array, "b m"]) -> "Cache":
        """For each of b examples m of its own rows; see `ops.rows`."""
        return Cache(self.text.take(numbers), jax.tree.map(lambda x: rows.take(x, numbers, 1), self.context))


class Decoder(nnx.Module):
    """The upper half. Paths: `blocks/...` (leading axis: depth), `norm`, `head` [d, v]."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        init = _initializers(config, config.decoder_depth)
        self.blocks = stack.build(
            lambda rngs: DecoderBlock(config, init, rngs=rngs), config.decoder_depth, rngs=rngs
        )
        self.norm = norm.LayerNorm(config.width, epsilon=config.norm_epsilon)
        self.head = linear.Linear(
            config.width, config.vocab_size, kernel_init=nnx.initializers.normal(config.width**-0.5), bias_init=None, rngs=rngs
        )


class Captioner(nnx.Module):
    """Text to an embedding, and text beside an image to what comes next.

    Paths: `token_embed/embedding` [v, d], `positions` [length + 1, d], `class_token` [1, d], `blocks/...`, `norm`, `projection`,
    `decoder/...`.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        width, init = config.width, _initializers(config, config.depth)
        self.token_embed = embed.Embed(config.vocab_size, width, embedding_init=init.embedding, rngs=rngs)
        self.positions = nnx.Param(init.positions(rngs.params(), (config.length + 1, width), jnp.float32))
        self.class_token = nnx.Param(init.positions(rngs.params(), (1, width), jnp.float32))
        self.blocks = stack.build(lambda rngs: _block(config, init, rngs), config.depth, rngs=rngs)
        self.norm = norm.LayerNorm(width, epsilon=config.norm_epsilon)
        if config.projection_dim:
            self.projection = linear.Linear(
                width, config.projection_dim, kernel_init=init.projection, bias_init=None, rngs=rngs
            )
        self.decoder = Decoder(config, rngs=rngs)

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """The embedding of texts.

        Raises:
          InputError: the texts are longer than `length`.
        """
        return self.both(tokens)[0]

    def both(self, tokens: Int[Array, "b t"]) -> tuple[Float[Array, "b e"], Float[Array, "b t d"]]:
        """The embedding of texts, and their tokens after the lower half, which `decode` takes.

        Raises:
          InputError: the texts are longer than `length`.
        """
        b, t = tokens.shape
        self._check_length(t)
        last = self.class_token[...] + self.positions[-1:]
        x = self._embed(tokens, jnp.arange(t))
        x = jnp.concatenate([x, jnp.broadcast_to(last.astype(x.dtype), (b, *last.shape))], axis=1)
        present = masks.not_padding(tokens, self.config.pad_id)
        mask = masks.class_token_last(present, self.config.class_mask)
        x = stack.apply(self.blocks, sharding.shard_batch(x), mask, loop=self.config.loop, remat=self.config.remat)
        embedding = self.norm(x[:, -1])
        return (self.projection(embedding) if self.config.projection_dim else embedding), x[:, :-1]

    def decode(self, x: Float[Array, "b t d"], context: Float[Array, "b n c"]) -> Float[Array, "b t d"]:
        """The upper half after its final norm: `logits` makes those of the next token of it."""
        mask = masks.causal(x.shape[1])
        x = stack.apply(self.decoder.blocks, x, mask, context, loop=self.config.loop, remat=self.config.remat)
        return self.decoder.norm(x)

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Logits of the next token, of what `decode` gives, in float32 (or wider)."""
        kernel = self.head_kernel()
        dtype = jnp.promote_types(kernel.dtype, jnp.float32)
        return jnp.einsum("...d,dv->...v", hidden.astype(kernel.dtype), kernel, preferred_element_type=dtype)

    def head_kernel(self) -> Float[Array, "d v"]:
        """The matrix of `logits`."""
        return self.decoder.head.kernel[...]

    def start(
        self, context: Float[Array, "b n c"], tokens: Int[Array, "b t"], lengths: Int[Array, " b"], max_new: int
    ) -> tuple[Float[Array, "b v"], Cache]:
        """Logits after the last of `lengths` tokens of each row, and a cache with room for `max_new` tokens.

        Args:
          context: the image's tokens.
          tokens: the begin token, or the beginning of a text, left-aligned; what comes after `lengths`, at least 1, is not looked at.

        Raises:
          InputError: what is there with what is to come is longer than `length`.
        """
        t = tokens.shape[1]
        self._check_length(t + max_new)
        mask = masks.causal(t)
        x = sharding.shard_batch(self._embed(tokens, jnp.arange(t)))
        x, lower = self._each(self.blocks, lambda block, x, _: block.cached(x, None, mask), x)
        _, seen = self._each(self.decoder.blocks, lambda block, x, _: (x, block.cross.keys_values(context)), x)
        x, upper = self._each(self.decoder.blocks, lambda block, x, seen: block.cached(x, None, mask, seen), x, seen)
        last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
        both = jax.tree.map(lambda *halves: jnp.concatenate(halves), lower, upper)
        return self.logits(self.decoder.norm(last)), Cache(lm.Cache.after(both, lengths, max_new), seen)

    def step(self, cache: Cache, tokens: Int[Array, " b"]) -> tuple[Float[Array, "b v"], Cache]:
        """Logits after one more token of each row, and the cache with it. There must be room (not checked)."""
        mask, depth = cache.text.mask(), self.config.depth
        below, above = (jax.tree.map(lambda x, part=part: x[part], cache.text.seen) for part in (slice(depth), slice(depth, None)))
        x = sharding.shard_batch(self._embed(tokens[:, None], cache.text.positions[:, None]))
        x, lower = self._each(self.blocks, lambda block, x, past: block.cached(x, past, mask), x, below)
        x, upper = self._each(
            self.decoder.blocks, lambda block, x, kept: block.cached(x, kept[0], mask, kept[1]), x, (above, cache.context)
        )
        both = jax.tree.map(lambda *halves: jnp.concatenate(halves), lower, upper)
        return self.logits(self.decoder.norm(x[:, 0])), Cache(cache.text.followed_by(both), cache.context)

    def _each(self, blocks, fn, x, kept=None):
        return stack.apply_each(fn, blocks, x, kept, loop=self.config.loop)

    def _embed(self, tokens, positions):
        x = self.token_embed(tokens)
        return x + self.positions[...][positions].astype(x.dtype)

    def _check_length(self, t: int) -> None:
        if t > self.config.length:
            raise InputError(f"texts of {t} tokens are longer than length {self.config.length}: cut them")


def _block(config: Config, init: initializers.Initializers, rngs: nnx.Rngs) -> block.Block:
    return block.Block(
        config.width,
        config.num_heads,
        config.mlp_dim,
        activation=config.activation,
        norm_epsilon=config.norm_epsilon,
        initializers=init,
        rngs=rngs,
    )


def _initializers(config: Config, depth: int) -> initializers.Initializers:
    if config.init == "big_vision":
        return initializers.big_vision(width=config.width)
    return initializers.clip_text(width=config.width, depth=depth, mlp_dim=config.mlp_dim)
