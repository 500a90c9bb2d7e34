"""A small residual convolutional network for small images: it learns shapes where a plain ViT would need many more of them."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.errors import InputError
from vlm_jax.layers import conv, linear, norm, stack
from vlm_jax.models import choices
from vlm_jax.ops import activations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A convolutional image tower."""

    image_size: int
    """Height and width in pixels."""
    channels: tuple[int, ...] = (64, 128)
    """Channels at stride 4, 8, 16, ...: as many stages as there are numbers."""
    depth: tuple[int, ...] = (2, 2)
    """Residual 3x3 convolutions in each stage."""
    activation: activations.Name = "relu"
    """Before every convolution."""
    norm_epsilon: float = 1e-6
    """Of every norm."""
    projection_dim: int = 0
    """Channels of a final projection without bias, the embedding; 0 leaves it out."""
    remat: stack.Remat = "none"
    """What the backward pass computes again instead of keeping; see `layers.stack`."""

    def __post_init__(self):
        choices.check(self)
        if not self.channels or len(self.depth) != len(self.channels):
            raise InputError(f"depth {self.depth} and channels {self.channels}: one number of each for every stage")
        if min(self.channels + self.depth) < 1:
            raise InputError(f"depth {self.depth} and channels {self.channels}: all must be at least 1")
        if self.image_size < self.stride or self.image_size % self.stride:
            raise InputError(
                f"image_size {self.image_size} is not a multiple of {self.stride}, the stride of {len(self.channels)} stages"
            )

    @property
    def stride(self) -> int:
        """Pixels between the points of the last stage."""
        return 2 ** (len(self.channels) + 1)

    @property
    def output_dim(self) -> int:
        """Channels of the embedding."""
        return self.projection_dim or 2 * self.channels[-1]

    @property
    def token_dim(self) -> int:
        """Channels of what `encode` gives."""
        return self.channels[-1]

    def build(self, *, rngs: nnx.Rngs) -> "ConvNet":
        """A freshly initialised tower."""
        return ConvNet(self, rngs=rngs)


class ConvNet(nnx.Module):
    """Residual convolutions, then the mean and the maximum over all points, side by side.

    The mean tells how much there is of a feature, the maximum whether it is anywhere. Paths: `features/stage1/...`,
    `norm`, `projection`.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        self.features = conv.Stages(
            config.channels, config.depth, activation=config.activation, norm_epsilon=config.norm_epsilon, rngs=rngs
        )
        self.norm = norm.LayerNorm(config.channels[-1], epsilon=config.norm_epsilon)
        if config.projection_dim:
            self.projection = linear.Linear(
                2 * config.channels[-1],
                config.projection_dim,
                kernel_init=nnx.initializers.lecun_normal(),
                bias_init=None,
                rngs=rngs,
            )

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
        """The embedding: features, pooled and projected.

        Raises:
          InputError: the stride does not divide the images.
        """
        x = self.pooled(images)
        return self.projection(x) if self.config.projection_dim else x

    def pooled(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """What is projected to the embedding: the mean and the maximum of every feature.

        Raises:
          InputError: the stride does not divide the images.
        """
        x = self.encode(images)
        # Not x.max(1): its gradient divides by the number of points equal to the maximum, which is none where XLA computes
        # x once more with another rounding.
        largest = jnp.take_along_axis(x, x.argmax(1, keepdims=True), axis=1)[:, 0]
        return jnp.concatenate([x.mean(1), largest], axis=-1)

    def encode(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        """Features of the last stage after the final norm, row-major.

        Raises:
          InputError: the stride does not divide the images.
        """
        x = self.features(images, remat=self.config.remat)
        return self.norm(x.reshape(x.shape[0], -1, x.shape[-1]))
