"""The two-layer perceptron of a Transformer block."""

from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.layers import linear
from vlm_jax.layers.initializers import Initializers
from vlm_jax.ops import activations


class Mlp(nnx.Module):
    """down(activation(up(x))). Paths: `up`, `down` (each kernel, bias)."""

    def __init__(
        self, width: int, mlp_dim: int, *, activation: activations.Name, initializers: Initializers, rngs: nnx.Rngs
    ):
        self.activation = activation
        self.up = linear.Linear(width, mlp_dim, kernel_init=initializers.up, bias_init=initializers.up_bias, rngs=rngs)
        self.down = linear.Linear(
            mlp_dim, width, kernel_init=initializers.down, bias_init=initializers.down_bias, rngs=rngs
        )

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.down(activations.by_name(self.activation)(self.up(x)))
