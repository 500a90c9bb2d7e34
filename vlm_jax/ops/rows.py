"""Rows of a batch, each on its own device: the hypotheses of an example beside one another, and the largest numbers of a row."""

import math

import jax
from jaxtyping import Array, Float, Int, Shaped

from vlm_jax.ops import sharding

P = jax.P


def take(x: Shaped[Array, "..."], rows: Int[Array, "b m"], axis: int = 0) -> Shaped[Array, "..."]:
    """For each of b examples m of its own rows; `axis`, b times as long as an example has rows, becomes b m.

    An index within the example, not within the batch: over a mesh that splits the batch no row leaves its device.
    """
    b, m = rows.shape
    lead, rest = x.shape[:axis], x.shape[axis + 1 :]
    own = x.reshape(*lead, b, x.shape[axis] // b, *rest)
    taken = jax.vmap(lambda y, index: y.take(index, axis), (axis, 0), axis)(own, rows)
    return taken.reshape(*lead, b * m, *rest)


def top_k(x: Float[Array, "b n"], k: int) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    """The k largest numbers of each row, in falling order, and where they stand; of equal ones the first.

    Over a mesh every device looks at its own rows: left to the compiler, which cannot divide this operation, all would be gathered.
    """
    axes = sharding.batch_axes()
    if not axes or x.shape[0] % math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in axes):
        return _top_k(x, k)
    own = jax.shard_map(lambda x: _top_k(x, k), in_specs=P(axes), out_specs=P(axes), axis_names=set(axes), check_vma=False)
    return own(x)


def _top_k(x, k) -> tuple[Array, Array]:
    largest, index = jax.lax.top_k(x, k)  # a list
    return largest, index
