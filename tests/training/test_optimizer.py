"""Schedules against the oracle, and what is decayed, scaled and clipped."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlm_jax.errors import InputError
from vlm_jax.training import optimizer

PARAMS = {"image": {"up": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}, "log_scale": jnp.ones(())}
ZERO = {"image": {"up": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}, "log_scale": jnp.zeros(())}


@pytest.mark.parametrize("form", ["cosine", "rsqrt"])
def test_schedules_reproduce_the_oracle(form, oracles):
    want = np.load(oracles / "schedules.npz")
    final = float(want["in_min"]) if form == "cosine" else 0.0
    rate = optimizer.schedule(form, float(want["in_base"]), int(want["in_warmup"]), int(want["in_total"]), final)
    np.testing.assert_allclose([float(rate(s)) for s in want["in_steps"]], want[f"out_{form}"], rtol=2e-5, atol=1e-9)


def test_constant_schedule_stays_after_the_warm_up():
    rate = optimizer.schedule("constant", 2.0, 4, 10, 0.0)
    np.testing.assert_allclose([float(rate(s)) for s in (0, 2, 4, 9)], [0, 1, 2, 2])


def _update(config, grads, step=0):
    transform = config.transform(lambda step: jnp.asarray(0.1))
    return transform.update(grads, transform.init(PARAMS), PARAMS, step=jnp.asarray(step))[0]


def test_decay_reaches_kernels_only_and_is_multiplied_by_the_rate():
    update = _update(optimizer.AdamW(weight_decay=0.5), ZERO)
    np.testing.assert_allclose(update["image"]["up"]["kernel"], -0.05, rtol=1e-6)
    assert not update["image"]["up"]["bias"].any() and not update["log_scale"].any()


def test_rates_scale_the_paths_they_find():
    grads = {"image": {"up": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}, "log_scale": jnp.ones(())}
    update = _update(optimizer.AdamW(weight_decay=0.0, rates=((r"^image/", 0.5), (r"kernel$", 0.1))), grads)
    np.testing.assert_allclose(update["image"]["up"]["kernel"], -0.05, rtol=1e-4)
    np.testing.assert_allclose(update["log_scale"], -0.1, rtol=1e-4)


def test_steps_follow_optax_adamw():
    config = optimizer.AdamW(learning_rate=0.1, warmup=0, schedule="constant", weight_decay=0.01, decay="", clip_norm=1.0)
    ours = config.transform(config.rate(100, 8, None))
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, 0.9, 0.95, 1e-8, weight_decay=0.01))
    a, b, state_a, state_b = PARAMS, PARAMS, ours.init(PARAMS), theirs.init(PARAMS)
    rng = np.random.default_rng(0)
    for step in range(4):
        grads = {"image": {"up": {"kernel": jnp.asarray(rng.normal(size=(2, 2))), "bias": jnp.asarray(rng.normal(size=2))}},
                 "log_scale": jnp.asarray(rng.normal())}  # fmt: skip
        update, state_a = ours.update(grads, state_a, a, step=jnp.asarray(step))
        a = optax.apply_updates(a, update)
        update, state_b = theirs.update(grads, state_b, b)
        b = optax.apply_updates(b, update)
    np.testing.assert_allclose(a["image"]["up"]["kernel"], b["image"]["up"]["kernel"], rtol=1e-5)


def test_a_pattern_that_finds_no_parameter_is_refused():
    with pytest.raises(InputError, match=r"optimizer.rates 'text/'.*image/up"):
        optimizer.AdamW(rates=(("text/", 0.1),)).check(PARAMS)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(InputError, match="warmup 50: 50 of 20 steps"):
        optimizer.AdamW(warmup=50).rate(20, 8, None)
