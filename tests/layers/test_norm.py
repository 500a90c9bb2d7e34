import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.layers import norm


@pytest.mark.parametrize(("epsilon", "expected"), [(1e-5, "1e5"), (1e-6, "1e6"), (1e-12, "1e12")])
def test_layer_norm_is_the_reference(oracles, epsilon, expected):
    oracle = np.load(oracles / "norms.npz")
    layer = norm.LayerNorm(5, epsilon=epsilon)
    layer.scale[...], layer.bias[...] = (
        jnp.asarray(oracle["in_w"], jnp.float32),
        jnp.asarray(oracle["in_b"], jnp.float32),
    )
    np.testing.assert_allclose(layer(jnp.asarray(oracle["in_x"], jnp.float32)), oracle[f"out_ln_{expected}"], atol=1e-5)


def test_rms_norm_is_the_reference(oracles):
    oracle = np.load(oracles / "norms.npz")
    layer = norm.RMSNorm(5, epsilon=1e-6)
    layer.scale[...] = jnp.asarray(oracle["in_w"], jnp.float32)
    np.testing.assert_allclose(layer(jnp.asarray(oracle["in_x"], jnp.float32)), oracle["out_rms_1e6"], atol=1e-5)


def test_bfloat16_is_normalised_in_float32():
    x = 300 + jnp.arange(256, dtype=jnp.float32)
    out = norm.LayerNorm(256, epsilon=1e-6)(x.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    rounded = np.asarray(x.astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(out.astype(jnp.float32), (rounded - rounded.mean()) / rounded.std(), atol=0.005)
