"""Two real processes evaluate together, each reading half of the images, and both get the whole result."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from vlm_jax.evaluation import retrieval, zero_shot

TESTS = Path(__file__).resolve().parents[1]


def test_two_processes_get_the_numbers_of_one(make_subject, data, classes):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    flags = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    script = [sys.executable, str(Path(__file__).with_name("two_processes.py"))]
    processes = [
        subprocess.Popen([*script, str(i), address, data, classes], env=environment, stdout=-1, stderr=-1, text=True)
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    found = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    assert sorted(found[0]["rows"] + found[1]["rows"]) == list(range(27))
    assert all(len(one["rows"]) > 9 for one in found)
    expected = [zero_shot.ZeroShot(data, classes)(make_subject()), retrieval.Retrieval(data)(make_subject())]
    assert found[0]["metrics"] == found[1]["metrics"] == [result.metrics for result in expected]
