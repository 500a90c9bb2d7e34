"""Flamingo (Alayrac et al. 2022): a language model that looks at images through gated cross-attention, and stays what it was.

An image becomes visual tokens once, by an image tower and a resampler. Before every n-th block of the language model the text attends to
those of its image. All gates begin with 0, so that the untrained model gives the logits of the language model to the last bit.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, Num

from vlm_jax.errors import InputError
from vlm_jax.layers import attention, embed, gated_cross_attention, initializers, interleaved, linear, stack
from vlm_jax.models import choices, generation, lm, resampler, vit
from vlm_jax.ops import images as pixels
from vlm_jax.ops import masks, norm, rows, sharding

ADDED = 2
"""Tokens beyond the vocabulary of the language model: that of an image, and the end of a chunk."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A Flamingo."""

    image: vit.Config
    """The image tower."""
    lm: lm.Config
    """The language model. Its vocabulary is that of the tokenizer; the tokens of images and of the end of a chunk come after it."""
    resampler: resampler.Config
    """From features of the image tower to visual tokens."""
    cross: gated_cross_attention.Config
    """The blocks between those of the language model."""
    every: int = 1
    """Blocks of the language model for each cross-attention: 1, 4 and 7 in the paper's 3B, 9B and 80B."""
    offset: int = 0
    """The block of the language model before which the first one stands: 0 in the paper, `every` - 1 in OpenFlamingo."""
    image_tokens: Literal["all", "patches"] = "patches"
    """What the resampler sees of the tower's tokens: the patches, or also the class token, as in Idefics."""
    seen: Literal["one", "all_previous"] = "one"
    """The images that a token attends to: its own alone, or also those before it (the paper's ablation)."""
    added: Literal["image_first", "end_first"] = "image_first"
    """Which of the added tokens comes right after the vocabulary: that of images, or the end of a chunk. In Idefics the token around images
    is the first one."""
    tokens: int = 0
    """Tokens of the tokenizer, where the language model's table has more rows, such as OPT's 50,272 for 50,265: the others stay as they are
    and are never generated. 0: as many as rows."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from RGB values in [0, 1]; as the image tower was trained with."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides RGB values after the mean is subtracted."""

    def __post_init__(self):
        choices.check(self)
        if not 1 <= self.every <= self.lm.depth:
            raise InputError(f"every {self.every}: from 1 to the {self.lm.depth} blocks of the language model")
        if not 0 <= self.offset < self.every:
            raise InputError(f"offset {self.offset}: from 0 to every - 1, which is {self.every - 1}")

        if not 0 <= self.tokens <= self.lm.vocab_size:
            raise InputError(f"tokens {self.tokens}: from 0 to lm.vocab_size {self.lm.vocab_size}, the rows of the language model's table")

    @property
    def image_id(self) -> int:
        """Of the token that stands for an image."""
        return self.lm.vocab_size + (self.added == "end_first")

    @property
    def chunk_end_id(self) -> int:
        """Of the token that ends the text of an image."""
        return self.lm.vocab_size + (self.added == "image_first")

    @property
    def cross_count(self) -> int:
        """Blocks of cross-attention."""
        return len(range(self.offset, self.lm.depth, self.every))

    def build(self, *, rngs: nnx.Rngs) -> "Flamingo":
        """A freshly initialised model."""
        return Flamingo(self, rngs=rngs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """What is kept of a prompt and of the tokens after it."""

    text: lm.Cache
    visual: attention.KeysValues
    """Of the visual tokens, for all blocks of cross-attention: [blocks, b, s, h, k]."""
    mask: Bool[Array, "b 1 1 s"]
    """Which of them the tokens to come see: no image comes any more."""

    def take(self, numbers: Int[Array, "b m"]) -> "Cache":
        """For each of b examples m of its own rows; see `ops.rows`."""
        visual = jax.tree.map(lambda x: rows.take(x, numbers, 1), self.visual)
        return Cache(self.text.take(numbers), visual, rows.take(self.mask, numbers))


class Flamingo(nnx.Module):
    """Images and text to logits of the next token, over the vocabulary of the language model and then the added tokens.

    Paths: `image/...`, `lm/...`, `resampler/...`, `cross/blocks/...` (leading axis: their number), and of the added tokens
    `added_embed/embedding` [2, d], `added_head/kernel` [d, 2].
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        width, init = config.lm.width, initializers.big_vision(width=config.lm.width)
        self.image = config.image.build(rngs=rngs)
        self.lm = config.lm.build(rngs=rngs)
        self.resampler = config.resampler.build(config.image.token_dim, rngs=rngs)
        self.cross = gated_cross_attention.Blocks(
            config.cross_count, width, config.resampler.width, config.cross, initializers=init, rngs=rngs
        )
        small = nnx.initializers.normal(0.02)
        self.added_embed = embed.Embed(ADDED, width, embedding_init=small, rngs=rngs)
        self.added_head = linear.Linear(width, ADDED, kernel_init=small, bias_init=None, rngs=rngs)

    @property
    def prompt_form(self) -> generation.PromptForm:
        """What `generate` takes."""
        config = self.config
        visual = (config.resampler.latents, config.resampler.width)
        return generation.PromptForm(image_id=config.image_id, chunk_end_id=config.chunk_end_id, length=config.lm.length, visual=visual)

    def embed_image(self, images: Num[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """L2-normalised vectors of the image tower alone, to find similar images: its embedding, or else the mean of its tokens."""
        x = pixels.normalize(images, self.config.mean, self.config.std)
        x = self.image(x) if self.config.image.pool != "none" else self.image.encode(x).mean(1)
        return norm.l2_normalize(x.astype(jnp.promote_types(x.dtype, jnp.float32)))

    def features(self, images: Num[Array, "b f h w 3"]) -> Float[Array, "b f n c"]:
        """What the resampler takes of the frames of a clip; of images, f is 1. uint8 pixels are normalised here."""
        shape = images.shape
        x = self.image.encode(pixels.normalize(images.reshape(-1, *shape[2:]), self.config.mean, self.config.std))
        if self.config.image_tokens == "patches" and self.config.image.class_token != "none":
            x = x[:, 1:]
        return x.reshape(*shape[:2], *x.shape[1:])

    def visual(self, images: Num[Array, "b n h w 3"]) -> Float[Array, "b n r d"]:
        """The visual tokens of each image."""
        features = self.features(images.reshape(-1, 1, *images.shape[2:]))
        return self.resampled(features, images.shape[1])

    def visual_tokens(self, images: Num[Array, "b h w 3"]) -> Float[Array, "b e"]:
        """The visual tokens of each image as one vector, e = r d, to be kept for prompts that show it."""
        return self.visual(images[:, None]).reshape(len(images), -1)

    def resampled(self, features: Float[Array, "m f s c"], images: int) -> Float[Array, "b n r d"]:
        """The visual tokens of `features`, for rows of so many images or clips."""
        visual = self.resampler(features)
        return visual.reshape(-1, images, *visual.shape[1:])

    def hidden(
        self,
        visual: Float[Array, "b n r d"],
        tokens: Int[Array, "b t"],
        *,
        index: Int[Array, "b t"] | None = None,
        positions: Int[Array, "b t"] | None = None,
        segments: tuple[Int[Array, "b t"], Int[Array, "b n"]] | None = None,
    ) -> Float[Array, "b t e"]:
        """All tokens after the language model's final norm.

        Args:
          visual: visual tokens of the images of each row, in order.
          index: the image that each token looks at, from 1; 0: none. None: the last one before it.
          positions: of the tokens in their text. None: in the row.
          segments: of tokens and of images, where a row holds several texts.

        Raises:
          InputError: the texts are longer than the language model's `length`.
        """
        t, loop, remat = tokens.shape[1], self.config.lm.loop, self.config.lm.remat
        mask, seen = masks.causal(t), self._image_mask(visual, self._index(tokens) if index is None else index, segments)
        if segments is not None:
            mask = mask & masks.segments(segments[0])
        x, rotation = self._start(tokens, positions)
        visual = visual.reshape(visual.shape[0], -1, visual.shape[-1])

        def cross(block, x, _):
            return sharding.shard_batch(block(x, block.attention.keys_values(visual), seen))

        cross = stack.checkpointed(cross, loop=loop, remat=remat)
        x, _ = self._through(x, cross, lambda blocks, x, _: (stack.apply(blocks, x, mask, rotation, loop=loop, remat=remat), None))
        return self.lm.norm(x)

    def logits(self, hidden: Float[Array, "*b e"]) -> Float[Array, "*b v"]:
        """Logits of the next token, in float32: those of the language model as they are, then of the added tokens."""
        own = self.lm.logits(hidden)
        return jnp.concatenate([own, self.added_head(hidden).astype(own.dtype)], axis=-1)

    def __call__(
        self, images: Num[Array, "b n ..."], tokens: Int[Array, "b t"]
    ) -> Float[Array, "b t v"]:
        """Logits of the next token at every token; arguments as of `generate`."""
        return self.logits(self.states(images, tokens))

    def states(self, images: Num[Array, "b n ..."], tokens: Int[Array, "b t"]) -> Float[Array, "b t e"]:
        """`hidden` of tokens that look at the last image before them; arguments as of `generate`."""
        return self.hidden(self._visual(images), tokens)

    def generate(
        self,
        images: Num[Array, "b n ..."],
        tokens: Int[Array, "b t"],
        lengths: Int[Array, " b"],
        decoding: generation.Decoding,
        *,
        end_id: int,
        pad_id: int,
        key: Key[Array, ""] | None = None,
    ) -> generation.Generated:
        """What follows interleaved prompts; the token of an image never does.

        Args:
          images: of each row in the order of the image tokens: uint8 pixels [b, n, h, w, 3], or visual tokens [b, n, r, d] as `visual`
            gives them. There is at least one; those without an image token are not looked at.
          tokens: prompts, left-aligned, each with `lengths` tokens.

        Raises:
          InputError: prompts with what is to come are longer than the language model's `length`.
        """
        logits, cache = self.start(images, tokens, lengths, decoding.max_new_tokens)
        return generation.generate(self.step, cache, logits, decoding, end_id=end_id, pad_id=pad_id, key=key)

    def start(
        self, images: Num[Array, "b n ..."], tokens: Int[Array, "b t"], lengths: Int[Array, " b"], max_new: int
    ) -> tuple[Float[Array, "b v"], Cache]:
        """Logits after the last of `lengths` tokens of each row, and a cache with room for `max_new` more; arguments as of `generate`."""
        visual, index, mask = self._visual(images), self._index(tokens), masks.causal(tokens.shape[1])
        seen = self._image_mask(visual, index)
        x, rotation = self._start(tokens, None, max_new)
        visual = visual.reshape(visual.shape[0], -1, visual.shape[-1])
        known = jax.vmap(lambda block: block.attention.keys_values(visual))(self.cross.blocks)
        x, text = self._cached(x, None, known, mask, seen, rotation)
        last = (lengths - 1)[:, None]
        logits = self._next(jnp.take_along_axis(x, last[..., None], axis=1)[:, 0])
        seen = jnp.take_along_axis(seen, last[:, None, :, None], axis=2)
        return logits, Cache(lm.Cache.after(text, lengths, max_new), known, seen)

    def step(self, cache: Cache, tokens: Int[Array, " b"]) -> tuple[Float[Array, "b v"], Cache]:
        """Logits after one more token of each row, and the cache with it. There must be room (not checked)."""
        x, rotation = self._start(tokens[:, None], cache.text.positions[:, None])
        x, own = self._cached(x, cache.text.seen, cache.visual, cache.text.mask(), cache.mask, rotation)
        return self._next(x[:, 0]), Cache(cache.text.followed_by(own), cache.visual, cache.mask)

    def _cached(self, x, past, known, mask, seen, rotation):
        """x through all blocks, and the keys and values of its tokens."""

        def blocks(blocks, x, past):
            return stack.apply_each(
                lambda block, x, past: block.cached(x, past, mask, rotation), blocks, x, past, loop=self.config.lm.loop
            )

        return self._through(x, lambda block, x, known: block(x, known, seen), blocks, known, past)

    def _through(self, x, cross, blocks, of_cross=None, of_blocks=None):
        """x through the language model with cross-attention between its blocks, and what the blocks gave; see `layers.interleaved`."""
        places = {"every": self.config.every, "offset": self.config.offset, "loop": self.config.lm.loop}
        return interleaved.apply(
            self.cross.blocks, self.lm.blocks, x, cross, blocks, of_inserted=of_cross, of_blocks=of_blocks, **places
        )

    def _start(self, tokens, positions, more: int = 0):
        """Embedded tokens, and how the blocks turn queries and keys."""
        length = tokens.shape[1] + more
        if length > self.config.lm.length:
            raise InputError(f"texts of {length} tokens are longer than lm.length {self.config.lm.length}: cut them")
        positions = jnp.arange(tokens.shape[1])[None] if positions is None else positions
        added = tokens >= self.config.lm.vocab_size
        known = self.lm.token_embed(jnp.where(added, 0, tokens))
        new = self.added_embed(jnp.where(added, tokens - self.config.lm.vocab_size, 0))
        x = jnp.where(added[..., None], new.astype(known.dtype), known)
        return sharding.shard_batch(self.lm.place(x, positions)), self.lm.rotation(positions)

    def _visual(self, images):
        return images if images.ndim == 4 else self.visual(images)

    def _index(self, tokens):
        return masks.image_index(tokens == self.config.image_id)

    def _image_mask(self, visual, index, segments=None):
        return masks.images(index, visual.shape[1], visual.shape[2], seen=self.config.seen, segments=segments)

    def _next(self, hidden):
        """Logits of what may be generated."""
        config, number = self.config, jnp.arange(self.config.lm.vocab_size + ADDED)
        unknown = (number >= (config.tokens or config.lm.vocab_size)) & (number < config.lm.vocab_size)
        return jnp.where(unknown | (number == config.image_id), -jnp.inf, self.logits(self.lm.norm(hidden)))
