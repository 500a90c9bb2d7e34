"""Large batches on few devices: the per-example part of a loss, one chunk of the batch at a time."""

from collections.abc import Callable
from typing import Any

import jax

from vlm_jax.ops import sharding


def in_chunks(fn: Callable[..., Any], k: int) -> Callable[..., Any]:
    """Runs `fn` over `k` chunks of the batch with recomputation and returns whole-batch outputs.

    `fn` maps pytrees of arrays [b, ...] to a pytree of arrays [b, ...] and treats examples independently (a tower, not a
    loss; not a layer with batch statistics). Activations of one chunk live at a time, and are recomputed in the backward pass; outputs are
    kept, so that a loss over all pairs still sees the whole batch and every gradient is exact.

    Row r goes to chunk r mod k. The obvious split in k runs of rows would gather a sharded batch on every device; this
    one leaves every row where it is.

    Raises:
      ValueError: `k` is not positive or does not divide the batch.
    """
    if k < 1:
        raise ValueError(f"k {k}: the number of chunks must be positive")
    if k == 1:
        return fn

    def split(x):
        if x.shape[0] % k:
            raise ValueError(f"a batch of {x.shape[0]} rows cannot be split in {k} chunks of equal size")
        return sharding.shard_batch(x.reshape(x.shape[0] // k, k, *x.shape[1:]).swapaxes(0, 1), axis=1)

    def join(x):
        return sharding.shard_batch(x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:]))

    def chunked(*args):
        outputs = jax.lax.map(jax.checkpoint(lambda chunk: fn(*chunk)), jax.tree.map(split, args))
        return jax.tree.map(join, outputs)

    return chunked
