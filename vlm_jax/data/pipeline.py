"""The pipeline: from the sources of a run to batches, the same for any number of hosts, workers and threads.

A stream has ONE order, over positions 0, 1, 2 ... without end: the records shuffled anew every epoch. Row r of global batch k of a
stream with batch size B is position k B + r, and what is drawn at random for it (caption, crop, flip) comes from a
generator of that position; where its record cannot be used, another one is drawn from the same generator (`bad_records`). A process
builds only the rows it feeds; threads and worker processes build whole batches of theirs; the state of the iterator is the number of
the next batch, and what was counted of bad records up to there.
"""

import dataclasses
import functools
import multiprocessing
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Protocol

import grain
import numpy as np
from absl import flags

from vlm_jax import errors
from vlm_jax.data import bad_records, collate, images, records, sources, text, vocabulary

Batch = dict[str, dict[str, np.ndarray]]
Rows = Callable[[int], np.ndarray]
"""From a stream's global batch size to the rows of the global batch that this process feeds, in order."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What a stream will deliver, for checks before the first step and for the checkpoint."""

    vocab_size: int
    length: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    image_size: int
    train_records: int
    val_records: int
    fingerprint: str
    """Names, counts and sizes of the training shards; equal fingerprints mean the same order."""


class Stream(Protocol):
    """What a run needs of a stream, the configuration of one source of batches."""

    stream: ClassVar[str]
    """The name of the stream's fields in a batch, where a run has only this one."""
    batch_size: int
    """Examples in a global batch of this stream; 0: the run's batch size."""
    val: str
    """What evaluators without data of their own evaluate."""
    bad_records: float
    """Share of the examples that may be unusable before the run stops."""
    image: images.Transform
    tokenizer: text.Tokenizer

    def prepared(self) -> "Stream": ...

    def describe(self) -> Description: ...

    def examples(self, seed: int) -> grain.MapDataset: ...

    def keep(self, folder: str) -> None: ...

    def kept(self, folder: str) -> "Stream": ...


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Images with captions."""

    stream: ClassVar[str] = "pairs"

    train: str
    """Training data: shards (.tar, .array_record, .npz) by braces {00000..00041}, lists {a,b}, globs, several joined by ::; a folder of
    images; tfds:NAME/SPLIT. See docs/data.md."""
    val: str
    """Validation data, in the same form."""
    tokenizer: text.Tokenizer
    image: images.Transform
    caption: Literal["random", "first"] = "random"
    """Which of an image's captions a training step sees."""
    tokens: text.Part = "first"
    """Which tokens of a caption longer than tokenizer.length a training step sees: the first ones, random ones in their order, or a
    block, a run from a random place (CLIPA). Evaluation sees the first ones."""
    batch_size: int = 0
    """Examples in a global batch of this stream; 0: the run's batch size."""
    bad_records: float = 0.01
    """Share of the examples that may be unusable (no caption, a broken image, damaged bytes) before the run stops; until then others take
    their place. 0: the first one stops it."""

    def __post_init__(self):
        if not 0 <= self.bad_records <= 1:
            raise errors.InputError(f"data.bad_records {self.bad_records}: a share of the examples, from 0 to 1")

    def prepared(self) -> "Pairs":
        """The same stream with a vocabulary that exists: trains the one that `tokenizer.path` asks for.

        Raises:
          InputError: `captions:` without a number, or what the shards or the training raise.
        """
        scheme, colon, size = self.tokenizer.path.partition(":")
        if scheme != "captions" or not colon:
            return self
        if not size.isdecimal():
            raise errors.InputError(f"tokenizer.path {self.tokenizer.path}: write the number of pieces, such as captions:4096")
        path = vocabulary.of_captions(sources.open_source(self.train, "train"), int(size))
        return dataclasses.replace(self, tokenizer=dataclasses.replace(self.tokenizer, path=path))

    def keep(self, folder: str) -> None:
        """Copies into a run's folder what a checkpoint needs of the stream: the vocabulary."""
        self.tokenizer.keep(folder, self.stream)

    def kept(self, folder: str) -> "Pairs":
        """The stream with what `keep` copied."""
        return dataclasses.replace(self, tokenizer=self.tokenizer.kept(folder, self.stream))

    def describe(self) -> Description:
        """Opens everything the stream needs.

        Raises:
          InputError: a missing or damaged shard, or tokenizer.
        """
        tokenizer = self.tokenizer.load()
        train = sources.open_source(self.train, "train")
        return Description(
            vocab_size=tokenizer.vocab_size,
            length=tokenizer.length,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            image_size=self.image.size,
            train_records=len(train),
            val_records=len(sources.open_source(self.val, "val")),
            fingerprint=train.fingerprint,
        )

    def examples(self, seed: int) -> grain.MapDataset:
        """Training examples by position; indices beyond the first epoch are the following ones, shuffled anew."""
        source = sources.open_source(self.train, "train")
        order, draws = np.random.SeedSequence(seed).generate_state(2)
        self.tokenizer.load()
        load = _LoadPair(source, self.image, self.tokenizer, self.caption, self.tokens)
        return grain.MapDataset.range(len(source)).shuffle(seed=int(order)).random_map(load, seed=int(draws))


def train_iterator(
    streams: Mapping[str, Stream],
    *,
    batch_size: int,
    seed: int,
    rows: Rows | None = None,
    workers: int = 0,
    threads: int = 2,
) -> "BatchIterator":
    """Batches without end, {stream: {field: array}}, all streams in step.

    Args:
      streams: the sources of the run by name; the name is part of the stream's seed.
      batch_size: the global batch size of the streams that do not set their own.
      seed: of the order and of what is drawn at random.
      rows: which rows of a global batch this process feeds; None: all of them.
      workers: processes that read ahead; 0: threads of this process do. The caller's main module must be guarded.
      threads: threads that build batches, in this process or in each worker; 0: build a batch when it is asked for.

    Raises:
      InputError: fewer records than a batch, a bad batch size, a negative count or seed, or what the sources raise.
    """
    for name, value in (("workers", workers), ("threads", threads), ("seed", seed)):
        if value < 0:
            raise errors.InputError(f"{name} {value}: cannot be negative")
    examples, sizes, own_rows = {}, {}, {}
    for name, stream in streams.items():
        size = sizes[name] = stream.batch_size or batch_size
        if size < 1:
            raise errors.InputError(f"batch_size {size} of {name}: at least 1 is needed")
        stream_seed = np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0]
        epoch = stream.examples(int(stream_seed))
        if len(epoch) < size:
            raise errors.InputError(
                f"batch_size {size} of {name} is more than its {len(epoch)} training records; "
                f"use at most {len(epoch)}, or more shards"
            )
        examples[name] = epoch.repeat()
        own_rows[name] = np.arange(size) if rows is None else np.asarray(rows(size))
        _check_rows(name, own_rows[name], size)
    account = bad_records.Account(
        {name: stream.bad_records for name, stream in streams.items()}, {name: len(own) for name, own in own_rows.items()}
    )
    return BatchIterator(_Batches(examples, sizes, own_rows), account, workers=workers, threads=threads)


class BatchIterator(grain.DatasetIterator):
    """Iterates over global batches from a given one on. Its state is {"step": number of the next batch}, with the counts of bad records.

    The state knows nothing of hosts, workers and threads, so a run may go on with others. Close it when done: workers are processes.
    """

    def __init__(self, batches: grain.MapDataset, account: bad_records.Account, *, workers: int, threads: int):
        super().__init__()
        self.bad_records = account
        """Of the batches taken so far."""
        self._batches, self._workers, self._threads = batches, workers, threads
        self._step = 0
        self._open = True
        self._iterator: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        batch, bad = next(self._started())
        self.bad_records.add(self._step, bad)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """{"step": k}: the next batch is global batch k. Where records were bad, {"bad_records": {stream: [bad, seen]}} as well."""
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

    def start_prefetch(self) -> None:
        """Starts to read ahead, so that the first batch is ready when it is asked for."""
        self._started().start_prefetch()

    def close(self) -> None:
        """Ends threads and workers."""
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
        return batches.mp_prefetch(options, worker_init_fn=_end_with_parent)

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def _end_with_parent(worker: int, workers: int) -> None:
    """Lets a worker end when its run is killed, which cannot tell it any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def read(
    source: sources.Source, transform: images.Transform, indices: Iterable[int] | None = None, threads: int = 2
) -> Iterator[tuple[int, sources.Example, np.ndarray]]:
    """Examples of a source in order with their images in the evaluation form: (index, example, uint8[h, w, 3]).

    Raises:
      RecordError: an image that cannot be decoded, with its shard and key.
    """
    wanted = list(range(len(source)) if indices is None else indices)
    if not wanted:
        return
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=32 * threads)
    load = _LoadImage(source, transform.evaluation())
    iterator = iter(grain.MapDataset.source(wanted).map(load).to_iter_dataset(ahead))
    try:
        yield from iterator
    finally:
        iterator.close()


@dataclasses.dataclass(frozen=True)
class _LoadPair(grain.transforms.RandomMap):
    source: sources.Source
    transform: images.Transform
    tokenizer: text.Tokenizer
    caption: Literal["random", "first"]
    tokens: text.Part

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        load = functools.partial(
            collate.pairs,
            transform=self.transform,
            tokenizer=self.tokenizer.load(),
            caption=self.caption,
            tokens=self.tokens,
            rng=rng,
        )
        return bad_records.replaced(self.source, index, load, rng)


@dataclasses.dataclass(frozen=True)
class _LoadImage(grain.transforms.Map):
    source: sources.Source
    transform: images.Transform

    def map(self, index: int) -> tuple[int, sources.Example, np.ndarray]:
        example = self.source[index]
        try:
            return index, example, self.transform(example["image"])
        except records.RecordError as error:
            raise records.RecordError(
                f"{self.source.where(index)}: {error}. An evaluation leaves nothing out: mend this record, or take it out of the shard"
            ) from error


class _Batches(grain.MapDataset):
    """Element k: this process's rows of global batch k, of every stream; and (stream, row, BadRecord) of those that were replaced."""

    def __init__(self, streams: Mapping[str, grain.MapDataset], sizes: Mapping[str, int], rows: Mapping[str, np.ndarray]):
        super().__init__(tuple(streams.values()))
        self._streams, self._sizes = dict(streams), dict(sizes)
        self._rows = {name: [int(row) for row in rows[name]] for name in streams}
        self._length = min(len(dataset) // sizes[name] for name, dataset in streams.items())

    def __len__(self) -> int:
        return self._length

    def __str__(self) -> str:
        return "Batches(" + ", ".join(f"{n}: {len(self._rows[n])} of {self._sizes[n]}" for n in self._streams) + ")"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, bad = {}, []
        for name, examples in self._streams.items():
            rows = [examples[index * self._sizes[name] + row] for row in self._rows[name]]
            bad += [
                (name, number, row.pop(bad_records.FIELD))
                for number, row in zip(self._rows[name], rows, strict=True)
                if bad_records.FIELD in row
            ]
            batch[name] = collate.stack(rows)
        return batch, tuple(bad)


def _check_rows(name: str, rows: np.ndarray, size: int) -> None:
    if rows.ndim != 1 or not len(rows) or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= size:
        raise ValueError(f"rows of {name}: a non-empty list of row numbers below {size} is needed, got {rows}")
