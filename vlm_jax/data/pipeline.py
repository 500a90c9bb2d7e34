"""The pipeline: from the sources of a run to batches, the same for any number of hosts, workers and threads.

A stream has ONE order, over positions 0, 1, 2 ... without end: the records shuffled anew every epoch. Row r of global batch k of a
stream with batch size B is position k B + r, and what is drawn at random for it (caption, crop, flip) comes from a
generator of that position; where its record cannot be used, another one is drawn from the same generator (`bad_records`). `batches`
makes batches of it; `mixtures`, `pages` and `clips` are further streams.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, Self

import grain
import numpy as np

from vlm_jax import errors
from vlm_jax.data import bad_records, batches, captions, collate, images, records, sources, text, tokenized

Batch = batches.Batch
BatchIterator = batches.BatchIterator
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
    images: int = 1
    """Images in an example, at most."""
    image_id: int | None = None
    """Of the token that stands for an image; beyond the vocabulary."""
    chunk_end_id: int | None = None
    """Of the token that ends the text of an image; beyond the vocabulary."""


class Stream(Protocol):
    """What a run needs of a stream, the configuration of one source of batches."""

    stream: ClassVar[str]
    """The name of the stream's fields in a batch, where a run has only this one."""
    batch_size: int
    """Examples in a global batch of this stream; 0: the run's batch size."""
    val: str
    """What evaluators without data of their own evaluate."""
    image: images.Transform
    tokenizer: text.Tokenizer

    def prepared(self) -> "Stream": ...

    def describe(self) -> Description: ...

    def fields(self) -> batches.Fields: ...

    def examples(self, seed: int) -> batches.Examples: ...

    def keep(self, folder: str) -> None: ...

    def kept(self, folder: str) -> "Stream": ...


@dataclasses.dataclass(frozen=True)
class Pairs(tokenized.Tokenized):
    """Images with captions."""

    stream: ClassVar[str] = "pairs"

    train: str
    """Training data: files (.tar, .array_record, .parquet, .csv, .tsv, .jsonl, .json of COCO, .npz) by braces {00000..00041}, lists
    {a,b}, globs, several joined by ::; a folder of images; tfds:NAME/SPLIT. See docs/data.md."""
    val: str
    """Validation data, in the same form."""
    tokenizer: text.Tokenizer
    image: images.Transform
    caption: captions.Rule = "random"
    """Which of an image's captions a training step sees: a random one, the first, one that follows from the key of the example, or
    all of them, each as an example of its own (they are counted once, on first use)."""
    clean: captions.Cleaning = "none"
    """What is done to captions first: nothing; whitespace: encodings mended, HTML unescaped twice, white space collapsed; lower: and
    lower-cased, as CLIP does; canonical: and without punctuation, as SigLIP does. Evaluation takes texts as they are."""
    tokens: text.Part = "first"
    """Which tokens of a caption longer than tokenizer.length a training step sees: the first ones, random ones in their order, or a
    block, a run from a random place (CLIPA). Evaluation sees the first ones."""
    leading_space: float = 0.0
    """Probability that a training step sees a space before the caption, so that a vocabulary whose words differ at the start of a text
    (GPT-2, OPT) is known both ways (Flamingo: 0.5). SentencePiece models mostly ignore it."""
    batch_size: int = 0
    """Examples in a global batch of this stream; 0: the run's batch size."""
    bad_records: float = 0.01
    """Share of the examples that may be unusable (no caption, a broken image, damaged bytes) before the run stops; until then others take
    their place. 0: the first one stops it."""

    def __post_init__(self):
        if not 0 <= self.bad_records <= 1:
            raise errors.InputError(f"data.bad_records {self.bad_records}: a share of the examples, from 0 to 1")
        if not 0 <= self.leading_space <= 1:
            raise errors.InputError(f"data.leading_space {self.leading_space}: a probability, from 0 to 1")

    def prepared(self) -> Self:
        """Also with the decoder of this machine.

        Raises:
          InputError: no such decoder, `captions:` without a number, or what the shards or the training raise.
        """
        return dataclasses.replace(super().prepared(), image=self.image.prepared())

    def describe(self) -> Description:
        """Opens everything the stream needs.

        Raises:
          InputError: a missing or damaged shard, or tokenizer.
        """
        tokenizer = self.tokenizer.load()
        train = self.open(self.train, "train")
        return Description(
            vocab_size=tokenizer.vocab_size,
            length=tokenizer.length,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            image_size=self.image.size,
            train_records=self._count(train),
            val_records=len(self.open(self.val, "val")),
            fingerprint=train.fingerprint + self.image.fingerprint,
        )

    def fields(self) -> batches.Fields:
        """Of an example, known without data."""
        return {
            "image": ((self.image.size, self.image.size, 3), "uint8"),
            "tokens": ((self.tokenizer.length,), "int32"),
            "example": ((), "int32"),
        }

    def examples(self, seed: int) -> batches.Examples:
        """Training examples by position; indices beyond the first epoch are the following ones, shuffled anew."""
        source = self.open(self.train, "train")
        order, draws = np.random.SeedSequence(seed).generate_state(2)
        self.tokenizer.load()
        load = _Load(source, self)
        rows = grain.MapDataset.range(self._count(source)).shuffle(seed=int(order)).random_map(load, seed=int(draws))
        return batches.Examples(rows, {"": bad_records.Allowance(self.bad_records)})

    def open(self, pattern: str, field: str) -> Any:
        """The source that a pattern names."""
        return sources.open_source(pattern, field)

    def row(self, example: sources.Example, index: int, caption: captions.Rule | int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """An example of the source as the fields of a batch, without the batch axis."""
        return collate.pairs(example, index, **self.rules(caption), rng=rng)

    def rules(self, caption: captions.Rule | int) -> dict[str, Any]:
        """What `collate` does to an example."""
        tokenizer = self.tokenizer.load()
        drawn = {"caption": caption, "clean": self.clean, "tokens": self.tokens, "leading_space": self.leading_space}
        return {"transform": self.image, "tokenizer": tokenizer, **drawn}

    def _count(self, source: sources.Source) -> int:
        """Examples of an epoch."""
        return int(captions.ends(source)[-1]) if self.caption == "all" else len(source)


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
    shares = {}
    for name, stream in streams.items():
        size = stream.batch_size or batch_size
        if size < 1:
            raise errors.InputError(f"batch_size {size} of {name}: at least 1 is needed")
        stream_seed = np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0]
        examples = stream.examples(int(stream_seed))
        if len(examples) < size:
            raise errors.InputError(
                f"batch_size {size} of {name} is more than its {len(examples)} training records; "
                f"use at most {len(examples)}, or more shards"
            )
        own = np.arange(size) if rows is None else np.asarray(rows(size))
        shares[name] = batches.Share(examples, size, batches.own_rows(name, size, own))
    return batches.BatchIterator(shares, workers=workers, threads=threads)


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
class _Load(grain.transforms.RandomMap):
    source: sources.Source
    stream: Pairs

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        caption = self.stream.caption
        if caption == "all":
            index, caption = captions.find(self.source, index)
        return bad_records.replaced(self.source, index, functools.partial(self.stream.row, caption=caption, rng=rng), rng)


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
