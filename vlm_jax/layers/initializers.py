"""How the weights of a Transformer tower start, by the codebase whose distributions are followed.

`big_vision` is the one for ViT, SigLIP and most of what follows them; `clip` is OpenAI's.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.nn.initializers import Initializer

Name = Literal["big_vision", "clip"]


@dataclasses.dataclass(frozen=True)
class Initializers:
    """One distribution for each kind of weight; kernels are [in, out]."""

    query_key_value: Initializer
    out: Initializer
    up: Initializer
    up_bias: Initializer
    down: Initializer
    down_bias: Initializer
    embedding: Initializer
    """Token table [v, d]."""
    patch: Initializer
    positions: Initializer
    class_token: Initializer
    """Also registers."""
    probe: Initializer
    projection: Initializer
    """From the pooled token to the embedding."""


def big_vision(*, width: int) -> Initializers:
    """Xavier-uniform blocks, positions and tokens of unit norm, a zero class token (big_vision's ViT and text tower)."""
    xavier, small = initializers.xavier_uniform(), initializers.normal(1e-6)
    unit = initializers.normal(width**-0.5)
    return Initializers(
        query_key_value=xavier,
        out=xavier,
        up=xavier,
        up_bias=small,
        down=xavier,
        down_bias=small,
        embedding=unit,
        patch=initializers.lecun_normal(),
        positions=unit,
        class_token=initializers.zeros,
        probe=xavier,
        projection=initializers.lecun_normal(),
    )


def clip_image(*, width: int, mlp_dim: int) -> Initializers:
    """OpenAI's image tower: PyTorch's defaults in the blocks, class token, positions and projection N(0, 1 / width)."""
    unit = initializers.normal(width**-0.5)
    return Initializers(
        # PyTorch draws the fused [3 width, width] matrix Xavier-uniformly.
        query_key_value=_uniform((6 / (4 * width)) ** 0.5),
        out=_torch_linear(width),
        up=_torch_linear(width),
        up_bias=_torch_linear(width),
        down=_torch_linear(mlp_dim),
        down_bias=_torch_linear(mlp_dim),
        embedding=unit,
        patch=initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        positions=unit,
        class_token=unit,
        probe=unit,
        projection=unit,
    )


def clip_text(*, width: int, depth: int, mlp_dim: int) -> Initializers:
    """OpenAI's text tower: normal throughout, narrower where a block writes to the residual stream."""
    unit, residual = initializers.normal(width**-0.5), initializers.normal((2 * width * depth) ** -0.5)
    return Initializers(
        query_key_value=unit,
        out=residual,
        up=initializers.normal((2 * width) ** -0.5),
        up_bias=_torch_linear(width),
        down=residual,
        down_bias=_torch_linear(mlp_dim),
        embedding=initializers.normal(0.02),
        patch=unit,
        positions=initializers.normal(0.01),
        class_token=unit,
        probe=unit,
        projection=unit,
    )


def gpt2(*, depth: int) -> Initializers:
    """GPT-2 (Radford et al. 2019): N(0, 0.02) throughout, narrower where a block writes to the residual stream; positions N(0, 0.01)."""
    normal, residual = initializers.normal(0.02), initializers.normal(0.02 * (2 * depth) ** -0.5)
    return Initializers(
        query_key_value=normal,
        out=residual,
        up=normal,
        up_bias=initializers.zeros,
        down=residual,
        down_bias=initializers.zeros,
        embedding=normal,
        patch=normal,
        positions=initializers.normal(0.01),
        class_token=normal,
        probe=normal,
        projection=normal,
    )


def _torch_linear(fan_in: int) -> Initializer:
    return _uniform(fan_in**-0.5)


def _uniform(limit: float) -> Initializer:
    """Uniform in [-limit, limit]."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init
