"""Flamingo (Alayrac et al. 2022, "Flamingo: a Visual Language Model for Few-Shot Learning")."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from vlm_jax.errors import InputError
from vlm_jax.losses import language
from vlm_jax.models import flamingo
from vlm_jax.ops import chunks
from vlm_jax.systems import base


class Model(flamingo.Flamingo):
    """Flamingo with what its probabilities say of tokens, without logits of a whole text."""

    def scores(self, hidden: Float[Array, "b t e"], labels: Int[Array, "b t"]) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
        """The cross-entropy of each label, and 1 where it has the largest logit; labels may be added tokens."""
        added = labels - self.config.lm.vocab_size
        known = language.scores(hidden, self.lm.head_kernel(), jnp.where(added < 0, labels, 0))
        own = self.added_head(hidden).astype(known.logit.dtype)
        chosen = jnp.take_along_axis(own, jnp.maximum(added, 0)[..., None], axis=-1)[..., 0]
        logit = jnp.where(added < 0, known.logit, chosen)
        normalizer = jnp.logaddexp(known.log_normalizer, jax.nn.logsumexp(own, axis=-1))
        right = logit >= jnp.maximum(known.largest, own.max(-1))
        return normalizer - logit, right.astype(logit.dtype)

    def log_likelihood(
        self, images: Num[Array, "b n ..."], tokens: Int[Array, "b t"], targets: Bool[Array, "b t"]
    ) -> Float[Array, " b"]:
        """Sum of log p(token | all before it) over the tokens where `targets` is True; the first token of a row has none.

        Arguments as of `generate`.
        """
        losses, _ = self.scores(self.states(images, tokens[:, :-1]), tokens[:, 1:])
        return -jnp.sum(losses, axis=1, where=targets[:, 1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flamingo(flamingo.Config, base.System):
    """A frozen image tower and a frozen language model, and what is trained between them, on the next token of texts with images.

    Streams are pages (fields of `data.pages`), pairs and clips; a pair is read as its image, then its text. Tower and language model
    come from elsewhere: `--init-from 'image/ <- PATH' 'lm/ <- PATH'`.
    """

    frozen: str = r"^(image|lm)/"
    """Regular expression over parameter paths that stay as they are."""
    weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"pages": 1.0, "pairs": 0.2, "video": 0.03})
    """Of the mean loss of each stream, by its name."""
    begin_id: int | None = None
    """The token before every text of pairs and clips, where the tokenizer has one."""
    end_id: int | None = None
    """The tokenizer's token after a text: pairs and clips end with the end of a chunk in its place. Not needed for pages."""

    def __post_init__(self):
        super().__post_init__()
        bad = [name for name, weight in self.weights.items() if weight < 0]
        if bad:
            raise InputError(f"system.weights.{bad[0]} {self.weights[bad[0]]}: a weight is not negative; 0 leaves the stream out")

    def build(self, *, rngs: nnx.Rngs) -> Model:
        return Model(self, rngs=rngs)

    def objective(
        self, model: nnx.Module, batch: base.Batch, extra: base.PyTree, context: base.Context
    ) -> base.Objective:
        assert isinstance(model, Model)
        loss, metrics = jnp.zeros(()), {}
        for name, stream in batch.items():
            texts = self.texts(stream)
            # On its own: what is frozen is not computed again where the rest is.
            features = chunks.in_chunks(_features, context.microbatches)(model, texts.pixels)
            read = (texts.tokens, texts.index, texts.positions, texts.segments)
            hidden = chunks.in_chunks(_hidden, context.microbatches)(model, features, *read)
            losses, right = model.scores(hidden, _following(texts.tokens))
            total = jnp.maximum(texts.weights.sum(), 1)
            mean = language.weighted_sum(losses, texts.weights) / total
            loss = loss + self.weights[name] * mean
            metrics |= {f"loss/{name}": mean, f"accuracy/{name}": language.weighted_sum(right, texts.weights) / total}
        gates = {"attention": model.cross.blocks.attention_gate[...], "mlp": model.cross.blocks.mlp_gate[...]}
        metrics |= {f"gate/{name}": jnp.abs(jnp.tanh(gate)).mean() for name, gate in gates.items()}
        return base.Objective(loss, metrics)

    def texts(self, stream: Mapping[str, Array]) -> "Texts":
        """Rows of any kind of stream as interleaved texts."""
        if "images" in stream:
            return Texts(
                pixels=stream["images"][:, :, None],
                tokens=self._numbered(stream["tokens"]),
                index=stream["image_index"],
                positions=stream["positions"],
                segments=(stream["segments"], stream["image_segments"]),
                weights=_following(stream["loss_weights"]),
            )
        images = stream["frames"][:, None] if "frames" in stream else stream["image"][:, None, None]
        tokens, weights = self._after_image(stream["tokens"])
        index = jnp.cumsum(tokens == self.image_id, axis=1, dtype=jnp.int32)
        return Texts(pixels=images, tokens=tokens, index=index, positions=None, segments=None, weights=_following(weights))

    def _numbered(self, tokens: Int[Array, "b t"]) -> Int[Array, "b t"]:
        """Pages with the model's numbers of the added tokens; those of the stream follow the tokenizer's, the image's first."""
        count = self.tokens or self.lm.vocab_size
        return jnp.where(tokens < count, tokens, jnp.where(tokens == count, self.image_id, self.chunk_end_id))

    def _after_image(self, tokens: Int[Array, "b t"]) -> tuple[Int[Array, "b u"], Float[Array, "b u"]]:
        """[begin] <image> text <chunk end>, u = t + 1, and which of them are to be predicted."""
        first = 0 if self.begin_id is None else 1
        places = jnp.arange(tokens.shape[1])
        is_end = (tokens == self.end_id) & (places >= first)  # texts may begin with the end token
        last = jnp.where(is_end.any(1), jnp.argmax(is_end, axis=1), tokens.shape[1])[:, None]
        text = jnp.where(places == last, self.chunk_end_id, tokens)
        counted = (places <= last).astype(jnp.float32)
        image = jnp.full((len(tokens), 1), self.image_id, tokens.dtype)
        none = jnp.zeros((len(tokens), first + 1))
        return (
            jnp.concatenate([text[:, :first], image, text[:, first:]], axis=1),
            jnp.concatenate([none, counted[:, first:]], axis=1),
        )

    def adapt(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """The image tower's weights as its configuration adapts them."""
        own = {path.removeprefix("image/"): x for path, x in weights.items() if path.startswith("image/")}
        try:
            return dict(weights) | {f"image/{path}": x for path, x in self.image.adapt(own).items()}
        except InputError as error:
            raise InputError(f"system.image.{error}") from None

    def check(self, streams: Mapping[str, Any]) -> None:
        for name, stream in streams.items():
            if name not in self.weights:
                raise InputError(
                    f"data stream {name}: system.weights has {', '.join(self.weights) or 'none'}; give the stream a weight in the recipe"
                )
            known = self.tokens or self.lm.vocab_size
            if stream.vocab_size != known:
                rows = f", or --system.tokens {stream.vocab_size} where its table has more rows" if stream.vocab_size < known else ""
                field = "tokens" if self.tokens else "lm.vocab_size"
                raise InputError(
                    f"system.{field} {known} is not the {stream.vocab_size} of the tokenizer of {name}, after which those of images come: "
                    f"take the language model's tokenizer, or set --system.lm.vocab-size {stream.vocab_size}{rows}"
                )
            paired = stream.image_id is None
            if stream.length + paired > self.lm.length:
                raise InputError(
                    f"data.{name}.tokenizer.length {stream.length}: with the image's token more than system.lm.length {self.lm.length}"
                )
            if stream.image_size != self.image.image_size:
                raise InputError(
                    f"data.{name}.image.size {stream.image_size} is not system.image.image_size {self.image.image_size}: "
                    "set both to the same"
                )
            if paired and (self.begin_id, self.end_id) != (stream.bos_id, stream.eos_id):
                raise InputError(
                    f"system.begin_id {self.begin_id}, system.end_id {self.end_id}: the tokenizer of {name} has {stream.bos_id} and "
                    f"{stream.eos_id}; set both as it has them"
                )


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts with images or clips."""

    pixels: Array
    """uint8 [b, n, f, h, w, 3]: n images, or clips of f frames."""
    tokens: Int[Array, "b t"]
    index: Int[Array, "b t"]
    """The image that a token looks at, from 1; 0: none."""
    positions: Int[Array, "b t"] | None
    segments: tuple[Int[Array, "b t"], Int[Array, "b n"]] | None
    weights: Float[Array, "b t"]
    """Of the prediction of the token after each."""


def _features(model: flamingo.Flamingo, pixels: Array) -> Array:
    b, n = pixels.shape[:2]
    features = model.features(pixels.reshape(b * n, *pixels.shape[2:]))
    return features.reshape(b, n, *features.shape[1:])


def _hidden(model: flamingo.Flamingo, features: Array, tokens: Array, index: Array, positions: Any, segments: Any) -> Array:
    visual = model.resampled(features.reshape(-1, *features.shape[2:]), features.shape[1])
    return model.hidden(visual, tokens, index=index, positions=positions, segments=segments)


def _following(x: Array) -> Array:
    """Of each token what the next one has; 0 for the last."""
    return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))
