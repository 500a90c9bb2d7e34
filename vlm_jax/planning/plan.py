"""A plan: what a recipe takes of a slice, part by part, compiled and not run."""

import dataclasses
import math
from typing import Any, Literal

import jax

from vlm_jax.config import Config
from vlm_jax.errors import InputError
from vlm_jax.planning import compiled, shapes
from vlm_jax.training import tpu

EFFICIENCY = 0.4
"""Share of the peak that is taken for the roofline, unless one is named."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes are of one device."""

    recipe: str
    topology: str
    slices: int
    how: Literal["compiled, not run", "by shape only, not compiled"]
    compiler: str
    """Version of libtpu."""
    devices: int
    mesh: dict[str, int]
    batch_size: int
    """Of the first data stream, whose examples the FLOPs and the estimate are for."""
    microbatches: int
    remat: str
    """Of the towers."""
    precision: str
    fields: dict[str, Any]
    """What was set on the command line or by a search, by field."""
    parts: dict[str, int]
    """The state by part: exact, from shapes and shards."""
    batch: int
    """Of the batch: exact."""
    peak: float | None
    """At the high-water mark, as the compiler reports it."""
    asked: float | None
    """What the step would need, where the compiler refused."""
    memory: float
    """Of the chip."""
    whole: list[str]
    """Arrays larger than 1 MB that every device holds although the mesh could divide them."""
    flops_per_example: float
    """Of matrix products, forward and backward, with nothing done twice."""
    executed_per_example: float
    """With what the towers compute again."""
    efficiency: float
    roofline_milliseconds: float
    """Of `flops_per_example` at `efficiency` of the peak."""
    compute_milliseconds: float | None
    exchange_milliseconds: float | None
    collectives: tuple[compiled.Collective, ...] | None
    compile_seconds: float | None
    note: str = ""
    flags: str = ""
    """That make it of the recipe, where a search has changed something."""
    change: str = ""
    """The nearest change with which it fits, where it does not."""

    @property
    def fits(self) -> bool | None:
        """Whether the high-water mark is below the chip's memory; None where nothing was compiled."""
        if self.how != "compiled, not run":
            return None if self.state < self.memory else False
        return self.peak is not None and self.peak <= self.memory

    @property
    def state(self) -> int:
        """Bytes of the whole state."""
        return sum(self.parts.values())

    @property
    def rest(self) -> float | None:
        """Activations, gradients, loss and temporaries: what the compiler reports beyond state and batch."""
        return None if self.peak is None else max(self.peak - self.state - self.batch, 0.0)

    @property
    def milliseconds(self) -> float:
        """An estimate to rank with: the compiler's, with exchanges one after the other; without it, from the operations that are done."""
        if self.compute_milliseconds is not None and self.exchange_milliseconds is not None:
            return self.compute_milliseconds + self.exchange_milliseconds
        return self.roofline_milliseconds * self.executed_per_example / self.flops_per_example

    @property
    def microseconds_per_example(self) -> float:
        """The estimate by example, to compare batches with."""
        return 1e3 * self.milliseconds / self.batch_size


def make(
    config: Config,
    topology: str,
    *,
    recipe: str,
    slices: int = 1,
    efficiency: float = EFFICIENCY,
    examples: int | None = None,
    fields: dict[str, Any] | None = None,
    devices: list[Any] | None = None,
) -> Plan:
    """Compiles the step of a configuration for a topology; without libtpu, counts what follows from shapes.

    Args:
      efficiency: share of the chip's peak for the roofline.
      examples: in an epoch of the first stream, for durations in epochs.
      fields: what was changed, for the reader.
      devices: to compile for instead of the topology's.

    Raises:
      InputError: the topology or the configuration cannot work.
    """
    if slices < 1:
        raise InputError(f"slices {slices}: must be at least 1")
    if not 0 < efficiency <= 1:
        raise InputError(f"efficiency {efficiency}: a share of the peak, above 0 and up to 1")
    chip, number = tpu.chip(topology), slices * math.prod(tpu.sides(topology))
    possible = devices is not None or bool(tpu.compiler())
    if possible:
        mesh: Any = config.mesh.make(tpu.devices(topology, slices) if devices is None else devices)
    else:
        mesh = shapes.abstract_mesh(config, number)
    made, batch = shapes.program(config, mesh, examples), shapes.batch(config)
    found = shapes.leaves(made)
    once = dataclasses.replace(config, system=with_remat(config.system, "none"), microbatches=1)
    needed = compiled.arithmetic(shapes.program(once, mesh, examples), batch)
    result = compiled.compile_step(made, batch, topology) if possible else None
    number, size = math.prod(mesh.shape.values()), next(iter(shapes.batch_sizes(config).values()))
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return Plan(
        recipe=recipe,
        topology=topology,
        slices=slices,
        how="compiled, not run" if result else "by shape only, not compiled",
        compiler=tpu.compiler(),
        devices=number,
        mesh=dict(mesh.shape),
        batch_size=size,
        microbatches=config.microbatches,
        remat=remat(config.system),
        precision=config.precision,
        fields=fields or {},
        parts=shapes.parts(found),
        batch=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch)) // parts,
        peak=result.peak if result else None,
        asked=result.asked if result else None,
        memory=chip.memory,
        whole=[f"{leaf.path} {'x'.join(map(str, leaf.shape))}" for leaf in shapes.whole(found, mesh.shape)],
        flops_per_example=needed / size,
        executed_per_example=compiled.arithmetic(made, batch) / size,
        efficiency=efficiency,
        roofline_milliseconds=1e3 * needed / number / (chip.peak * efficiency),
        compute_milliseconds=result.compute_milliseconds if result else None,
        exchange_milliseconds=result.exchange_milliseconds if result else None,
        collectives=result.collectives if result else None,
        compile_seconds=result.seconds if result else None,
        note=_note(result, slices),
    )


def _note(result: compiled.Compiled | None, slices: int) -> str:
    if result is None:
        return f"libtpu is not installed: {tpu.INSTALL}"
    between = slices > 1 and result.collectives is not None
    return "what goes from slice to slice is sent by the hosts and is not among the exchanges" if between else result.note


def towers(system: Any) -> dict[str, Any]:
    """The configurations within a system that have a policy of recomputation, by path, such as `image.tower`."""
    found = {}
    for field in dataclasses.fields(system):
        part = getattr(system, field.name)
        if hasattr(part, "remat"):
            found[field.name] = part
        elif dataclasses.is_dataclass(part):
            found |= {f"{field.name}.{path}": tower for path, tower in towers(part).items()}
    return found


def remat(system: Any) -> str:
    """What the towers of a system compute again, such as `names`; `image full, text none` where they differ."""
    policies = {name: tower.remat for name, tower in towers(system).items()}
    return next(iter(policies.values())) if len(set(policies.values())) == 1 else ", ".join(f"{k} {v}" for k, v in policies.items())


def with_remat(system: Any, policy: str) -> Any:
    """The system with one policy for all of its towers."""
    return with_towers(system, {path: dataclasses.replace(tower, remat=policy) for path, tower in towers(system).items()})


def with_towers(system: Any, changed: dict[str, Any]) -> Any:
    """The system with other configurations at these paths."""
    for path, tower in changed.items():
        name, _, rest = path.partition(".")
        part = with_towers(getattr(system, name), {rest: tower}) if rest else tower
        system = dataclasses.replace(system, **{name: part})
    return system


def from_json(row: dict[str, Any]) -> Plan:
    """What `to_json` has written."""
    own = {field.name: row[field.name] for field in dataclasses.fields(Plan) if field.name in row}
    if own["collectives"] is not None:
        own["collectives"] = tuple(compiled.Collective(**found | {"axes": tuple(found["axes"])}) for found in own["collectives"])
    return Plan(**own)


def to_json(plan: Plan) -> dict[str, Any]:
    """All that is known, with what follows from it."""
    return dataclasses.asdict(plan) | {"fits": plan.fits, "rest": plan.rest, "estimated_milliseconds": plan.milliseconds}
