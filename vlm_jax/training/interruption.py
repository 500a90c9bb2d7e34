"""A wish to stop from outside, such as a preempted machine's: the step is finished and saved, and the run ends."""

import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Within it, SIGTERM and SIGINT are wishes; the second one ends the process at once.

    Several processes agree on a step through JAX's own preemption service, which takes SIGTERM; there, SIGINT stays what it is.
    """

    def __init__(self):
        self._several = jax.process_count() > 1
        self._signal: str | None = None
        self._before = {}

    def __enter__(self) -> "Interruption":
        if not self._several and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wished(self, step: int) -> str | None:
        """The name of the signal if the run shall stop after `step`; in one process of several, as soon as all know of it."""
        if self._several:
            return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None
        return self._signal

    def _note(self, number, frame) -> None:
        name = signal.Signals(number).name
        if self._signal is not None:
            for previous, handler in self._before.items():
                signal.signal(previous, handler)
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            sys.exit(128 + number)
        self._signal = name
        print(f"\n{name}: the run saves after this step and ends; once more ends it now", file=sys.stderr, flush=True)
