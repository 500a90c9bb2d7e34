"""Moments that take less memory: the second one as rows and columns, the first one in bfloat16."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vlm_jax.layers import stack
from vlm_jax.training import tree

PyTree = Any


class State(NamedTuple):
    """Moving averages of squared gradients, nested by path: a parameter has rows and columns, or `squares`."""

    count: jax.Array
    factored_rows: PyTree
    """Means over the last axis; `sharding.REDUCED` knows this name and the next."""
    factored_columns: PyTree
    """Means over the last axis but one."""
    squares: PyTree
    """Of parameters that are no large matrices, as they are."""


def scale_by_factored_rms(
    *, factor_from: int, beta2_power: float, beta2_cap: float, epsilon: float
) -> optax.GradientTransformation:
    """Divides gradients by the root of a second moment of rank one (Shazeer & Stern 2018, algorithms 4 and 5).

    `optax.scale_by_factored_rms` factors the two largest axes, and would take the depth of a stack for one of them. Here they are
    the last two of each slice, which for matrices and convolutions are the same; leading axes are kept apart.

    Args:
      factor_from: the last two axes must both have so many entries.
      beta2_power: at step t = 1, 2, ... the average decays by 1 - t**-beta2_power,
      beta2_cap: and by no more than this (Zhai et al. 2022).
      epsilon: added to the squared gradient.
    """

    def factored(path: str, x: Any) -> bool:
        return len(x.shape) - stack.stacked(path) >= 2 and min(x.shape[-2:]) >= factor_from

    def init(params: PyTree) -> State:
        flat = tree.flatten(params)
        matrices = {path: x for path, x in flat.items() if factored(path, x)}
        return State(
            jnp.zeros((), jnp.int32),
            tree.unflatten({path: jnp.zeros(x.shape[:-1], x.dtype) for path, x in matrices.items()}),
            tree.unflatten({path: jnp.zeros(x.shape[:-2] + x.shape[-1:], x.dtype) for path, x in matrices.items()}),
            tree.unflatten({path: jnp.zeros_like(x) for path, x in flat.items() if path not in matrices}),
        )

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, State]:
        beta2 = jnp.minimum(beta2_cap, 1 - (state.count + 1.0) ** -beta2_power)
        rows, columns, squares = map(tree.flatten, (state.factored_rows, state.factored_columns, state.squares))
        scaled = {}
        for path, grad in tree.flatten(updates).items():
            square = grad * grad + epsilon
            if path in rows:
                rows[path] = row = beta2 * rows[path] + (1 - beta2) * square.mean(-1)
                columns[path] = column = beta2 * columns[path] + (1 - beta2) * square.mean(-2)
                # Two roots, since the product of a row and a column may underflow.
                scale = jax.lax.rsqrt(row / row.mean(-1, keepdims=True))[..., :, None] * jax.lax.rsqrt(column)[..., None, :]
            else:
                squares[path] = beta2 * squares[path] + (1 - beta2) * square
                scale = jax.lax.rsqrt(squares[path])
            scaled[path] = grad * scale
        moments = map(tree.unflatten, (rows, columns, squares))
        return tree.unflatten(scaled), State(state.count + 1, *moments)

    return optax.GradientTransformation(init, update)


def clip_by_rms(limit: float) -> optax.GradientTransformation:
    """Scales an update down to a root mean square of `limit`; each slice of a stack by itself."""

    def clip(path: str, update: jax.Array) -> jax.Array:
        axes = tuple(range(int(stack.stacked(path)), update.ndim))
        rms = jnp.sqrt(jnp.mean(update * update, axis=axes, keepdims=True))
        return update / jnp.maximum(1, rms / limit)

    return optax.stateless(lambda updates, params: tree.map_paths(clip, updates))


def keep(inner: optax.GradientTransformation, moment: str, dtype: str) -> optax.GradientTransformation:
    """`inner` with the named part of its state cast to `dtype` between steps, and computed with as before.

    Rounded to the nearest, a moment that decays by b stays where the gradient would move it by less than half of its last bit: a
    constant gradient's ends up to 2**-8 / (1 - b) short, 4 % at 0.9 and 39 % at 0.99; noise in the gradient averages this out.
    optax's own option multiplies in bfloat16 as well, where a decay of 0.9 is 0.8984 and one of 0.99 is 0.9883.
    """
    if dtype == "float32":
        return inner

    def cast(state, to):
        return state._replace(**{moment: jax.tree.map(lambda x, like: x.astype(like.dtype), getattr(state, moment), to)})

    def init(params):
        state = inner.init(params)
        return cast(state, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), getattr(state, moment)))

    def update(updates, state, params=None):
        updates, new = inner.update(updates, cast(state, updates), params)
        return updates, cast(new, getattr(state, moment))

    return optax.GradientTransformation(init, update)
