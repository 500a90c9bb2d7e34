"""Mixtures: several sources in one stream, each with its own transform and caption rule, in the shares that their weights say.

Every 10,000 positions, from the first on, hold each part exactly as often as its share says, in an order that follows from the seed and
the number of these ten thousand. So the part of any position, and the place in that part's own order, is known without those before:
the batches do not depend on hosts, workers or where a run was resumed. A part that is used up begins anew, in another order; the
others do not notice.
"""

import dataclasses
import functools
import hashlib
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from vlm_jax import errors
from vlm_jax.data import bad_records, batches, images, pipeline, sources, text, vocabulary

PERIOD = 10_000
"""Positions that hold every part in its share."""
_SAME = ("vocab_size", "length", "bos_id", "eos_id", "pad_id", "image_size", "images", "image_id", "chunk_end_id")


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several streams of one kind as one, such as images with captions from three data sets."""

    parts: Mapping[str, Any]
    """Streams by name, `pipeline.Pairs` for instance; tokenizer and image size must be the same in all of them."""
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """How often examples of each part are taken, in any unit: `--data.weights.laion 3`. None at all: by the number of examples, so that
    all parts end their epochs together."""
    batch_size: int = 0
    """Examples in a global batch of this stream; 0: the run's batch size."""

    def __post_init__(self):
        if not self.parts:
            raise errors.InputError("data.parts: at least one is needed")
        for name, part in self.parts.items():
            if not name or "/" in name:
                raise errors.InputError(f"data.parts {name!r}: a name without / is needed")
            if isinstance(part, Mixture):
                raise errors.InputError(f"data.parts.{name}: is a mixture itself; write its parts here")
            if part.stream != self._first.stream:
                raise errors.InputError(
                    f"data.parts.{name}: has {part.stream}, {next(iter(self.parts))} has {self._first.stream}; give two streams"
                )
            if part.batch_size:
                raise errors.InputError(f"data.parts.{name}.batch_size {part.batch_size}: a mixture has one, data.batch_size")
        if self.weights and self.weights.keys() != self.parts.keys():
            raise errors.InputError(
                f"data.weights {', '.join(self.weights)}: the parts are {', '.join(self.parts)}; give each a weight, or none"
            )
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise errors.InputError(f"data.weights.{name} {weight:g}: above 0 is needed; leave the part out to use nothing of it")

    @property
    def _first(self) -> Any:
        return next(iter(self.parts.values()))

    @property
    def stream(self) -> str:
        """The name of the parts' fields in a batch."""
        return self._first.stream

    @property
    def val(self) -> str:
        """Validation data of the run: those of the first part."""
        return self._first.val

    @property
    def image(self) -> images.Transform:
        """That of the first part, whose evaluation form travels with the checkpoint."""
        return self._first.image

    @property
    def tokenizer(self) -> text.Tokenizer:
        """The one of all parts."""
        return self._first.tokenizer

    def prepared(self) -> "Mixture":
        """The same stream with a vocabulary that exists: where `tokenizer.path` asks for one, it is trained on the captions of all parts.

        Raises:
          InputError: parts that ask for different ones, or as the parts.
        """
        asked = {name: part.tokenizer.path for name, part in self.parts.items()}
        size = vocabulary.size_asked(self.tokenizer.path)
        if size is None:
            return dataclasses.replace(self, parts=self._of_each(lambda part: part.prepared()))
        if len(set(asked.values())) > 1:
            raise errors.InputError(f"data.parts: the tokenizer.path {_listed(asked)} must be the same in all parts")
        opened = self._of_each(lambda part: part.open(part.train, "train"))
        return self._with_tokenizer_path(vocabulary.of_captions(_InTurn(list(opened.values())), size))

    def keep(self, folder: str) -> None:
        """Copies into a run's folder what a checkpoint needs of the stream: the vocabulary."""
        self.tokenizer.keep(folder, self.stream)

    def kept(self, folder: str) -> "Mixture":
        """The stream with what `keep` copied."""
        return self._with_tokenizer_path(self.tokenizer.kept(folder, self.stream).path)

    def describe(self) -> pipeline.Description:
        """Opens everything the stream needs.

        Raises:
          InputError: parts that do not go together, a share that is too small, or as the parts.
        """
        found: dict[str, pipeline.Description] = self._of_each(lambda part: part.describe())
        first = next(iter(self.parts))
        for name, description in found.items():
            for field in _SAME:
                if getattr(description, field) != getattr(found[first], field):
                    raise errors.InputError(
                        f"data.parts.{name}: {field} {getattr(description, field)} is not the {getattr(found[first], field)} of {first}; "
                        "the parts of a mixture share a model"
                    )
            own, other = (_tokenizer_facts(self.parts[part].tokenizer) for part in (name, first))
            if own != other:
                raise errors.InputError(f"data.parts.{name}: another tokenizer than that of {first}; the parts of a mixture share one")
        counts = self._counts({name: description.train_records for name, description in found.items()})
        return dataclasses.replace(
            found[first],
            train_records=sum(description.train_records for description in found.values()),
            fingerprint="; ".join(f"{counts[name]} of {PERIOD} from {name}, {found[name].fingerprint}" for name in found),
        )

    def fields(self) -> batches.Fields:
        """Of an example, known without data."""
        return self._first.fields() | {"source": ((), "int32")}

    def examples(self, seed: int) -> batches.Examples:
        """Training examples by position, with the number of their part as `source`; an epoch has as many as all parts together."""
        order, *_ = np.random.SeedSequence([seed, 0]).generate_state(1)
        parts = {
            name: part.examples(int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0]))
            for name, part in self.parts.items()
        }
        lengths = {name: len(part) for name, part in parts.items()}
        counts = self._counts(lengths)
        mixed = Order(tuple(counts.values()), int(order))
        allowed = {
            batches.account(name, part): dataclasses.replace(a, per_example=a.per_example * counts[name] / PERIOD)
            for name, examples in parts.items()
            for part, a in examples.allowed.items()
        }

        def metrics(count: int) -> dict[str, float]:
            said = {}
            for (name, part), taken in zip(parts.items(), mixed.before(count), strict=True):
                said |= {f"{name}/examples": taken, f"{name}/epochs": taken / lengths[name]}
                said |= {f"{name}/{metric}": value for metric, value in part.metrics(taken).items()}
            return said

        return batches.Examples(_Mixed({name: part.rows for name, part in parts.items()}, mixed), allowed, metrics)

    def _counts(self, lengths: Mapping[str, int]) -> dict[str, int]:
        """Positions of each part in a period, the shares rounded by largest remainders."""
        weights = {name: self.weights[name] if self.weights else lengths[name] for name in self.parts}
        exact = {name: PERIOD * weight / sum(weights.values()) for name, weight in weights.items()}
        counts = {name: math.floor(value) for name, value in exact.items()}
        by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
        for name in by_remainder[: PERIOD - sum(counts.values())]:
            counts[name] += 1
        for name, count in counts.items():
            if not count:
                share = weights[name] / sum(weights.values())
                raise errors.InputError(
                    f"data.weights: {name} would be {share:.1e} of the examples, less than one in {PERIOD:,}; raise its weight, or "
                    "leave it out"
                )
        return counts

    def _of_each(self, question: Callable[[Any], Any]) -> dict[str, Any]:
        """What the parts answer, by name; what is wrong with one says which it is."""
        found = {}
        for name, part in self.parts.items():
            try:
                found[name] = question(part)
            except errors.InputError as error:
                raise errors.InputError(f"data.parts.{name}: {error}") from error
        return found

    def _with_tokenizer_path(self, path: str) -> "Mixture":
        tokenizer = dataclasses.replace(self.tokenizer, path=path)
        return dataclasses.replace(
            self, parts={name: dataclasses.replace(part, tokenizer=tokenizer) for name, part in self.parts.items()}
        )


@dataclasses.dataclass(frozen=True)
class Order:
    """Which part a position takes, and how many positions before it took the same."""

    counts: tuple[int, ...]
    """Positions of each part in a period."""
    seed: int

    def __call__(self, position: int) -> tuple[int, int]:
        """The number of the part, and the place in it."""
        period, place = divmod(position, sum(self.counts))
        part, rank = _period(self.counts, self.seed, period)
        return int(part[place]), period * self.counts[part[place]] + int(rank[place])

    def before(self, position: int) -> list[int]:
        """How many of the positions before this one took each part."""
        period, place = divmod(position, sum(self.counts))
        part, _ = _period(self.counts, self.seed, period)
        rest = np.bincount(part[:place], minlength=len(self.counts))
        return [period * count + int(more) for count, more in zip(self.counts, rest, strict=True)]


@functools.lru_cache(32)
def _period(counts: tuple[int, ...], seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """int16[p] the part of each position, and int32[p] how many positions of the period before it have the same."""
    rng = np.random.default_rng([seed, number])
    part = rng.permutation(np.repeat(np.arange(len(counts), dtype=np.int16), counts))
    rank = np.empty(len(part), np.int32)
    for number_of_part, count in enumerate(counts):
        rank[part == number_of_part] = np.arange(count)
    return part, rank


class _Mixed(grain.MapDataset):
    """Element p: the example of the part that position p takes."""

    def __init__(self, parts: Mapping[str, grain.MapDataset], order: Order):
        super().__init__(tuple(parts.values()))
        self._names, self._rows, self._order = tuple(parts), tuple(parts.values()), order

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    def __str__(self) -> str:
        return f"Mixed({', '.join(self._names)})"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        part, place = self._order(index)
        row: dict[str, Any] = {**(self._rows[part][place] or {}), "source": np.array(part, np.int32)}
        if bad_records.FIELD in row:
            row[bad_records.FIELD] = {batches.account(self._names[part], inner): bad for inner, bad in row[bad_records.FIELD].items()}
        return row


class _InTurn:
    """The records of several sources, one of each in turn, for a vocabulary of all of them."""

    def __init__(self, parts: Sequence[sources.Source]):
        self._parts = parts
        self._places = sorted((index, part) for part, source in enumerate(parts) for index in range(min(len(source), _ENOUGH)))
        self.fingerprint = "; ".join(source.fingerprint for source in parts)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> sources.Example:
        place, part = self._places[index]
        return self._parts[part][place]


_ENOUGH = 200_000
"""Records of a part that a vocabulary may be trained on."""


def _tokenizer_facts(tokenizer: text.Tokenizer) -> tuple[text.Tokenizer, str]:
    """What two tokenizers have in common where they are the same, wherever their files are."""
    content = Path(tokenizer.load().config.path).read_bytes()
    return dataclasses.replace(tokenizer, path=""), hashlib.sha256(content).hexdigest()


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{value} of {name}" for name, value in values.items())
