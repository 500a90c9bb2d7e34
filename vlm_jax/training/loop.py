"""The loop: step, evaluate, save, and only then the next batch, so that a saved position is the next step's."""

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from vlm_jax.errors import InputError, Preempted
from vlm_jax.training import goodput
from vlm_jax.training.interruption import Interruption
from vlm_jax.training.log import Log
from vlm_jax.training.state import State
from vlm_jax.training.watchdog import Watchdog


class NotFinite(InputError):
    """Too many steps in a row had a loss or gradient that is not finite; none of them changed the state."""


@dataclasses.dataclass(frozen=True)
class Intervals:
    """In steps; 0: only after the last."""

    total: int
    log: int
    evaluate: int
    save: int

    def due(self, step: int, every: int) -> bool:
        """Whether something with this interval happens after `step` steps."""
        return step == self.total or (every > 0 and step % every == 0)


def fit(
    state: State,
    batches: Iterator[Any],
    *,
    step: Callable[[State, Any], tuple[State, dict[str, jax.Array]]],
    put: Callable[[Any], Any],
    rate: Callable[[int], Any],
    intervals: Intervals,
    log: Log,
    evaluate: Callable[[int, State], None],
    save: Callable[[int, State], None],
    max_skipped: int,
    account: goodput.Goodput,
    watchdog: Watchdog,
    interruption: Interruption,
    of_data: Callable[[], Mapping[str, float]] = dict,
) -> State:
    """Trains from the state's step to the last.

    Metrics stay on the device and are read while the next step runs, stamped with the step they belong to.

    Args:
      step: compiled; donates its state.
      put: makes global arrays of a host batch.
      rate: learning rate by step, for the log.
      max_skipped: steps in a row that may be skipped.
      account: of the time that is not spent on steps.
      watchdog: is told of everything that ends.
      interruption: asked after every step whether it shall be the last.
      of_data: what is to be logged of the batches taken so far.

    Raises:
      NotFinite: more than `max_skipped` steps in a row were skipped.
      Preempted: the run was asked to stop; the state after its last step is given to `save`.
    """
    first = int(state["step"])
    pending: tuple[int, Any] | None = None
    skipped_in_a_row = skipped = 0

    def read(ended: float | None = None) -> None:
        """Reads the pending metrics; `ended` is when their step was over, None for when they can be read."""
        nonlocal pending, skipped, skipped_in_a_row
        if pending is None:
            return
        number, metrics = pending[0], {name: float(v) for name, v in jax.device_get(pending[1]).items()}
        pending = None
        skipped += int(metrics["skipped"])
        skipped_in_a_row = skipped_in_a_row + 1 if metrics["skipped"] else 0
        if metrics["skipped"]:
            log.say(f"step {number}: loss {metrics['loss']} or its gradient is not finite; the step is skipped")
        if skipped_in_a_row >= max_skipped:
            raise NotFinite(
                f"{skipped_in_a_row} steps in a row up to step {number} were not finite; the state is that before them. Lower "
                "--optimizer.learning-rate, or look at these batches; --max-skipped allows more"
            )
        if intervals.due(number, intervals.log) or number == first + 1:
            share = goodput.share(account.note(number))
            metrics |= {"skipped": skipped, "learning_rate": float(rate(number - 1)), "goodput": share}
            log.train(number, metrics, time.perf_counter() if ended is None else ended)

    account.trains_from(first)
    for number in range(first + 1, intervals.total + 1):
        began = time.perf_counter()
        watchdog.beat(f"waiting for the data of step {number}")
        ended = _Ended(pending[1]) if pending else None
        batch = put(next(batches))
        idle_since = began if ended is None else max(began, ended.at())
        waited = time.perf_counter() - idle_since
        account.count("data wait", waited)
        fed = of_data()
        watchdog.beat(f"step {number}")
        with account.spent("compile") if number == first + 1 else contextlib.nullcontext():
            state, metrics = step(state, batch)
        read(began)
        log.wait(waited)
        pending = number, {**metrics, **fed}
        signal = interruption.wished(number) if number < intervals.total else None
        evaluating = intervals.due(number, intervals.evaluate) and not signal
        saving = intervals.due(number, intervals.save) or bool(signal)
        if evaluating or saving:
            read()
            if evaluating:
                watchdog.beat(f"evaluation after step {number}")
                with account.spent("evaluate"):
                    evaluate(number, state)
            if saving:
                watchdog.beat(f"save after step {number}")
                with account.spent("save"):
                    save(number, state)
            account.note(number)
            log.start_interval(number, time.perf_counter())
        if signal:
            raise Preempted(f"{signal} after step {number} of {intervals.total}, which is saved; the same command goes on from there")
    read()
    watchdog.beat("the end of the run")
    return state


class _Ended:
    """When the devices are done with a step: they work while the next batch is awaited, and only what comes after is lost."""

    def __init__(self, metrics: Any):
        self._at = math.inf
        self._metrics = metrics
        self._thread = threading.Thread(target=self._wait, name="step-ended", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        try:
            jax.block_until_ready(self._metrics)
        except jax.errors.JaxRuntimeError:
            return  # who reads the metrics raises it
        self._at = time.perf_counter()

    def at(self) -> float:
        """As time.perf_counter() counts; now, where they are not done."""
        return min(self._at, time.perf_counter())
