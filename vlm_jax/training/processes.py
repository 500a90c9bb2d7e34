"""Several processes that train as one: how a process learns of the others."""

import os
from collections.abc import Mapping

import jax

from vlm_jax.errors import InputError

ADDRESS, NUMBER, PLACE, PATIENCE = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "VLM_JAX_HEARTBEAT"


def start(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes, if the environment names them; to be called before any device is used.

    JAX_COORDINATOR_ADDRESS is host:port of process 0, JAX_NUM_PROCESSES how many there are, JAX_PROCESS_ID which one this is.
    A process that is not heard of for VLM_JAX_HEARTBEAT seconds (30) ends the others, too.

    Raises:
      InputError: a variable is missing, or no number in its range.
    """
    if not environment.get(ADDRESS) or jax.distributed.is_initialized():
        return
    number, place = _number(environment, NUMBER, 1), _number(environment, PLACE, 0)
    if place >= number:
        raise InputError(f"{PLACE} {place}: must be less than {NUMBER} {number}")
    patience = _number(environment, PATIENCE, 1) if PATIENCE in environment else 30
    jax.distributed.initialize(
        environment[ADDRESS], number, place, heartbeat_timeout_seconds=patience, shutdown_timeout_seconds=patience
    )


def _number(environment: Mapping[str, str], name: str, least: int) -> int:
    value = environment.get(name, "")
    if not value.isdecimal() or int(value) < least:
        raise InputError(f"{name} {value!r}: with {ADDRESS} set, this must be a number from {least}")
    return int(value)
