"""Perplexity: how well a language model predicts texts it has not seen."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
import tqdm

from vlm_jax.data import packing, records
from vlm_jax.data.sources import texts
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, intervals
from vlm_jax.models import generation
from vlm_jax.training import sharding

FEW = 30
"""Texts below which intervals are over other stretches of the same ones."""


@dataclasses.dataclass(frozen=True)
class _Row:
    """What the model sees at a time: some tokens of a text, of which the last ones are to be predicted."""

    text: int
    tokens: Sequence[int]
    counted: int
    """Tokens at the end that are targets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perplexity(base.Evaluator):
    """Perplexity by token and by word, bits a byte, and how often the likeliest token is the right one.

    - `token_perplexity` is exp of the mean cross-entropy of a token; it compares models of one vocabulary.
    - `word_perplexity` and `bits_per_byte` spread the whole cross-entropy of a text over its words (as white space parts them) and over
      its bytes in UTF-8, and compare models of any vocabulary; of bits a byte, less is better, too.
    - `accuracy` is the share of tokens that the model finds likeliest.

    Every token is counted once, with at least `context` tokens of its text before it where there are so many. The first token of a text
    is predicted from the begin token; where the tokenizer has none, it is not counted. Blind numbers are those of a model that knows how
    often each token occurs in these very texts, and nothing of their order.
    """

    data: str = ""
    """Texts, in the form of --data.val. Empty: the run's validation data, read as it reads them."""
    read: texts.Read = "documents"
    """What data names: documents, or pairs, of which each caption is a text."""
    unit: texts.Unit = "file"
    """What a text file has: one text, one between empty lines, or one a line."""
    context: int = 0
    """Tokens before a counted one, at least; fewer at the start of a text. 0: half of the tokenizer's row."""
    tokens: int = 200_000
    """Take only so many tokens, from the start; 0: all."""
    examples: int = 6
    """Beginnings of texts to show with what the model makes of them."""
    decoding: generation.Decoding = generation.Decoding(strategy="sample", temperature=0.8, top_k=40)
    """How they are continued."""

    task: ClassVar[str] = "language_modelling"

    def on_validation(self, stream: Any) -> "Perplexity":
        """The same on the validation data of a run's stream, read as it reads them.

        Raises:
          InputError: it has none.
        """
        if not stream.val:
            raise InputError("data.val is empty: perplexity needs validation texts; give --data.val, or the evaluator data of its own")
        first = next(iter(getattr(stream, "parts", {"": stream}).values()))
        read, unit = getattr(first, "read", self.read), getattr(first, "unit", self.unit)
        return dataclasses.replace(self, data=stream.val, read=read, unit=unit)

    def open(self, data: str, field: str) -> texts.Texts:
        """The texts that a pattern names.

        Raises:
          InputError: as `texts.open_texts`.
        """
        return texts.open_texts(data, field, self.read, self.unit)

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: no text, a context that leaves nothing of a row, or a model that predicts no tokens.
        """
        length, tokenizer = subject.tokenizer.length, subject.tokenizer
        context = self.context or length // 2
        if not 0 < context < length:
            raise InputError(f"context {self.context}: a row has {length} tokens; from 1 to {length - 1} of them can be context")
        read = self._read(tokenizer)
        rows = [row for number, (_, ids) in enumerate(read) for row in _rows(number, ids, length, context)]
        if not rows:
            raise InputError(f"data {self.data}: has no text of two tokens")
        found = _predict(subject, rows)
        counted = np.array([row.counted for row in rows], np.float64)
        of_text = np.array([row.text for row in rows])
        whole = np.bincount(of_text, counted)
        share = counted / whole[of_text]
        words = np.array([len(text.split()) for text, _ in read], np.float64)[of_text] * share
        bytes_ = np.array([len(text.encode("utf-8", "replace")) for text, _ in read], np.float64)[of_text] * share
        sums = np.stack([-found[:, 0], found[:, 1], counted, words, bytes_], 1)
        several = len(whole) >= FEW
        drawn = np.stack([np.bincount(of_text, column) for column in sums.T], 1)[np.unique(of_text)] if several else sums
        resampled = _numbers(intervals.sums(drawn))
        values = {name: float(value[0]) for name, value in _numbers(sums.sum(0)[None]).items()}
        blind, frequent = _unigram(rows)
        guessed = sums.sum(0)[None].copy()
        guessed[:, 0], guessed[:, 1] = blind, frequent
        uniform = guessed.copy()
        uniform[:, 0], uniform[:, 1] = counted.sum() * math.log(tokenizer.vocab_size), counted.sum() / tokenizer.vocab_size
        over = "texts" if several else f"stretches of {length} tokens of the same texts"
        first = "" if tokenizer.bos_id is not None else " The first token of a text, before which nothing stands, is not counted."
        return base.Result(
            metrics=values,
            chance={name: float(value[0]) for name, value in _numbers(uniform).items()},
            blind={name: float(value[0]) for name, value in _numbers(guessed).items()},
            intervals={name: intervals.of_estimates(value) for name, value in resampled.items()},
            examples=self._examples(subject, read, length),
            note=f"{int(counted.sum()):,} tokens of {len(whole):,} texts, each with at least {context} tokens before it where its text has "
            f"them; blind: every token by how often it occurs here. Intervals are over other {over}.{first} {self.note}".strip(),
        )

    def _read(self, tokenizer: Any) -> list[tuple[str, list[int]]]:
        """The texts that take part with their tokens, the last of them cut where the number of tokens is reached.

        Raises:
          InputError: one cannot be read, for an evaluation leaves nothing out.
        """
        opened, form = self.open(self.data, "data"), packing.Form(tokenizer.config, images=0)
        read, total = [], 0
        for index in range(min(len(opened), self.limit or len(opened))):
            try:
                found = opened[index]
            except records.RecordError as error:
                raise InputError(f"data {self.data}: {error}. An evaluation leaves nothing out: mend this record") from error
            for text in found:
                ids: list[int] = []
                for part in form.text_parts(text):
                    ids += part
                    if self.tokens and total + len(ids) >= self.tokens:
                        break
                if self.tokens and total + len(ids) > self.tokens:
                    ids = ids[: self.tokens - total]
                    text = tokenizer.decode(ids)
                read.append((text, ids))
                total += len(ids)
                if self.tokens and total >= self.tokens:
                    return read
        return read

    def _examples(self, subject: base.Subject, read: Sequence[tuple[str, list[int]]], length: int) -> list[base.Example]:
        """Beginnings of texts, what the model writes next, and what stands there."""
        start = max(length // 4, 2)
        decoding = dataclasses.replace(self.decoding, max_new_tokens=min(self.decoding.max_new_tokens, length - start))
        long = [number for number, (_, ids) in enumerate(read) if len(ids) >= start + 2]
        if not self.examples or not long:
            return []
        places = [(number, first) for number in base.spread(np.array(long), self.examples) for first in [0]]
        if len(places) < self.examples:  # few texts: later places of the longest
            ids = max((ids for _, ids in read), key=len)
            number = next(i for i, (_, own) in enumerate(read) if own is ids)
            places = [(number, int(first)) for first in np.linspace(0, max(len(ids) - 2 * start, 0), self.examples).astype(int)]
        prompts = [read[number][1][first : first + start] for number, first in places]
        none = np.zeros((0, subject.transform.size, subject.transform.size, 3), np.uint8)
        written = subject.generate(
            lambda own: (base.Prompt(none, prompts[i]) for i in own), len(prompts), decoding, length=start, images=0, label="continuations"
        )
        decode, shown = subject.tokenizer.decode, []
        for (number, first), prompt, text in zip(places, prompts, written, strict=True):
            expected = read[number][1][first + start : first + start + decoding.max_new_tokens]
            entry = base.Entry(decode(_inner(prompt, subject.tokenizer)))
            shown.append(base.Example("continuations", entry, (base.Entry(text),), base.Entry(decode(expected))))
        return shown


def _inner(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Without the begin token, which may be the end token of another text."""
    return list(ids[1:] if ids and ids[0] == tokenizer.bos_id else ids)


def _rows(text: int, ids: Sequence[int], length: int, context: int) -> Iterator[_Row]:
    """The rows of a text: each token but the first is counted once."""
    done = 1
    while done < len(ids):
        start = max(done - context, 0) if done > 1 else 0
        stop = min(start + length, len(ids))
        yield _Row(text, ids[start:stop], stop - done)
        done = stop


def _predict(subject: base.Subject, rows: Sequence[_Row]) -> np.ndarray:
    """float64 [n, 2]: log-likelihood of the counted tokens of each row, and how many of them were found likeliest."""
    length, made = subject.tokenizer.length, np.zeros((len(rows), 2))
    own = sharding.rows(subject.batch_size, subject.compiled.mesh)
    silent = None if jax.process_index() == 0 else True
    with tqdm.tqdm(total=len(rows), desc="perplexity", leave=False, disable=silent) as bar:
        for first in range(0, len(rows), subject.batch_size):
            batch = np.zeros((len(own), 2, length), np.int32)
            for i, index in enumerate(first + own[first + own < len(rows)]):
                row = rows[index]
                batch[i, 0, : len(row.tokens)] = row.tokens
                batch[i, 1, len(row.tokens) - row.counted : len(row.tokens)] = 1
            scores = np.asarray(subject.compiled.embed("next_tokens", subject.variables, batch), np.float64).sum(1)[: len(rows) - first]
            made[first : first + len(scores)] = scores
            bar.update(len(scores))
    return made


def _numbers(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics [r] of sums [r, 5]: cross-entropy in nats, right tokens, tokens, words, bytes."""
    nats, right, tokens, words, bytes_ = sums.T
    return {
        "token_perplexity": np.exp(np.minimum(nats / tokens, 700)),
        "word_perplexity": np.exp(np.minimum(nats / np.maximum(words, 1e-9), 700)),
        "bits_per_byte": nats / math.log(2) / np.maximum(bytes_, 1e-9),
        "accuracy": right / tokens,
    }


def _unigram(rows: Sequence[_Row]) -> tuple[float, int]:
    """Cross-entropy in nats of all counted tokens by their own frequencies, and how many are the most frequent one."""
    counts = collections.Counter(token for row in rows for token in row.tokens[len(row.tokens) - row.counted :])
    numbers = np.array(list(counts.values()), np.float64)
    return float(-(numbers * np.log(numbers / numbers.sum())).sum()), int(numbers.max())
