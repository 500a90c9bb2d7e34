"""Large batches on few devices: the per-example part of a loss, one chunk of the batch at a time."""

from collections.abc import Callable
from typing import Any

import jax

from vlm_jax.ops import sharding

P = jax.P


def in_chunks(fn: Callable[..., Any], k: int) -> Callable[..., Any]:
    """Runs `fn(model, *batch)` over `k` chunks of the batch with recomputation and returns whole-batch outputs.

    `model` is any pytree, such as a module: what all examples share and gradients flow to. `fn` maps it and pytrees of arrays
    [b, ...] to a pytree of arrays [b, ...] and treats examples independently (a tower, not a loss; not a layer with batch
    statistics). What is random must come in as an array with a row, or a key, for each example. Activations of one chunk live at a
    time, and are recomputed in the backward pass; outputs are kept, so that a loss over all pairs still sees the whole batch and
    every gradient is exact.

    Row r of a device goes to chunk r mod k, so that no row leaves its device; over the batch axes of the mesh every device runs its own
    loop, with the whole model (gathered before the loop, if fsdp keeps it in parts), adds up its own gradients, and exchanges them
    once after the loop. Left to the compiler, they would be exchanged k times.

    Raises:
      ValueError: `k` is not positive or does not divide the rows of a device.
    """
    if k < 1:
        raise ValueError(f"k {k}: the number of chunks must be positive")
    if k == 1:
        return fn

    def split(x):
        if x.shape[0] % k:
            raise ValueError(f"a batch of {x.shape[0]} rows cannot be split in {k} chunks of equal size")
        return x.reshape(x.shape[0] // k, k, *x.shape[1:]).swapaxes(0, 1)

    def join(x):
        return x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])

    def loop(model, *batch):
        outputs = jax.lax.map(jax.checkpoint(lambda chunk: fn(model, *chunk)), jax.tree.map(split, batch))
        return jax.tree.map(join, outputs)

    def chunked(model, *batch):
        axes = sharding.batch_axes()
        if not axes:
            return loop(model, *batch)
        specs = (P(), *(P(axes) for _ in batch))
        return jax.shard_map(loop, in_specs=specs, out_specs=P(axes), axis_names=set(axes), check_vma=False)(model, *batch)

    return chunked
