"""The perceptron of a Transformer block: two layers, or three where one gates the other."""

from typing import Literal

from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.layers import linear
from vlm_jax.layers.initializers import Initializers
from vlm_jax.ops import activations

Kind = Literal["plain", "gated"]
"""down(activation(up(x))), or down(activation(gate(x)) * up(x)) (Shazeer 2020; with silu: SwiGLU)."""


class Mlp(nnx.Module):
    """From `width` to `mlp_dim` channels and back. Paths: `up`, `gate` (of the gated kind), `down` (each kernel, bias)."""

    def __init__(
        self,
        width: int,
        mlp_dim: int,
        *,
        activation: activations.Name,
        kind: Kind = "plain",
        bias: Literal["learned", "none"] = "learned",
        initializers: Initializers,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        up, down = (initializers.up_bias, initializers.down_bias) if bias == "learned" else (None, None)
        self.up = linear.Linear(width, mlp_dim, kernel_init=initializers.up, bias_init=up, rngs=rngs)
        if kind == "gated":
            self.gate = linear.Linear(width, mlp_dim, kernel_init=initializers.up, bias_init=up, rngs=rngs)
        self.down = linear.Linear(mlp_dim, width, kernel_init=initializers.down, bias_init=down, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        activation = activations.by_name(self.activation)
        if hasattr(self, "gate"):
            return self.down(activation(self.gate(x)) * self.up(x))
        return self.down(activation(self.up(x)))
