import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.ops import images


def test_bytes_are_scaled_and_normalised_by_channel():
    pixels = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3) * 10
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    expected = (pixels / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(images.normalize(jnp.asarray(pixels), mean, std), expected, atol=1e-6)
    assert images.normalize(jnp.asarray(pixels), mean, std, dtype=jnp.bfloat16).dtype == jnp.bfloat16


def test_floats_count_as_normalised_and_other_integers_are_refused():
    x = jnp.ones((1, 2, 2, 3)) * 7
    assert images.normalize(x, (0.5,) * 3, (0.5,) * 3) is x
    with pytest.raises(errors.InputError, match="dtype int32"):
        images.normalize(x.astype(jnp.int32), (0.5,) * 3, (0.5,) * 3)
