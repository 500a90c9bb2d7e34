import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlm_jax.layers import linear

INIT = nnx.initializers.normal(1.0)


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 3)])
def test_maps_the_last_axis_of_any_number_of_axes(shape):
    layer = linear.Linear(3, 7, kernel_init=INIT, bias_init=INIT, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), shape)
    np.testing.assert_allclose(layer(x), x @ layer.kernel[...] + layer.bias[...], atol=1e-5)


def test_computes_in_the_dtype_of_the_kernel():
    layer = linear.Linear(3, 7, kernel_init=INIT, rngs=nnx.Rngs(0))
    layer.kernel.set_value(layer.kernel[...].astype(jnp.bfloat16))
    assert layer(jnp.ones((2, 3))).dtype == jnp.bfloat16
    assert layer.bias[...].dtype == jnp.float32


def test_no_bias_where_none_is_asked_for():
    layer = linear.Linear(3, 7, kernel_init=INIT, bias_init=None, rngs=nnx.Rngs(0))
    assert set(nnx.to_pure_dict(nnx.state(layer))) == {"kernel"}
