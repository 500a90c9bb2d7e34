"""Chunks of a batch: same rows, same gradients, same communication."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from vlm_jax.ops import chunks
from vlm_jax.training import hlo

P = jax.P


def _mesh(shape):
    return jax.make_mesh(shape, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)


def _tower(kernel, x):
    return {"embedding": jnp.tanh(x["pixels"] @ kernel), "sum": (x["pixels"] ** 2).sum(-1)}


def test_rows_keep_their_place_and_gradients_are_those_of_the_whole_batch():
    kernel = jax.random.normal(jax.random.key(0), (6, 5))
    x = {"pixels": jax.random.normal(jax.random.key(1), (12, 6))}

    def loss(kernel, k):
        out = chunks.in_chunks(_tower, k)(kernel, x)
        return (out["embedding"] @ out["embedding"].T).sum() + (out["sum"] * jnp.arange(12)).sum(), out

    whole, chunked = (jax.grad(loss, has_aux=True)(kernel, k) for k in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, chunked)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_randomness_of_an_example_does_not_depend_on_its_chunk_or_device(shape):
    """Dropout with a key for each example: the recomputed masks and the gradients are those of the whole batch on one device."""
    kernel = jax.random.normal(jax.random.key(0), (6, 5))
    x, keys = jax.random.normal(jax.random.key(1), (32, 6)), jax.random.split(jax.random.key(2), 32)

    def tower(kernel, x, keys):
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (5,)))(keys)
        return jnp.tanh(x @ kernel) * kept * 2

    def loss(kernel, x, keys, k):
        out = chunks.in_chunks(tower, k)(kernel, x, keys)
        return (out @ out.T).sum()

    want = jax.grad(loss)(kernel, x, keys, 1)
    mesh = _mesh(shape)
    with jax.set_mesh(mesh):
        split = NamedSharding(mesh, P(("data", "fsdp")))
        got = jax.jit(jax.grad(loss), static_argnums=3)(kernel, *jax.device_put((x, keys), split), 4)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 1, 1), (4, 2, 1)], ids=str)
def test_eight_chunks_communicate_no_more_than_one(shape):
    """Also in the backward pass, where the compiler by itself exchanges the gradients of every chunk."""
    mesh = _mesh(shape)

    def layer(x, kernel):
        return jnp.tanh(x @ kernel), None

    def loss(kernels, x, k):
        out = chunks.in_chunks(lambda kernels, x: jax.lax.scan(layer, x, kernels)[0], k)(kernels, x)
        return (out**2).sum()

    with jax.set_mesh(mesh):
        kernels = jax.ShapeDtypeStruct((3, 16, 16), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
        x = jax.ShapeDtypeStruct((128, 16), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
        gradients = jax.jit(jax.grad(loss), static_argnums=2, out_shardings=kernels.sharding)
        one, eight = (hlo.read(gradients.lower(kernels, x, k).compile().as_text()).collectives for k in (1, 8))
    assert one["all-reduce"].count > 0
    assert eight.keys() <= one.keys()
    for kind, traffic in eight.items():
        assert traffic.count <= one[kind].count and traffic.bytes <= one[kind].bytes, (kind, one, eight)


@pytest.mark.parametrize(("k", "message"), [(0, "must be positive"), (5, "12 rows cannot be split in 5")])
def test_numbers_that_do_not_divide_are_refused(k, message):
    with pytest.raises(ValueError, match=message):
        chunks.in_chunks(lambda model, x: x, k)(None, jnp.ones((12, 2)))
