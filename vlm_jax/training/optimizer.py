"""Optimizers: what all share (schedule, decay, factors by path, a moving average of the weights), and one class for each rule."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from vlm_jax.errors import InputError
from vlm_jax.models import choices
from vlm_jax.training import duration, factors, moments, tree
from vlm_jax.training.average import Average, NoAverage

PyTree = Any
Ranges = dict[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimizers share. Weight decay is decoupled (Loshchilov & Hutter 2019) and multiplied by the learning rate."""

    learning_rate: float = 1e-3
    """At the end of the warm-up."""
    schedule: Literal["cosine", "rsqrt", "constant"] = "cosine"
    """After the warm-up: half a cosine to final_learning_rate, the inverse square root of the step, or no change."""
    warmup: int | str = "5%"
    """Linear, from zero; a duration."""
    final_learning_rate: float = 0.0
    """At the last step of the cosine schedule."""
    weight_decay: float = 1e-4
    """Of the parameters that `decay` finds; multiplied by the learning rate and its factors."""
    decay: str = r"(kernel|embedding)$"
    """Regular expression over parameter paths."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0: no limit."""
    rates: tuple[tuple[str, float], ...] = ()
    """Factors of the learning rate by path: (regular expression, factor), the first that matches counts, else 1."""
    layer_decay: tuple[tuple[str, float], ...] = ()
    """Factors by layer: (path of a tower, d). Block i of n, from 0, has d**(n - i), what stands before the blocks d**(n + 1)."""
    before_blocks: str = factors.BEFORE
    """What `layer_decay` takes to stand before the blocks: regular expression over the path below the tower."""
    coverage: Literal["rest_is_one", "all"] = "rest_is_one"
    """Parameters that neither `rates` nor `layer_decay` names have factor 1 (rest_is_one), or are refused (all)."""
    ema: float = 0.0
    """Decay of the moving average of the weights, such as 0.9999; 0: none is kept."""

    ranges: ClassVar[Ranges] = {
        "learning_rate": (0, float("inf")),
        "final_learning_rate": (0, float("inf")),
        "weight_decay": (0, float("inf")),
        "clip_norm": (0, float("inf")),
        "ema": (0, 1),
    }
    """Fields and where their values must lie: from the first number to below the second."""

    def __post_init__(self):
        choices.check(self)
        values = [(field, getattr(self, field), *ends) for field, ends in self.ranges.items()]
        values += [(f"rates {pattern!r}", factor, 0, float("inf")) for pattern, factor in self.rates]
        for field, value, low, high in values:
            if not low <= value < high:
                raise InputError(f"optimizer.{field} {value}: must lie in [{low}, {high})")
        for tower, decay in self.layer_decay:
            if not 0 < decay <= 1:
                raise InputError(f"optimizer.layer_decay {tower!r} {decay}: must lie in (0, 1]")
        if len({tower for tower, _ in self.layer_decay}) < len(self.layer_decay):
            raise InputError(f"optimizer.layer_decay {self.layer_decay}: names a tower twice")
        for field, pattern in self._patterns():
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"optimizer.{field} {pattern!r}: no regular expression ({error})") from None

    def direction(self) -> optax.GradientTransformation:
        """Clipped gradients to what the learning rate multiplies, without weight decay; for the subclass to say."""
        raise TypeError(f"{type(self).__name__} does not define direction; choose AdamW, Adafactor or Lion")

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
            self.direction(),
            optax.add_decayed_weights(self.weight_decay, lambda params: tree.map_paths(self._decays, params)),
            _scale(self._factors, rate),
        ]
        return optax.with_extra_args_support(optax.chain(*parts))

    def check(self, params: PyTree) -> None:
        """Every pattern must find a parameter, every tower have blocks, and `coverage` hold.

        Raises:
          InputError: one does not, with some of the paths there are.
        """
        paths = list(tree.flatten(params))
        if self.weight_decay and not any(self._decays(path) for path in paths):
            raise InputError(f"optimizer.decay {self.decay!r} finds no parameter; paths are such as {', '.join(paths[:3])}")
        factors.check(params, self.rates, self.layer_decay, self.before_blocks, self.coverage)

    def describe(self, params: PyTree) -> dict[str, str]:
        """The factor of every parameter and whether it is decayed, by path; nothing if all factors are 1."""
        if not self.rates and not self.layer_decay:
            return {}
        decayed = {path: ", decayed" if self.weight_decay and self._decays(path) else "" for path in tree.flatten(params)}
        return {path: factors.text(factor) + decayed[path] for path, factor in self._factors(params).items()}

    def average(self) -> Average | NoAverage:
        """The moving average that this configuration asks for."""
        return Average(self.ema) if self.ema else NoAverage()

    def _decays(self, path: str, _=None) -> bool:
        return bool(re.search(self.decay, path))

    def _factors(self, params: PyTree) -> dict[str, factors.Factor | None]:
        return factors.of(params, self.rates, self.layer_decay, self.before_blocks)

    def _patterns(self) -> list[tuple[str, str]]:
        named = [("decay", self.decay), ("before_blocks", self.before_blocks)]
        return named + [("rates", pattern) for pattern, _ in self.rates]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the first moment is kept in between steps; it is computed in float32, as the second one is kept, too."""

    ranges: ClassVar[Ranges] = Optimizer.ranges | {"beta1": (0, 1), "beta2": (0, 1), "epsilon": (0, float("inf"))}

    def direction(self) -> optax.GradientTransformation:
        return moments.keep(optax.scale_by_adam(self.beta1, self.beta2, self.epsilon), "mu", self.moment_dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Adafactor for large Transformers (Zhai et al. 2022, section 3.4; big_vision): a second moment of rows and columns, and
    Adam's first moment, kept in bfloat16. Updates do not scale with the parameters; the first moment is not debiased."""

    beta1: float = 0.9
    """Decay of the first moment, which is of the scaled gradients; 0: none is kept."""
    moment_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What the first moment is kept in between steps; it is computed in float32."""
    beta2_power: float = 0.8
    """The second moment decays at step t by 1 - t**-beta2_power,"""
    beta2_cap: float = 0.999
    """and by no more than this."""
    factor_from: int = 32
    """Matrices (of convolutions: the channels) with at least so many rows and columns have a factored second moment."""
    epsilon: float = 1e-30
    """Added to the squared gradient."""
    clip_rms: float = 1.0
    """Largest root mean square of a parameter's update (in a stack, of each block's); 0: no limit, as in big_vision."""

    ranges: ClassVar[Ranges] = Optimizer.ranges | {
        "beta1": (0, 1),
        "beta2_power": (0, float("inf")),
        "beta2_cap": (0, 1),
        "factor_from": (1, float("inf")),
        "epsilon": (0, 1),
        "clip_rms": (0, float("inf")),
    }

    def direction(self) -> optax.GradientTransformation:
        second = moments.scale_by_factored_rms(
            factor_from=self.factor_from, beta2_power=self.beta2_power, beta2_cap=self.beta2_cap, epsilon=self.epsilon
        )
        clip = [moments.clip_by_rms(self.clip_rms)] if self.clip_rms else []
        first = [moments.keep(optax.ema(self.beta1, debias=False), "ema", self.moment_dtype)] if self.beta1 else []
        return optax.chain(second, *clip, *first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Evolved sign momentum (Chen et al. 2023): every entry moves by the learning rate, up or down. The authors take a third to a
    tenth of AdamW's learning rate, and a weight decay as many times larger; the defaults here are so by a tenth."""

    learning_rate: float = 1e-4
    """At the end of the warm-up."""
    weight_decay: float = 1e-3
    """Of the parameters that `decay` finds."""
    beta1: float = 0.9
    """Weight of the moment against the gradient, in the sum whose sign is taken."""
    beta2: float = 0.99
    """Decay of the moment."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the moment is kept in between steps; it is computed in float32."""

    ranges: ClassVar[Ranges] = Optimizer.ranges | {"beta1": (0, 1), "beta2": (0, 1)}

    def direction(self) -> optax.GradientTransformation:
        return moments.keep(optax.scale_by_lion(self.beta1, self.beta2), "mu", self.moment_dtype)


def schedule(
    form: Literal["cosine", "rsqrt", "constant"], peak: float, warmup: int, total: int, final: float
) -> Callable[[jax.Array], jax.Array]:
    """Linear warm-up from zero to `peak` at step `warmup`, then the named form."""

    def rate(step):
        step = jnp.asarray(step, jnp.result_type(float))  # float64 where that is enabled
        after = {
            "cosine": lambda: final
            + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((step - warmup) / max(total - warmup, 1), 0, 1))),
            "rsqrt": lambda: peak * jnp.sqrt(max(warmup, 1) / jnp.maximum(step, max(warmup, 1))),
            "constant": lambda: jnp.full_like(step, peak),
        }[form]()
        return jnp.where(step < warmup, peak * step / max(warmup, 1), after)

    return rate


def _scale(factors_of: Callable[[PyTree], dict[str, factors.Factor | None]], rate) -> optax.GradientTransformationExtraArgs:
    """Multiplies by a factor of the path and by the rate of the step that the caller passes, and turns the sign."""

    def update(updates, state, params=None, **extra):
        now = rate(extra["step"])
        by_path = {path: 1.0 if factor is None else factor for path, factor in factors_of(updates).items()}
        return tree.map_paths(lambda path, u: u * (-by_path[path] * now).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
