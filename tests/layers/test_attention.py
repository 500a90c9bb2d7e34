import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vlm_jax.layers import attention, initializers, pooling

INIT = initializers.big_vision(width=8)
X, CONTEXT = jax.random.normal(jax.random.key(0), (2, 3, 8)), jax.random.normal(jax.random.key(1), (2, 5, 8))


def test_attends_to_another_sequence_and_only_where_the_mask_allows():
    mask = (jnp.arange(5) < 4)[None, None, None]

    @jax.jit
    def outputs(x, context):
        layer = attention.Attention(8, 2, initializers=INIT, rngs=nnx.Rngs(0))
        return layer(x, context, mask), layer(x, context[:, :4]), layer(x), layer(x, x)

    masked, cut, own, same = outputs(X, CONTEXT)
    np.testing.assert_allclose(masked, cut, atol=1e-6)
    np.testing.assert_allclose(own, same, atol=1e-6)


def test_queries_and_keys_are_normalised_in_each_head():
    @jax.jit
    def outputs(x):
        layer = attention.Attention(8, 2, qk_norm="rms_norm", initializers=INIT, rngs=nnx.Rngs(0))
        assert layer.query_norm.scale[...].shape == (4,)
        before = layer(x)
        layer.query.kernel[...] *= 50
        return before, layer(x)

    before, after = outputs(X)
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_a_learned_probe_ignores_the_order_of_tokens_and_those_masked():
    @jax.jit
    def outputs(x):
        pool = pooling.AttentionPool(
            8, 2, 16, activation="gelu", norm_epsilon=1e-6, initializers=INIT, rngs=nnx.Rngs(0)
        )
        return pool(x), pool(x[:, ::-1]), pool(x, (jnp.arange(5) < 3)[None, None, None]), pool(x[:, :3])

    plain, reverse, masked, cut = outputs(CONTEXT)
    np.testing.assert_allclose(plain, reverse, atol=1e-5)
    np.testing.assert_allclose(masked, cut, atol=1e-5)
    assert not np.allclose(plain, cut, atol=1e-2)
