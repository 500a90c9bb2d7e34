"""Activation functions by the name that a config gives."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.errors import InputError

Name = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "squared_relu"]
Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def by_name(name: str) -> Activation:
    """The activation called `name`.

    `gelu` is exact (erf: timm, Hugging Face ViT), `gelu_tanh` its tanh approximation (big_vision, SigLIP),
    `quick_gelu` x sigmoid(1.702 x) (weights trained by OpenAI's CLIP). They differ by up to 0.02: weights need the one
    they were trained with. `squared_relu` is max(x, 0)^2 (So et al. 2021, "Primer"; Flamingo).

    Raises:
      InputError: no activation has this name.
    """
    if name not in _BY_NAME:
        raise InputError(f"activation {name!r} is unknown: choose one of {', '.join(get_args(Name))}")
    return _BY_NAME[name]


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x), with the error function."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The tanh approximation of x Phi(x)."""
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def squared_relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0)^2."""
    return jnp.square(jax.nn.relu(x))


_BY_NAME: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "squared_relu": squared_relu,
}
