"""Two stacks as one: before every n-th block of a stack stands a block of another, as between those of a language model in Flamingo."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.layers import stack


def apply(
    inserted: nnx.Module,
    blocks: nnx.Module,
    x: Float[Array, "b t d"],
    one: Callable[[Any, Any, Any], Any],
    several: Callable[[Any, Any, Any], tuple[Any, Any]],
    *,
    every: int,
    offset: int,
    loop: stack.Loop,
    of_inserted: Any = None,
    of_blocks: Any = None,
) -> tuple[Float[Array, "b t d"], Any]:
    """x through all blocks in order, and what those of the stack gave. Groups of equal length are compiled as one where `loop` is scan.

    Args:
      inserted: blocks that lead with their number; the first stands before block `offset` of the stack, the next ones `every` later.
      blocks: the stack, which leads with its depth.
      one: from an inserted block, x, and what is its own to x.
      several: from consecutive blocks of the stack, x, and what is their own to x and what they give, leading with their number.
      of_inserted, of_blocks: arrays of their own, leading with the number or the depth, or None.
    """
    depth = jax.tree.leaves(blocks)[0].shape[0]
    whole = (depth - offset) // every
    end = offset + whole * every
    owned, single = (blocks, of_blocks), (inserted, of_inserted)

    def part(tree, first, last):
        return jax.tree.map(lambda w: w[first:last], tree)

    def group(x, own):
        (block, of_block), (layers, of_layers) = own
        return several(layers, one(block, x, of_block), of_layers)

    given = []
    if offset:
        layers, of_layers = part(owned, 0, offset)
        x, first = several(layers, x, of_layers)
        given.append(first)
    if whole:
        grouped = jax.tree.map(lambda w: w.reshape(whole, every, *w.shape[1:]), part(owned, offset, end))
        groups = part(single, 0, whole), grouped
        if loop == "scan":
            x, middle = jax.lax.scan(group, x, groups)
            given.append(jax.tree.map(lambda w: w.reshape(whole * every, *w.shape[2:]), middle))
        else:
            for i in range(whole):
                x, own = group(x, jax.tree.map(lambda w, i=i: w[i], groups))
                given.append(own)
    if end < depth:
        x, last = group(x, (jax.tree.map(lambda w: w[whole], single), part(owned, end, depth)))
        given.append(last)
    return x, given[0] if len(given) == 1 else jax.tree.map(lambda *w: jnp.concatenate(w), *given)
