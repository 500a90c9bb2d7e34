import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.ops import norm


def test_rows_have_length_one():
    x = jax.random.normal(jax.random.key(0), (5, 7))
    np.testing.assert_allclose(norm.l2_normalize(x), x / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-6)


def test_a_zero_row_has_value_zero_and_a_finite_gradient():
    x = jnp.zeros((2, 4)).at[1, 0].set(3.0)
    value, gradient = jax.value_and_grad(lambda x: norm.l2_normalize(x).sum())(x)
    assert value == 1
    assert bool(jnp.isfinite(gradient).all())
