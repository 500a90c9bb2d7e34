"""TPU slices as compilation targets. No TPU is needed: libtpu's compiler runs on any x86 Linux machine.

Programs are lowered for arrays whose sharding lies on such devices, compiled, and looked at (`training.hlo`), never run.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from vlm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """What is known of a generation."""

    clock: float
    """Cycles a second, to turn the compiler's estimates into time."""
    memory: float
    """Bytes of HBM."""
    peak: float
    """Dense bfloat16 operations a second."""
    link: float
    """Bytes a second that a chip sends to one neighbour."""
    sides: int
    """Of the torus that a slice is."""


CHIPS = {
    "v4": Chip(clock=1.05e9, memory=32e9, peak=275e12, link=45e9, sides=3),
    "v5e": Chip(clock=1.5e9, memory=16e9, peak=197e12, link=45e9, sides=2),
    "v5p": Chip(clock=1.75e9, memory=95e9, peak=459e12, link=90e9, sides=3),
    "v6e": Chip(clock=1.75e9, memory=32e9, peak=918e12, link=90e9, sides=2),
}
INSTALL = "on Linux and x86: pip install 'jax[tpu]'"


def chip(topology: str) -> Chip:
    """The chip of a topology.

    Raises:
      InputError: none is known by its name.
    """
    generation = topology.partition(":")[0]
    if generation not in CHIPS:
        raise InputError(f"topology {topology!r}: no TPU is known as {generation!r}; write {', '.join(CHIPS)}, such as v5e:16x16")
    return CHIPS[generation]


def sides(topology: str) -> tuple[int, ...]:
    """Chips along every direction of a slice: (16, 16) of v5e:16x16.

    Raises:
      InputError: it is not written like that.
    """
    chip(topology)
    shape = topology.partition(":")[2]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise InputError(f"topology {topology!r}: write the chips along every direction, such as v5e:16x16 or v4:4x4x4")
    found, number = tuple(int(side) for side in shape.split("x")), chip(topology).sides
    if len(found) != number:
        example = {2: "16x16", 3: "4x4x4"}[number]
        generation = topology.partition(":")[0]
        raise InputError(f"topology {topology!r}: a slice of {generation} has {number} sides, such as {generation}:{example}")
    return found


def compiler() -> str:
    """The version of libtpu; empty where it is not installed."""
    return importlib.metadata.version("libtpu") if importlib.util.find_spec("libtpu") else ""


def devices(topology: str, slices: int = 1) -> list[Any]:
    """The devices of a topology such as v5e:16x16, to build a mesh with; of several slices, one after the other.

    Raises:
      InputError: libtpu is not installed, or knows no such topology.
    """
    sides(topology)
    if not compiler():
        raise InputError(f"topology {topology!r}: compiling for TPU needs libtpu, {INSTALL}")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no cloud to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # v4 and v5p join the two cores of a chip.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if topology.startswith(("v4", "v5p")) else {}
    options |= {"num_slices": slices} if slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"topology {topology!r}: libtpu refuses it ({first}); write it such as v5e:4x4 or v5e:16x16") from None
