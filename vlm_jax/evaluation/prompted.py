"""A model that takes prompts with images, as it is asked in context: every image encoded once, answers written or weighed."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from flax import nnx

from vlm_jax.data import pipeline, sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base
from vlm_jax.evaluation import few_shot_prompts as prompts
from vlm_jax.models import generation
from vlm_jax.training import sharding

_ROUND = 16
"""Prompts are padded to a multiple of so many tokens, so that few programs are compiled."""


@dataclasses.dataclass(frozen=True)
class Prompted:
    """A subject with the images that prompts may show."""

    subject: base.Subject
    form: generation.PromptForm
    visual: np.ndarray
    """float32[n, r, d]: visual tokens of the images, by their number in prompts."""
    sets: Sequence[tuple[sources.Source, int]] = ()
    """Where the images come from, and how many from each, in the order of their numbers."""
    _left_out: dict[prompts.Prompt, int] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)
    """How many examples of each prompt so far found no room."""

    @classmethod
    def of(cls, subject: base.Subject, sets: Mapping[str, tuple[sources.Source, int]]) -> "Prompted":
        """Encodes every image once.

        Args:
          sets: sources by name, and how many of their records take part; their images are numbered in this order.

        Raises:
          InputError: the model does not take prompts with images.
        """
        form = getattr(nnx.merge(subject.compiled.graphdef, subject.variables), "prompt_form", None)
        if form is None:
            raise InputError("evaluators: learning in context needs a model that takes several images and texts, such as a Flamingo")
        embed: Any = subject.embed_records
        visual = [embed(*some, f"images of {name}", "visual_tokens").reshape(-1, *form.visual) for name, some in sets.items()]
        return cls(subject, form, np.concatenate(visual), tuple(sets.values()))

    @property
    def encoder(self) -> prompts.Encoder:
        """From prompts to tokens."""
        return prompts.Encoder(self.subject.tokenizer, self.form.image_id, self.form.chunk_end_id)

    def thumbnails(self, chunks: Iterable[prompts.Chunk], side: int) -> dict[int | None, bytes]:
        """The images of chunks by their numbers, as the report shows them, see `base.thumbnail`; nothing for a chunk without."""
        wanted = {chunk.image for chunk in chunks if chunk.image is not None}
        found: dict[int | None, bytes] = {None: b""}
        before = 0
        for source, count in self.sets:
            own = sorted(number - before for number in wanted if before <= number < before + count)
            read = pipeline.read(source, self.subject.transform, indices=own)
            found |= {before + number: base.thumbnail(pixels, side) for number, _, pixels in read}
            before += count
        return found

    @property
    def told(self) -> str:
        """What is to be said of examples that prompts so far had no room for; empty where all found room."""
        by_shots: dict[int, list[int]] = {}
        for prompt, left_out in self._left_out.items():
            by_shots.setdefault(prompt.shots, []).append(left_out)
        short = [f"{np.mean(of):.1f} at {shots} shots" for shots, of in sorted(by_shots.items()) if any(of)]
        return f"Left out for want of room, on average: {', '.join(short)} (prompts of {self.form.length} tokens)." if short else ""

    def got(self, prompt: prompts.Prompt) -> prompts.Prompt:
        """A prompt as the model got it: with the examples that found room."""
        return dataclasses.replace(prompt, examples=prompt.examples[self._left_out.get(prompt, 0) :])

    def written(self, made: Sequence[prompts.Prompt], decoding: generation.Decoding, seed: int) -> list[str]:
        """What the model writes to each prompt, up to the end of the chunk."""
        room = self.form.length - decoding.max_new_tokens
        rows = [self.encoder.prompt(prompt, room) for prompt in made]
        self._note(made, rows, room)
        texts = []
        tokenizer = self.subject.tokenizer
        for first, batch in self._batches(rows, room, "answers"):
            found = self.subject.compiled.generate(
                self.subject.variables,
                batch,
                decoding,
                end_id=self.form.chunk_end_id,
                pad_id=tokenizer.pad_id,
                key=jax.random.key(seed),
            )
            for row in np.asarray(found.tokens)[: len(rows) - first]:
                ends = np.flatnonzero(row == self.form.chunk_end_id)
                kept = row[: ends[0]] if len(ends) else row
                texts.append(tokenizer.decode([int(i) for i in kept if i < tokenizer.vocab_size]).strip())
        return texts

    def likelihoods(self, made: Sequence[prompts.Prompt], answers: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
        """float64[n, c]: log p of each of the c answers to each prompt.

        Args:
          answers: tokens that complete each prompt, such as those of `encoder.answer`.
        """
        asked = [(prompt, answer) for prompt, several in zip(made, answers, strict=True) for answer in several]
        rows = [self.encoder.prompt(prompt, self.form.length, answer) for prompt, answer in asked]
        targets = [len(answer) for _, answer in asked]
        self._note([prompt for prompt, _ in asked], rows, self.form.length)
        values = np.zeros(len(rows))
        for first, batch in self._batches(rows, self.form.length, "candidates", targets):
            found = self.subject.compiled.log_likelihood(self.subject.variables, batch)
            values[first : first + self.subject.batch_size] = np.asarray(found, np.float64)[: len(rows) - first]
        return values.reshape(len(made), -1)

    def _batches(
        self, rows: Sequence[prompts.Tokens], room: int, label: str, targets: Sequence[int] | None = None
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """This process's rows of global batches, padded alike; `targets` tokens at the end of each row are to be weighed."""
        size, own = self.subject.batch_size, sharding.rows(self.subject.batch_size, self.subject.compiled.mesh)
        length = min(-(-max(len(row.ids) for row in rows) // _ROUND) * _ROUND, room)
        images = max(len(row.images) for row in rows)
        silent = None if jax.process_index() == 0 else True
        with tqdm.tqdm(total=len(rows), desc=label, leave=False, disable=silent) as bar:
            for first in range(0, len(rows), size):
                batch = {
                    "images": np.zeros((len(own), images, *self.visual.shape[1:]), np.float32),
                    "tokens": np.full((len(own), length), self.subject.tokenizer.pad_id, np.int32),
                    "lengths": np.ones(len(own), np.int32),
                }
                weighed = np.zeros((len(own), length), bool)
                for i, index in enumerate(first + own[first + own < len(rows)]):
                    row, count = rows[index], len(rows[index].ids)
                    batch["images"][i, : len(row.images)] = self.visual[row.images]
                    batch["tokens"][i, :count], batch["lengths"][i] = row.ids, count
                    weighed[i, count - (targets[index] if targets else 0) : count] = True
                yield first, batch if targets is None else {**batch, "targets": weighed}
                bar.update(min(size, len(rows) - first))

    def _note(self, made: Sequence[prompts.Prompt], rows: Sequence[prompts.Tokens], room: int) -> None:
        """Keeps, and says in the log, that prompts show fewer examples than they were to, if some do."""
        for prompt, row in zip(made, rows, strict=True):
            self._left_out[prompt] = max(row.left_out, self._left_out.get(prompt, 0))
        short = [row.left_out for row in rows if row.left_out]
        if short and jax.process_index() == 0:
            logging.getLogger(__name__).warning(
                "%d of %d prompts have no room for all their examples in %d tokens: on average %.1f of the first ones are left out; "
                "ask for fewer shots, or take a language model of more tokens",
                *(len(short), len(rows), room, np.mean(short)),
            )


@dataclasses.dataclass(frozen=True)
class Answered:
    """Prompts with what came of them."""

    group: str
    """Heading under which the report shows them."""
    made: Sequence[prompts.Prompt]
    answers: Sequence[str]
    right: Sequence[bool]
    expected: Sequence[str]
    """A right answer to each."""

    def examples(self, model: Prompted, count: int) -> list[base.Example]:
        """Some of the prompts as the model got them, with the images that they show and the one that they ask about."""
        chosen = base.spread(np.arange(len(self.made)), count)
        got = {i: model.got(self.made[i]) for i in chosen}
        asked = model.thumbnails((prompt.query for prompt in got.values()), 112)
        before = model.thumbnails((chunk for prompt in got.values() for chunk in prompt.examples), 56)
        return [
            base.Example(
                self.group,
                base.Entry(str(prompt), asked[prompt.query.image]),
                (base.Entry(self.answers[i] or "(nothing)", verdict="right" if self.right[i] else "none"),),
                base.Entry(self.expected[i]),
                tuple(base.Entry(chunk.text, before[chunk.image]) for chunk in prompt.examples),
            )
            for i, prompt in got.items()
        ]
