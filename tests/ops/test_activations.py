import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.ops import activations


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gelu", "gelu_erf"), ("gelu_tanh", "gelu_tanh"), ("quick_gelu", "quickgelu"), ("silu", "silu")],
)
def test_each_name_is_its_reference(oracles, name, expected):
    oracle = np.load(oracles / "activations.npz")
    values = activations.by_name(name)(jnp.asarray(oracle["in_x"], jnp.float32))
    np.testing.assert_allclose(values, oracle[f"out_{expected}"], atol=1e-5)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(errors.InputError, match=r"activation 'swish' is unknown.*quick_gelu"):
        activations.by_name("swish")
