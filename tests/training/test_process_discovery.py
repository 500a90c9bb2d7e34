"""How a process finds the others: by hand, by Slurm, on Cloud TPU, or none."""

import importlib.util
import re

import jax
import pytest

from vlm_jax.errors import InputError
from vlm_jax.training import processes

SLURM = {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
HAND = {"JAX_COORDINATOR_ADDRESS": "host0:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
WAITS = {"heartbeat_timeout_seconds": 30, "shutdown_timeout_seconds": 30}


class Joined(list):
    """Stands for jax.distributed.initialize and remembers its arguments."""

    def __call__(self, *args, **kwargs):
        self.append((args, kwargs))


@pytest.fixture
def dev(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "called", "words"),
    [
        (HAND | SLURM, (("host0:1234", 4, 3), WAITS), "by JAX_COORDINATOR_ADDRESS host0:1234"),
        (SLURM, ((), WAITS | {"cluster_detection_method": "slurm"}), r"by Slurm, job 77 on node\[1-2\]"),
        (SLURM | {"SLURM_NTASKS": "1"}, None, "alone"),
        ({"SLURM_JOB_ID": "77"}, None, "alone"),
        ({}, None, r"process 0 of 1 \(alone\), with 8 of 8 devices"),
    ],
)
def test_processes_are_found_by_hand_then_by_slurm(environment, called, words, tmp_path):
    joined = Joined()
    found = processes.start(environment, tmp_path, joined)
    assert joined == ([called] if called else [])
    assert re.search(words, found)


@pytest.mark.parametrize("chip", ["accel0", "vfio/3"])
def test_a_machine_with_tpu_chips_asks_for_its_pod(chip, dev):
    (dev / chip).parent.mkdir(exist_ok=True)
    (dev / chip).touch()
    joined = Joined()
    assert "by Cloud TPU" in processes.start({"VLM_JAX_HEARTBEAT": "90"}, dev, joined)
    assert joined == [((), {"heartbeat_timeout_seconds": 90, "shutdown_timeout_seconds": 90})]
    assert "alone" in processes.start({"JAX_PLATFORMS": "cpu"}, dev, joined)
    assert "alone, as JAX_NUM_PROCESSES says" in processes.start({"JAX_NUM_PROCESSES": "1"}, dev, joined)
    assert len(joined) == 1


def test_chips_whose_pod_is_not_known_are_told_how_to_go_on(dev):
    (dev / "accel0").touch()

    def fail(**_):
        raise ValueError("coordinator_address should be defined.")

    with pytest.raises(InputError, match=r"coordinator_address should be defined.*JAX_NUM_PROCESSES=1 if there are none"):
        processes.start({}, dev, fail)


def test_compiled_programs_are_kept_with_the_run_unless_told_otherwise(tmp_path, monkeypatch):
    assert processes.keep_compiled(tmp_path, {"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}) == "/elsewhere"
    assert processes.keep_compiled(tmp_path, {}) == ""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    set_ = {}
    monkeypatch.setattr(jax.config, "update", set_.__setitem__)
    assert processes.keep_compiled(tmp_path, {}) == str(tmp_path / "compiled") == set_["jax_compilation_cache_dir"]
