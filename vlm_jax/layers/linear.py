"""An affine map of the last axis."""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

Bias = Literal["learned", "none"]
"""Whether the linear layers of a block have biases."""


class Linear(nnx.Module):
    """x kernel + bias, computed in the dtype of the kernel."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        kernel_init: Initializer,
        bias_init: Initializer | None = initializers.zeros,
        rngs: nnx.Rngs,
    ):
        """A `bias_init` of None leaves the bias out."""
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_dim, out_dim), jnp.float32))
        if bias_init is not None:
            self.bias = nnx.Param(bias_init(rngs.params(), (out_dim,), jnp.float32))

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        kernel = self.kernel[...]
        # Two axes: XLA's CPU backend takes nearly twice as long for the same product over three.
        y = x.reshape(-1, x.shape[-1]).astype(kernel.dtype) @ kernel
        if hasattr(self, "bias"):
            y = y + self.bias[...].astype(kernel.dtype)
        return y.reshape(*x.shape[:-1], kernel.shape[-1])
