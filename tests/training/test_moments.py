"""Moments that take less memory do what optax's do, slice by slice of a stack."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlm_jax.training import moments, optimizer, tree

SHAPES = {"kernel": (40, 48), "conv/kernel": (3, 3, 33, 36), "narrow/kernel": (40, 8), "bias": (48,), "scale": ()}
OPTIONS = {"factor_from": 32, "beta2_power": 0.8, "beta2_cap": 0.6, "epsilon": 1e-30}
RATE = 0.1


def _draw(seed, lead=()):
    rng = np.random.default_rng(seed)
    # The slices differ in size, and rows and columns too: means over the wrong axis are wrong by much.
    size = 10.0 ** rng.uniform(-3, 1, size=lead)
    leaves = {}
    for path, shape in SHAPES.items():
        x = rng.normal(size=lead + shape) * np.exp(rng.normal(size=lead + shape[:-1] + (1,) * bool(shape)))
        leaves[path] = jnp.asarray(x * size.reshape(lead + (1,) * len(shape)), jnp.float32)
    return tree.unflatten(leaves)


def _steps(transform, params, gradients):
    """All updates."""
    state, updates = transform.init(params), []
    jitted = jax.jit(transform.update)
    for step, grads in enumerate(gradients):
        update, state = jitted(grads, state, params, step=jnp.asarray(step))
        updates.append(update)
    return updates, state


def _assert_close(found, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, want)


def test_factored_moment_is_that_of_optax_with_a_cap():
    ours = optax.with_extra_args_support(optax.chain(moments.scale_by_factored_rms(**OPTIONS), moments.clip_by_rms(0.9)))
    theirs = optax.chain(
        optax.scale_by_factored_rms(
            min_dim_size_to_factor=32, decay_rate_fn=lambda i, power: jnp.minimum(0.6, 1 - (i + 1.0) ** -power)
        ),
        optax.clip_by_block_rms(0.9),
    )
    gradients = [_draw(seed) for seed in range(5)]
    found, state = _steps(ours, _draw(9), gradients)
    want, _ = _steps(optax.with_extra_args_support(theirs), _draw(9), gradients)
    _assert_close(found, want)
    assert set(tree.flatten(state[0].factored_rows)) == {"kernel", "conv/kernel"} == set(tree.flatten(state[0].factored_columns))
    assert {path: x.shape for path, x in tree.flatten(state[0].squares).items()} == {
        path: SHAPES[path] for path in ("narrow/kernel", "bias", "scale")
    }


@pytest.mark.parametrize(
    "config",
    [
        optimizer.Adafactor(clip_norm=0.0, weight_decay=0.1, decay="kernel$", moment_dtype="float32"),
        optimizer.Lion(clip_norm=0.0, weight_decay=0.1, decay="kernel$"),
        optimizer.AdamW(clip_norm=0.0, weight_decay=0.1, decay="kernel$"),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_stack_is_updated_as_so_many_single_layers(config):
    depth = 34  # more than the smallest matrix that is factored, so that a stack of biases looks like one
    transform = config.transform(lambda step: jnp.asarray(RATE))
    params, gradients = _draw(9, (depth,)), [_draw(seed, (depth,)) for seed in range(3)]
    found, _ = _steps(transform, {"blocks": params}, [{"blocks": grads} for grads in gradients])
    layers = [{f"layer{i}": jax.tree.map(lambda x, i=i: x[i], x) for i in range(depth)} for x in (params, *gradients)]
    want, _ = _steps(transform, layers[0], layers[1:])
    for stacked, single in zip(found, want, strict=True):
        _assert_close(stacked["blocks"], jax.tree.map(lambda *x: jnp.stack(x), *(single[f"layer{i}"] for i in range(depth))))


def test_adafactor_is_big_visions_chain():
    config = optimizer.Adafactor(clip_norm=0.0, weight_decay=0.0, clip_rms=0.0, moment_dtype="float32")
    theirs = optax.chain(
        optax.scale_by_factored_rms(
            min_dim_size_to_factor=32, decay_rate_fn=lambda i, power: jnp.minimum(0.999, 1 - (i + 1.0) ** -power)
        ),
        optax.ema(0.9, debias=False),
        optax.scale(-RATE),
    )
    gradients = [_draw(seed) for seed in range(4)]
    found, _ = _steps(config.transform(lambda step: jnp.asarray(RATE)), _draw(9), gradients)
    want, _ = _steps(optax.with_extra_args_support(theirs), _draw(9), gradients)
    _assert_close(found, want)


def test_updates_are_clipped_by_root_mean_square():
    update = {"kernel": jnp.full((2, 3), 4.0), "blocks": {"bias": jnp.asarray([[3.0, -3.0], [0.5, 0.5]])}, "scale": jnp.asarray(-2.0)}
    clipped, _ = moments.clip_by_rms(2.0).update(update, optax.EmptyState())
    want = {"kernel": jnp.full((2, 3), 2.0), "blocks": {"bias": jnp.asarray([[2.0, -2.0], [0.5, 0.5]])}, "scale": jnp.asarray(-2.0)}
    _assert_close(clipped, want)


def test_a_moment_in_bfloat16_is_computed_in_float32():
    kept = moments.keep(optax.ema(0.9, debias=False), "ema", "bfloat16")
    params = {"x": jnp.zeros(64)}
    state, moment = kept.init(params), np.zeros(64, np.float32)
    rng = np.random.default_rng(0)
    for _ in range(20):
        grads = rng.normal(size=64).astype(np.float32)
        updates, state = kept.update({"x": jnp.asarray(grads)}, state)
        assert state.ema["x"].dtype == jnp.bfloat16
        np.testing.assert_allclose(updates["x"], 0.9 * moment + 0.1 * grads, rtol=2e-6, atol=1e-7)
        moment = np.asarray(state.ema["x"].astype(jnp.float32))
        np.testing.assert_allclose(moment, updates["x"], rtol=2**-8)


@pytest.mark.parametrize(("decay", "short"), [(0.9, 0.04), (0.99, 0.40)])
def test_a_constant_gradient_is_reached_up_to_the_last_bit_of_bfloat16(decay, short):
    kept = moments.keep(optax.ema(decay, debias=False), "ema", "bfloat16")
    grads = {"x": jnp.asarray(np.geomspace(1, 2, 50), jnp.float32)}

    def body(_, state):
        return kept.update(grads, state)[1]

    state = jax.jit(lambda state: jax.lax.fori_loop(0, 2000, body, state))(kept.init(grads))
    gap = 1 - np.asarray(state.ema["x"].astype(jnp.float32)) / np.asarray(grads["x"])
    assert (gap <= short).all() and (gap >= -0.001).all(), gap
    assert gap.max() > short / 4, "the docstring says that it falls short"
