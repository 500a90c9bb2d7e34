"""The training state as nested dicts of arrays, and the model as a function of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vlm_jax.errors import InputError
from vlm_jax.systems import base
from vlm_jax.training import sharding, tree
from vlm_jax.training.average import Average, NoAverage
from vlm_jax.training.optimizer import Optimizer

P = jax.P
PyTree = Any
State = dict[str, Any]
"""`step`, `params` (trainable), `frozen`, `buffers`, `opt_state`, `average` (of params, may be empty), `extra`."""

CAST = r"(kernel|embedding)$"
"""Modules compute in the dtype of these; all other parameters stay as they are."""


def cast(variables: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """The variables with kernels and embeddings in the compute dtype."""
    others, kernels = tree.partition(variables, CAST)
    return tree.join(others, jax.tree.map(lambda x: x.astype(dtype), kernels))


@dataclasses.dataclass(frozen=True)
class Model:
    """A system's model without its arrays."""

    system: base.System
    graphdef: nnx.GraphDef
    params: PyTree
    """Shapes and dtypes of all parameters, the frozen ones among them."""
    buffers: PyTree

    @classmethod
    def of(cls, system: base.System) -> "Model":
        """Traces the system's build without allocating anything.

        Raises:
          InputError: `frozen` or a bound finds no parameter, or nothing is left to train.
        """
        graphdef, params, buffers = nnx.split(nnx.eval_shape(lambda: system.build(rngs=nnx.Rngs(0))), nnx.Param, ...)
        model = cls(system, graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(buffers))
        trainable, frozen = tree.partition(model.params, system.frozen)
        paths = ", ".join(list(tree.flatten(model.params))[:3])
        if not trainable:
            raise InputError(f"system.frozen {system.frozen!r} freezes every parameter; nothing is left to train")
        if not frozen and system.frozen != base.System.frozen:
            raise InputError(f"system.frozen {system.frozen!r} finds no parameter; paths are such as {paths}")
        for bound in system.bounds:
            if not tree.partition(model.params, bound.pattern)[1]:
                raise InputError(f"bound {bound.pattern!r} finds no parameter; paths are such as {paths}")
        return model

    def merge(self, *variables: Mapping[str, Any]) -> nnx.Module:
        """The model with these arrays in it."""
        return nnx.merge(self.graphdef, tree.join(*variables))


def init(
    model: Model, transform: Any, average: Average | NoAverage, *, seed: int, frozen_dtype: Any = jnp.float32
) -> State:
    """A fresh state. To be jitted with out_shardings, so that no device ever holds what it does not keep."""
    built = model.system.build(rngs=nnx.Rngs(jax.random.key(seed)))
    _, params, buffers = nnx.split(built, nnx.Param, ...)
    params, frozen = tree.partition(nnx.to_pure_dict(params), model.system.frozen)
    frozen = jax.tree.map(lambda x: x.astype(frozen_dtype), frozen)
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "frozen": frozen,
        "buffers": nnx.to_pure_dict(buffers),
        "opt_state": transform.init(params),
        "average": average.init(params),
        "extra": model.system.init_extra(built),
    }


def weights_of(model: Model) -> State:
    """Shapes and dtypes of all that evaluation needs of a state, as a checkpoint of this system holds it."""
    params, frozen = tree.partition(model.params, model.system.frozen)
    return {"params": params, "frozen": frozen, "buffers": model.buffers, "average": params}


def cast_like(variables: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves by path that `like` (flat) has too, in its dtypes.

    Raises:
      InputError: a leaf has another shape there.
    """
    flat = {path: x for path, x in tree.flatten(variables).items() if path in like}
    for path, x in flat.items():
        if x.shape != like[path].shape:
            raise InputError(f"{path}: stored with shape {x.shape}, the model has {like[path].shape}")
    return {path: x.astype(like[path].dtype) for path, x in flat.items()}


def variables(state: State, weights: str) -> dict[str, Any]:
    """All arrays of the model for evaluation or export.

    Args:
      weights: `raw`, `ema`, or `auto` for the moving average where there is one.

    Raises:
      InputError: `ema` where none was kept.
    """
    if weights == "ema" and not state["average"]:
        raise InputError("weights ema: this run keeps no moving average; train with --optimizer.ema 0.999 or evaluate raw")
    params = state["params"] if weights == "raw" or not state["average"] else state["average"]
    return tree.join(params, state["frozen"], state["buffers"])


def check_finite(step: int, state: State) -> None:
    """A step with finite loss and gradient can still overflow what it updates; such a state must not replace a good one.

    Raises:
      InputError: a parameter, buffer, average or moment is not finite.
    """
    floats = {
        f"{name}/{tree.path_of(keys)}": x
        for name in ("params", "buffers", "average", "opt_state")
        for keys, x in jax.tree_util.tree_leaves_with_path(state[name])
        if jnp.issubdtype(x.dtype, jnp.floating)
    }
    bad = [path for path, finite in jax.device_get(_all_finite(floats)).items() if not finite]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise InputError(
            f"the state after step {step} is not finite ({', '.join(bad[:3])}{more}) and is not saved; the saves before it stay. "
            "Lower --optimizer.learning-rate"
        )


@jax.jit
def _all_finite(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: jnp.isfinite(x).all() for path, x in leaves.items()}


def table(model: Model, mesh: jax.sharding.Mesh, optimizer: Optimizer) -> str:
    """Every parameter with shape, number, dtype and shards, and the sums of the top-level parts.

    Where the optimizer has factors of the learning rate, also those, and what is decayed.
    """
    flat = tree.flatten(model.params)
    trainable, frozen = map(tree.flatten, tree.partition(model.params, model.system.frozen))
    notes = optimizer.describe(tree.unflatten(trainable))
    rows, sums = [("parameter", "shape", "number", "dtype", "rate and decay" if notes else "", "shards")], {}
    for path, x in flat.items():
        kind = "frozen" if path in frozen else _text(sharding.spec(path, x.shape, mesh))
        shape = "x".join(map(str, x.shape)) or "scalar"
        rows.append((path, shape, f"{x.size:,}", str(x.dtype), notes.get(path, ""), kind))
        sums[path.split("/")[0]] = sums.get(path.split("/")[0], 0) + x.size
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = []
    for row in rows:
        path, shape, number, dtype, note, kind = (
            f"{cell:{'>' if i in (1, 2) else '<'}{width}}" for i, (cell, width) in enumerate(zip(row, [*widths, 0], strict=True))
        )
        lines.append("  ".join([path, shape, number, dtype, *([note] if notes else []), kind]).rstrip())
    total = sum(sums.values())
    parts = ", ".join(f"{name} {number:,}" for name, number in sums.items())
    lines.append(f"total {total:,} parameters ({parts})")
    large = sharding.undivided(model.params, mesh)
    if large:
        lines.append(f"held whole by every device although larger than 1 MB: {', '.join(large)}")
    return "\n".join(lines)


def _text(split: P) -> str:
    return "" if split == P() else str(tuple(split))
