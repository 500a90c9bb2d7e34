"""Two real processes evaluate together, each reading half of the images, and both get the whole result.

They go on from where one process was interrupted; the second sees nothing of the first one's folder.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_jax.data import sources
from vlm_jax.evaluation import base, embeddings, linear_probe, nearest_neighbours, retrieval, zero_shot

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_two_processes_get_the_numbers_of_one(make_subject, data, classes, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "SECONDS", 0.0)
    subject = make_subject(batch_size=8)
    pieces = embeddings.Pieces(tmp_path / "0", {"weights": "w"})
    interrupted = base.Subject(subject.compiled, subject.variables, subject.transform, subject.tokenizer, 8, pieces)
    interrupted.embed_records(sources.open_source(data), 27)
    sorted(tmp_path.rglob("*.npy"))[1].unlink()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    flags = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    script = [sys.executable, str(Path(__file__).with_name("two_processes.py"))]
    run = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    arguments = [[*script, str(i), address, data, classes, str(tmp_path / str(i))] for i in range(2)]
    processes = [subprocess.Popen(own, **run) for own in arguments]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    found = [json.loads(output.splitlines()[-1]) for output, _ in outputs]
    assert sorted(found[0]["rows"] + found[1]["rows"]) == list(range(27))
    assert all(len(one["rows"]) > 9 for one in found)
    assert [one["found"] for one in found] == [19, 19]
    assert (tmp_path / "0").exists() and not (tmp_path / "1").exists()
    evaluators = [
        zero_shot.ZeroShot(data=data, classes=classes),
        retrieval.Retrieval(data=data),
        linear_probe.LinearProbe(data=data, train=data, max_iterations=30),
        nearest_neighbours.NearestNeighbours(data=data, train=data),
    ]
    expected = [evaluate(make_subject()) for evaluate in evaluators]
    assert found[0]["metrics"] == found[1]["metrics"] == [result.metrics for result in expected]
