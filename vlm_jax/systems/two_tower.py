"""What the systems with an image tower and a text tower share: the model, its checks, the similarities that are logged."""

import dataclasses
import re
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from vlm_jax.errors import InputError
from vlm_jax.losses import contrastive
from vlm_jax.models import choices, text
from vlm_jax.ops import chunks, images, norm, sharding, tokens
from vlm_jax.systems import base


class Model(nnx.Module):
    """Two towers into one space, a learned scale on the cosines, and optionally a bias.

    Paths: `image/...`, `text/...`, `log_scale`, `bias`. `renewed` names the towers that training normalises by statistics of the batch:
    those that have a method `with_batch_statistics` and are not frozen as a whole.
    """

    def __init__(self, config: "TwoTower", *, initial_bias: float | None = None, rngs: nnx.Rngs):
        self.image = config.image.build(rngs=rngs)
        self.text = config.text.build(rngs=rngs)
        self.log_scale = nnx.Param(jnp.log(jnp.asarray(config.initial_scale, jnp.float32)))
        if initial_bias is not None:
            self.bias = nnx.Param(jnp.asarray(initial_bias, jnp.float32))
        self.mean, self.std = config.mean, config.std
        self.image_tokens = config.image_tokens
        self.renewed = tuple(name for name in ("image", "text") if _renews(name, getattr(self, name), config.frozen))

    def embed_image(
        self, image: Num[Array, "b h w 3"], keep: Int[Array, "b m"] | None = None
    ) -> Float[Array, "b d"]:
        """L2-normalised embeddings, at least float32. uint8 images are normalised here; floats are taken as they are.

        Args:
          keep: the patches that are encoded, as an image tower with tokens takes them; None: all.
        """
        image = images.normalize(image, self.mean, self.std)
        return _unit(self.image(image) if keep is None else self.image(image, keep))

    def image_features(self, image: Num[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """What the image tower pools, before its projection and not normalised, at least float32: features to learn from.

        CLIP's linear probes take these (Radford et al. 2021, section 3.2). A tower without projection gives its embedding.
        """
        x = self.image.pooled(images.normalize(image, self.mean, self.std))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def embed_text(self, tokens: Int[Array, "b t"]) -> Float[Array, "b d"]:
        """L2-normalised embeddings, at least float32."""
        return _unit(self.project_text(tokens))

    def project_text(self, tokens: Int[Array, "b t"]) -> Float[Array, "b d"]:
        """The embeddings before they are normalised."""
        return self.text(tokens)

    def with_batch_statistics(self, name: str, *inputs: Num[Array, "b ..."]) -> tuple[Float[Array, "b d"], dict[str, Any]]:
        """What the `renewed` tower of this name embeds in training, and new values of its buffers; inputs as it takes them."""
        x, buffers = getattr(self, name).with_batch_statistics(*inputs)
        return _unit(x), buffers

    @property
    def scale(self) -> Float[Array, ""]:
        """The factor on the cosines."""
        return jnp.exp(self.log_scale[...])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoTower(base.System):
    """Fields that every system with two towers has."""

    image: Any
    """The image tower: a configuration with `image_size`, `output_dim` and `build`, such as vit.Config or convnet.Config."""
    text: text.Config
    """The text tower; its output has the width of the image tower's."""
    initial_scale: float
    """Initial factor on the cosines (the learned parameter is its logarithm)."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from RGB values in [0, 1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides RGB values after the mean is subtracted."""
    image_tokens: tokens.Drop = tokens.Drop()
    """Patches that training leaves out of every image, for cheaper steps. Evaluation always sees all."""
    loss_form: contrastive.Form = "auto"
    """How the loss over all pairs is computed over a mesh; every form has the same value and gradients."""
    not_negatives: Literal["none", "same_example", "same_text"] = "none"
    """Rows that are no negatives of one another: none, those of one example (met twice in a batch), or those whose tokens are equal."""

    def __post_init__(self):
        choices.check(self)
        if self.image.output_dim != self.text.output_dim:
            raise InputError(
                f"system.text output width {self.text.output_dim} is not the image tower's {self.image.output_dim}: "
                "set projection_dim of both towers to the same number"
            )
        if self.initial_scale <= 0:
            raise InputError(f"system.initial_scale {self.initial_scale}: must be positive")
        if self.image_tokens.keep < 1:
            if not hasattr(self.image, "grid"):
                raise InputError(
                    f"system.image_tokens.keep {self.image_tokens.keep}: {type(self.image).__module__.split('.')[-1]} has no "
                    "patches to leave out; set it to 1, or take an image tower with tokens such as vit.Config"
                )
            self.image_tokens.count(self.image.grid)

    def ids(self, pairs: Mapping[str, Array]) -> Int[Array, " b"] | None:
        """Numbers that are equal for rows that are no negatives of one another; None where all rows are."""
        if self.not_negatives == "same_example":
            return pairs["example"]
        return numbers_of_texts(pairs["tokens"]) if self.not_negatives == "same_text" else None

    def check(self, streams: Mapping[str, Any]) -> None:
        pairs = streams.get("pairs")
        if pairs is None:
            raise InputError(f"data streams {sorted(streams)}: {type(self).__name__} trains on a stream named pairs")
        if pairs.vocab_size > self.text.vocab_size:
            raise InputError(
                f"system.text.vocab_size {self.text.vocab_size} is smaller than the tokenizer's {pairs.vocab_size}: "
                f"set --system.text.vocab-size {pairs.vocab_size} or choose another tokenizer"
            )
        if pairs.length > self.text.length:
            raise InputError(
                f"data.tokenizer.length {pairs.length} is more than system.text.length {self.text.length}: "
                f"set --data.tokenizer.length {self.text.length}, or less for short texts"
            )
        if pairs.image_size != self.image.image_size:
            raise InputError(
                f"data.image.size {pairs.image_size} is not system.image.image_size {self.image.image_size}: set both to the same"
            )
        if getattr(self.text, "pool", None) == "eos" and pairs.eos_id != self.text.eos_id:
            raise InputError(
                f"system.text.eos_id {self.text.eos_id} is not the tokenizer's end token {pairs.eos_id}: "
                f"set --system.text.eos-id {pairs.eos_id}"
            )


    def check_chunks(self, model: nnx.Module, microbatches: int) -> None:
        assert isinstance(model, Model)
        refuse_chunks(model, microbatches)

    def adapt(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Each tower's weights as its configuration adapts them, where it has a method `adapt`."""
        adapted = dict(weights)
        for name in ("image", "text"):
            tower, prefix = getattr(self, name), f"{name}/"
            if hasattr(tower, "adapt"):
                own = {path.removeprefix(prefix): x for path, x in weights.items() if path.startswith(prefix)}
                try:
                    adapted |= {prefix + path: x for path, x in tower.adapt(own).items()}
                except InputError as error:
                    raise InputError(f"system.{name}.{error}") from None
        return adapted


def embed(
    model: Model, batch: base.Batch, context: base.Context
) -> tuple[Float[Array, "b d"], Float[Array, "b d"], dict[str, Any]]:
    """Image and text embeddings of the stream `pairs`, and new values of the towers' buffers for `base.Objective`.

    Each tower runs over chunks of the batch, but for those with statistics of the whole batch.

    Raises:
      InputError: as `refuse_chunks`.
    """
    refuse_chunks(model, context.microbatches)
    pairs, buffers = batch["pairs"], {}
    keep = kept_patches(model, pairs["image"].shape[0], context)
    if "image" in model.renewed:
        pixels = images.normalize(pairs["image"], model.mean, model.std)
        image, buffers["image"] = model.with_batch_statistics("image", pixels, *([] if keep is None else [keep]))
    else:
        image = chunks.in_chunks(Model.embed_image, context.microbatches)(model, pairs["image"], keep)
    if "text" in model.renewed:
        words, buffers["text"] = model.with_batch_statistics("text", pairs["tokens"])
    else:
        words = chunks.in_chunks(Model.embed_text, context.microbatches)(model, pairs["tokens"])
    return image, words, buffers


def refuse_chunks(model: Model, microbatches: int) -> None:
    """
    Raises:
      InputError: a tower normalises by statistics of the whole batch, which are others in chunks.
    """
    if microbatches > 1 and model.renewed:
        raise InputError(
            f"microbatches {microbatches}: the {model.renewed[0]} tower normalises by statistics of the whole batch, and chunks have "
            f"others; set it to 1, or freeze the tower with --system.frozen '^{model.renewed[0]}/'"
        )


def kept_patches(model: Model, batch_size: int, context: base.Context) -> Int[Array, "b m"] | None:
    """The patches that this step encodes of each image of the global batch; None where it encodes all."""
    if model.image_tokens.keep == 1:
        return None
    rows = sharding.shard_batch(jnp.arange(batch_size))
    key = jax.random.fold_in(context.key, zlib.crc32(b"image_tokens"))
    return tokens.kept(model.image_tokens, key, rows, model.image.config.grid)


def numbers_of_texts(tokens: Int[Array, "b t"]) -> Int[Array, " b"]:
    """A 32-bit hash of each row: equal for equal texts, and for one pair of different ones in four billion."""
    number = jnp.zeros(tokens.shape[0], jnp.uint32)
    for t in range(tokens.shape[1]):  # Horner's rule and a mixing shift (the constants of MurmurHash3)
        number = (number ^ tokens[:, t].astype(jnp.uint32)) * jnp.uint32(0x85EBCA6B)
        number = (number ^ (number >> 13)) * jnp.uint32(0xC2B2AE35)
        number = number ^ (number >> 16)
    return number.astype(jnp.int32)


def similarities(image: Float[Array, "b d"], text: Float[Array, "b d"]) -> dict[str, Array]:
    """Mean cosine of the matching and of all other pairs of the batch, without forming the pairs."""
    image, text = jax.lax.stop_gradient((image, text))
    b = image.shape[0]
    matching = jnp.einsum("bd,bd->", image, text)
    everything = jnp.einsum("d,d->", image.sum(0), text.sum(0))
    return {
        "positive_similarity": matching / b,
        "negative_similarity": (everything - matching) / float(max(b * (b - 1), 1)),
    }


def _renews(name: str, tower: nnx.Module, frozen: str) -> bool:
    """Whether training gives a tower new statistics: not where all its parameters are frozen, for those go with the old ones."""
    if not hasattr(tower, "with_batch_statistics"):
        return False
    params = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(tower, nnx.Param)))
    return not all(re.search(frozen, f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}") for path, _ in params)


def _unit(x):
    return norm.l2_normalize(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
