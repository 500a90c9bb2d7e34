"""Residual 3x3 convolutions over feature maps: the stem of a ViT, and the body of the small convolutional tower."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from vlm_jax.layers import linear, norm, stack
from vlm_jax.ops import activations, patches, sharding


class ResidualConv(nnx.Module):
    """x + conv3x3(activation(norm(x))), zero-padded to keep the size (He et al. 2016, pre-activation).

    The norm is over the channels of each pixel: no statistics of the batch, so nothing to synchronise between devices,
    and no state. Paths: `norm`, `kernel` [3, 3, c, c], `bias`.
    """

    def __init__(self, channels: int, *, activation: activations.Name, norm_epsilon: float, rngs: nnx.Rngs):
        self.activation = activation
        self.norm = norm.LayerNorm(channels, epsilon=norm_epsilon)
        shape = (3, 3, channels, channels)
        self.kernel = nnx.Param(initializers.he_normal()(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        kernel = self.kernel[...]
        y = activations.by_name(self.activation)(self.norm(x)).astype(kernel.dtype)
        y = jax.lax.conv_general_dilated(y, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return x + y + self.bias[...].astype(kernel.dtype)


class Stage(nnx.Module):
    """Folds squares of pixels into channels, then runs residual convolutions at the smaller size.

    Folding is a patch embedding: a dense layer on patches of `stride` pixels, with no overlap.
    Paths: `fold` (kernel, bias), `blocks/...`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        depth: int,
        activation: activations.Name,
        norm_epsilon: float,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.fold = linear.Linear(
            stride * stride * in_channels, channels, kernel_init=initializers.lecun_normal(), rngs=rngs
        )
        self.blocks = stack.build(
            lambda rngs: ResidualConv(channels, activation=activation, norm_epsilon=norm_epsilon, rngs=rngs),
            depth,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "b h w i"], *, remat: stack.Remat = "none") -> Float[Array, "b p q o"]:
        grid = patches.grid(x.shape[1], x.shape[2], self.stride)
        x = sharding.shard_batch(self.fold(patches.patchify(x, self.stride)))
        # Never a scan: in one, XLA's CPU backend takes forty times as long for a convolution's weight gradient.
        return stack.apply(self.blocks, x.reshape(x.shape[0], *grid, x.shape[-1]), loop="unroll", remat=remat)


class Stages(nnx.Module):
    """Stages at stride 4, 8, 16 and so on. Paths: `stage1/...`, `stage2/...`."""

    def __init__(
        self,
        channels: Sequence[int],
        depth: Sequence[int],
        *,
        activation: activations.Name,
        norm_epsilon: float,
        rngs: nnx.Rngs,
    ):
        """`channels` and `depth` of each stage, on images of three channels."""
        self.names = tuple(f"stage{i}" for i in range(1, len(channels) + 1))
        # 4 x 4 pixels are folded at once: convolutions on large maps of few channels are slow everywhere.
        strides = (4,) + (2,) * (len(channels) - 1)
        stages = zip(self.names, (3, *channels[:-1]), channels, strides, depth, strict=True)
        for name, before, after, stride, blocks in stages:
            stage = Stage(
                before, after, stride=stride, depth=blocks, activation=activation, norm_epsilon=norm_epsilon, rngs=rngs
            )
            setattr(self, name, stage)

    def __call__(self, images: Float[Array, "b h w 3"], *, remat: stack.Remat = "none") -> Float[Array, "b p q c"]:
        x = images
        for name in self.names:
            x = getattr(self, name)(x, remat=remat)
        return x
