"""Weights out of the weights of several models with the same parameters.

WiSE-FT (Wortsman et al. 2022) and PAINT (Ilharco et al. 2022) interpolate between a model and its fine-tuned form, model soups (Wortsman
et al. 2022) average several, and PAINT's parallel patching adds up the differences from a common origin. All are computed in float32
(float64 for float64) and come back in the dtype of the first model; what is not a floating number is the first model's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vlm_jax.errors import InputError

Weights = Mapping[str, Any]
"""Arrays by path: parameters and buffers, the scale of the logits included."""


def interpolate(first: Weights, second: Weights, coefficient: float) -> dict[str, Any]:
    """(1 - coefficient) first + coefficient second; 0 and 1 give the two ends bit for bit.

    Raises:
      InputError: the models differ in the names or shapes of their weights.
    """
    if coefficient in (0, 1):
        return _combine([first, second], lambda _, *ends: ends[int(coefficient)])
    return _combine([first, second], lambda _, a, b: (1 - coefficient) * a + coefficient * b)


def soup(models: Sequence[Weights]) -> dict[str, Any]:
    """The mean of all (a uniform soup).

    Raises:
      InputError: there is none, or they differ in names or shapes.
    """
    if not models:
        raise InputError("models: give at least one")
    return _combine(models, lambda _, *x: sum(x) / len(x))


def add_differences(origin: Weights, tuned: Sequence[Weights], coefficients: Sequence[float]) -> dict[str, Any]:
    """origin + sum_i coefficient_i (tuned_i - origin): several patches at once.

    Raises:
      InputError: other numbers of models and coefficients, or models that differ in names or shapes.
    """
    if len(tuned) != len(coefficients):
        raise InputError(f"coefficients {list(coefficients)}: give one for each of the {len(tuned)} models")
    return _combine([origin, *tuned], lambda _, a, *x: a + sum(c * (b - a) for c, b in zip(coefficients, x, strict=True)))


def fisher(first: Weights, second: Weights, information: tuple[Weights, Weights], coefficient: float) -> dict[str, Any]:
    """Interpolation weighed by the diagonal Fisher information of each model, as in WiSE-FT's code.

    ((1 - c) F0 w0 + c F1 w1) / ((1 - c) F0 + c F1), with at least 1e-8 for each F.

    Raises:
      InputError: the models differ in names or shapes.
    """

    def weigh(name, a, b):
        f, g = (jnp.maximum(own[name].astype(a.dtype), 1e-8) for own in information)
        f, g = (1 - coefficient) * f, coefficient * g
        return (f * a + g * b) / (f + g)

    return _combine([first, second], weigh)


def best(coefficients: Sequence[float], scores: Sequence[Sequence[float]]) -> float:
    """PAINT's choice: the coefficient with the highest mean score over the tasks; the first of equal ones.

    Args:
      scores: for each task those at all coefficients, on held-out validation data and not on what is reported.
    """
    return coefficients[int(np.argmax(np.mean(np.asarray(scores, np.float64), 0)))]


def check(models: Sequence[Weights]) -> None:
    """
    Raises:
      InputError: the models differ in the names or shapes of their weights.
    """
    first = models[0]
    for other in models[1:]:
        different = sorted(set(first) ^ set(other)) or sorted(name for name in first if first[name].shape != other[name].shape)
        if different:
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise InputError(f"models of different shapes cannot be merged: they differ in {', '.join(different[:3])}{more}")


def _combine(models: Sequence[Weights], fn: Callable[..., Any]) -> dict[str, Any]:
    check(models)
    merged = {}
    for name, x in models[0].items():
        if jnp.issubdtype(x.dtype, jnp.floating):
            wide = [model[name].astype(jnp.promote_types(x.dtype, jnp.float32)) for model in models]
            merged[name] = fn(name, *wide).astype(x.dtype)
        else:
            merged[name] = x
    return merged
