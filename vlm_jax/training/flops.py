"""Arithmetic of a traced program, loops counted as often as they run (XLA's own count takes a loop body once)."""

import math
from collections.abc import Callable

import jax
from jax.extend import core

PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 operations a second of one chip, from the makers' data sheets."""


def peak(device_kind: str) -> float | None:
    """The peak of a device by the longest name that its kind starts with; None where it is not known."""
    names = [name for name in PEAK if device_kind.startswith(name)]
    return PEAK[max(names, key=len)] if names else None


def forward(fn: Callable, *arguments) -> int:
    """Multiplications and additions of all matrix products and convolutions in one call of `fn`; arguments may be shapes."""
    return _jaxpr(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _jaxpr(jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contract)
    if name == "conv_general_dilated":
        kernel, spec = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[spec[0]]
    if name == "shard_map":
        axes = {axis for spec in params["in_specs"] for names in spec for axis in (names if isinstance(names, tuple) else (names,))}
        return _jaxpr(params["jaxpr"]) * math.prod(params["mesh"].shape[axis] for axis in axes - {None})
    inner = [value for value in params.values() if isinstance(value, (core.Jaxpr, core.ClosedJaxpr))]
    if name == "cond":
        return max(_jaxpr(branch.jaxpr) for branch in params["branches"])
    trips = params["length"] if name == "scan" else 1
    return trips * sum(_jaxpr(getattr(value, "jaxpr", value)) for value in inner)
