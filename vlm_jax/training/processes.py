"""Several processes that train as one: how a process learns of the others, and where they keep what they have compiled."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from vlm_jax.errors import InputError

ADDRESS, NUMBER, PLACE, PATIENCE = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "VLM_JAX_HEARTBEAT"
CACHE = "JAX_COMPILATION_CACHE_DIR"
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
"""What Slurm tells a task that srun has started."""


def start(
    environment: Mapping[str, str] = os.environ,
    machine: Path = Path("/dev"),
    initialize: Callable[..., None] = jax.distributed.initialize,
) -> str:
    """Joins the other processes, if there are any; to be called before any device is used. Returns what was found, in words.

    Looked at in this order: JAX_COORDINATOR_ADDRESS, host:port of process 0, with JAX_NUM_PROCESSES, how many there are, and
    JAX_PROCESS_ID, which one this is; a step of Slurm with several tasks; a machine with TPU chips, whose pod or slices
    Google's services know. JAX_NUM_PROCESSES=1 alone means that there are no others, whatever the machine is.
    A process that is not heard of for VLM_JAX_HEARTBEAT seconds (30) ends the others, too.

    Args:
      machine: folder of the devices of the operating system.
      initialize: what joins them.

    Raises:
      InputError: a variable is missing, or no number in its range; or the others of a TPU cannot be found.
    """
    if jax.distributed.is_initialized():
        return _words("joined before")
    patience = _number(environment, PATIENCE, 1) if PATIENCE in environment else 30
    waits = {"heartbeat_timeout_seconds": patience, "shutdown_timeout_seconds": patience}
    if environment.get(ADDRESS):
        number, place = _number(environment, NUMBER, 1), _number(environment, PLACE, 0)
        if place >= number:
            raise InputError(f"{PLACE} {place}: must be less than {NUMBER} {number}")
        initialize(environment[ADDRESS], number, place, **waits)
        return _words(f"by {ADDRESS} {environment[ADDRESS]}")
    if environment.get(NUMBER) == "1":
        return _words(f"alone, as {NUMBER} says")
    if all(environment.get(name) for name in SLURM) and _number(environment, "SLURM_NTASKS", 1) > 1:
        initialize(cluster_detection_method="slurm", **waits)
        return _words(f"by Slurm, job {environment['SLURM_JOB_ID']} on {environment['SLURM_STEP_NODELIST']}")
    if _has_tpu(environment, machine):
        try:
            initialize(**waits)
        except (ValueError, RuntimeError, OSError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{ADDRESS}: this machine has TPU chips, and nothing tells which others belong to them ({first}); set it with {NUMBER} "
                f"and {PLACE}, or {NUMBER}=1 if there are none"
            ) from None
        return _words("by Cloud TPU")
    return _words("alone")


def keep_compiled(workdir: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Keeps compiled programs in the run's folder, so that a start after a preemption compiles nothing again; returns the folder.

    Not on CPU, whose programs are quickly made and good for one kind of processor. JAX_COMPILATION_CACHE_DIR has the last word. To be
    called before anything is compiled.
    """
    if environment.get(CACHE):
        return environment[CACHE]
    if jax.default_backend() == "cpu":
        return ""
    folder = str(workdir.absolute() / "compiled")
    jax.config.update("jax_compilation_cache_dir", folder)
    return folder


def _words(found: str) -> str:
    return (
        f"process {jax.process_index()} of {jax.process_count()} ({found}), with {jax.local_device_count()} of {jax.device_count()} devices"
    )


def _has_tpu(environment: Mapping[str, str], machine: Path) -> bool:
    """Whether the operating system shows chips and there is something to use them with."""
    chips = [*machine.glob("accel[0-9]*"), *machine.glob("vfio/[0-9]*")]
    return bool(chips) and bool(importlib.util.find_spec("libtpu")) and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu")


def _number(environment: Mapping[str, str], name: str, least: int) -> int:
    value = environment.get(name, "")
    if not value.isdecimal() or int(value) < least:
        because = f"with {ADDRESS} set, " if name in (NUMBER, PLACE) else ""
        raise InputError(f"{name} {value!r}: {because}this must be a number from {least}")
    return int(value)
