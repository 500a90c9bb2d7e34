"""Batch normalisation (Ioffe and Szegedy 2015), whose statistics are buffers: read in evaluation, given back as new values in training."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Statistics = Literal["stored", "batch"]
"""What x is normalised with: the statistics that the layer holds, or those of this batch."""
Buffers = dict[str, Any]
"""Values of buffers, nested as the modules are."""


class BatchStatistic(nnx.Variable):
    """Mean or variance over batches, as training kept it: a buffer."""


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) scale + bias, per channel.

    A batch is the global batch: over a mesh, jit makes the means below those of all devices. Its variance is the population's where it
    normalises and the unbiased one where it is stored, as in PyTorch. All is computed in float32 (or wider), whatever x is.

    Paths: `scale`, `bias`; buffers `mean`, `variance`.
    """

    def __init__(self, channels: int, *, epsilon: float, momentum: float = 0.1, scale: float = 1.0):
        """
        Args:
          momentum: share of the batch in the new statistics.
          scale: initial gain.
        """
        self.scale = nnx.Param(jnp.full(channels, scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = BatchStatistic(jnp.zeros(channels))
        self.variance = BatchStatistic(jnp.ones(channels))
        self.epsilon, self.momentum = epsilon, momentum

    def __call__(self, x: Float[Array, "b h w c"], statistics: Statistics) -> tuple[Float[Array, "b h w c"], Buffers]:
        """The result in the dtype of x, and the statistics for the next step: with "stored" those that the layer holds."""
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, variance = self.mean[...], self.variance[...]
        new = {"mean": mean, "variance": variance}
        if statistics == "batch":
            points = y.shape[0] * y.shape[1] * y.shape[2]
            mean = y.mean((0, 1, 2))
            variance = jnp.square(y - mean).mean((0, 1, 2))
            seen = {"mean": mean, "variance": variance * (points / max(points - 1, 1))}
            new = {name: self._renewed(new[name], jax.lax.stop_gradient(x)) for name, x in seen.items()}
        y = (y - mean) * (jax.lax.rsqrt(variance + self.epsilon) * self.scale[...]) + self.bias[...]
        return y.astype(x.dtype), new

    def _renewed(self, stored: Float[Array, " c"], seen: Float[Array, " c"]) -> Float[Array, " c"]:
        return ((1 - self.momentum) * stored + self.momentum * seen).astype(stored.dtype)
