"""Two processes of four devices each are one process of eight; and when one of them ends or stands still, both end and say why."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vlm_jax import errors
from vlm_jax.training import checkpoint, processes

ROOT = Path(__file__).resolve().parents[1]
HEARTBEAT = 10
GONE = r"stopped sending heartbeats\):\s+1\b"
"""What JAX's coordination service says of process 1."""


class Pair:
    """Two processes of one run."""

    def __init__(self, world: Path, workdir: Path, *flags: str, recipe="tiny_recipe", devices=4, number=2, **environment):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.logs = [workdir.with_suffix(f".{i}.log") for i in range(number)]
        data = [
            *("--data.train", f"{world}/train-*.array_record", "--data.val", f"{world}/val-*.array_record"),
            *("--data.tokenizer.path", f"{world}/tokenizer.model", "--evaluators.held-out.classes", f"{world}/classes.json"),
            *("--evaluators.held-out.data", f"{world}/held_out-*.array_record", "--workdir", str(workdir)),
        ]
        self.children = []
        for i in range(number):
            joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(number), "JAX_PROCESS_ID": str(i)}
            own = os.environ | environment | (joined if number > 1 else {}) | {
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "VLM_JAX_HEARTBEAT": str(HEARTBEAT),
                "PYTHONPATH": f"{ROOT}/tests",
            }  # fmt: skip
            command = [sys.executable, "-m", "vlm_jax.train", f"tests/{recipe}.py", *data, *flags]
            log = self.logs[i].open("w")
            self.children.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=subprocess.STDOUT))

    def codes(self, seconds: float) -> list[int | None]:
        """Exit codes, None for a process that is still there after so many seconds; it is killed."""
        until = time.monotonic() + seconds
        codes = []
        for child in self.children:
            try:
                codes.append(child.wait(max(until - time.monotonic(), 0.01)))
            except subprocess.TimeoutExpired:
                codes.append(None)
        for child in self.children:
            if child.poll() is None:
                child.kill()
                child.wait()
        return codes

    def said(self) -> list[str]:
        return [log.read_text() for log in self.logs]


def _losses(workdir: Path) -> list[float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "grad_norm" in row]


@pytest.mark.slow
def test_two_processes_of_four_devices_are_one_of_eight(tiny_world, tmp_path):
    """R10: losses, evaluation and files."""
    one = Pair(tiny_world, tmp_path / "one", devices=8, number=1)
    assert one.codes(240) == [0], one.said()
    two = Pair(tiny_world, tmp_path / "two")
    assert two.codes(240) == [0, 0], two.said()
    losses = [np.asarray(_losses(tmp_path / name)) for name in ("one", "two")]
    difference = np.abs(losses[1] / losses[0] - 1).max()
    print(f"R10: largest relative difference of {len(losses[0])} losses {difference:.1e}")
    assert difference <= 1e-5
    evaluations = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two")]
    for a, b in zip(*evaluations, strict=True):
        assert a["metrics"] == pytest.approx(b["metrics"], abs=1e-6)
    assert "done in" in two.said()[0] and "done in" not in two.said()[1]


@pytest.mark.slow
def test_sigterm_to_one_of_two_saves_the_same_step_in_both(tiny_world, tmp_path):
    """R2."""
    pair = Pair(tiny_world, tmp_path / "run", "--steps", "400", "--save-every", "0")
    metrics = tmp_path / "run" / "metrics.jsonl"
    while pair.children[0].poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.05)
    pair.children[1].send_signal(signal.SIGTERM)
    assert pair.codes(120) == [errors.PREEMPTED] * 2, pair.said()
    (step,) = checkpoint.steps(tmp_path / "run")
    print(f"R2: both saved step {step}")
    assert all(f"stopped: SIGTERM after step {step} of 400" in text for text in pair.said())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "cause"),
    [("crash", "a loader with a fault"), ("kill", GONE), ("stop", GONE), ("stuck", "stuck: nothing has ended for")],
)
def test_whatever_happens_to_one_ends_both_and_is_named(tiny_world, tmp_path, failure, cause):
    """R3: within 60 seconds of a failure at step 9."""
    flags = ("--steps", "30", "--save-every", "0", "--stuck-after", "15" if failure == "stuck" else "120")
    pair = Pair(tiny_world, tmp_path / "run", *flags, recipe="failing_recipe", FAIL=failure)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while all(child.poll() is None for child in pair.children) and not (metrics.exists() and '"step": 7' in metrics.read_text()):
        time.sleep(0.05)
    began = time.monotonic()
    first = pair.children[0].wait(60)
    print(f"R3 {failure}: the other process ended within {time.monotonic() - began:.0f} s with exit code {first}")
    second = pair.codes(1 if failure == "stop" else 30)[1]
    assert first not in (0, None), pair.said()[0][-3000:]
    if failure == "stuck":  # both stand still; whose watchdog is the first ends the other, whose connection breaks
        assert errors.INFRASTRUCTURE in (first, second) and {first, second} <= {errors.INFRASTRUCTURE, -signal.SIGABRT}
    else:
        assert second == {"crash": errors.FAULT, "kill": -signal.SIGKILL, "stop": None}[failure]
    assert re.search(cause, "".join(pair.said())), pair.said()[0][-3000:]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "JAX_NUM_PROCESSES '': with JAX_COORDINATOR_ADDRESS set, this must be a number from 1"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID 2: must be less than JAX_NUM_PROCESSES 2"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "VLM_JAX_HEARTBEAT": "soon"}, "VLM_JAX_HEARTBEAT 'soon'"),
    ],
)
def test_an_environment_that_names_processes_by_halves_is_refused(environment, message):
    with pytest.raises(errors.InputError, match=message):
        processes.start({"JAX_COORDINATOR_ADDRESS": "localhost:1234"} | environment)
