"""Where the time of a run goes, over all its starts: what trained the model, and what did not.

`goodput.json` in the workdir has one entry for every start of the run. Buckets and productive time add up to the time from the
first start to now. The clock of a start begins when its configuration has been read: importing packages, some seconds, is not in it.
"""

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm_jax import files

BUCKETS = ("start", "restore", "compile", "data wait", "evaluate", "save")
"""What one start of a run spends its time on, beside steps."""
FILE = "goodput.json"


@dataclasses.dataclass
class Attempt:
    """One start of a run."""

    began: float
    ended: float
    first_step: int
    last_step: int
    seconds: dict[str, float]
    """By bucket."""

    @property
    def productive(self) -> float:
        """Seconds of steps, first ones and repeated ones alike."""
        return self.ended - self.began - sum(self.seconds.values())


class Goodput:
    """The account of this start; keeps those of earlier ones."""

    def __init__(self, workdir: Path | None, began: float):
        """
        Args:
          workdir: None: nothing is read or written.
          began: when this start began, as `time.time()` says it.
        """
        self._file = None if workdir is None else Path(workdir) / FILE
        self._earlier = [] if workdir is None else read(Path(workdir))
        self._attempt = Attempt(began, began, 0, 0, dict.fromkeys(BUCKETS, 0.0))

    def count(self, bucket: str, seconds: float) -> None:
        """Counts time that has passed for a bucket."""
        self._attempt.seconds[bucket] += seconds

    @contextlib.contextmanager
    def spent(self, bucket: str) -> Iterator[None]:
        """Counts the time within for a bucket."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.count(bucket, time.perf_counter() - began)

    def trains_from(self, step: int) -> None:
        """The loop begins after `step`: what was not counted until now was the start."""
        attempt = self._attempt
        attempt.first_step = attempt.last_step = step
        attempt.seconds["start"] += time.time() - attempt.began - sum(attempt.seconds.values())

    def note(self, step: int) -> dict[str, float]:
        """Writes the account up to now, after `step`, and returns the summary."""
        self._attempt.last_step, self._attempt.ended = step, time.time()
        attempts = [*self._earlier, self._attempt]
        if self._file is not None:
            text = json.dumps([dataclasses.asdict(attempt) for attempt in attempts], indent=1) + "\n"
            files.write_text(self._file, text)
        return summary(attempts)


def summary(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Seconds by bucket over all starts: those of `BUCKETS`, `down` between them, `redone` for steps that a later start made again,
    and `productive`. They add up to `wall`."""
    seconds = {bucket: sum(attempt.seconds.get(bucket, 0.0) for attempt in attempts) for bucket in BUCKETS}
    seconds["down"] = sum(after.began - before.ended for before, after in itertools.pairwise(attempts))
    seconds["redone"] = sum(_redone(attempt, attempts[i + 1 :]) for i, attempt in enumerate(attempts))
    seconds["productive"] = sum(attempt.productive for attempt in attempts) - seconds["redone"]
    return seconds | {"wall": attempts[-1].ended - attempts[0].began}


def share(seconds: dict[str, float]) -> float:
    """Productive time over wall time."""
    return seconds["productive"] / seconds["wall"] if seconds["wall"] > 0 else 0.0


def text(seconds: dict[str, float]) -> str:
    """A summary for people, the largest loss first."""
    lost = {name: value for name, value in seconds.items() if name not in ("productive", "wall")}
    parts = [f"{name} {value:.1f} s" for name, value in sorted(lost.items(), key=lambda item: -item[1]) if value >= 0.05]
    return f"{share(seconds):.0%} of {seconds['wall']:.0f} s" + (f"; {', '.join(parts)}" if parts else "")


def _redone(attempt: Attempt, later: Sequence[Attempt]) -> float:
    """Productive seconds of the steps that a later start began before."""
    made = attempt.last_step - attempt.first_step
    kept = min([attempt.last_step, *(after.first_step for after in later)])
    return attempt.productive * (attempt.last_step - max(kept, attempt.first_step)) / made if made > 0 else 0.0


def read(workdir: Path) -> list[Attempt]:
    """The starts of a run; none if the file is not there, or not what we wrote."""
    try:
        entries: list[dict[str, Any]] = json.loads((workdir / FILE).read_text())
        return [Attempt(**entry) for entry in entries]
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return []
