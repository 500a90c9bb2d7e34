"""Neighbours of a recipe, each compiled: the nearest that fits, and all of them by memory and estimated time."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from vlm_jax.config import Config
from vlm_jax.errors import InputError
from vlm_jax.planning import plan, words
from vlm_jax.planning.plan import Plan
from vlm_jax.training import sharding, tpu

Fields = dict[str, Any]
"""What is other than in the recipe, by field: remat, fsdp, microbatches, batch_size."""
POLICIES = ("none", "names", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Target:
    """What to compile for; see `plan.make`."""

    topology: str
    slices: int = 1
    efficiency: float = plan.EFFICIENCY
    examples: int | None = None
    devices: list[Any] | None = None

    @property
    def number(self) -> int:
        """Devices."""
        return self.slices * math.prod(tpu.sides(self.topology)) if self.devices is None else len(self.devices)


def changed(config: Config, fields: Fields) -> Config:
    """The configuration with other values of these fields."""
    fields = dict(fields)
    if "remat" in fields:
        config = dataclasses.replace(config, system=plan.with_remat(config.system, fields.pop("remat")))
    if "fsdp" in fields:
        config = dataclasses.replace(config, mesh=sharding.Mesh(data=-1, fsdp=fields.pop("fsdp"), model=config.mesh.model))
    return dataclasses.replace(config, **fields)


def described(fields: Fields) -> str:
    """The flags that make the change."""
    flags = {"remat": "--system.image.remat {0} --system.text.remat {0}", "fsdp": "--mesh.data -1 --mesh.fsdp {0}"}
    return " ".join(flags.get(name, f"--{name.replace('_', '-')} {{0}}").format(value) for name, value in fields.items())


def with_change(config: Config, recipe: str, target: Target, say: Callable[[str], object]) -> Plan:
    """The plan of a configuration, and where it does not fit the nearest change that does."""
    made = _make(config, recipe, target, {})
    if made.fits is not False or (not tpu.compiler() and target.devices is None):
        return made
    for fields in ladder(config, target):
        say(f"it does not fit; trying {described(fields)}")
        if _make(config, recipe, target, fields).fits:
            return dataclasses.replace(made, change=described(fields))
    return dataclasses.replace(made, change="")


def ladder(config: Config, target: Target) -> Iterator[Fields]:
    """Changes that need less memory, one after the other, those that cost least time first."""
    fields: Fields = {}
    for policy in ("names", "full"):
        if POLICIES.index(policy) > max(map(POLICIES.index, _policies(config)), default=len(POLICIES)):
            fields = fields | {"remat": policy}
            yield fields
    axes = config.mesh.axes(target.number)
    for fsdp in _divisors(config, target):
        if fsdp > axes["fsdp"]:
            fields = fields | {"fsdp": fsdp}
            yield fields
    parts = axes["data"] * axes["fsdp"]
    for chunks in (2, 4, 8, 16, 32, 64):
        if chunks > config.microbatches and config.batch_size % (parts * chunks) == 0:
            fields = fields | {"microbatches": chunks}
            yield fields


def search(config: Config, recipe: str, target: Target, say: Callable[[str], object]) -> list[Plan]:
    """Compiles one neighbour after the other and goes on from the best; returns all, the best first.

    The fields are varied one at a time, in the order remat, fsdp, microbatches, batch_size: so many compilations as there are values, and
    not as many as there are combinations.

    Raises:
      InputError: there is no compiler.
    """
    if not tpu.compiler() and target.devices is None:
        raise InputError(f"search: there is nothing to compare without a compiler; install libtpu, {tpu.INSTALL}")
    found: list[Plan] = []

    def attempt(fields: Fields) -> None:
        if any(each.fields == fields for each in found):
            return
        found.append(_make(config, recipe, target, fields))
        say(words.table(found[-1:]).splitlines()[1])

    say(words.table([]).splitlines()[0])
    attempt({})
    for name, values in _values(config, target).items():
        best = min(found, key=_rank)
        for value in values:
            attempt(best.fields | {name: value})
    return sorted(found, key=_rank)


def _values(config: Config, target: Target) -> dict[str, list[Any]]:
    """What is tried of every field, without what the recipe has."""
    axes = config.mesh.axes(target.number)
    parts = axes["data"] * axes["fsdp"]
    chunks = [k for k in (1, 2, 4) if k != config.microbatches and config.batch_size % (parts * k) == 0]
    return {
        "remat": [policy for policy in POLICIES if _policies(config) != {policy}] if _policies(config) else [],
        "fsdp": [fsdp for fsdp in _divisors(config, target) if fsdp != axes["fsdp"]],
        "microbatches": chunks,
        "batch_size": [2 * config.batch_size],
    }


def _divisors(config: Config, target: Target) -> list[int]:
    """Sizes of fsdp: none, one side of the torus, all devices of a slice."""
    slice_ = target.number // target.slices // config.mesh.model
    sides = {1, slice_, *(tpu.sides(target.topology) if target.devices is None else ())}
    return sorted(side for side in sides if slice_ % side == 0)


def _policies(config: Config) -> set[str]:
    towers = [getattr(config.system, field.name) for field in dataclasses.fields(config.system)]
    return {tower.remat for tower in towers if hasattr(tower, "remat")}


def _rank(made: Plan) -> tuple[bool, float]:
    return not made.fits, made.microseconds_per_example if made.peak else made.asked or float("inf")


def _make(config: Config, recipe: str, target: Target, fields: Fields) -> Plan:
    options = {name: getattr(target, name) for name in ("slices", "efficiency", "examples", "devices")}
    return plan.make(changed(config, fields), target.topology, recipe=recipe, fields=fields, **options)
