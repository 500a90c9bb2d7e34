import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.ops import attention, masks


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def reference(query, key, value, mask):
    """Float64, one head of one example at a time."""
    out = np.zeros(query.shape)
    mask = np.broadcast_to(mask, (query.shape[0], query.shape[2], query.shape[1], key.shape[1]))
    for b, h in np.ndindex(query.shape[0], query.shape[2]):
        logits = query[b, :, h].astype(float) @ key[b, :, h].T / np.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max()) * mask[b, h]
        out[b, :, h] = weights / weights.sum(1, keepdims=True) @ value[b, :, h]
    return out


def test_equals_the_formula_with_and_without_a_mask():
    query, key, value = random(2, 3, 4, 8), random(2, 5, 4, 8, seed=1), random(2, 5, 4, 8, seed=2)
    mask = np.random.default_rng(3).random((2, 1, 3, 5)) < 0.6
    mask[..., 0] = True
    for m in (np.ones((1, 1, 3, 5), bool), mask):
        out = attention.dot_product_attention(*map(jnp.asarray, (query, key, value, m)))
        np.testing.assert_allclose(out, reference(query, key, value, m), atol=1e-5)
    np.testing.assert_array_equal(
        attention.dot_product_attention(*map(jnp.asarray, (query, key, value))),
        attention.dot_product_attention(*map(jnp.asarray, (query, key, value)), mask=jnp.ones((1, 1, 3, 5), bool)),
    )


def test_a_query_that_may_attend_nowhere_averages_and_has_finite_gradients():
    query, key, value = (
        jnp.asarray(random(1, 2, 1, 4)),
        jnp.asarray(random(1, 3, 1, 4)),
        jnp.asarray(random(1, 3, 1, 4)),
    )
    mask = jnp.array([[False] * 3, [True] * 3])[None, None]
    out, pullback = jax.vjp(lambda *x: attention.dot_product_attention(*x, mask=mask), query, key, value)
    np.testing.assert_allclose(out[0, 0, 0], value[0, :, 0].mean(0), rtol=1e-5)
    assert all(bool(jnp.isfinite(g).all()) for g in pullback(out))


def test_bfloat16_in_and_out_with_a_float32_softmax():
    x = jnp.asarray(random(2, 16, 2, 8))
    low = attention.dot_product_attention(*[x.astype(jnp.bfloat16)] * 3)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), attention.dot_product_attention(x, x, x), atol=0.05)


def test_masks_say_who_may_see_whom():
    tokens = jnp.array([[5, 6, 0, 0]])
    mask = masks.causal(4) & masks.keys(masks.not_padding(tokens, 0))
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    np.testing.assert_array_equal(mask[0, 0], np.array(expected, bool))


def test_query_heads_share_the_heads_of_keys_and_values_in_groups(oracles):
    oracle = np.load(oracles / "gqa.npz")
    few, many = (jnp.asarray(oracle[name], jnp.float32).swapaxes(0, 1)[None] for name in ("in_k", "out_k_repeated"))
    query = jnp.asarray(random(1, 5, 4, 4))
    np.testing.assert_allclose(
        attention.dot_product_attention(query, few, -few), attention.dot_product_attention(query, many, -many), atol=1e-6
    )
    mask = jnp.asarray(np.random.RandomState(0).rand(1, 1, 5, 3) < 0.5)
    for rows in (mask, mask[:, :, :1]):
        np.testing.assert_allclose(
            attention.dot_product_attention(query, few, -few, rows),
            attention.dot_product_attention(query, many, -many, rows),
            atol=1e-6,
        )
