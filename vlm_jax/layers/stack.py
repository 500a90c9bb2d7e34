"""Stacks of equal blocks, whose parameters lead with the depth axis.

A module holds what `build` returns as its attribute `blocks`, and nothing else under that name: paths with a part `blocks`
are how the optimizer knows stacked parameters.
"""

import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.ops import sharding

Loop = Literal["scan", "unroll"]
"""How the blocks are applied: `scan` compiles one block (at depth 24 in a thirteenth of the time), `unroll` all of them.
On CPU the unrolled steps take 0.7 of the time, because nothing is copied in and out of stacked activations."""
Remat = Literal["none", "full", "dots", "names"]
"""What the backward pass computes again: `none` nothing, `full` each block from its input, `dots` all but the outputs
of dense layers, `names` all but a few tensors as wide as the residual stream (`SAVED`)."""
SAVED = ("query", "key", "value", "attended", "attention_residual")
"""Names under which the blocks mark what `names` keeps. What it recomputes is the MLP's first layer, norms and softmax."""

BlockT = TypeVar("BlockT", bound=nnx.Module)


def build(make: Callable[[nnx.Rngs], BlockT], depth: int, *, rngs: nnx.Rngs) -> BlockT:
    """`depth` blocks as one, each initialised from its own key, whose parameters lead with the depth axis."""
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), depth))


def stacked(path: str) -> bool:
    """Whether the parameter at this path, such as `image/blocks/mlp/up/kernel`, leads with the depth axis."""
    return bool(re.search(r"(^|/)blocks/", path))


def apply(
    blocks: nnx.Module, x: Float[Array, "b *t d"], *args: object, loop: Loop = "scan", remat: Remat = "none"
) -> Float[Array, "b *t d"]:
    """x through all blocks in order; `args` go to every block.

    `loop` and `remat` change memory and time, not values or gradients.
    """

    def body(x, block):
        return sharding.shard_batch(block(x, *args)), None

    body = checkpointed(body, loop=loop, remat=remat)
    if loop == "scan":
        return jax.lax.scan(body, x, blocks)[0]
    for i in range(jax.tree.leaves(blocks)[0].shape[0]):
        x, _ = body(x, jax.tree.map(lambda w, i=i: w[i], blocks))
    return x


def apply_each(
    fn: Callable[[BlockT, Float[Array, "b *t d"], Any], tuple[Float[Array, "b *t d"], Any]],
    blocks: BlockT,
    x: Float[Array, "b *t d"],
    each: Any = None,
    *,
    loop: Loop = "scan",
) -> tuple[Float[Array, "b *t d"], Any]:
    """x through all blocks in order, where each has arrays of its own and gives some back, such as keys and values.

    Args:
      fn: from a block, x and what is the block's own to x and what it gives back.
      each: a pytree of arrays that lead with the depth axis, or None. What the blocks give back comes in the same form.
    """

    def body(x, block_and_own):
        block, own = block_and_own
        x, own = fn(block, x, own)
        return sharding.shard_batch(x), own

    if loop == "scan":
        return jax.lax.scan(body, x, (blocks, each))
    given = []
    for i in range(jax.tree.leaves(blocks)[0].shape[0]):
        x, own = body(x, jax.tree.map(lambda w, i=i: w[i], (blocks, each)))
        given.append(own)
    return x, jax.tree.map(lambda *y: jnp.stack(y), *given)


def checkpointed(fn: Callable[..., Any], *, loop: Loop, remat: Remat) -> Callable[..., Any]:
    """`fn`, the body of such a loop, whose backward pass computes again what `remat` says."""
    if remat == "none":
        return fn
    # A scan keeps the recomputation apart from the forward pass by itself.
    return jax.checkpoint(fn, policy=_policy(remat), prevent_cse=loop == "unroll")


def _policy(remat):
    return {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "names": jax.checkpoint_policies.save_only_these_names(*SAVED),
    }[remat]
