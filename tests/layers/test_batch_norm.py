"""Batch norm: PyTorch's formula in numpy, float32 statistics whatever the input, the same numbers on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax.layers import batch_norm
from vlm_jax.training import sharding

EPSILON, MOMENTUM = 1e-5, 0.1


def layer(channels):
    rng = np.random.default_rng(0)
    made = batch_norm.BatchNorm(channels, epsilon=EPSILON, momentum=MOMENTUM)
    for name in ("scale", "bias", "mean"):
        setattr(made, name, type(getattr(made, name))(jnp.asarray(rng.standard_normal(channels))))
    made.variance = batch_norm.BatchStatistic(jnp.asarray(0.5 + rng.random(channels)))
    return made


def images(b=8, c=6):
    return 3 + 2 * np.random.default_rng(1).standard_normal((b, 3, 2, c))


def formula(norm, x):
    """A step of PyTorch's BatchNorm2d: result, running mean and running variance."""
    points = x.shape[0] * x.shape[1] * x.shape[2]
    mean = x.sum((0, 1, 2)) / points
    squares = ((x - mean) ** 2).sum((0, 1, 2))
    scale, bias, old_mean, old_variance = (np.asarray(getattr(norm, name)[...]) for name in ("scale", "bias", "mean", "variance"))
    y = (x - mean) / np.sqrt(squares / points + EPSILON) * scale + bias
    return y, 0.9 * old_mean + 0.1 * mean, 0.9 * old_variance + 0.1 * squares / (points - 1)


def test_a_step_is_that_of_the_formula_and_changes_nothing_in_place():
    with jax.enable_x64(True):
        norm, x = layer(6), images()
        before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(norm)))
        y, new = norm(jnp.asarray(x), "batch")
        for have, want in zip((y, new["mean"], new["variance"]), formula(norm, x), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-12)
        jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(norm)))


def test_stored_statistics_are_used_and_given_back_as_they_are():
    with jax.enable_x64(True):
        norm, x = layer(6), images()
        y, new = norm(jnp.asarray(x), "stored")
        scale, bias, mean, variance = (np.asarray(getattr(norm, name)[...]) for name in ("scale", "bias", "mean", "variance"))
        np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + EPSILON) * scale + bias, rtol=1e-12)
        np.testing.assert_array_equal(new["mean"], mean)
        np.testing.assert_array_equal(new["variance"], variance)


def test_one_value_a_channel_has_a_finite_variance():
    y, new = batch_norm.BatchNorm(2, epsilon=EPSILON)(jnp.ones((1, 1, 1, 2)), "batch")
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_allclose(new["variance"], 0.9)


def test_under_bfloat16_the_statistics_are_those_of_float32():
    norm = batch_norm.BatchNorm(6, epsilon=EPSILON)
    x = jnp.asarray(images(), jnp.bfloat16)
    y, new = norm(x, "batch")
    want, exact = norm(x.astype(jnp.float32), "batch")
    assert y.dtype == jnp.bfloat16 and {v.dtype for v in new.values()} == {jnp.dtype(jnp.float32)}
    jax.tree.map(np.testing.assert_array_equal, new, exact)
    np.testing.assert_array_equal(y, want.astype(jnp.bfloat16))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (4, 1, 2)], ids=str)
def test_the_batch_is_that_of_all_devices(sizes):
    """Value, gradients and new statistics; every device's own rows have another mean."""
    with jax.enable_x64(True):
        norm, x = layer(6), images() + np.arange(8.0)[:, None, None, None]
        graphdef, state = nnx.split(norm)

        def loss(state, x):
            y, new = nnx.merge(graphdef, state)(x, "batch")
            return jnp.sum(y**3 + jnp.sin(y) * x), (y, new)

        step = jax.value_and_grad(loss, (0, 1), has_aux=True)
        want = step(state, jnp.asarray(x))
        mesh = sharding.Mesh(data=sizes[0], fsdp=sizes[1], model=sizes[2]).make()
        with jax.set_mesh(mesh):
            got = jax.jit(step)(state, jax.device_put(jnp.asarray(x), sharding.batch_sharding(mesh)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), jax.device_get(got), want)
        assert not np.allclose(want[0][1][1]["mean"], norm(jnp.asarray(x[:1]), "batch")[1]["mean"], atol=0.1)
