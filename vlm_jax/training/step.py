"""The train step of every system."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vlm_jax.systems import base
from vlm_jax.training import state as states
from vlm_jax.training import tree
from vlm_jax.training.average import Average, NoAverage
from vlm_jax.training.state import State

Metrics = dict[str, jax.Array]


def make(
    model: states.Model,
    transform: optax.GradientTransformationExtraArgs,
    average: Average | NoAverage,
    *,
    dtype: Any,
    seed: int,
    total_steps: int,
    steps_per_epoch: float,
    microbatches: int = 1,
) -> Callable[[State, base.Batch], tuple[State, Metrics]]:
    """The function from a state and a batch to the next state and metrics; to be jitted with the state donated.

    A step whose loss or gradient is not finite leaves everything but `step` as it was, and says so in `skipped`.

    Args:
      transform: takes gradients to updates; gets the step as an extra argument.
      dtype: what the towers compute in.
      seed: of the random key, which is folded with the step.
    """
    system = model.system
    forward = make_forward(
        model, dtype=dtype, seed=seed, total_steps=total_steps, steps_per_epoch=steps_per_epoch, microbatches=microbatches
    )

    def step(state: State, batch: base.Batch) -> tuple[State, Metrics]:
        def loss_fn(params):
            objective = forward(state | {"params": params}, batch)
            return objective.loss, objective

        (loss, objective), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        grad_norm = optax.global_norm(grads)
        updates, opt_state = transform.update(grads, state["opt_state"], state["params"], step=state["step"])
        params = clip(optax.apply_updates(state["params"], updates), system.bounds)
        new = {
            "params": params,
            "buffers": tree.join(state["buffers"], objective.buffers),
            "opt_state": opt_state,
            "average": average.update(state["average"], params, state["step"]),
            "extra": objective.extra,
        }
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, {name: state[name] for name in new})
        metrics = objective.metrics | {
            "loss": loss,
            "grad_norm": grad_norm,
            "skipped": 1 - finite.astype(jnp.int32),
            **{f"grad_norm/{part}": optax.global_norm(inner) for part, inner in grads.items()},
        }
        return state | kept | {"step": state["step"] + 1}, metrics

    return step


def make_forward(
    model: states.Model, *, dtype: Any, seed: int, total_steps: int, steps_per_epoch: float, microbatches: int
) -> Callable[[State, base.Batch], base.Objective]:
    """The objective of a state and a batch; arguments as in `make`."""

    def forward(state: State, batch: base.Batch) -> base.Objective:
        context = base.Context(
            key=jax.random.fold_in(jax.random.key(seed), state["step"]),
            step=state["step"],
            total_steps=jnp.asarray(total_steps),
            steps_per_epoch=jnp.asarray(steps_per_epoch, jnp.float32),
            microbatches=microbatches,
        )
        merged = model.merge(states.cast(state["params"], dtype), states.cast(state["frozen"], dtype), state["buffers"])
        return model.system.objective(merged, batch, state["extra"], context)

    return forward


def clip(params: Any, bounds: tuple[base.Bound, ...]) -> Any:
    """Parameters within their bounds."""

    def limit(path: str, x: jax.Array) -> jax.Array:
        for bound in bounds:
            if re.search(bound.pattern, path):
                x = jnp.clip(x, bound.low, bound.high)
        return x

    return tree.map_paths(limit, params)
