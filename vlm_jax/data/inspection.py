"""Inspection: what is in a source, how fast it is read, and which records make a global batch."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vlm_jax import errors
from vlm_jax.data import decoding, pipeline, records, sources
from vlm_jax.data import statistics as stats


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a look at some records of a source has found."""

    records: int
    """Records looked at."""
    statistics: stats.Statistics
    bad: dict[str, list[str]]
    """Places of those that cannot be used, by reason, numbers in it left open."""
    images: list[np.ndarray]
    """Samples, decoded: uint8[h, w, 3]."""
    captions: list[list[str]]
    """Of the samples."""
    read_seconds: float
    """Reading all records."""
    decode_seconds: float
    """Decoding all images, at their own size, on one core."""


def survey(
    source: sources.Source,
    *,
    limit: int = 0,
    samples: int = 0,
    tokenizer: Any = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Survey:
    """Reads and decodes records.

    Args:
      limit: how many, evenly over the source; 0: all.
      samples: how many of them are kept as images.
      tokenizer: counts the tokens of captions, as text.LoadedTokenizer.
      progress: is told how many records are done.
    """
    count = min(limit, len(source)) if limit else len(source)
    wanted = [i * len(source) // count for i in range(count)]
    sampled = {wanted[i * count // min(samples, count)] for i in range(min(samples, count))}
    found, bad, images, captions = stats.Statistics(), {}, [], []
    reading = decoding_ = 0.0
    for done, index in enumerate(wanted, start=1):
        began = time.perf_counter()
        try:
            example = source[index]
            reading += time.perf_counter() - began
            _check(example)
            began = time.perf_counter()
            image = decoding.load(example["image"])
            decoding_ += time.perf_counter() - began
        except records.RecordError as error:
            where = source.where(index)
            bad.setdefault(records.kind(str(error).removeprefix(f"{where}: ")), []).append(where)
        else:
            found.add(example, *image.size, tokenizer)
            if index in sampled:
                images.append(np.asarray(image))
                labels = [str(example[name]) for name in ("label_name", "label", "labels") if name in example]
                captions.append(list(example["captions"]) or labels[:1])
        progress(done)
    return Survey(count, found, bad, images, captions, reading, decoding_)


def _check(example: sources.Example) -> None:
    if not isinstance(example.get("image"), bytes) or not example["image"]:
        raise records.RecordError("has no image")
    captions = example.get("captions")
    if not isinstance(captions, list | tuple) or not all(isinstance(caption, str) for caption in captions):
        raise records.RecordError("its captions are no list of strings")


@dataclasses.dataclass(frozen=True)
class Row:
    """One example of a global batch."""

    stream: str
    row: int
    record: int
    """Its index in its source."""
    key: str
    where: str
    text: str
    """What the step sees of its caption."""


def batch(streams: Mapping[str, pipeline.Stream], number: int, *, batch_size: int, seed: int) -> Iterator[Row]:
    """The rows of a global batch, as every host counts them; the first batch has number 0.

    Raises:
      InputError: a negative number, or as `pipeline.train_iterator`.
    """
    if number < 0:
        raise errors.InputError(f"batch {number}: the first one is 0")
    iterator = pipeline.train_iterator(streams, batch_size=batch_size, seed=seed, threads=0)
    try:
        iterator.set_state({"step": number})
        made = next(iterator)
    finally:
        iterator.close()
    for name, stream in streams.items():
        fields, tokenizer = made[name], stream.tokenizer.load()
        parts = list(getattr(stream, "parts", {"": stream}).values())
        if not all(isinstance(part, pipeline.Pairs) for part in parts):
            raise errors.InputError(f"stream {name}: a row of {type(parts[0]).__name__} is packed of several records; only pairs are told")
        opened = [part.open(part.train, "train") for part in parts]
        for row, record in enumerate(fields["example"].tolist()):
            source = opened[int(fields["source"][row]) if "source" in fields else 0]
            words = tokenizer.decode(fields["tokens"][row].tolist()) if "tokens" in fields else ""
            yield Row(name, row, record, str(source[record].get("key", record)), source.where(record), words)
