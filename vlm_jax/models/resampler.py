"""Perceiver Resampler (Alayrac et al. 2022, Flamingo, section 2.1): any number of visual features to a fixed number of visual tokens."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.errors import InputError
from vlm_jax.layers import attention, initializers, linear, mlp, norm, stack
from vlm_jax.models import choices
from vlm_jax.ops import activations, sharding

Interpolation = Literal["align_corners", "half_pixel"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A resampler."""

    width: int
    """Channels of a visual token. Features of another width are projected first, without bias."""
    latents: int = 64
    """Visual tokens that come out, for an image as for a clip."""
    depth: int = 6
    """Number of blocks."""
    num_heads: int = 16
    """Attention heads."""
    head_dim: int = 96
    """Channels of a head."""
    mlp_dim: int
    """Channels between the two layers of an MLP; Flamingo has 4 x width."""
    frames: int = 0
    """Frames that have a learned embedding, the first one that of images; 0: none has, and all frames look alike."""
    interpolation: Interpolation = "align_corners"
    """How a clip of more frames gets embeddings, linearly between those learned: with the first and the last one kept, or as images
    are resized."""
    activation: activations.Name = "squared_relu"
    """In the MLPs: squared_relu in the paper, relu in Idefics, gelu in most other code."""
    norm_epsilon: float = 1e-5
    """Of every norm."""
    qk_norm: attention.QKNorm = "none"
    """Of queries and keys over each head, against large logits (Dehghani et al. 2023); Idefics has layer_norm."""
    loop: stack.Loop = "scan"
    """Whether the blocks are compiled as one in a loop, or unrolled."""
    remat: stack.Remat = "none"
    """What the backward pass computes again instead of keeping; see `layers.stack`."""

    def __post_init__(self):
        choices.check(self)
        for field in ("width", "latents", "depth", "num_heads", "head_dim", "mlp_dim"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} {getattr(self, field)}: must be at least 1")
        if self.frames < 0:
            raise InputError(f"frames {self.frames}: a number of frames, or 0 for no embeddings")

    def build(self, input_width: int, *, rngs: nnx.Rngs) -> "Resampler":
        """A freshly initialised resampler of features with so many channels."""
        return Resampler(self, input_width, rngs=rngs)


class Block(nnx.Module):
    """z + attention(norm(z) to [norm(x), norm(z)]), then z + mlp(norm(z)). The features x stay as they are.

    Paths: `features_norm`, `latents_norm`, `attention/...`, `mlp_norm`, `mlp/...`; norms have biases, layers none.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, init = config.width, initializers.big_vision(width=config.width)
        self.features_norm = norm.LayerNorm(width, epsilon=config.norm_epsilon)
        self.latents_norm = norm.LayerNorm(width, epsilon=config.norm_epsilon)
        self.attention = attention.Attention(
            width,
            config.num_heads,
            head_dim=config.head_dim,
            bias="none",
            qk_norm=config.qk_norm,
            norm_epsilon=config.norm_epsilon,
            initializers=init,
            rngs=rngs,
        )
        self.mlp_norm = norm.LayerNorm(width, epsilon=config.norm_epsilon)
        self.mlp = mlp.Mlp(
            width, config.mlp_dim, activation=config.activation, bias="none", initializers=init, rngs=rngs
        )

    def __call__(self, z: Float[Array, "b r d"], x: Float[Array, "b s d"]) -> Float[Array, "b r d"]:
        own = self.latents_norm(z)
        z = z + self.attention(own, jnp.concatenate([self.features_norm(x), own], axis=1))
        return z + self.mlp(self.mlp_norm(z))


class Resampler(nnx.Module):
    """Features of images or clips to visual tokens.

    Paths: `input/kernel` (where features have another width), `frame_embed` [frames, d], `latents` [r, d], `blocks/...` (leading axis:
    depth), `norm`.
    """

    def __init__(self, config: Config, input_width: int, *, rngs: nnx.Rngs):
        self.config = config
        small = nnx.initializers.normal(0.02)
        if input_width != config.width:
            kernel_init = nnx.initializers.lecun_normal()
            self.input = linear.Linear(input_width, config.width, kernel_init=kernel_init, bias_init=None, rngs=rngs)
        if config.frames:
            self.frame_embed = nnx.Param(small(rngs.params(), (config.frames, config.width), jnp.float32))
        self.latents = nnx.Param(small(rngs.params(), (config.latents, config.width), jnp.float32))
        self.blocks = stack.build(lambda rngs: Block(config, rngs=rngs), config.depth, rngs=rngs)
        self.norm = norm.LayerNorm(config.width, epsilon=config.norm_epsilon)

    def __call__(self, features: Float[Array, "b f s c"]) -> Float[Array, "b r d"]:
        """The visual tokens of each image (f = 1) or clip, after a norm.

        Args:
          features: of all places of all frames, in any order of places: they have no positions here.
        """
        x = self.input(features) if hasattr(self, "input") else features
        if self.config.frames:
            table = self.frame_embed[...]
            if x.shape[1] > table.shape[0]:
                table = interpolate(table, x.shape[1], self.config.interpolation)
            x = x + table[: x.shape[1], None].astype(x.dtype)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        z = jnp.broadcast_to(self.latents[...].astype(x.dtype), (x.shape[0], *self.latents[...].shape))
        z = stack.apply(self.blocks, sharding.shard_batch(z), x, loop=self.config.loop, remat=self.config.remat)
        return self.norm(z)


def interpolate(table: Float[Array, "m d"], count: int, method: Interpolation) -> Float[Array, "n d"]:
    """`count` rows, linearly between those of the table."""
    source = table.shape[0]
    if method == "align_corners":
        places = jnp.linspace(0.0, source - 1, count)
    else:
        places = jnp.clip((jnp.arange(count) + 0.5) * source / count - 0.5, 0, source - 1)
    below = jnp.minimum(jnp.floor(places).astype(jnp.int32), max(source - 2, 0))
    share = (places - below).astype(table.dtype)[:, None]
    return (1 - share) * table[below] + share * table[jnp.minimum(below + 1, source - 1)]
