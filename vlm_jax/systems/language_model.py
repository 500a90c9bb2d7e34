"""Language modelling: a decoder that predicts the next token of texts (Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners"), on rows packed of several texts that do not see one another."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8

from vlm_jax.errors import InputError
from vlm_jax.losses import language
from vlm_jax.models import generation, lm
from vlm_jax.ops import chunks
from vlm_jax.systems import base


class Model(nnx.Module):
    """A language model under the path `lm/`, where other systems find it."""

    def __init__(self, config: "LanguageModel", *, rngs: nnx.Rngs):
        self.lm = config.lm.build(rngs=rngs)

    def next_tokens(self, rows: Int[Array, "b n t"]) -> Float[Array, "b t 2"]:
        """Log-likelihood of each target, and whether no token was likelier (1 or 0); zeros for the others.

        Args:
          rows: tokens [b, 0], and which of them are targets (1 or 0) [b, 1]; the first of a row is none.
        """
        tokens, targets = rows[:, 0], rows[:, 1]
        found = language.scores(self.lm.hidden(tokens), self.lm.head_kernel(), jnp.roll(tokens, -1, 1))
        scores = jnp.stack([found.log_likelihood, found.right.astype(found.log_likelihood.dtype)], -1)
        return jnp.where(targets[..., None] > 0, jnp.roll(scores, 1, 1), 0)

    def log_likelihood(self, images: UInt8[Array, "b n h w 3"], tokens: Int[Array, "b t"], targets: Array) -> Float[Array, " b"]:
        """Sum of log p of the tokens where `targets` is True; there are no images, n is 0."""
        return self.lm.log_likelihood(tokens, targets)

    def generate(
        self,
        images: UInt8[Array, "b n h w 3"],
        tokens: Int[Array, "b t"],
        lengths: Int[Array, " b"],
        decoding: generation.Decoding,
        *,
        end_id: int,
        pad_id: int,
        key: Key[Array, ""] | None = None,
    ) -> generation.Generated:
        """What follows the first `lengths` tokens of each row; there are no images, n is 0."""
        logits, cache = self.lm.start(tokens, lengths, decoding.max_new_tokens)
        return generation.generate(self.lm.step, cache, logits, decoding, end_id=end_id, pad_id=pad_id, key=key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel(base.System):
    """A decoder and the cross-entropy of the next token, a mean over all tokens of the batch that are to be predicted."""

    lm: lm.Config
    """The decoder."""
    z_loss: float = 0.0
    """Weight of the squared log normalizer, which keeps logits near zero (Chowdhery et al. 2022, PaLM: 1e-4)."""

    def __post_init__(self):
        if self.z_loss < 0:
            raise InputError(f"system.z_loss {self.z_loss}: a weight is not negative; 0 leaves the term out")

    def build(self, *, rngs: nnx.Rngs) -> Model:
        return Model(self, rngs=rngs)

    def objective(self, model: Model, batch: base.Batch, extra: base.PyTree, context: base.Context) -> base.Objective:
        texts = batch["texts"]

        def states(model, tokens, positions, segments):
            return model.lm.hidden(tokens, positions=positions, segments=segments)

        hidden = chunks.in_chunks(states, context.microbatches)(model, texts["tokens"], texts["positions"], texts["segments"])
        labels, weights = jnp.roll(texts["tokens"], -1, 1), following(texts["loss_weights"])
        found = language.scores(hidden, model.lm.head_kernel(), labels)
        total = jnp.maximum(weights.sum(), 1)

        def mean(values):
            return language.weighted_sum(values, weights) / total

        cross_entropy = mean(-found.log_likelihood)
        loss = cross_entropy + self.z_loss * mean(found.log_normalizer**2) if self.z_loss else cross_entropy
        metrics = {"perplexity": jnp.exp(cross_entropy), "accuracy": mean(found.right.astype(loss.dtype)), "tokens": weights.sum()}
        return base.Objective(loss, metrics | ({"cross_entropy": cross_entropy} if self.z_loss else {}))

    def check(self, streams: Mapping[str, Any]) -> None:
        texts = streams.get("texts")
        if texts is None:
            raise InputError(f"data streams {sorted(streams)}: {type(self).__name__} trains on a stream named texts")
        if texts.vocab_size > self.lm.vocab_size:
            raise InputError(
                f"system.lm.vocab_size {self.lm.vocab_size} is smaller than the tokenizer's {texts.vocab_size}: "
                f"set --system.lm.vocab-size {texts.vocab_size} or choose another tokenizer"
            )
        if texts.length > self.lm.length:
            raise InputError(
                f"data.tokenizer.length {texts.length} is more than system.lm.length {self.lm.length}: "
                f"set --data.tokenizer.length {self.lm.length}, or a longer model"
            )


def following(weights: Float[Array, "b t"]) -> Float[Array, "b t"]:
    """The weight of each token's successor as what is to be predicted; the last of a row has none."""
    return jnp.pad(weights[:, 1:], ((0, 0), (0, 1)))
