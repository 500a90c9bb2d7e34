import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.ops import patches


def test_patches_are_row_major_and_hold_row_column_channel():
    image = jnp.arange(4 * 6 * 3).reshape(1, 4, 6, 3)
    tokens = patches.patchify(image, 2)
    assert tokens.shape == (1, 6, 12)
    np.testing.assert_array_equal(tokens[0, 1], image[0, :2, 2:4].reshape(-1))
    np.testing.assert_array_equal(tokens[0, 3], image[0, 2:4, :2].reshape(-1))


def test_back_to_images_exactly():
    images = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    np.testing.assert_array_equal(patches.unpatchify(patches.patchify(images, 4), 4, 8, 12), images)


def test_a_matmul_on_patches_is_the_strided_convolution():
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    kernel = jax.random.normal(jax.random.key(1), (4, 4, 3, 5))
    convolved = jax.lax.conv_general_dilated(
        images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    product = patches.patchify(images, 4) @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(product, convolved.reshape(2, 16, 5), atol=1e-4)


def test_a_patch_that_does_not_divide_is_named():
    with pytest.raises(
        errors.InputError, match="patch_size 14 does not divide image_size 225: use a multiple, such as 224"
    ):
        patches.patchify(jnp.zeros((1, 224, 225, 3)), 14)
