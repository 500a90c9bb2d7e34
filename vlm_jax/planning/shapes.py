"""What a step takes and keeps, by shape alone: bytes of a device follow from shapes, dtypes and shards, exactly."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType

from vlm_jax import program as programs
from vlm_jax.config import Config
from vlm_jax.errors import InputError
from vlm_jax.training import duration, sharding, tree

PARTS = {
    "params": "parameters",
    "frozen": "frozen parameters",
    "opt_state": "optimizer",
    "step": "optimizer",
    "average": "moving average",
    "buffers": "buffers",
}
"""Parts of a state by their names for readers; what is left, such as a queue, is `other`."""
LARGE = 1 << 20
"""Bytes of a leaf that is worth a word where every device holds it whole."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the state."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    shards: str
    """Mesh axes by array axis, such as `fsdp, -`; empty: every device holds it whole."""
    bytes: int
    """On one device."""


def program(config: Config, mesh: Any, examples: int | None = None) -> programs.Program:
    """The program of a configuration over a mesh.

    Args:
      mesh: of devices, or a jax.sharding.AbstractMesh.
      examples: in an epoch, where durations are in epochs.

    Raises:
      InputError: the batch does not divide, or a duration means nothing without data.
    """
    sizes = batch_sizes(config)
    for size in sizes.values():
        sharding.check_batch(size, mesh, config.microbatches)
    batch_size = next(iter(sizes.values()))
    total = duration.steps(config.steps, "steps", batch_size=batch_size, examples=examples)
    if total < 1:
        raise InputError(f"steps {config.steps!r}: less than one step")
    return programs.Program.of(config, mesh, total_steps=total, batch_size=batch_size, examples=examples)


def batch_sizes(config: Config) -> dict[str, int]:
    """Examples of one step by data stream; durations count those of the first."""
    return {name: stream.batch_size or config.batch_size for name, stream in config.streams.items()}


def batch(config: Config) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The arrays of a batch, as the pipeline makes them."""
    sizes = batch_sizes(config)
    return {
        name: {field: jax.ShapeDtypeStruct((sizes[name], *shape), dtype) for field, (shape, dtype) in stream.fields().items()}
        for name, stream in config.streams.items()
    }


def placed(shapes: Any, shardings: Any) -> Any:
    """The shapes with where they lie: arguments to lower a program for.

    Args:
      shardings: one for each of the shapes, or one for all.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def leaves(made: programs.Program) -> list[Leaf]:
    """All arrays of the state, paths beginning with its parts."""
    shards = jax.tree.leaves(made.shardings)
    return [
        Leaf(
            tree.path_of(keys),
            tuple(x.shape),
            str(x.dtype),
            ", ".join(_name(axis) for axis in shard.spec),
            math.prod(shard.shard_shape(x.shape)) * x.dtype.itemsize,
        )
        for (keys, x), shard in zip(jax.tree_util.tree_leaves_with_path(made.abstract), shards, strict=True)
    ]


def parts(found: list[Leaf]) -> dict[str, int]:
    """Bytes of a device by part of the state, empty ones left out."""
    sums: dict[str, int] = {}
    for leaf in found:
        name = PARTS.get(leaf.path.split("/")[0], "other")
        sums[name] = sums.get(name, 0) + leaf.bytes
    return {name: sums[name] for name in (*PARTS.values(), "other") if sums.get(name)}


def whole(found: list[Leaf], sizes: Mapping[str, int]) -> list[Leaf]:
    """Large leaves that every device holds whole although the mesh could divide them."""
    divides = sizes["fsdp"] * sizes["model"] > 1
    return [leaf for leaf in found if divides and not leaf.shards and leaf.bytes >= LARGE]


def abstract_mesh(config: Config, devices: int) -> jax.sharding.AbstractMesh:
    """The mesh of a configuration without devices, for all that follows from shapes.

    Raises:
      InputError: its sizes do not make up the number of devices.
    """
    axes = config.mesh.axes(devices)
    return jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def _name(axis: Any) -> str:
    return "-" if axis is None else axis if isinstance(axis, str) else "+".join(axis)
