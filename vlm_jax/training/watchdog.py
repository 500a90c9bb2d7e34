"""Ends a run that stands still: a stuck loader, file system or collective is noticed by nobody else."""

import faulthandler
import os
import sys
import threading
import time

from vlm_jax.errors import INFRASTRUCTURE


class Watchdog:
    """Within it, `beat` is to be called at least every `seconds`; else the stacks of all threads are printed and the process ends.

    A thread of Python watches; where a library holds the interpreter's lock, so that no thread runs, a timer of faulthandler's ends the
    process a little later (with exit code 1, which cannot be chosen there). Zero seconds: nobody watches.
    """

    def __init__(self, seconds: float):
        self._seconds, self._last, self._doing = seconds, time.monotonic(), "start"
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self.beat("start")
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()

    def beat(self, doing: str) -> None:
        """Something has ended, and this is what comes next."""
        self._last, self._doing = time.monotonic(), doing
        if self._seconds and not self._over.is_set():
            faulthandler.dump_traceback_later(1.2 * self._seconds + 1, exit=True, file=_file())

    def _watch(self) -> None:
        while not self._over.wait(min(self._seconds / 10, 1.0)):
            still = time.monotonic() - self._last
            if still > self._seconds:
                print(
                    f"\nstuck: nothing has ended for {still:.0f} s (--stuck-after {self._seconds:g}) since: {self._doing}; the stacks of "
                    "all threads follow",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True, file=_file())
                sys.stderr.flush()
                os._exit(INFRASTRUCTURE)


def _file():
    """Standard error as the process has it; what notebooks and tests put in its place is no file."""
    return sys.__stderr__ or sys.stderr
