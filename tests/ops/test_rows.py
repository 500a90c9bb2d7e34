import jax.numpy as jnp
import numpy as np

from vlm_jax.ops import rows


def test_every_example_takes_of_its_own_rows():
    x = jnp.arange(12).reshape(6, 2)  # three examples of two rows
    taken = rows.take(x, jnp.array([[1, 1, 0], [0, 1, 0], [1, 0, 0]]))
    np.testing.assert_array_equal(taken[:, 0], [2, 2, 0, 4, 6, 4, 10, 8, 8])
    np.testing.assert_array_equal(taken[:, 1], taken[:, 0] + 1)


def test_rows_may_lie_behind_other_axes():
    x = jnp.arange(24).reshape(2, 3, 4, 1)
    taken = rows.take(x, jnp.array([[1], [0]]), axis=2)
    assert taken.shape == (2, 3, 2, 1)
    np.testing.assert_array_equal(taken[..., 0], x[:, :, jnp.array([1, 2]), 0])
