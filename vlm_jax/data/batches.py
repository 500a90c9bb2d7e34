"""Batches: rows of global batches out of the examples of several streams, and the iterator over them.

A process builds only the rows it feeds; threads and worker processes build whole batches of theirs; the state of the iterator is the
number of the next batch, and what was counted of bad records up to there.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from vlm_jax.data import bad_records, collate, handover, processes

Batch = dict[str, dict[str, np.ndarray]]
Fields = dict[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of what an example has, by name."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """The training examples of a stream, in the one order that they have."""

    rows: grain.MapDataset
    """The fields of one example by position; positions beyond the first epoch are those of the following ones, in another order."""
    allowed: Mapping[str, bad_records.Allowance]
    """What may be bad, by part of the stream; a stream without parts has one, named ""."""
    metrics: Callable[[int], Mapping[str, float]] = lambda count: {}
    """What is to be logged of the first so many examples, by name."""

    def __len__(self) -> int:
        """Of an epoch."""
        return len(self.rows)


@dataclasses.dataclass(frozen=True)
class Share:
    """What this process feeds of a stream."""

    examples: Examples
    size: int
    """Of a global batch."""
    rows: tuple[int, ...]
    """Of a global batch, in order."""


class BatchIterator(grain.DatasetIterator):
    """Iterates over global batches from a given one on. Its state is {"step": number of the next batch}, with the counts of bad records.

    The state knows nothing of hosts, workers and threads, so a run may go on with others. Close it when done: workers are processes.
    """

    def __init__(self, shares: Mapping[str, Share], *, workers: int, threads: int):
        """
        Args:
          shares: of the streams, by name.
          workers: processes that read ahead; 0: threads of this process do.
          threads: that build batches, here or in each worker.
        """
        super().__init__()
        allowed = {account(name, part): a for name, share in shares.items() for part, a in share.examples.allowed.items()}
        fed = {
            account(name, part): len(share.rows) * a.per_example
            for name, share in shares.items()
            for part, a in share.examples.allowed.items()
        }
        self.bad_records = bad_records.Account({name: a.share for name, a in allowed.items()}, fed)
        """Of the batches taken so far."""
        self._shares, self._workers, self._threads = dict(shares), workers, threads
        self._batches = _Batches(shares)
        self._step = 0
        self._open = True
        self._iterator: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        batch, bad = next(self._started())
        self.bad_records.add(self._step, bad)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """{"step": k}: the next batch is global batch k. Where records were bad, "bad_records", what their account knows, as well."""
        counts = self.bad_records.state()
        return {"step": self._step} | ({"bad_records": counts} if counts else {})

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on at global batch `state["step"]`."""
        step = int(state["step"])
        if step < 0:
            raise ValueError(f"step {step} of the state is negative")
        self._stop()
        self._step = step
        self.bad_records.set_state(step, state.get("bad_records", {}))

    def metrics(self) -> dict[str, float]:
        """What the streams say of the examples that all processes have fed so far, and how many this one had to replace, if any."""
        said = {
            f"{name}/{metric}": value
            for name, share in self._shares.items()
            for metric, value in share.examples.metrics(self._step * share.size).items()
        }
        return said | ({"bad_records": self.bad_records.count} if self.bad_records.count else {})

    def start_prefetch(self) -> None:
        """Starts to read ahead, so that the first batch is ready when it is asked for."""
        self._started().start_prefetch()

    def close(self) -> None:
        """Ends threads and workers, and says what was bad."""
        if self._open:
            self.bad_records.conclude()
        self._open = False
        self._stop()
        super().close()

    def _started(self) -> grain.DatasetIterator:
        if not self._open:
            raise ValueError("the iterator is closed")
        if self._iterator is None:
            self._iterator = iter(self._from(self._step))
        return self._iterator

    def _from(self, step: int) -> grain.IterDataset:
        ahead = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._threads + 2)  # in batches
        batches = self._batches[step:].to_iter_dataset(ahead)
        if not self._workers:
            return batches
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads absl flags in mp_prefetch; we have none
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
        return batches.map(handover.hand_over).mp_prefetch(options, worker_init_fn=_start_worker)

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def _start_worker(worker: int, workers: int) -> None:
    processes.end_with_parent()
    handover.start()


class _Batches(grain.MapDataset):
    """Element k: this process's rows of global batch k, of every stream; and (account, row, BadRecord) of what was replaced in them."""

    def __init__(self, shares: Mapping[str, Share]):
        super().__init__(tuple(share.examples.rows for share in shares.values()))
        self._streams = {name: (share.examples.rows.repeat(), share.size, share.rows) for name, share in shares.items()}
        self._length = min(len(rows) // size for rows, size, _ in self._streams.values())

    def __len__(self) -> int:
        return self._length

    def __str__(self) -> str:
        return "Batches(" + ", ".join(f"{name}: {len(own)} of {size}" for name, (_, size, own) in self._streams.items()) + ")"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, bad = {}, []
        for name, (examples, size, own) in self._streams.items():
            batch[name] = collate.stack(_rows(name, examples, index * size, own, bad), len(own), handover.empty)
        return batch, tuple(bad)


def _rows(name: str, examples: grain.MapDataset, start: int, own: Sequence[int], bad: list[Any]) -> Iterator[dict[str, np.ndarray]]:
    """The rows of a batch, one after the other; what was replaced in them goes to `bad`."""
    for number in own:
        row: dict[str, Any] = examples[start + number]  # pyright: ignore[reportAssignmentType]
        for part, found in row.pop(bad_records.FIELD, {}).items():
            bad += [(account(name, part), number, record) for record in found]
        yield row


def account(stream: str, part: str) -> str:
    """The name under which bad records of a stream, or of a part of it, are counted."""
    return f"{stream}/{part}" if part else stream


def own_rows(name: str, size: int, rows: np.ndarray) -> tuple[int, ...]:
    """The numbers of the rows that a process feeds.

    Raises:
      ValueError: none, or such as a global batch of this size does not have.
    """
    if rows.ndim != 1 or not len(rows) or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= size:
        raise ValueError(f"rows of {name}: a non-empty list of row numbers below {size} is needed, got {rows}")
    return tuple(int(row) for row in rows)
