"""Where a batch lives on the mesh: the only sharding that model code speaks of."""

import jax
from jaxtyping import Array, Shaped

P = jax.P
BATCH_AXES = ("data", "fsdp")
"""Mesh axes over which the batch is split, the slow one (between slices) first."""


def batch_axes() -> tuple[str, ...]:
    """The batch axes that the ambient mesh has; empty when no mesh is set, and where a device works on its own rows already."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True)) if mesh.axis_names else {}
    return tuple(name for name in BATCH_AXES if name in kinds and kinds[name] != jax.sharding.AxisType.Manual)


def shard_batch(x: Shaped[Array, "..."], axis: int = 0) -> Shaped[Array, "..."]:
    """Constrains one axis to the batch axes of the ambient mesh and replicates the others.

    Does nothing where no mesh is set, so that models run as they are in a test or a notebook.
    """
    axes = batch_axes()
    return jax.lax.with_sharding_constraint(x, P(*(None,) * axis, axes)) if axes else x
