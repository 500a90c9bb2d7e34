"""Runs that are killed, in processes of their own: what they leave, and that the same command goes on to the same curve bit for bit."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from vlm_jax import config as configs
from vlm_jax import errors
from vlm_jax.training import checkpoint, manifest, sharding
from vlm_jax.training import state as states

ROOT = Path(__file__).resolve().parents[1]
KILLS, STEPS, SAVE_EVERY = 20, 400, 5


def start(world: Path, workdir: Path, *flags: str, limit: int | None = None) -> subprocess.Popen:
    """A run on one device, in a session of its own; with a limit no file may become longer."""
    command = [sys.executable, "-m", "vlm_jax.train", "tests/mixture_recipe.py", "--workdir", str(workdir), *flags]
    environment = os.environ | {"WORLD": str(world), "PYTHONPATH": f"{ROOT}/tests", "XLA_FLAGS": ""}
    before = None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True, preexec_fn=before
        )


def rows(workdir: Path) -> list[dict]:
    """Whole lines of the metrics so far."""
    file = workdir / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def curve(workdir: Path) -> list[tuple]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows(workdir)]


def weights(workdir: Path):
    """Everything but the moments; these the curve shows."""
    config, folder, _ = configs.of_checkpoint(str(workdir), allow=["mixture_recipe", "tiny_recipe"])
    shapes = states.weights_of(states.Model.of(config.system))
    return jax.device_get(checkpoint.load_weights(folder, None, shapes, sharding.Mesh().make(jax.devices()[:1]))[0])


def left(session: int) -> list[int]:
    """Processes of a session that are still there."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True, check=False).stdout
    return [int(line.split()[0]) for line in found.splitlines() if not line.split()[1].startswith("Z")]


@pytest.fixture(scope="module")
def uninterrupted(tiny_world, tmp_path_factory) -> tuple[Path, float]:
    """A run without workers, and how long it trained."""
    workdir = tmp_path_factory.mktemp("survival") / "whole"
    child = start(tiny_world, workdir, "--steps", str(STEPS), "--save-every", str(SAVE_EVERY))
    assert child.wait(400) == 0, workdir.with_suffix(".log").read_text()[-3000:]
    times = [row["time"] for row in rows(workdir)]
    assert len(times) == STEPS
    return workdir, times[-1] - times[0]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_curve_twice(uninterrupted, tiny_world, tmp_path):
    """R11."""
    whole, again = uninterrupted[0], tmp_path / "again"
    child = start(tiny_world, again, "--steps", str(STEPS), "--save-every", "0", "--workers", "1")
    assert child.wait(400) == 0, again.with_suffix(".log").read_text()[-3000:]
    same = sum(a == b for a, b in zip(curve(whole), curve(again), strict=True))
    print(f"R11: {same} of {STEPS} losses and gradient norms equal bit for bit in two processes, with one worker and none")
    assert same == STEPS
    jax.tree.map(np.testing.assert_array_equal, weights(whole), weights(again))


@pytest.mark.slow
def test_killed_at_random_moments_the_curve_is_the_uninterrupted_one(uninterrupted, tiny_world, tmp_path):
    """R1: SIGKILL to a run with two workers, on a mixture of three sources, and a stream of two joined ones."""
    whole, seconds = uninterrupted
    rng, workdir = np.random.default_rng(int.from_bytes(os.urandom(4))), tmp_path / "run"
    lost, orphans = [], 0
    for kill in range(KILLS):
        began, child = time.time(), start(tiny_world, workdir, "--steps", str(STEPS), "--save-every", str(SAVE_EVERY), "--workers", "2")
        if kill % 5 == 4:  # while it starts
            time.sleep(float(rng.uniform(0, 8)))
        else:  # while it trains
            while child.poll() is None and not any(row["time"] > began for row in rows(workdir)[-1:]):
                time.sleep(0.02)
            time.sleep(float(rng.uniform(0, 1.2 * seconds / KILLS)))
        assert child.poll() is None, workdir.with_suffix(".log").read_text()[-3000:]
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        reached, saved = max((row["step"] for row in rows(workdir)), default=0), max(checkpoint.steps(workdir), default=0)
        lost.append(reached - saved)
        until = time.monotonic() + 20
        while left(child.pid) and time.monotonic() < until:
            time.sleep(0.1)
        orphans += len(left(child.pid))
    child = start(tiny_world, workdir, "--steps", str(STEPS), "--save-every", str(SAVE_EVERY), "--workers", "2")
    assert child.wait(400) == 0, workdir.with_suffix(".log").read_text()[-3000:]
    same = sum(a == b for a, b in zip(curve(whole), curve(workdir), strict=True))
    print(
        f"R1: killed {KILLS} times, {lost} steps beyond the last save; {same} of {STEPS} losses and gradient "
        f"norms equal bit for bit; {orphans} workers outlived their run by 20 s"
    )
    assert same == STEPS and not orphans
    assert max(lost) <= 2 * SAVE_EVERY, "the save before the last is on disk when the last one begins"
    jax.tree.map(np.testing.assert_array_equal, weights(whole), weights(workdir))
    assert [manifest.verify(workdir / "checkpoints" / str(step)) for step in checkpoint.steps(workdir)] == ["verified"] * 2


@pytest.mark.slow
def test_a_full_disk_is_reported_and_the_step_before_is_whole(uninterrupted, tiny_world, tmp_path):
    """R6: no file of the second start may become longer than 300 kB; moments do, the vocabulary and the metrics do not."""
    workdir, flags = tmp_path / "run", ("--save-every", str(SAVE_EVERY))
    first = start(tiny_world, workdir, "--steps", str(SAVE_EVERY), *flags)
    assert first.wait(200) == 0, workdir.with_suffix(".log").read_text()[-3000:]
    (workdir.with_suffix(".log")).unlink()
    second = start(tiny_world, workdir, "--steps", str(STEPS), *flags, limit=300_000)
    assert second.wait(200) == errors.INFRASTRUCTURE, workdir.with_suffix(".log").read_text()[-3000:]
    (said,) = [line for line in workdir.with_suffix(".log").read_text().splitlines() if line.startswith("infrastructure: ")]
    print(f"R6: {said}")
    assert f"step {2 * SAVE_EVERY} could not be saved in {workdir / 'checkpoints'}" in said and "File too large" in said
    assert f"Step {SAVE_EVERY} is whole" in said
    assert checkpoint.steps(workdir) == [SAVE_EVERY] and manifest.verify(workdir / "checkpoints" / str(SAVE_EVERY)) == "verified"
    third = start(tiny_world, workdir, "--steps", str(STEPS), *flags)
    assert third.wait(400) == 0, workdir.with_suffix(".log").read_text()[-3000:]
