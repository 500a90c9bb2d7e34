import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax import errors
from vlm_jax.models import convnet

from . import reference

TINY = convnet.Config(image_size=16, channels=(4, 6), depth=(1, 2))
IMAGES = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))


def test_mean_and_maximum_stand_side_by_side():
    model = reference.filled(TINY)
    embedding, features = jax.jit(lambda x: (model(x), model.encode(x)))(IMAGES)
    assert features.shape == (3, 4, 6)
    assert embedding.shape == (3, TINY.output_dim)
    np.testing.assert_allclose(embedding, np.concatenate([features.mean(1), features.max(1)], -1), atol=1e-5)


def test_the_embedding_is_the_projection_of_what_is_pooled():
    model = reference.filled(dataclasses.replace(TINY, projection_dim=5))
    pooled, embedding = jax.jit(lambda x: (model.pooled(x), model(x)))(IMAGES)
    assert pooled.shape == (3, 12)
    np.testing.assert_allclose(embedding, pooled @ model.projection.kernel[...], atol=1e-5)


def test_parameters_have_these_paths_and_all_get_a_gradient():
    config = dataclasses.replace(TINY, projection_dim=5)
    graphdef, state = nnx.split(reference.filled(config))
    gradients = jax.jit(jax.grad(lambda p: nnx.merge(graphdef, p)(IMAGES).sum()))(nnx.to_pure_dict(state))
    assert jax.tree.map(jnp.shape, gradients["features"]["stage2"]) == {
        "fold": {"kernel": (16, 6), "bias": (6,)},
        "blocks": {"norm": {"scale": (2, 6), "bias": (2, 6)}, "kernel": (2, 3, 3, 6, 6), "bias": (2, 6)},
    }
    assert gradients["projection"]["kernel"].shape == (12, 5)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 20}, "image_size 20 is not a multiple of 8, the stride of 2 stages"),
        ({"depth": (1,)}, "one number of each for every stage"),
        ({"channels": (4, 0)}, "all must be at least 1"),
    ],
)
def test_a_config_that_cannot_work_says_what_to_change(fields, message):
    with pytest.raises(errors.InputError, match=message):
        dataclasses.replace(TINY, **fields)
