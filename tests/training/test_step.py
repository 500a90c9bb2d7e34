"""The train step on a toy system that uses the whole protocol."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from vlm_jax.errors import InputError
from vlm_jax.training import sharding, step, tree
from vlm_jax.training import state as states
from vlm_jax.training.optimizer import AdamW

ADAM = AdamW(learning_rate=1e-2, warmup=0, schedule="constant", weight_decay=0.0, clip_norm=0.0)


def _run(system=None, optimizer=ADAM, batches=None, microbatches=1, mesh=None, dtype=jnp.float32):
    """Final state, all metrics, and the number of compilations."""
    system = system or toy.Toy()
    model = states.Model.of(system)
    rate = optimizer.rate(100, 16, 160)
    transform, average = optimizer.transform(rate), optimizer.average()
    train_step = step.make(
        model, transform, average, dtype=dtype, seed=3, total_steps=100, steps_per_epoch=10.0, microbatches=microbatches
    )
    mesh = mesh or sharding.Mesh().make(jax.devices()[:1])
    with jax.set_mesh(mesh):
        shardings = sharding.shardings(jax.eval_shape(lambda: states.init(model, transform, average, seed=0)), mesh)
        state = jax.jit(lambda: states.init(model, transform, average, seed=0), out_shardings=shardings)()
        jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
        rows = []
        for batch in [toy.batch(i) for i in range(3)] if batches is None else batches:
            state, metrics = jitted(state, sharding.put_batch(jax.tree.map(np.asarray, batch), mesh))
            rows.append(jax.device_get(metrics))
    return jax.device_get(state), rows, jitted._cache_size()


def test_loss_falls_and_the_step_compiles_once():
    _, rows, compilations = _run(batches=[toy.batch(0)] * 20)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert compilations == 1


def test_metrics_name_gradient_norms_of_the_parts():
    _, rows, _ = _run()
    parts = [rows[0][f"grad_norm/{part}"] for part in ("up", "down", "scale")]
    np.testing.assert_allclose(np.sqrt(np.sum(np.square(parts))), rows[0]["grad_norm"], rtol=1e-6)


def test_frozen_parameters_get_no_moments_and_do_not_move():
    state, _, _ = _run(toy.Toy(frozen=r"^up/"))
    initial = jax.device_get(states.init(states.Model.of(toy.Toy()), optax_none(), ADAM.average(), seed=0))
    assert set(tree.flatten(state["frozen"])) == {"up/kernel", "up/bias"}
    np.testing.assert_array_equal(state["frozen"]["up"]["kernel"], initial["params"]["up"]["kernel"])
    paths = [tree.path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(state["opt_state"])]
    assert any("down/kernel" in path for path in paths)
    assert not any("up/" in path for path in paths)


def test_frozen_parameters_may_be_kept_in_bfloat16():
    model = states.Model.of(toy.Toy(frozen=r"^up/"))
    state = states.init(model, optax_none(), ADAM.average(), seed=0, frozen_dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(state["frozen"])} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(state["params"])} == {jnp.dtype(jnp.float32)}


def optax_none():
    return ADAM.transform(ADAM.rate(100, 16, 160))


def test_bounds_hold_after_the_update():
    state, _, _ = _run(toy.Toy(limit=0.9), batches=[toy.batch(0)])
    free, _, _ = _run(toy.Toy(limit=100.0), batches=[toy.batch(0)])
    assert free["params"]["scale"] > 0.95
    assert state["params"]["scale"] == np.float32(0.9)


def test_buffers_and_extra_are_carried():
    state, rows, _ = _run()
    means = [toy.batch(i)["left"]["x"].mean(0) for i in range(3)]
    want = 0.081 * means[0] + 0.09 * means[1] + 0.1 * means[2]
    np.testing.assert_allclose(state["buffers"]["mean"], want, atol=1e-6)
    assert state["extra"]["seen"] == 48
    np.testing.assert_allclose([row["progress"] for row in rows], [0, 0.01, 0.02], rtol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing_but_the_step():
    """R9."""
    bad = jax.tree.map(lambda x: x.at[0, 0].set(jnp.nan), toy.batch(1))
    before, _, _ = _run(optimizer=dataclasses.replace(ADAM, ema=0.9), batches=[toy.batch(0)])
    after, rows, _ = _run(optimizer=dataclasses.replace(ADAM, ema=0.9), batches=[toy.batch(0), bad])
    assert [row["skipped"] for row in rows] == [0, 1]
    assert (before.pop("step"), after.pop("step")) == (1, 2)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    print(f"R9: one NaN in a batch: the step is skipped, {len(jax.tree.leaves(after))} arrays of the state equal bit for bit")


def test_chunks_give_the_same_step():
    whole, chunked = _run()[0], _run(microbatches=4)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole["params"], chunked["params"])


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
def test_every_mesh_gives_the_steps_of_one_device(sizes):
    mesh = sharding.Mesh(data=sizes[0], fsdp=sizes[1], model=sizes[2]).make()
    state, rows, compilations = _run(mesh=mesh)
    want, want_rows, _ = _run()
    assert compilations == 1
    np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in want_rows], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state["params"], want["params"])


def test_moving_average_follows_and_starts_fast():
    state, _, _ = _run(optimizer=dataclasses.replace(ADAM, ema=0.9), batches=[toy.batch(0)])
    first = jax.device_get(states.init(states.Model.of(toy.Toy()), optax_none(), ADAM.average(), seed=0))["params"]
    want = jax.tree.map(lambda a, p: a + 0.9 * (p - a), first, state["params"])  # decay at step 0 is 1 / 10
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state["average"], want)


def test_bfloat16_policy_casts_kernels_only():
    variables = {"up": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "log_scale": jnp.ones(()), "embedding": jnp.ones((3, 2))}
    dtypes = {path: x.dtype for path, x in tree.flatten(states.cast(variables, jnp.bfloat16)).items()}
    assert dtypes == {"up/kernel": jnp.bfloat16, "embedding": jnp.bfloat16, "up/bias": jnp.float32, "log_scale": jnp.float32}


@pytest.mark.parametrize("pattern", ["nothing/", "."])
def test_a_frozen_pattern_must_leave_and_find_something(pattern):
    with pytest.raises(InputError, match="frozen"):
        states.Model.of(toy.Toy(frozen=pattern))
