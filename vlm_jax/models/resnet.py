"""CLIP's modified ResNets (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision").

Three convolutions for a stem, average pools in place of strides, and a pool that attends from the mean feature to all: the embedding.
Statistics of batches are buffers. A call uses those that the tower holds, as in evaluation and under a lock; training calls
`with_batch_statistics`, which gives back new ones and changes nothing.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from vlm_jax.errors import InputError
from vlm_jax.layers import batch_norm, linear
from vlm_jax.ops import attention, sharding

Statistics = batch_norm.Statistics
Buffers = batch_norm.Buffers
MakeNorm = Callable[..., batch_norm.BatchNorm]
"""Of so many channels, with so much initial gain."""
EXPANSION = 4
"""Channels that leave a bottleneck, by those inside."""
STRIDE = 32
"""Pixels between the points of the last stage."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A modified ResNet."""

    image_size: int
    """Height and width in pixels."""
    layers: tuple[int, int, int, int]
    """Bottlenecks in each stage."""
    width: int
    """Channels of the stem; the features have 32 times as many."""
    num_heads: int
    """Attention heads of the pool; 32 times the width by 64 in the published models."""
    projection_dim: int
    """Channels of the embedding."""
    norm_epsilon: float = 1e-5
    """Of every batch norm."""
    norm_momentum: float = 0.1
    """Share of a batch in the statistics that are kept, as PyTorch counts it."""

    def __post_init__(self):
        if min(*self.layers, self.width, self.num_heads, self.projection_dim) < 1 or self.width % 2:
            raise InputError(
                f"layers {self.layers}, width {self.width}, num_heads {self.num_heads}, projection_dim {self.projection_dim}: all must be "
                "at least 1, and width even"
            )
        if self.features % self.num_heads:
            raise InputError(f"num_heads {self.num_heads} does not divide the features, {self.features} = 32 width")
        if self.image_size < STRIDE or self.image_size % STRIDE:
            raise InputError(f"image_size {self.image_size}: not a multiple of {STRIDE}")
        if not 0 < self.norm_momentum <= 1:
            raise InputError(f"norm_momentum {self.norm_momentum}: a share, above 0 and at most 1")

    @property
    def features(self) -> int:
        """Channels of the last stage."""
        return 8 * EXPANSION * self.width

    @property
    def output_dim(self) -> int:
        """Channels of the embedding."""
        return self.projection_dim

    def build(self, *, rngs: nnx.Rngs) -> "ResNet":
        """A freshly initialised tower."""
        return ResNet(self, rngs=rngs)


def preset(name: str, **overrides) -> Config:
    """A published size by its name: RN50, RN101, RN50x4, RN50x16, RN50x64.

    Raises:
      InputError: no size has this name.
    """
    if name not in _SIZES:
        raise InputError(f"ResNet {name!r} is unknown: choose one of {', '.join(_SIZES)}")
    layers, width, image_size, dim = _SIZES[name]
    return dataclasses.replace(
        Config(image_size=image_size, layers=layers, width=width, num_heads=width // 2, projection_dim=dim), **overrides
    )


_SIZES = {
    "RN50": ((3, 4, 6, 3), 64, 224, 1024),
    "RN101": ((3, 4, 23, 3), 64, 224, 512),
    "RN50x4": ((4, 6, 10, 6), 80, 288, 640),
    "RN50x16": ((6, 8, 18, 8), 96, 384, 768),
    "RN50x64": ((3, 15, 36, 10), 128, 448, 1024),
}


class Conv(nnx.Module):
    """A convolution without bias, then a batch norm. Paths: `kernel` [size, size, i, o], `norm`."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        size: int,
        stride: int = 1,
        scale: float = 1.0,
        norm: MakeNorm,
        rngs: nnx.Rngs,
    ):
        init = initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's, as the original leaves it
        self.kernel = nnx.Param(init(rngs.params(), (size, size, channels_in, channels), jnp.float32))
        self.norm = norm(channels, scale=scale)
        self.stride, self.padding = stride, size // 2

    def __call__(self, x: Float[Array, "b h w i"], statistics: Statistics) -> tuple[Float[Array, "b p q o"], Buffers]:
        kernel, p = self.kernel[...], self.padding
        y = jax.lax.conv_general_dilated(
            x.astype(kernel.dtype), kernel, (self.stride,) * 2, ((p, p), (p, p)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        y, new = self.norm(y, statistics)
        return y, {"norm": new}


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut. Paths: `conv1`, `conv2`, `conv3`, and `shortcut` where the shape changes."""

    def __init__(self, channels_in: int, channels: int, *, stride: int, norm: MakeNorm, rngs: nnx.Rngs):
        out = EXPANSION * channels
        self.stride = stride
        self.conv1 = Conv(channels_in, channels, size=1, norm=norm, rngs=rngs)
        self.conv2 = Conv(channels, channels, size=3, norm=norm, rngs=rngs)
        self.conv3 = Conv(channels, out, size=1, scale=0.0, norm=norm, rngs=rngs)
        if stride > 1 or channels_in != out:
            self.shortcut = Conv(channels_in, out, size=1, norm=norm, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"], statistics: Statistics) -> tuple[Float[Array, "b p q o"], Buffers]:
        new = {}
        y, new["conv1"] = self.conv1(x, statistics)
        y, new["conv2"] = self.conv2(jax.nn.relu(y), statistics)
        y, new["conv3"] = self.conv3(average_pool(jax.nn.relu(y), self.stride), statistics)
        if hasattr(self, "shortcut"):
            x, new["shortcut"] = self.shortcut(average_pool(x, self.stride), statistics)
        return jax.nn.relu(x + y), new


class Stage(nnx.Module):
    """Bottlenecks, of which the first changes the size. Paths: `bottleneck1/...`, `bottleneck2/...`."""

    def __init__(self, channels_in: int, channels: int, *, depth: int, stride: int, norm: MakeNorm, rngs: nnx.Rngs):
        self.names = tuple(f"bottleneck{i}" for i in range(1, depth + 1))
        for name in self.names:
            setattr(self, name, Bottleneck(channels_in, channels, stride=stride, norm=norm, rngs=rngs))
            channels_in, stride = EXPANSION * channels, 1

    def __call__(self, x: Float[Array, "b h w i"], statistics: Statistics) -> tuple[Float[Array, "b p q o"], Buffers]:
        new = {}
        for name in self.names:
            x, new[name] = getattr(self, name)(x, statistics)
        return x, new


def average_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b p q c"]:
    """Means over squares of `size` points that do not overlap; a rest at the border is left out."""
    if size == 1:
        return x
    b, h, w, c = x.shape
    x = x[:, : h - h % size, : w - w % size]
    return x.reshape(b, h // size, size, w // size, size, c).mean((2, 4))


class AttentionPool(nnx.Module):
    """The mean feature attends to itself and to all features, each with a learned position; the result is projected.

    Paths: `positions` [1 + n, d] (the mean's first), `query`, `key`, `value`, `out`.
    """

    def __init__(self, points: int, width: int, num_heads: int, out_dim: int, *, rngs: nnx.Rngs):
        init = initializers.normal(width**-0.5)
        self.num_heads = num_heads
        self.positions = nnx.Param(init(rngs.params(), (points + 1, width), jnp.float32))
        self.query, self.key, self.value = (linear.Linear(width, width, kernel_init=init, rngs=rngs) for _ in range(3))
        self.out = linear.Linear(width, out_dim, kernel_init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b e"]:
        """`n` is the number of points that the pool was made for."""
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
        x = x + self.positions[...].astype(x.dtype)
        heads = [y.reshape(*y.shape[:2], self.num_heads, -1) for y in (self.query(x[:, :1]), self.key(x), self.value(x))]
        return self.out(attention.dot_product_attention(*heads).reshape(x.shape[0], -1))


class ResNet(nnx.Module):
    """Images to one vector.

    Paths: `stem1` to `stem3`, `stage1/bottleneck1/conv1/...`, `pool/...`. Buffers: `mean` and `variance` of every norm.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        norm = functools.partial(batch_norm.BatchNorm, epsilon=config.norm_epsilon, momentum=config.norm_momentum)
        self.stem1 = Conv(3, width // 2, size=3, stride=2, norm=norm, rngs=rngs)
        self.stem2 = Conv(width // 2, width // 2, size=3, norm=norm, rngs=rngs)
        self.stem3 = Conv(width // 2, width, size=3, norm=norm, rngs=rngs)
        channels, stages = width, []
        for i, depth in enumerate(config.layers):
            stage = Stage(channels, width * 2**i, depth=depth, stride=2 if i else 1, norm=norm, rngs=rngs)
            stages.append(stage)
            channels = EXPANSION * width * 2**i
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        points = (config.image_size // STRIDE) ** 2
        self.pool = AttentionPool(points, config.features, config.num_heads, config.projection_dim, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
        """The embedding, with the statistics that the tower holds.

        Raises:
          InputError: the images are not of `image_size`, which the positions of the pool are for.
        """
        return self._embed(images, "stored")[0]

    def with_batch_statistics(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b e"], Buffers]:
        """The embedding with the statistics of these images, the global batch, and new values of all buffers. Raises as a call."""
        return self._embed(images, "batch")

    def pooled(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
        """What a linear probe takes: the embedding, for the pool is the projection. Raises as a call."""
        return self(images)

    def encode(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b p q d"]:
        """Features at stride 32, before the pool, with the statistics that the tower holds."""
        return self._encode(images, "stored")[0]

    def _embed(self, images: Float[Array, "b h w 3"], statistics: Statistics) -> tuple[Float[Array, "b e"], Buffers]:
        size = self.config.image_size
        if images.shape[1:3] != (size, size):
            raise InputError(f"images of {images.shape[1]} x {images.shape[2]}: the positions are those of image_size {size}")
        x, new = self._encode(images, statistics)
        return self.pool(x.reshape(x.shape[0], -1, x.shape[-1])), new

    def _encode(self, images: Float[Array, "b h w 3"], statistics: Statistics) -> tuple[Float[Array, "b p q d"], Buffers]:
        x, new = self.stem(images, statistics)
        for name in ("stage1", "stage2", "stage3", "stage4"):
            x, new[name] = getattr(self, name)(sharding.shard_batch(x), statistics)
        return sharding.shard_batch(x), new

    def stem(self, images: Float[Array, "b h w 3"], statistics: Statistics) -> tuple[Float[Array, "b p q c"], Buffers]:
        """Features at stride 4, before the first stage."""
        x, new = images, {}
        for name in ("stem1", "stem2", "stem3"):
            x, new[name] = getattr(self, name)(x, statistics)
            x = jax.nn.relu(x)
        return average_pool(x, 2), new
