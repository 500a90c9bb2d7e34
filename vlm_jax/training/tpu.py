"""TPU slices as compilation targets. No TPU is needed: libtpu's compiler runs on any x86 Linux machine.

Programs are lowered for arrays whose sharding lies on such devices, compiled, and looked at (`training.hlo`), never run.
"""

import dataclasses
import importlib.util
import os
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


CHIPS = {
    "v4": Chip(clock=1.05e9, memory=32e9),
    "v5e": Chip(clock=1.5e9, memory=16e9),
    "v5p": Chip(clock=1.75e9, memory=95e9),
    "v6e": Chip(clock=1.75e9, memory=32e9),
}


def chip(topology: str) -> Chip:
    """The chip of a topology.

    Raises:
      InputError: none is known by its name.
    """
    generation = topology.partition(":")[0]
    if generation not in CHIPS:
        raise InputError(f"topology {topology!r}: no TPU is known as {generation!r}; write {', '.join(CHIPS)}, such as v5e:16x16")
    return CHIPS[generation]


def devices(topology: str) -> list[Any]:
    """The devices of a topology such as v5e:16x16, to build a mesh with.

    Raises:
      InputError: libtpu is not installed, or knows no such topology.
    """
    chip(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(f"topology {topology!r}: compiling for TPU needs libtpu, on Linux and x86: pip install 'jax[tpu]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no cloud to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # v4 and v5p join the two cores of a chip.
    joined = {"chip_config_name": "megacore"} if topology.startswith(("v4", "v5p")) else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **joined).devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"topology {topology!r}: libtpu refuses it ({first}); write it such as v5e:4x4 or v5e:16x16") from None
