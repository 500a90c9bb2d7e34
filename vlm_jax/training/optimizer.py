"""AdamW with a schedule, decay and learning-rate factors by parameter path, and a moving average of the weights."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from vlm_jax.errors import InputError
from vlm_jax.training import duration, tree

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): decay is multiplied by the learning rate."""

    learning_rate: float = 1e-3
    """At the end of the warm-up."""
    schedule: Literal["cosine", "rsqrt", "constant"] = "cosine"
    """After the warm-up: half a cosine to final_learning_rate, the inverse square root of the step, or no change."""
    warmup: int | str = "5%"
    """Linear, from zero; a duration."""
    final_learning_rate: float = 0.0
    """At the last step of the cosine schedule."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 1e-4
    """Of the parameters that `decay` finds."""
    decay: str = r"(kernel|embedding)$"
    """Regular expression over parameter paths."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0: no limit."""
    rates: tuple[tuple[str, float], ...] = ()
    """Factors of the learning rate by path: (regular expression, factor), the first that matches counts, else 1."""
    ema: float = 0.0
    """Decay of the moving average of the weights, such as 0.9999; 0: none is kept."""

    def __post_init__(self):
        for field, low, high in (
            ("learning_rate", 0, float("inf")),
            ("beta1", 0, 1),
            ("beta2", 0, 1),
            ("weight_decay", 0, float("inf")),
            ("clip_norm", 0, float("inf")),
            ("ema", 0, 1),
        ):
            if not low <= getattr(self, field) <= high:
                raise InputError(f"optimizer.{field} {getattr(self, field)}: must lie in [{low}, {high}]")

    def rate(self, total_steps: int, batch_size: int, examples: int | None) -> Callable[[jax.Array], jax.Array]:
        """The learning rate as a function of the step, 0 at step 0.

        Raises:
          InputError: the warm-up is longer than the run, or missing for rsqrt.
        """
        warmup = duration.steps(
            self.warmup, "optimizer.warmup", batch_size=batch_size, examples=examples, total=total_steps
        )
        if warmup >= total_steps and warmup > 0 and total_steps > 0:
            raise InputError(f"optimizer.warmup {self.warmup}: {warmup} of {total_steps} steps leave none to train at full rate")
        return schedule(self.schedule, self.learning_rate, warmup, total_steps, self.final_learning_rate)

    def transform(self, rate: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformationExtraArgs:
        """Gradients to updates; `update` takes the step as an extra argument."""
        parts = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        parts += [
            optax.scale_by_adam(self.beta1, self.beta2, self.epsilon),
            optax.add_decayed_weights(self.weight_decay, lambda params: tree.map_paths(self._decays, params)),
            _scale(lambda path: -self._factor(path), rate),
        ]
        return optax.with_extra_args_support(optax.chain(*parts))

    def check(self, params: PyTree) -> None:
        """Every pattern must find a parameter.

        Raises:
          InputError: one finds none, with some of the paths there are.
        """
        paths = list(tree.flatten(params))
        patterns = [("optimizer.decay", self.decay)] if self.weight_decay else []
        for field, pattern in patterns + [("optimizer.rates", pattern) for pattern, _ in self.rates]:
            if not any(re.search(pattern, path) for path in paths):
                raise InputError(f"{field} {pattern!r} finds no parameter; paths are such as {', '.join(paths[:3])}")

    def _decays(self, path: str, _) -> bool:
        return bool(re.search(self.decay, path))

    def _factor(self, path: str) -> float:
        return next((factor for pattern, factor in self.rates if re.search(pattern, path)), 1.0)

    def average(self) -> "Average | NoAverage":
        """The moving average that this configuration asks for."""
        return Average(self.ema) if self.ema else NoAverage()


def schedule(
    form: Literal["cosine", "rsqrt", "constant"], peak: float, warmup: int, total: int, final: float
) -> Callable[[jax.Array], jax.Array]:
    """Linear warm-up from zero to `peak` at step `warmup`, then the named form."""

    def rate(step):
        step = jnp.asarray(step, jnp.promote_types(jnp.float32, jnp.asarray(step).dtype))
        after = {
            "cosine": lambda: final
            + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((step - warmup) / max(total - warmup, 1), 0, 1))),
            "rsqrt": lambda: peak * jnp.sqrt(max(warmup, 1) / jnp.maximum(step, max(warmup, 1))),
            "constant": lambda: jnp.full_like(step, peak),
        }[form]()
        return jnp.where(step < warmup, peak * step / max(warmup, 1), after)

    return rate


def _scale(factor: Callable[[str], float], rate) -> optax.GradientTransformationExtraArgs:
    """Multiplies by a factor of the path and by the rate of the step that the caller passes."""

    def update(updates, state, params=None, **extra):
        now = rate(extra["step"])
        return tree.map_paths(lambda path, u: u * (factor(path) * now).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@dataclasses.dataclass(frozen=True)
class Average:
    """Exponential moving average of the trainable parameters; young averages forget faster: min(decay, (1 + t) / (10 + t))."""

    decay: float

    def init(self, params: PyTree) -> PyTree:
        return jax.tree.map(jnp.copy, params)

    def update(self, average: PyTree, params: PyTree, step: jax.Array) -> PyTree:
        decay = jnp.minimum(self.decay, (1.0 + step) / (10.0 + step))
        return jax.tree.map(lambda a, p: a + (1 - decay).astype(a.dtype) * (p - a), average, params)


@dataclasses.dataclass(frozen=True)
class NoAverage:
    """Keeps none."""

    def init(self, params: PyTree) -> PyTree:
        return {}

    def update(self, average: PyTree, params: PyTree, step: jax.Array) -> PyTree:
        return average
