"""The mesh, the rules from parameter paths to shards, and batches as global arrays."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding

from vlm_jax.errors import InputError
from vlm_jax.ops.sharding import BATCH_AXES
from vlm_jax.training import tree

P = jax.P
PyTree = Any
Rules = Sequence[tuple[str, P]]

RULES: Rules = (
    (r"(query|key|value|up|gate)/kernel$", P("fsdp", "model")),
    (r"(query|key|value|up|gate)/bias$", P("model")),
    (r"(out|down)/kernel$", P("model", "fsdp")),
    (r"embedding$", P(("model", "fsdp"), None)),
    (r"(kernel|positions)$", P("fsdp")),
    (r"", P()),
)
"""First match wins; a spec names trailing axes, so that stacked layers lead unsharded and moments match for free."""

AXES = ("data", "fsdp", "model")
REDUCED = ((r"(^|/)factored_rows/", -1), (r"(^|/)factored_columns/", -2))
"""Parts of the optimizer's state that lack one axis of the parameter whose path follows; the other axes keep its shards."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """Devices as (data, fsdp, model): the batch is split over data and fsdp, parameters over fsdp and model."""

    data: int = -1
    """Copies of the parameters; may cross slices. -1: what the others leave."""
    fsdp: int = 1
    """Parts in which parameters and moments are kept."""
    model: int = 1
    """Tensor parallelism: parts in which the matrices are multiplied."""

    def fits(self, devices: int) -> bool:
        """Whether so many devices can be arranged like this."""
        sizes = (self.data, self.fsdp, self.model)
        rest = math.prod(size for size in sizes if size != -1)
        return devices % rest == 0 if -1 in sizes else devices == rest

    def axes(self, devices: int) -> dict[str, int]:
        """The sizes over so many devices.

        Raises:
          InputError: they do not make up the number of devices.
        """
        sizes = [self.data, self.fsdp, self.model]
        if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
            raise InputError(f"mesh {tuple(sizes)}: sizes are positive, and one of them may be -1")
        if not self.fits(devices):
            raise InputError(
                f"mesh (data, fsdp, model) = {(self.data, self.fsdp, self.model)} does not make up the {devices} devices"
            )
        rest = math.prod(size for size in sizes if size != -1)
        return dict(zip(AXES, (devices // rest if size == -1 else size for size in sizes), strict=True))

    def make(
        self,
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
    ) -> jax.sharding.Mesh:
        """The mesh over all devices. Where they are of several slices, `data` goes over the slices first.

        Raises:
          InputError: the sizes do not make up the number of devices, or `data` is no multiple of the number of slices.
        """
        devices = jax.devices() if devices is None else devices
        sizes = self.axes(len(devices))
        slices = len({getattr(device, "slice_index", 0) for device in devices})
        if slices == 1:
            return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
        if sizes["data"] % slices:
            raise InputError(
                f"mesh.data {sizes['data']}: not divisible by the {slices} slices, between which only data may lie; "
                f"mesh.fsdp x mesh.model may be at most the {len(devices) // slices} devices of a slice"
            )
        within = (sizes["data"] // slices, sizes["fsdp"], sizes["model"])
        # A slice of v5e is a torus of two sides only, which three axes may have to share.
        arranged = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * 3)


def spec(path: str, shape: Sequence[int], mesh: jax.sharding.Mesh, rules: Rules = RULES) -> P:
    """How a leaf is split: the first rule that finds its path; axes that do not divide are dropped."""
    names = list(next(s for pattern, s in rules if re.search(pattern, path)))
    reduced = [axis for pattern, axis in REDUCED if re.search(pattern, path)]
    rank = len(shape) + len(reduced)
    names = [None] * (rank - len(names)) + names[max(len(names) - rank, 0) :]
    for axis in reduced:
        del names[axis]
    kept = [_divides(name, size, mesh) for name, size in zip(names, shape, strict=True)]
    return P(*kept) if any(kept) else P()


def _divides(names: str | tuple[str, ...] | None, size: int, mesh: jax.sharding.Mesh) -> str | tuple[str, ...] | None:
    """The mesh axes of one array axis: as many, from the first, as divide it and are larger than one."""
    kept, parts = [], 1
    for name in (names,) if isinstance(names, str) else names or ():
        if mesh.shape[name] > 1 and size % (parts * mesh.shape[name]) == 0:
            kept.append(name)
            parts *= mesh.shape[name]
    return kept[0] if len(kept) == 1 else tuple(kept) or None


def shardings(abstract: PyTree, mesh: jax.sharding.Mesh, rules: Rules = RULES) -> PyTree:
    """A NamedSharding for every leaf of a state."""
    return tree.map_paths(lambda path, x: NamedSharding(mesh, spec(path, x.shape, mesh, rules)), abstract)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The batch axis over `data` and `fsdp`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def check_batch(batch_size: int, mesh: jax.sharding.Mesh, microbatches: int = 1, field: str = "batch_size") -> None:
    """The batch must split evenly.

    Raises:
      InputError: it does not, with the sizes that would.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * microbatches
    if batch_size % parts:
        chunks = f" x {microbatches} microbatches" if microbatches > 1 else ""
        raise InputError(
            f"{field} {batch_size} is not divisible by {parts} (mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}"
            f"{chunks}): use {max(batch_size // parts, 1) * parts} or {(batch_size // parts + 1) * parts}"
        )


def rows(batch_size: int, mesh: jax.sharding.Mesh) -> np.ndarray:
    """The rows of a global batch that this process feeds: those of its own devices, in order."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def put_batch(batch: Mapping[str, Any], mesh: jax.sharding.Mesh) -> PyTree:
    """Global arrays from this process's rows, in the order of `rows`."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    own_parts = len(rows(parts, mesh))

    def put(local: np.ndarray) -> jax.Array:
        if len(local) % own_parts:
            raise ValueError(f"{len(local)} rows cannot be divided among the {own_parts} batch shards of this process")
        size = len(local) * parts // own_parts
        own = rows(size, mesh)

        def part(index):
            first, last = np.searchsorted(own, np.arange(size)[index[0]][[0, -1]])
            return local[first : last + 1]

        return jax.make_array_from_callback((size, *local.shape[1:]), batch_sharding(mesh), part)

    return jax.tree.map(put, batch)


def undivided(abstract: PyTree, mesh: jax.sharding.Mesh, least_bytes: int = 1 << 20) -> list[str]:
    """Paths of large leaves that every device holds whole although the mesh could split them."""
    if mesh.shape["fsdp"] * mesh.shape["model"] == 1:
        return []
    return [
        f"{path} {tuple(x.shape)}"
        for path, x in tree.flatten(abstract).items()
        if x.size * x.dtype.itemsize >= least_bytes and spec(path, x.shape, mesh) == P()
    ]
