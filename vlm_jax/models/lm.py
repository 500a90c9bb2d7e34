"""Decoder language models: GPT-2, OPT, LLaMA and what lies between, by the fields of `Config`.

One pre-norm causal Transformer over tokens, whole (`hidden`, logits) or a token at a time behind a cache (`start`, `step`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.errors import InputError
from vlm_jax.layers import attention, block, embed, initializers, linear, norm, stack
from vlm_jax.losses import language
from vlm_jax.models import choices, sizes
from vlm_jax.ops import activations, masks, rotary, rows, sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A decoder language model."""

    vocab_size: int
    """Rows of the token table; at least the tokenizer's."""
    length: int
    """Tokens of the longest text."""
    width: int
    """Channels of a token."""
    depth: int
    """Number of blocks."""
    mlp_dim: int
    """Channels between the layers of an MLP."""
    num_heads: int
    """Attention heads; they share `width` equally."""
    num_kv_heads: int = 0
    """Heads of keys and values, which groups of query heads share; 0: as many as of queries."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """Of the blocks and before the head; LLaMA's is rms_norm."""
    norm_epsilon: float = 1e-5
    """Of every norm; LLaMA 1 has 1e-6."""
    position: Literal["learned", "rotary"] = "learned"
    """A learned table that is added to the tokens, or queries and keys turned by their position."""
    position_offset: int = 0
    """Rows of the learned table before that of the first position; OPT's has 2."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies; LLaMA 3 has 500,000."""
    mlp: Literal["plain", "gated"] = "plain"
    """Two layers, or with a third one that gates the first (SwiGLU, with activation "silu")."""
    activation: activations.Name = "gelu_tanh"
    """In the MLPs: GPT-2's gelu_tanh, OPT's relu, LLaMA's silu."""
    bias: linear.Bias = "learned"
    """Whether the linear layers of the blocks have biases; LLaMA's have none."""
    head: Literal["tied", "untied"] = "tied"
    """From the last norm to logits: the token table again, or a matrix of its own."""
    loop: stack.Loop = "scan"
    """Whether the blocks are compiled as one in a loop, or unrolled: faster steps on CPU, longer compilation with depth."""
    remat: stack.Remat = "none"
    """What the backward pass computes again instead of keeping; see `layers.stack`."""
    init: Literal["gpt2", "clip"] = "gpt2"
    """Whose initial distributions: GPT-2's N(0, 0.02), or those of CLIP's text tower, which follow the width."""

    def __post_init__(self):
        choices.check(self)
        sizes.check(width=self.width, depth=self.depth, mlp_dim=self.mlp_dim, num_heads=self.num_heads)
        if self.vocab_size < 1 or self.length < 1:
            raise InputError(f"vocab_size {self.vocab_size}, length {self.length}: both must be at least 1")
        if self.num_kv_heads < 0 or (self.num_kv_heads and self.num_heads % self.num_kv_heads):
            raise InputError(
                f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}: as many query heads share each of them"
            )
        if self.position == "rotary" and self.width // self.num_heads % 2:
            raise InputError(
                f"num_heads {self.num_heads}: rotary positions turn pairs of channels, and a head has {self.width // self.num_heads}"
            )
        if self.position_offset < 0 or (self.position_offset and self.position == "rotary"):
            raise InputError(f"position_offset {self.position_offset}: rows of a learned table are meant, 0 or more")
        if self.rope_theta <= 0 or self.norm_epsilon <= 0:
            raise InputError(f"rope_theta {self.rope_theta}, norm_epsilon {self.norm_epsilon}: both must be above 0")

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.width // self.num_heads

    def build(self, *, rngs: nnx.Rngs) -> "LM":
        """A freshly initialised model."""
        return LM(self, rngs=rngs)


_GPT2 = {"small": (12, 768, 12), "medium": (24, 1024, 16), "large": (36, 1280, 20), "xl": (48, 1600, 25)}
"""Depth, width and heads (Radford et al. 2019)."""
_OPT = {"125M": (12, 768, 12), "1.3B": (24, 2048, 32), "2.7B": (32, 2560, 32), "6.7B": (32, 4096, 32)}
"""Depth, width and heads (Zhang et al. 2022); OPT-350M has another block."""
_LLAMA: dict[str, dict[str, Any]] = {
    "7B": {"width": 4096, "depth": 32, "num_heads": 32, "mlp_dim": 11008, "length": 2048, "norm_epsilon": 1e-6},
    "2-70B": {"width": 8192, "depth": 80, "num_heads": 64, "num_kv_heads": 8, "mlp_dim": 28672, "length": 4096},
    "3-8B": {
        "width": 4096, "depth": 32, "num_heads": 32, "num_kv_heads": 8, "mlp_dim": 14336, "length": 8192,
        "vocab_size": 128_256, "rope_theta": 500_000.0,
    },
}  # fmt: skip
"""Touvron et al. 2023 (7B, 2-70B), Llama Team 2024 (3-8B)."""


def gpt2(size: str, **overrides) -> Config:
    """GPT-2 of a published size: small medium large xl.

    Raises:
      InputError: no size has this name.
    """
    depth, width, heads = _of_size(_GPT2, size)
    config = Config(vocab_size=50_257, length=1024, width=width, depth=depth, mlp_dim=4 * width, num_heads=heads)
    return dataclasses.replace(config, **overrides)


def opt(size: str, **overrides) -> Config:
    """OPT of a published size: 125M 1.3B 2.7B 6.7B.

    Raises:
      InputError: no size has this name.
    """
    depth, width, heads = _of_size(_OPT, size)
    config = Config(
        vocab_size=50_272,
        length=2048,
        width=width,
        depth=depth,
        mlp_dim=4 * width,
        num_heads=heads,
        position_offset=2,
        activation="relu",
    )
    return dataclasses.replace(config, **overrides)


def llama(size: str, **overrides) -> Config:
    """LLaMA of a published size: 7B 2-70B 3-8B.

    Raises:
      InputError: no size has this name.
    """
    fields = {"vocab_size": 32_000, "position": "rotary", "norm": "rms_norm", "mlp": "gated", "activation": "silu"}
    fields |= {"bias": "none", "head": "untied", **_of_size(_LLAMA, size)}
    return Config(**fields | overrides)


def _of_size(published: Mapping[str, Any], size: str) -> Any:
    if size not in published:
        raise InputError(f"size {size!r} is unknown: choose one of {', '.join(published)}")
    return published[size]


class Cache(NamedTuple):
    """What a model keeps of the tokens that it has seen, with room for those to come."""

    seen: attention.KeysValues
    """Of all slots and blocks: [depth, b, s, g, k]."""
    present: Bool[Array, "b s"]
    """Slots that hold a token of the row's text."""
    positions: Int[Array, " b"]
    """Of the next token of each row."""
    slot: Int[Array, ""]
    """Where the next token of every row goes."""

    @classmethod
    def after(cls, prompts: attention.KeysValues, lengths: Int[Array, " b"], room: int) -> "Cache":
        """The cache after prompts, with room for more tokens.

        Args:
          prompts: keys and values [depth, b, t, g, k]; texts are left-aligned.
          lengths: tokens of each that count.
        """
        t = prompts.key.shape[2]
        return cls(
            jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))), prompts),
            jnp.arange(t + room) < lengths[:, None],
            lengths,
            jnp.asarray(t),
        )

    def take(self, numbers: Int[Array, "b m"]) -> "Cache":
        """For each of b examples m of its own rows; see `ops.rows`."""
        return Cache(
            jax.tree.map(lambda x: rows.take(x, numbers, 1), self.seen),
            rows.take(self.present, numbers),
            rows.take(self.positions, numbers),
            self.slot,
        )

    def mask(self) -> Bool[Array, "b 1 1 t"]:
        """For a token that follows: over all slots, then the token itself."""
        return masks.keys(jnp.pad(self.present, ((0, 0), (0, 1)), constant_values=True))

    def followed_by(self, own: attention.KeysValues) -> "Cache":
        """With one more token in each row, whose keys and values [depth, b, 1, g, k] are given."""
        at = (0, 0, self.slot, 0, 0)
        return Cache(
            jax.tree.map(lambda x, new: jax.lax.dynamic_update_slice(x, new.astype(x.dtype), at), self.seen, own),
            self.present.at[:, self.slot].set(True),
            self.positions + 1,
            self.slot + 1,
        )


class LM(nnx.Module):
    """Tokens to logits of the next token.

    Paths: `token_embed/embedding` [v, d], `positions` [length, d] (with position "learned"), `blocks/...` (leading axis: depth), `norm`,
    `head/kernel` [d, v] (with head "untied").
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        width, depth = config.width, config.depth
        if config.init == "gpt2":
            init = initializers.gpt2(depth=depth)
        else:
            init = initializers.clip_text(width=width, depth=depth, mlp_dim=config.mlp_dim)
        self.token_embed = embed.Embed(config.vocab_size, width, embedding_init=init.embedding, rngs=rngs)
        if config.position == "learned":
            shape = (config.position_offset + config.length, width)
            self.positions = nnx.Param(init.positions(rngs.params(), shape, jnp.float32))
        self.blocks = stack.build(
            lambda rngs: block.Block(
                width,
                config.num_heads,
                config.mlp_dim,
                num_kv_heads=config.num_kv_heads,
                activation=config.activation,
                norm_epsilon=config.norm_epsilon,
                norm_layer=config.norm,
                mlp_kind=config.mlp,
                bias=config.bias,
                initializers=init,
                rngs=rngs,
            ),
            depth,
            rngs=rngs,
        )
        self.norm = norm.by_name(config.norm)(width, epsilon=config.norm_epsilon)
        if config.head == "untied":
            self.head = linear.Linear(
                width, config.vocab_size, kernel_init=init.projection, bias_init=None, rngs=rngs
            )

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "#b t"] | None = None,
        segments: Int[Array, "b t"] | None = None,
    ) -> Float[Array, "b t v"]:
        """Logits of the next token at every token, in float32; arguments as of `hidden`.

        Raises:
          InputError: the texts are longer than `length`.
        """
        return self.logits(self.hidden(tokens, positions=positions, segments=segments))

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "#b t"] | None = None,
        segments: Int[Array, "b t"] | None = None,
    ) -> Float[Array, "b t d"]:
        """All tokens after the final norm.

        Args:
          positions: of the tokens, from 0; None: counted from the start of each row or, with `segments`, of each segment.
          segments: numbers of the texts in a row, each in one piece: no token sees another text. None: a row is one text. Padding is a
            text of its own (0); after a single text it needs no segments, as nothing sees what comes later.

        Raises:
          InputError: the texts are longer than `length`.
        """
        t = tokens.shape[1]
        if t > self.config.length:
            raise InputError(f"texts of {t} tokens are longer than length {self.config.length}: cut them")
        mask = masks.causal(t)
        if segments is not None:
            mask = mask & masks.segments(segments)
            positions = _within(segments) if positions is None else positions
        if positions is None:
            positions = jnp.arange(t)[None]
        x = sharding.shard_batch(self.embed(tokens, positions))
        rotation = self.rotation(positions)
        return self.norm(stack.apply(self.blocks, x, mask, rotation, loop=self.config.loop, remat=self.config.remat))

    def embed(self, tokens: Int[Array, "b t"], positions: Int[Array, "#b t"]) -> Float[Array, "b t d"]:
        """Tokens before the first block, with their positions where those are learned."""
        return self.place(self.token_embed(tokens), positions)

    def place(self, x: Float[Array, "b t d"], positions: Int[Array, "#b t"]) -> Float[Array, "b t d"]:
        """Embedded tokens with their positions, where those are learned."""
        if self.config.position == "rotary":
            return x
        table = jnp.take(self.positions[...], positions + self.config.position_offset, axis=0, mode="fill")
        return x + table.astype(x.dtype)

    def rotation(self, positions: Int[Array, "b t"]) -> Float[Array, "2 b t f"] | None:
        """How the blocks turn queries and keys; None where positions are learned."""
        if self.config.position == "learned":
            return None
        return rotary.rotation(positions, rotary.frequencies(self.config.head_dim, self.config.rope_theta))

    def logits(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Logits of the next token after the final norm, in float32 (or wider)."""
        kernel = self.head_kernel()
        dtype = jnp.promote_types(kernel.dtype, jnp.float32)
        flat = hidden.reshape(-1, hidden.shape[-1]).astype(kernel.dtype)
        return jnp.matmul(flat, kernel, preferred_element_type=dtype).reshape(*hidden.shape[:-1], -1)

    def head_kernel(self) -> Float[Array, "d v"]:
        """The matrix of `logits`."""
        return self.token_embed.embedding[...].T if self.config.head == "tied" else self.head.kernel[...]

    def log_likelihood(self, tokens: Int[Array, "b t"], targets: Bool[Array, "b t"]) -> Float[Array, " b"]:
        """Sum of log p(token | all before it) over the tokens where `targets` is True; the first token of a row has none.

        Raises:
          InputError: the texts are longer than `length`.
        """
        found = language.scores(self.hidden(tokens[:, :-1]), self.head_kernel(), tokens[:, 1:])
        return jnp.sum(found.log_likelihood, axis=1, where=targets[:, 1:])

    def start(
        self, tokens: Int[Array, "b t"], lengths: Int[Array, " b"], max_new: int
    ) -> tuple[Float[Array, "b v"], Cache]:
        """Logits after the last of `lengths` tokens of each row, and a cache with room for `max_new` tokens.

        Args:
          tokens: prompts, left-aligned; what comes after `lengths`, which is at least 1, is not looked at.

        Raises:
          InputError: prompts with what is to come are longer than `length`.
        """
        t = tokens.shape[1]
        if t + max_new > self.config.length:
            raise InputError(
                f"prompts of {t} tokens, with {max_new} to come, are longer than length {self.config.length}: cut them, or ask for fewer"
            )
        positions = jnp.arange(t)[None]
        x, mask, rotation = sharding.shard_batch(self.embed(tokens, positions)), masks.causal(t), self.rotation(positions)
        x, seen = stack.apply_each(
            lambda block, x, _: block.cached(x, None, mask, rotation), self.blocks, x, loop=self.config.loop
        )
        last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return self.logits(self.norm(last)), Cache.after(seen, lengths, max_new)

    def step(self, cache: Cache, tokens: Int[Array, " b"]) -> tuple[Float[Array, "b v"], Cache]:
        """Logits after one more token of each row, and the cache with it. There must be room (not checked)."""
        positions = cache.positions[:, None]
        x, mask, rotation = sharding.shard_batch(self.embed(tokens[:, None], positions)), cache.mask(), self.rotation(positions)
        x, own = stack.apply_each(
            lambda block, x, past: block.cached(x, past, mask, rotation),
            self.blocks,
            x,
            cache.seen,
            loop=self.config.loop,
        )
        return self.logits(self.norm(x[:, 0])), cache.followed_by(own)


def _within(segments: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """Places of tokens in their segment, from 0."""
    index = jnp.arange(segments.shape[1])
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)
