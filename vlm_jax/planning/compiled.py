"""What the compiler says of a step: the memory of a device, what it exchanges, and an estimate of its time. Nothing is run."""

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from vlm_jax.planning import shapes
from vlm_jax.program import Program
from vlm_jax.training import flops, hlo, sharding, tpu

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass(frozen=True)
class Collective:
    """All exchanges of one kind along the same axes, in one step, on one device."""

    kind: str
    """Such as all-gather."""
    axes: tuple[str, ...]
    """Of the mesh."""
    count: int
    bytes: float
    """Of the results."""
    milliseconds: float
    """At the speed of the links along those axes, if nothing else went on."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled step on one device."""

    peak: float | None
    """Bytes at the high-water mark; None where the compiler refused."""
    asked: float | None
    """Bytes that the step would need, where the compiler refused."""
    collectives: tuple[Collective, ...] | None
    """None where the compiler gives no text of the program."""
    compute_milliseconds: float | None
    """The compiler's cycles over the clock: good to rank programs of one chip with. Leaves exchanges out."""
    exchange_milliseconds: float | None
    """Of all collectives, one after the other."""
    seconds: float
    """Of tracing and compilation."""
    note: str = ""
    """What could not be found out, and why."""


def compile_step(made: Program, batch: Any, topology: str) -> Compiled:
    """Compiles the step for the devices of the program's mesh."""
    state = shapes.placed(made.abstract, made.shardings)
    batch = shapes.placed(batch, sharding.batch_sharding(made.mesh))
    began = time.perf_counter()
    with jax.set_mesh(made.mesh):
        try:
            compiled = made.jitted().lower(state, batch).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            seconds = time.perf_counter() - began
            return Compiled(None, _asked(str(error)), None, None, None, seconds, f"the compiler says: {str(error).strip()[:240]}")
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    peak = float(memory.peak_memory_in_bytes) if memory is not None else None
    try:
        program = hlo.read(compiled.as_text())
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:120]
        return Compiled(peak, None, None, None, None, seconds, f"memory only: the text of this program is not to be had ({first})")
    collectives = exchanges(program.exchanges, dict(made.mesh.shape), topology)
    return Compiled(
        peak=peak,
        asked=None,
        collectives=collectives,
        compute_milliseconds=1e3 * program.cycles / tpu.chip(topology).clock,
        exchange_milliseconds=sum(found.milliseconds for found in collectives),
        seconds=seconds,
    )


def exchanges(found: Sequence[hlo.Exchange], sizes: dict[str, int], topology: str) -> tuple[Collective, ...]:
    """Collectives by kind and axes, those that take longest first."""
    sums: dict[tuple[str, tuple[str, ...]], tuple[int, float]] = {}
    for exchange in found:
        key = exchange.kind, exchange.axes(sizes)
        count, size = sums.get(key, (0, 0.0))
        sums[key] = count + exchange.count, size + exchange.bytes
    made = [
        Collective(kind, axes, count, size, 1e3 * sent(kind, size, axes, sizes) / bandwidth(axes, sizes, topology))
        for (kind, axes), (count, size) in sums.items()
    ]
    return tuple(sorted(made, key=lambda collective: -collective.milliseconds))


def sent(kind: str, size: float, axes: Sequence[str], sizes: dict[str, int]) -> float:
    """Bytes that a device sends for results of `size` bytes, on a ring of the devices along `axes`."""
    n = math.prod(sizes[axis] for axis in axes)
    others = (n - 1) / n
    shares = {"all-gather": others, "all-to-all": others, "all-reduce": 2 * others, "reduce-scatter": n - 1, "collective-permute": 1}
    return size * shares[kind]


def bandwidth(axes: Sequence[str], sizes: dict[str, int], topology: str) -> float:
    """Bytes a second that a device sends along mesh axes: both ways along as many sides of the torus as they lie on."""
    torus = tpu.sides(topology)
    side = math.prod(torus) ** (1 / len(torus))
    n = math.prod(sizes[axis] for axis in axes)
    lying = min(max(round(math.log(n) / math.log(side)), 1), len(torus)) if side > 1 and n > 1 else 1
    return 2 * tpu.chip(topology).link * lying


def arithmetic(made: Program, batch: Any) -> int:
    """Operations of all matrix products of a step, with those that are done again."""
    state = shapes.placed(made.abstract, made.shardings)
    batch = shapes.placed(batch, sharding.batch_sharding(made.mesh))
    with jax.sharding.use_abstract_mesh(made.mesh.abstract_mesh if isinstance(made.mesh, jax.sharding.Mesh) else made.mesh):
        return flops.forward(made.step, state, batch)


def _asked(message: str) -> float | None:
    """Bytes from the compiler's words, `Used 18.21G of 15.75G hbm` or `HLO temporaries (32.15G) exceeds available HBM`."""
    found = re.search(r"(?:Used |HLO temporaries \()([0-9.]+)([KMGT]?)(?: of |\) exceeds)", message)
    return float(found[1]) * _UNITS[found[2]] if found else None
