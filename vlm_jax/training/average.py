"""The moving average of the weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Average:
    """Exponential moving average of the trainable parameters; young averages forget faster: min(decay, (1 + t) / (10 + t))."""

    decay: float

    def init(self, params: PyTree) -> PyTree:
        return jax.tree.map(jnp.copy, params)

    def update(self, average: PyTree, params: PyTree, step: jax.Array) -> PyTree:
        decay = jnp.minimum(self.decay, (1.0 + step) / (10.0 + step))
        return jax.tree.map(lambda a, p: a + (1 - decay).astype(a.dtype) * (p - a), average, params)


@dataclasses.dataclass(frozen=True)
class NoAverage:
    """Keeps none."""

    def init(self, params: PyTree) -> PyTree:
        return {}

    def update(self, average: PyTree, params: PyTree, step: jax.Array) -> PyTree:
        return average
