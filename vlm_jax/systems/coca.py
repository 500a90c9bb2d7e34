"""CoCa (Yu et al. 2022, "CoCa: Contrastive Captioners are Image-Text Foundation Models")."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, Num

from vlm_jax.errors import InputError
from vlm_jax.losses import contrastive, language
from vlm_jax.models import attentional, captioner, generation
from vlm_jax.ops import chunks, images, masks, norm
from vlm_jax.systems import base, clip, two_tower


class Model(two_tower.Model):
    """An image tower with attentional poolers and a text decoder in two halves: embeddings of both, and captions.

    Paths: `image/...` (`models.attentional`), `text/...` (`models.captioner`), `log_scale`.
    """

    image: attentional.Attentional
    text: captioner.Captioner

    def generate(
        self,
        image: Num[Array, "b n h w 3"],
        tokens: Int[Array, "b t"],
        lengths: Int[Array, " b"],
        decoding: generation.Decoding,
        *,
        end_id: int,
        pad_id: int,
        key: Key[Array, ""] | None = None,
    ) -> generation.Generated:
        """Captions.

        Args:
          image: one of each row, n = 1; uint8 images are normalised here.
          tokens: what captions begin with, left-aligned: the begin token, or more.
          lengths: how many of them there are.
          end_id: the token that ends a caption.
          pad_id: what follows it.
          key: for a strategy that draws.

        Raises:
          InputError: there are several images, or a caption could become longer than `length`.
        """
        logits, cache = self.text.start(self._context(image), tokens, lengths, decoding.max_new_tokens)
        return generation.generate(self.text.step, cache, logits, decoding, end_id=end_id, pad_id=pad_id, key=key)

    def log_likelihood(
        self, image: Num[Array, "b n h w 3"], tokens: Int[Array, "b t"], targets: Bool[Array, "b t"]
    ) -> Float[Array, " b"]:
        """Sum of log p(token | image, all before it) over the tokens where `targets` is True; the first token of a row has none.

        Raises:
          InputError: there are several images.
        """
        _, hidden = self.text.both(tokens)
        losses = self._losses(hidden, self._context(image), tokens)
        return -jnp.sum(losses, axis=1, where=targets[:, 1:])

    def rows(
        self, image: Num[Array, "b h w 3"], keep: Int[Array, "b m"] | None, tokens: Int[Array, "b t"]
    ) -> dict[str, Array]:
        """What the objective is made of, a row for each example.

        Returns:
          `image` and `text`, L2-normalised embeddings; `loss`, the cross-entropy of the caption's tokens after the first, summed;
          `tokens`, how many these are.
        """
        pooled, context = self.image.both(images.normalize(image, self.mean, self.std), keep)
        text, hidden = self.text.both(tokens)
        counted = masks.not_padding(tokens[:, 1:], self.text.config.pad_id)
        losses = self._losses(hidden, context, tokens)
        return {
            "image": _unit(self.image.project(pooled)),
            "text": _unit(text),
            "loss": jnp.sum(losses, axis=1, where=counted),
            "tokens": counted.sum(1, dtype=losses.dtype),
        }

    def _losses(self, hidden, context, tokens) -> Float[Array, "b t"]:
        """Of each token after the first, of the tokens after the lower half."""
        hidden = self.text.decode(hidden[:, :-1], context)
        head = self.text.head_kernel()
        return -language.scores(hidden.astype(head.dtype), head, tokens[:, 1:]).log_likelihood

    def _context(self, image):
        if image.shape[1] != 1:
            raise InputError(f"images {image.shape[1]} of a caption: this model looks at one")
        return self.image.encode(images.normalize(image[:, 0], self.mean, self.std))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coca(clip.Clip):
    """CLIP's loss on embeddings, and the likelihood of the caption beside the image, in one forward pass."""

    image: attentional.Config  # pyright: ignore[reportIncompatibleVariableOverride]
    """The image tower with its attentional poolers."""
    text: captioner.Config  # pyright: ignore[reportIncompatibleVariableOverride]
    """The text decoder in two halves; its embedding has the width of the image's."""
    contrastive_weight: float = 1.0
    """Of the contrastive loss."""
    caption_weight: float = 2.0
    """Of the mean cross-entropy of the captions' tokens."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("contrastive_weight", "caption_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"system.{name} {getattr(self, name)}: a weight is not negative; 0 leaves the term out")
        if (self.text.context_width or self.text.width) != self.image.width:
            raise InputError(
                f"system.text.context_width {self.text.context_width or self.text.width} is not system.image.width {self.image.width}: "
                "set both to the same"
            )

    def build(self, *, rngs: nnx.Rngs) -> Model:
        return Model(self, rngs=rngs)

    def objective(self, model: Model, batch: base.Batch, extra: base.PyTree, context: base.Context) -> base.Objective:
        pairs = batch["pairs"]
        keep = two_tower.kept_patches(model, pairs["image"].shape[0], context)
        rows = chunks.in_chunks(Model.rows, context.microbatches)(model, pairs["image"], keep, pairs["tokens"])
        image, text = rows["image"], rows["text"]
        pulled = contrastive.softmax(image, text, model.scale, ids=self.ids(pairs), form=self.loss_form)
        caption = rows["loss"].sum() / jnp.maximum(rows["tokens"].sum(), 1)
        loss = self.contrastive_weight * pulled + self.caption_weight * caption
        terms = {"contrastive": pulled, "caption": caption, "scale": model.scale}
        return base.Objective(loss, terms | two_tower.similarities(image, text))

    def check(self, streams: Mapping[str, Any]) -> None:
        super().check(streams)
        pairs = streams["pairs"]
        if pairs.bos_id is None:
            raise InputError(
                "data.tokenizer.begin: the vocabulary has no begin token, after which a caption's first word could be learned; "
                "name one of its tokens, such as --data.tokenizer.begin '</s>'"
            )
        if pairs.pad_id != self.text.pad_id:
            raise InputError(
                f"system.text.pad_id {self.text.pad_id} is not the tokenizer's padding {pairs.pad_id}: "
                f"set --system.text.pad-id {pairs.pad_id}"
            )
        if pairs.pad_id == pairs.eos_id:
            raise InputError(
                f"data.tokenizer.pad: {pairs.pad_id} is also the end token, whose prediction would not be learned; "
                "set another, such as 'zero'"
            )


def _unit(x):
    return norm.l2_normalize(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
