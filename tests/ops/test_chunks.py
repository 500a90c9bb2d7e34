"""Chunks of a batch: same rows, same gradients, and no collective in the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from vlm_jax.ops import chunks

P = jax.P


def _tower(kernel, x):
    return {"embedding": jnp.tanh(x["pixels"] @ kernel), "sum": (x["pixels"] ** 2).sum(-1)}


def test_rows_keep_their_place_and_gradients_are_those_of_the_whole_batch():
    kernel = jax.random.normal(jax.random.key(0), (6, 5))
    x = {"pixels": jax.random.normal(jax.random.key(1), (12, 6))}

    def loss(kernel, k):
        out = chunks.in_chunks(lambda x: _tower(kernel, x), k)(x)
        return (out["embedding"] @ out["embedding"].T).sum() + (out["sum"] * jnp.arange(12)).sum(), out

    whole, chunked = (jax.grad(loss, has_aux=True)(kernel, k) for k in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, chunked)


def test_chunks_of_a_sharded_batch_need_no_communication():
    mesh = jax.make_mesh((4, 2, 1), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)
    kernel = jnp.ones((6, 5))
    with jax.set_mesh(mesh):
        pixels = jax.device_put(jnp.ones((64, 6)), NamedSharding(mesh, P(("data", "fsdp"))))
        fn = jax.jit(chunks.in_chunks(lambda x: jnp.tanh(x @ kernel), 4))
        text = fn.lower(pixels).compile().as_text()
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))


@pytest.mark.parametrize(("k", "message"), [(0, "must be positive"), (5, "12 rows cannot be split in 5")])
def test_numbers_that_do_not_divide_are_refused(k, message):
    with pytest.raises(ValueError, match=message):
        chunks.in_chunks(lambda x: x, k)(jnp.ones((12, 2)))
