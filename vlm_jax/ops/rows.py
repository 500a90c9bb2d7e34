"""Rows of a batch that belong together: the hypotheses of an example, beside one another."""

import jax
from jaxtyping import Array, Int, Shaped


def take(x: Shaped[Array, "..."], rows: Int[Array, "b m"], axis: int = 0) -> Shaped[Array, "..."]:
    """For each of b examples m of its own rows; `axis`, b times as long as an example has rows, becomes b m.

    An index within the example, not within the batch: over a mesh that splits the batch no row leaves its device.
    """
    b, m = rows.shape
    lead, rest = x.shape[:axis], x.shape[axis + 1 :]
    own = x.reshape(*lead, b, x.shape[axis] // b, *rest)
    taken = jax.vmap(lambda y, index: y.take(index, axis), (axis, 0), axis)(own, rows)
    return taken.reshape(*lead, b * m, *rest)
