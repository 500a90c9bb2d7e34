"""CLIP's modified ResNet: its pool against numbers, its shapes, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import reference
from vlm_jax.errors import InputError
from vlm_jax.models import resnet

TINY = resnet.Config(image_size=64, layers=(1, 2, 1, 1), width=4, num_heads=2, projection_dim=6)


def test_the_attention_pool_is_that_of_the_formula(oracles):
    oracle = np.load(oracles / "clip_attnpool.npz")
    pool = nnx.eval_shape(lambda: resnet.AttentionPool(4, 8, int(oracle["in_heads"]), 6, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(pool)
    params = nnx.to_pure_dict(state)
    for ours, theirs in {"query": "q", "key": "k", "value": "v", "out": "c"}.items():
        matrix, bias = oracle[f"in_W{theirs}"], oracle[f"in_b{theirs}"]
        params[ours] = {"kernel": jnp.asarray(matrix.T, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    params["positions"] = jnp.asarray(oracle["in_pos"], jnp.float32)
    features = jnp.asarray(oracle["in_features"], jnp.float32)
    found = nnx.merge(graphdef, params)(features.reshape(3, 4, 8))
    np.testing.assert_allclose(found, oracle["out"], rtol=0, atol=1e-5)


def test_gradients_reach_every_parameter_and_no_buffer():
    graphdef, params, buffers = nnx.split(reference.filled(TINY), nnx.Param, ...)
    buffers = jax.tree_util.tree_map_with_path(lambda path, x: x * 0 + ("variance" in jax.tree_util.keystr(path)), buffers)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64, 64, 3)), jnp.float32)
    gradients = jax.jit(jax.grad(lambda params: (nnx.merge(graphdef, params, buffers)(images) ** 2).sum()))(params)
    gradients = nnx.to_pure_dict(gradients)
    zero = [jax.tree_util.keystr(path) for path, x in jax.tree_util.tree_leaves_with_path(gradients) if not jnp.abs(x).max() > 0]
    assert not [path for path in zero if "'key'" not in path or "bias" not in path], zero  # a bias of all keys changes no softmax
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(buffers))}
    assert names == {"mean", "variance"}


def test_average_pool_takes_means_of_squares_and_leaves_out_a_rest():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(resnet.average_pool(x, 2)[0, ..., 0], [[3.0, 5.0]])


@pytest.mark.parametrize(("name", "millions"), [("RN50", 38.3), ("RN50x4", 87.1)])
def test_published_sizes(name, millions):
    """Parameters of the image towers of the published models."""
    params = nnx.split(nnx.eval_shape(lambda: resnet.preset(name).build(rngs=nnx.Rngs(0))), nnx.Param, ...)[1]
    assert sum(x.size for x in jax.tree.leaves(params)) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_size": 65}, "not a multiple of 32"),
        ({"num_heads": 3}, "does not divide the features, 128"),
        ({"width": 3}, "width even"),
        ({"layers": (1, 0, 1, 1)}, "must be at least 1"),
    ],
)
def test_wrong_sizes_are_named(fields, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(TINY, **fields)
    with pytest.raises(InputError, match="RN7"):
        resnet.preset("RN7")


def test_images_of_another_size_are_refused():
    with pytest.raises(InputError, match="images of 96 x 96"):
        reference.filled(TINY)(jnp.zeros((1, 96, 96, 3)))
