"""A process that stands still ends, and says where it stood."""

import subprocess
import sys
import time

from vlm_jax.errors import INFRASTRUCTURE
from vlm_jax.training import watchdog

STUCK = """
import ctypes, sys, threading, time
from vlm_jax.training import watchdog
def loader_that_never_returns():
    {wait}
with watchdog.Watchdog(0.5) as guard:
    guard.beat("waiting for the data of step 7")
    loader_that_never_returns()
print("went on")
"""


def _run(wait):
    began = time.monotonic()
    code = STUCK.format(wait=wait)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return done, time.monotonic() - began


def test_a_stuck_run_prints_its_stacks_and_ends_as_infrastructure():
    done, seconds = _run("threading.Event().wait()")
    print(f"ended after {seconds:.1f} s")
    assert done.returncode == INFRASTRUCTURE and "went on" not in done.stdout
    assert "since: waiting for the data of step 7" in done.stderr and "loader_that_never_returns" in done.stderr


def test_a_library_that_holds_the_interpreters_lock_does_not_hold_the_run():
    done, _ = _run("ctypes.PyDLL(None).usleep(20_000_000)")
    assert done.returncode != 0 and "went on" not in done.stdout
    assert "loader_that_never_returns" in done.stderr


def test_beats_keep_a_run_alive_and_nothing_is_left_behind():
    with watchdog.Watchdog(0.3) as guard:
        for i in range(5):
            time.sleep(0.15)
            guard.beat(f"step {i}")
    time.sleep(0.8)  # the process is still there
