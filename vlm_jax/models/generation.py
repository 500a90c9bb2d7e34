"""Texts out of a model that gives logits a token at a time: greedy, by sampling, by beam search; one loop that stops when all have ended.

The model is any function from a cache and a token a row to logits and the next cache. Nothing depends on what a cache holds; beam search
needs its method `take`, which keeps chosen rows of each example (`models.lm.Cache`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vlm_jax.errors import InputError
from vlm_jax.models import choices
from vlm_jax.ops import rows, sharding

Step = Callable[[Any, Int[Array, " b"]], tuple[Float[Array, "b v"], Any]]
"""Logits after one more token of each row, and the cache with it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a text is chosen."""

    strategy: Literal["greedy", "sample", "beam"] = "greedy"
    """The likeliest token each time, one drawn at random, or the likeliest of `beams` texts that are followed side by side."""
    max_new_tokens: int = 32
    """After which a text ends without its end token."""
    min_new_tokens: int = 0
    """Before which no text ends; the end token counts."""
    temperature: float = 1.0
    """Of sampling: logits are divided by it; below 1 likely tokens become likelier."""
    top_k: int = 0
    """Of sampling: so many of the likeliest tokens are drawn from; 0: all."""
    top_p: float = 1.0
    """Of sampling: the fewest likeliest tokens that hold this share of the probability are drawn from (Holtzman et al. 2020)."""
    beams: int = 3
    """Of beam search: texts that are followed."""
    length_penalty: float = 1.0
    """Of beam search: a finished text scores its log likelihood divided by its length to this power; 0: by nothing, which favours short
    texts."""

    def __post_init__(self):
        choices.check(self)
        if self.max_new_tokens < 1 or not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise InputError(
                f"max_new_tokens {self.max_new_tokens}, min_new_tokens {self.min_new_tokens}: "
                "the former is at least 1, the latter between 0 and it"
            )
        if self.temperature <= 0:
            raise InputError(f"temperature {self.temperature}: must be above 0; for the likeliest token take strategy 'greedy'")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise InputError(
                f"top_k {self.top_k}, top_p {self.top_p}: a number of tokens or 0, and a share above 0 and at most 1"
            )
        if self.beams < 1:
            raise InputError(f"beams {self.beams}: must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptForm:
    """Prompts of texts with images between, as a model takes them that has this as `prompt_form`.

    Besides `generate` and `log_likelihood`, such a model has `visual_tokens`, from pixels to what prompts may show in their place.
    """

    image_id: int
    """Of the token that stands for an image; beyond the tokenizer's vocabulary."""
    chunk_end_id: int
    """Of the token that ends the text of an image; beyond the vocabulary, too."""
    length: int
    """Tokens of a prompt with its answer, at most."""
    visual: tuple[int, int]
    """Visual tokens of an image, and their channels."""


class Generated(NamedTuple):
    """One text for each prompt."""

    tokens: Int[Array, "b t"]
    """What follows the prompt, with the end token if it came; padding after it."""
    lengths: Int[Array, " b"]
    """Tokens before the padding."""
    log_likelihood: Float[Array, " b"]
    """Sum of log p of these tokens as the model has it, whatever temperature or choice."""


def generate(
    step: Step,
    cache: Any,
    logits: Float[Array, "b v"],
    decoding: Decoding,
    *,
    end_id: int,
    pad_id: int,
    key: Key[Array, ""] | None = None,
) -> Generated:
    """Continues every row until its end token, or `max_new_tokens`; to be called under jit.

    Args:
      cache: after the prompts, with room for `max_new_tokens` - 1 more tokens.
      logits: after the prompts.
      key: of strategy "sample". What a row draws follows from it, the number of the row and the place in the text alone.

    Raises:
      InputError: sampling without a key, or an `end_id` that the model does not have.
    """
    if not 0 <= end_id < logits.shape[-1]:
        raise InputError(f"end_id {end_id} is not in a vocabulary of {logits.shape[-1]}: give the tokenizer's")
    if decoding.strategy == "sample" and key is None:
        raise InputError("strategy 'sample' needs a key: give one, or take strategy 'greedy'")
    if decoding.strategy == "beam":
        return _beam(step, cache, logits, decoding, end_id, pad_id)
    return _single(step, cache, logits, decoding, end_id, pad_id, key)


def truncate(logits: Float[Array, "b v"], top_k: int = 0, top_p: float = 1.0) -> Float[Array, "b v"]:
    """Logits with -inf for the tokens that are not drawn from: all but the `top_k` likeliest, then but those that hold `top_p` of what is
    left. Tokens as likely as the last of them stay; one always does."""
    if top_k:
        least = rows.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1:
        falling = jnp.sort(logits, axis=-1, descending=True)
        shares = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        least = jnp.min(jnp.where(before < top_p, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def _log_probabilities(logits) -> Float[Array, "*b v"]:
    return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)


def _choices(logits, place, decoding: Decoding, end_id: int) -> Float[Array, "*b v"]:
    """Log probabilities of what may come at a place of the text: not its end, while it is too short."""
    too_soon = (place + 1 < decoding.min_new_tokens) & (jnp.arange(logits.shape[-1]) == end_id)
    return jnp.where(too_soon, -jnp.inf, _log_probabilities(logits))


class _Texts(NamedTuple):
    """Rows on their way."""

    place: Int[Array, ""]
    cache: Any
    tokens: Int[Array, "b t"]
    last: Int[Array, " b"]
    lengths: Int[Array, " b"]
    log_likelihood: Float[Array, " b"]
    ended: Bool[Array, " b"]


def _single(step, cache, logits, decoding: Decoding, end_id, pad_id, key) -> Generated:
    """One text a row."""
    b, most = logits.shape[0], decoding.max_new_tokens

    def choose(allowed, place):
        if decoding.strategy == "greedy":
            return jnp.argmax(allowed, axis=-1).astype(jnp.int32)
        drawn_from = truncate(allowed / decoding.temperature, decoding.top_k, decoding.top_p)
        here = jax.random.fold_in(key, place)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(here, jnp.arange(b))
        return jax.vmap(jax.random.categorical)(keys, drawn_from).astype(jnp.int32)

    def follow(texts: _Texts, logits) -> _Texts:
        chosen = choose(_choices(logits, texts.place, decoding, end_id), texts.place)
        gain = jnp.take_along_axis(_log_probabilities(logits), chosen[:, None], axis=-1)[:, 0]
        written = jnp.where(texts.ended, pad_id, chosen)
        return _Texts(
            texts.place + 1,
            texts.cache,
            sharding.shard_batch(jax.lax.dynamic_update_slice(texts.tokens, written[:, None], (0, texts.place))),
            chosen,
            texts.lengths + ~texts.ended,
            texts.log_likelihood + jnp.where(texts.ended, 0.0, gain),
            texts.ended | (chosen == end_id),
        )

    def further(texts: _Texts) -> _Texts:
        logits, cache = step(texts.cache, texts.last)
        return follow(texts._replace(cache=cache), logits)

    zeros = jnp.zeros(b, jnp.int32)
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    blank = jnp.full((b, most), pad_id, jnp.int32)
    begun = _Texts(jnp.int32(0), cache, blank, zeros, zeros, zeros.astype(dtype), zeros.astype(bool))
    done = jax.lax.while_loop(
        lambda texts: (texts.place < most) & ~texts.ended.all(), further, follow(begun, logits)
    )
    return Generated(done.tokens, done.lengths, done.log_likelihood)


class _Beams(NamedTuple):
    """Texts that are followed, the likeliest first, and the best finished one of each example."""

    place: Int[Array, ""]
    cache: Any
    tokens: Int[Array, "b m t"]
    log_likelihood: Float[Array, "b m"]
    best: Generated
    score: Float[Array, " b"]


def _beam(step, cache, logits, decoding: Decoding, end_id, pad_id) -> Generated:
    """Beam search that gives the best finished text.

    As in transformers, of the 2 x beams likeliest continuations those that end and are among the first `beams` are finished, and the
    others are followed. It goes on until nothing that is followed can come to a better score, so that no text is missed by stopping early.
    """
    b, beams, most = logits.shape[0], decoding.beams, decoding.max_new_tokens
    penalty, vocabulary = decoding.length_penalty, logits.shape[-1]

    def score(log_likelihood, length):
        return log_likelihood / jnp.asarray(length, log_likelihood.dtype) ** penalty

    def better(state: _Beams, tokens, log_likelihood, scores, length) -> _Beams:
        """With the best of these finished texts, where it beats the one that is known; tokens [b, m, t], the others [b, m]."""
        index = jnp.argmax(scores, axis=1)[:, None]
        new, log_likelihood = (jnp.take_along_axis(x, index, 1)[:, 0] for x in (scores, log_likelihood))
        tokens = jnp.take_along_axis(tokens, index[..., None], 1)[:, 0]
        wins = new > state.score
        best = Generated(
            jnp.where(wins[:, None], tokens, state.best.tokens),
            jnp.where(wins, length, state.best.lengths),
            jnp.where(wins, log_likelihood, state.best.log_likelihood),
        )
        return state._replace(best=best, score=jnp.maximum(new, state.score))

    def follow(state: _Beams, logits) -> _Beams:
        allowed = _choices(logits.reshape(b, beams, vocabulary), state.place, decoding, end_id)
        total = (state.log_likelihood[..., None] + allowed).reshape(b, beams * vocabulary)
        count = min(2 * beams, beams * vocabulary)
        likeliest, index = rows.top_k(total, count)
        source, token = index // vocabulary, (index % vocabulary).astype(jnp.int32)
        tokens = jnp.take_along_axis(state.tokens, source[..., None], axis=1)
        tokens = jax.lax.dynamic_update_slice(tokens, token[..., None], (0, 0, state.place))
        ends, length = token == end_id, state.place + 1
        finished = jnp.where(ends & (jnp.arange(count) < beams), score(likeliest, length), -jnp.inf)
        state = better(state, tokens, likeliest, finished, length)
        log_likelihood, kept = rows.top_k(jnp.where(ends, -jnp.inf, likeliest), beams)
        return state._replace(
            place=length,
            cache=state.cache.take(jnp.take_along_axis(source, kept, axis=1)),
            tokens=sharding.shard_batch(jnp.take_along_axis(tokens, kept[..., None], axis=1)),
            log_likelihood=log_likelihood,
        )

    def further(state: _Beams) -> _Beams:
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.place - 1, axis=2, keepdims=False)
        logits, cache = step(state.cache, last.reshape(b * beams))
        return follow(state._replace(cache=cache), logits)

    def worthwhile(state: _Beams):
        longest = most if penalty > 0 else state.place + 1
        return (state.place < most) & (score(state.log_likelihood[:, 0], longest) > state.score).any()

    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    blank = jnp.full((b, beams, most), pad_id, jnp.int32)
    begun = _Beams(
        jnp.int32(0),
        cache.take(jnp.zeros((b, beams), jnp.int32)),
        blank,
        jnp.where(jnp.arange(beams) == 0, 0.0, jnp.full((b, beams), -jnp.inf)).astype(dtype),
        Generated(blank[:, 0], jnp.zeros(b, jnp.int32), jnp.zeros(b, dtype)),
        jnp.full(b, -jnp.inf, dtype),
    )
    done = jax.lax.while_loop(worthwhile, further, follow(begun, jnp.repeat(logits, beams, axis=0)))
    unfinished = jnp.where(done.place == most, score(done.log_likelihood, most), -jnp.inf)
    return better(done, done.tokens, done.log_likelihood, unfinished, most).best
