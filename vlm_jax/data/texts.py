"""Texts: nothing but words, packed into rows of a fixed number of tokens.

The fields of a batch of `b` rows with `t` tokens:

    tokens          int32 [b, t]      padding after the last piece
    segments        int32 [b, t]      which piece of a text a token is of, from 1; 0: padding. Attention stays within a segment
    positions       int32 [b, t]      places in the piece, from 0
    loss_weights    float32 [b, t]    of a token as what is to be predicted: 0 for the first of a segment, and for padding
    example         int32 [b]         the number of the row in the plan, see `packing`

A text is [begin] words [end], with the begin and end of the tokenizer. The tokens of a data set are made once, and kept.
"""

import dataclasses
import functools
import typing
from typing import Any, ClassVar

import grain
import numpy as np

from vlm_jax import errors
from vlm_jax.data import bad_records, batches, images, packing, pipeline, text, tokenized
from vlm_jax.data.sources import texts


@dataclasses.dataclass(frozen=True)
class Texts(tokenized.Tokenized):
    """Texts for a language model. The tokens of a row are `tokenizer.length`."""

    stream: ClassVar[str] = "texts"
    image: ClassVar[images.Transform] = images.Transform(size=1)
    """There are no images; what asks every stream how they are prepared gets this."""

    train: str
    """Training texts: text files (.txt, .md, also .gz) or documents (.jsonl, .tar, .array_record) by braces, lists and globs, several
    joined by ::; with read captions any source of pairs. See docs/data.md."""
    val: str
    """Validation texts, in the same form; empty: none."""
    tokenizer: text.Tokenizer
    read: texts.Read = "documents"
    """What train and val name: documents, or pairs, of which each caption is a text."""
    unit: texts.Unit = "file"
    """What a text file has: one text, one between empty lines, or one a line."""
    batch_size: int = 0
    """Rows in a global batch of this stream; 0: the run's batch size."""
    bad_records: float = 0.01
    """Share of the records (files, documents, pairs) that may be unusable, and are left out, before the run stops."""

    def __post_init__(self):
        for name, known in (("read", typing.get_args(texts.Read)), ("unit", typing.get_args(texts.Unit))):
            if getattr(self, name) not in known:
                raise errors.InputError(f"data.{name} {getattr(self, name)!r}: choose {' or '.join(known)}")
        if not 0 <= self.bad_records <= 1:
            raise errors.InputError(f"data.bad_records {self.bad_records}: a share, from 0 to 1")

    @property
    def form(self) -> packing.Form:
        """What a row is made of."""
        return packing.Form(self.tokenizer, images=0)

    def open(self, pattern: str, field: str) -> "_Lines":
        """The texts that a pattern names, as captions."""
        return _Lines(self.opened(pattern, field))

    def opened(self, pattern: str, field: str) -> texts.Texts:
        """The texts that a pattern names."""
        return texts.open_texts(pattern, field, self.read, self.unit)

    def describe(self) -> pipeline.Description:
        """Opens everything the stream needs, and makes its tokens and its plan.

        Raises:
          InputError: a missing or damaged file or tokenizer, too many records that cannot be used, or no text at all.
        """
        tokenizer, packed = self.tokenizer.load(), _packed(self)
        return pipeline.Description(
            vocab_size=tokenizer.vocab_size,
            length=tokenizer.length,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            image_size=0,
            train_records=len(packed.plan),
            val_records=len(self.opened(self.val, "val")) if self.val else 0,
            fingerprint=packed.fingerprint,
            images=0,
        )

    def fields(self) -> batches.Fields:
        """Of a row, known without data."""
        tokens = (self.tokenizer.length,)
        return {
            "tokens": (tokens, "int32"),
            "segments": (tokens, "int32"),
            "positions": (tokens, "int32"),
            "loss_weights": (tokens, "float32"),
            "example": ((), "int32"),
        }

    def examples(self, seed: int) -> batches.Examples:
        """Rows by position; positions beyond the first epoch are the following ones, shuffled anew."""
        plan = _packed(self).plan
        rows = grain.MapDataset.range(len(plan)).shuffle(seed=int(np.random.SeedSequence(seed).generate_state(1)[0])).map(_LoadRow(self))
        fill = plan.tokens / (len(plan) * self.tokenizer.length)
        return batches.Examples(
            rows, {"": bad_records.Allowance(self.bad_records)}, lambda count: {"fill": fill, "epochs": count / len(plan)}
        )


class _Packed:
    """The rows of a stream."""

    def __init__(self, stream: Texts):
        opened = stream.opened(stream.train, "train")
        tokens = packing.tokens(opened, stream.form)
        self.plan, self.ids = packing.plan_of_tokens(opened, stream.form, tokens), tokens.ids
        self.length, self.pad_id = stream.tokenizer.length, stream.tokenizer.load().pad_id
        made = f"{stream.read} by {stream.unit}, packed into {len(self.plan)} rows of {self.length} tokens"
        self.fingerprint = f"{opened.fingerprint}, {made}"
        packing.refuse_bad(opened, self.plan, stream.bad_records, "texts")
        if not len(self.plan):
            raise errors.InputError(f"train {stream.train}: its {len(opened)} records have no text")

    def row(self, number: int) -> dict[str, np.ndarray]:
        """The fields of a row."""
        pieces = [self.ids[start:stop] for _, start, stop, *_ in self.plan.row(number).tolist()]
        return packing.laid_out(pieces, self.length, self.pad_id) | {"example": np.array(number, np.int32)}


@functools.lru_cache(4)
def _packed(stream: Texts) -> _Packed:
    return _Packed(stream)


@dataclasses.dataclass(frozen=True)
class _LoadRow(grain.transforms.Map):
    stream: Texts

    def map(self, number: int) -> dict[str, Any]:
        return _packed(self.stream).row(number)


class _Lines:
    """The lines of texts as captions, for a vocabulary of them: its training leaves out what is long."""

    def __init__(self, opened: texts.Texts):
        self._texts, self.fingerprint, self.paths, self.where = opened, opened.fingerprint, opened.paths, opened.where

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        lines = [line for words in self._texts[index] for line in words.splitlines() if line.strip()]
        return {"captions": [line[i : i + _LINE] for line in lines for i in range(0, len(line), _LINE)]}


_LINE = 1000
"""Characters, at most 4 bytes each, of which SentencePiece takes up to 4,192."""
