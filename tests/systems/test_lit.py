"""LiT: the oracle's loss, gradients and step; a locked tower that no optimizer moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_two_tower import IMAGE, TEXT, _batch

from vlm_jax.losses import contrastive
from vlm_jax.ops import norm
from vlm_jax.systems import lit
from vlm_jax.training import sharding, step, tree
from vlm_jax.training import state as states
from vlm_jax.training.optimizer import AdamW


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-5)])
def test_loss_gradients_and_one_step_are_the_oracle_s(oracles, dtype, tolerance):
    with jax.enable_x64(True), np.load(oracles / "lit.npz") as o:
        image, text, head, log_scale = (jnp.asarray(o[f"in_{name}"], dtype) for name in ("img", "txt", "W", "log_scale"))

        def loss(head, log_scale):
            unit = norm.l2_normalize(jax.lax.stop_gradient(image))
            return contrastive.softmax(unit, norm.l2_normalize(text @ head), jnp.exp(log_scale))

        value, gradients = jax.value_and_grad(loss, (0, 1))(head, log_scale)
        np.testing.assert_allclose(value, o["out_loss"], rtol=tolerance)
        for name, start, gradient in zip(("W", "log_scale"), (head, log_scale), gradients, strict=True):
            np.testing.assert_allclose(gradient, o[f"out_grad_{name}"], rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(start - o["in_lr"] * gradient, o[f"out_{name}_after"], rtol=tolerance, atol=tolerance)


def test_five_steps_with_decay_leave_the_image_tower_bit_for_bit():
    model, optimizer = states.Model.of(lit.Lit(image=IMAGE, text=TEXT)), AdamW(learning_rate=1e-2, warmup=0, weight_decay=0.5, ema=0.9)
    transform, mesh = optimizer.transform(optimizer.rate(10, 8, None)), sharding.Mesh(data=4, fsdp=2).make()
    train_step = jax.jit(step.make(model, transform, optimizer.average(), dtype=jnp.float32, seed=0, total_steps=10, steps_per_epoch=1.0))
    with jax.set_mesh(mesh):
        first = jax.jit(lambda: states.init(model, transform, optimizer.average(), seed=0))()
        state, batch = first, sharding.put_batch(jax.tree.map(np.asarray, _batch()), mesh)
        losses = []
        for _ in range(5):
            state, metrics = train_step(state, batch)
            losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert all(path.startswith("image/") for path in tree.flatten(state["frozen"])) and len(tree.flatten(state["frozen"])) > 10
    jax.tree.map(np.testing.assert_array_equal, state["frozen"], first["frozen"])
    kept = jax.tree_util.tree_leaves_with_path((state["opt_state"], state["average"]))
    assert not any("image/" in tree.path_of(keys) for keys, _ in kept)
    moved = tree.flatten(jax.tree.map(lambda a, b: bool((a != b).any()), state["params"], first["params"]))
    assert all(moved[path] for path in moved if path.endswith("kernel"))
