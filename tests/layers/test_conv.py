import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlm_jax.layers import conv


def test_a_residual_convolution_is_zero_padded_and_adds_to_its_input():
    layer = jax.jit(lambda: conv.ResidualConv(3, activation="relu", norm_epsilon=1e-6, rngs=nnx.Rngs(0)))()
    x = jax.random.normal(jax.random.key(0), (1, 4, 5, 3))
    y = np.pad(jax.nn.relu(layer.norm(x)), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = np.asarray(layer.kernel[...])
    expected = np.stack(
        [np.einsum("hwc,hwco->o", y[0, i : i + 3, j : j + 3], kernel) for i in range(4) for j in range(5)]
    ).reshape(4, 5, 3)
    np.testing.assert_allclose(jax.jit(layer)(x)[0], x[0] + expected, atol=1e-5)


def test_stages_fold_by_four_and_then_by_two():
    @jax.jit
    def features(images):
        stages = conv.Stages((4, 6), (1, 2), activation="relu", norm_epsilon=1e-6, rngs=nnx.Rngs(0))
        return stages(images), stages(images, remat="full")

    plain, recomputed = features(jnp.ones((2, 16, 24, 3)))
    assert plain.shape == (2, 2, 3, 6)
    np.testing.assert_allclose(plain, recomputed, atol=1e-5)
