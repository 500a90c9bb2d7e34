"""Stacks of equal blocks: parameters lead with the depth axis, one scan applies them.

At depth 24 a scan compiles in a thirteenth of an unrolled loop's time.
"""

from collections.abc import Callable
from typing import Literal, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.ops import sharding

Remat = Literal["none", "full", "dots", "names"]
"""What the backward pass computes again: `none` nothing, `full` each block from its input, `dots` all but the outputs
of dense layers, `names` all but a few tensors as wide as the residual stream (`SAVED`)."""
SAVED = ("query", "key", "value", "attended", "attention_residual")
"""Names under which the blocks mark what `names` keeps. What it recomputes is the MLP's first layer, norms and softmax."""

BlockT = TypeVar("BlockT", bound=nnx.Module)


def build(make: Callable[[nnx.Rngs], BlockT], depth: int, *, rngs: nnx.Rngs) -> BlockT:
    """`depth` blocks as one, each initialised from its own key, whose parameters lead with the depth axis."""
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), depth))


def apply(
    blocks: nnx.Module, x: Float[Array, "b *t d"], *args: object, remat: Remat = "none"
) -> Float[Array, "b *t d"]:
    """x through all blocks in order; `args` go to every block.

    `remat` changes memory and time, not values or gradients.
    """

    def body(x, block):
        return sharding.shard_batch(block(x, *args)), None

    if remat != "none":
        # A scan already keeps the recomputation apart from the forward pass: no barrier against merging them is needed.
        body = jax.checkpoint(body, policy=_policy(remat), prevent_cse=False)
    return jax.lax.scan(body, x, blocks)[0]


def _policy(remat):
    return {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "names": jax.checkpoint_policies.save_only_these_names(*SAVED),
    }[remat]
