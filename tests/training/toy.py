"""A small system that uses every part of the protocol: frozen parameters, bounds, buffers, extra, streams, chunks."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from vlm_jax.layers import linear, stack
from vlm_jax.ops import chunks
from vlm_jax.systems import base

WIDTH, DEPTH = 8, 3


class Statistic(nnx.Variable):
    """A running mean: a buffer."""


class Model(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)
        self.scale = nnx.Param(jnp.float32(1.0))
        self.mean = Statistic(jnp.zeros(WIDTH))

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x))) * self.scale[...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(base.System):
    limit: float = 1.05

    @property
    def bounds(self):
        return (base.Bound(r"^scale$", -jnp.inf, self.limit),)

    def build(self, *, rngs):
        return Model(rngs)

    def init_extra(self, model):
        return {"seen": jnp.zeros((), jnp.int32)}

    def objective(self, model, batch, extra, context):
        x, y = batch["left"]["x"], batch["right"]["y"]
        guess = chunks.in_chunks(type(model).__call__, context.microbatches)(model, x)
        noise = 1e-3 * jax.random.normal(jax.random.fold_in(context.key, 1), y.shape)
        loss = jnp.mean((guess - y - noise) ** 2)
        progress = context.step / context.total_steps
        return base.Objective(
            loss, {"progress": progress}, {"seen": extra["seen"] + len(x)}, {"mean": 0.9 * model.mean[...] + 0.1 * x.mean(0)}
        )


class Block(nnx.Module):
    def __init__(self, rngs):
        init = nnx.initializers.lecun_normal()
        self.up = linear.Linear(WIDTH, 4 * WIDTH, kernel_init=init, rngs=rngs)
        self.down = linear.Linear(4 * WIDTH, WIDTH, kernel_init=init, rngs=rngs)

    def __call__(self, x):
        return x + self.down(jnp.tanh(self.up(x)))


class Tower(nnx.Module):
    def __init__(self, rngs):
        init = nnx.initializers.lecun_normal()
        self.patch_embed = linear.Linear(WIDTH, WIDTH, kernel_init=init, rngs=rngs)
        self.blocks = stack.build(Block, DEPTH, rngs=rngs)
        self.head = linear.Linear(WIDTH, WIDTH, kernel_init=init, rngs=rngs)

    def __call__(self, x):
        return self.head(stack.apply(self.blocks, self.patch_embed(x)))


class Stacked(nnx.Module):
    """Paths: `image/patch_embed`, `image/blocks`, `image/head`, `scale`."""

    def __init__(self, rngs):
        self.image = Tower(rngs)
        self.scale = nnx.Param(jnp.float32(1.0))
        self.mean = Statistic(jnp.zeros(WIDTH))

    def __call__(self, x):
        return self.image(x) * self.scale[...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackedToy(Toy):
    """The toy with a tower of stacked blocks, as those of the package."""

    def build(self, *, rngs):
        return Stacked(rngs)


def batch(seed: int, size: int = 16):
    keys = jax.random.split(jax.random.key(seed))
    return {"left": {"x": jax.random.normal(keys[0], (size, WIDTH))}, "right": {"y": jax.random.normal(keys[1], (size, WIDTH))}}
