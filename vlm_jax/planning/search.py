"""Neighbours of a recipe, each compiled: the nearest that fits, and all of them by memory and estimated time."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vlm_jax.config import Config
from vlm_jax.errors import InputError
from vlm_jax.planning import plan, words
from vlm_jax.planning.plan import Plan
from vlm_jax.training import sharding, tpu

Fields = dict[str, Any]
"""What is other than in the recipe, by field: some of `FIELDS`."""
FIELDS = ("remat", "fsdp", "microbatches", "batch_size")
"""What a search varies, in this order."""
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


def described(config: Config, fields: Fields) -> str:
    """The flags that make the change."""
    remat = " ".join(f"--system.{name}.remat {{0}}" for name in plan.towers(config.system))
    flags = {"remat": remat, "fsdp": "--mesh.data -1 --mesh.fsdp {0}"}
    return " ".join(flags.get(name, f"--{name.replace('_', '-')} {{0}}").format(value) for name, value in fields.items())


def with_change(config: Config, recipe: str, target: Target, say: Callable[[str], object]) -> Plan:
    """The plan of a configuration, and where it does not fit the nearest change that does."""
    made = _make(config, recipe, target, {})
    if made.fits is not False or (not tpu.compiler() and target.devices is None):
        return made
    for fields in ladder(config, target):
        say(f"it does not fit; trying {described(config, fields)}")
        try:
            changed_plan = _make(config, recipe, target, fields)
            if changed_plan.fits:
                return dataclasses.replace(made, change=changed_plan.flags)
        except InputError as error:  # such as chunks where a model has batch statistics
            say(str(error))
    return dataclasses.replace(made, note=f"{made.note}; none of the changes that were tried makes it fit".removeprefix("; "))


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


def search(
    config: Config,
    recipe: str,
    target: Target,
    say: Callable[[str], object],
    keep: Callable[[list[Plan]], object] = lambda _: None,
    vary: Sequence[str] = FIELDS,
) -> list[Plan]:
    """Compiles one neighbour after the other and goes on from the best; returns all, the best first.

    The fields are varied one at a time, in the order remat, fsdp, microbatches, batch_size: so many compilations as there are values, and
    not as many as there are combinations.

    Args:
      keep: gets what there is after every compilation, the best first.
      vary: some of `FIELDS`.

    Raises:
      InputError: there is no compiler, or the configuration cannot work.
    """
    if not tpu.compiler() and target.devices is None:
        raise InputError(f"search: there is nothing to compare without a compiler; install libtpu, {tpu.INSTALL}")
    say(words.table([]).splitlines()[0])
    found: list[Plan] = []
    for fields in _neighbours(config, target, found, vary):
        try:
            found.append(_make(config, recipe, target, fields))
        except InputError as error:
            if not fields:
                raise
            say(f"  {described(config, fields)}: {error}")
            continue
        say(words.table(found[-1:]).splitlines()[1])
        keep(sorted(found, key=_rank))
    return sorted(found, key=_rank)


def _neighbours(config: Config, target: Target, found: list[Plan], vary: Sequence[str]) -> Iterator[Fields]:
    """The recipe as it is; then field by field the best that is found so far, with every other value of that field."""
    yield {}
    for name, values in _values(config, target).items():
        best = min(found, key=_rank)
        for value in values if name in vary else ():
            yield best.fields | {name: value}


def _values(config: Config, target: Target) -> dict[str, list[Any]]:
    """What is tried of every field, without what the recipe has."""
    axes, k = config.mesh.axes(target.number), config.microbatches
    parts = axes["data"] * axes["fsdp"]
    return {
        "remat": [policy for policy in POLICIES if _policies(config) != {policy}] if _policies(config) else [],
        "fsdp": [fsdp for fsdp in _divisors(config, target) if fsdp != axes["fsdp"]],
        "microbatches": [chunks for chunks in (k // 2, 2 * k, 4 * k) if chunks and config.batch_size % (parts * chunks) == 0],
        "batch_size": [2 * config.batch_size],
    }


def _divisors(config: Config, target: Target) -> list[int]:
    """Sizes of fsdp: none, one side of the torus, all devices of a slice."""
    slice_ = target.number // target.slices // config.mesh.model
    sides = {1, slice_, *(tpu.sides(target.topology) if target.devices is None else ())}
    return sorted(side for side in sides if slice_ % side == 0)


def _policies(config: Config) -> set[str]:
    return {tower.remat for tower in plan.towers(config.system).values()}


def _rank(made: Plan) -> tuple[bool, float]:
    return not made.fits, made.microseconds_per_example if made.peak else made.asked or float("inf")


def _make(config: Config, recipe: str, target: Target, fields: Fields) -> Plan:
    options = {name: getattr(target, name) for name in ("slices", "efficiency", "examples", "devices")}
    made = plan.make(changed(config, fields), target.topology, recipe=recipe, fields=fields, **options)
    return dataclasses.replace(made, flags=described(config, fields))
