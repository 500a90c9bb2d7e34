"""Queries with examples before them, as one model sees them: every image encoded once, answers written or weighed."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import tqdm
from flax import nnx

from vlm_jax.data import sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base
from vlm_jax.evaluation import few_shot_prompts as prompts
from vlm_jax.models import flamingo, generation
from vlm_jax.training import sharding

Choice = Literal["random", "similar"]
Drawn = Literal["once", "for_each"]
_ROUND = 16
"""Prompts are padded to a multiple of so many tokens, so that few programs are compiled."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A question about an image, and what is right."""

    fields: Mapping[str, str]
    """Of the prompt, but for the answer."""
    answers: tuple[str, ...]
    """The right ones; an example shows the first."""


@dataclasses.dataclass(frozen=True)
class Queries:
    """What is asked, what examples there are, and the model that is asked."""

    template: str
    """Of the prompt; ends with {answer}."""
    choice: Choice
    drawn: Drawn
    seed: int
    subject: base.Subject
    config: flamingo.Config
    support: list[Item]
    queries: list[Item]
    visual: np.ndarray
    """float32[n, r, d]: visual tokens of the support's images, then of the queries'."""
    allowed: np.ndarray
    """bool[queries, support]: whose images differ."""
    vectors: tuple[np.ndarray, ...]
    """Unit vectors of the support's images and of the queries', where examples are chosen by them."""

    @classmethod
    def of(
        cls,
        subject: base.Subject,
        sets: Mapping[str, tuple[sources.Source, int, list[Item]]],
        *,
        template: str,
        choice: Choice,
        drawn: Drawn,
        seed: int,
    ) -> "Queries":
        """Encodes every image once.

        Args:
          sets: `support` and `queries`: a source, how many of its records take part, and what is asked of them.

        Raises:
          InputError: the model does not take prompts with images.
        """
        model: Any = nnx.merge(subject.compiled.graphdef, subject.variables)
        if not isinstance(model, flamingo.Flamingo):
            raise InputError("evaluators: learning in context needs a model that takes several images and texts, such as a Flamingo")
        shape = (model.config.resampler.latents, model.config.resampler.width)
        prints, visual, vectors = [], [], []
        embed: Any = subject.embed_records
        for name, (source, count, _) in sets.items():
            prints.append([prompts.fingerprint(source[i]["image"]) for i in range(count)])
            visual.append(embed(source, count, f"images of {name}", "visual_tokens").reshape(-1, *shape))
            vectors += [embed(source, count, f"images of {name}")] if choice == "similar" else []
        return cls(
            template=template,
            choice=choice,
            drawn=drawn,
            seed=seed,
            subject=subject,
            config=model.config,
            support=sets["support"][2],
            queries=sets["queries"][2],
            visual=np.concatenate(visual),
            allowed=np.array([[own != other for other in prints[0]] for own in prints[1]]),
            vectors=tuple(vectors),
        )

    @property
    def encoder(self) -> prompts.Encoder:
        """From prompts to tokens."""
        return prompts.Encoder(self.subject.tokenizer, self.config.image_id, self.config.chunk_end_id)

    def made(self, shots: int, draw: int) -> list[prompts.Prompt]:
        """A prompt for each query.

        Raises:
          InputError: there are too few examples.
        """
        made, count = [], shots or prompts.TEXT_ONLY
        for number, query in enumerate(self.queries):
            if self.choice == "similar":
                chosen = prompts.most_similar(self.vectors[1][number], self.vectors[0], self.allowed[number], count)
            elif self.drawn == "once":
                chosen = self._shared(number, count, draw)
            else:
                chosen = prompts.at_random(np.random.default_rng((self.seed, draw, number)), self.allowed[number], count)
            told = [(i, {**self.support[i].fields, "answer": self.support[i].answers[0]}) for i in chosen]
            made.append(prompts.prompt(self.template, told, (len(self.support) + number, query.fields), shots=shots))
        return made

    def _shared(self, number: int, count: int, draw: int) -> list[int]:
        """The first of one order of all examples, but for those with the image of this query."""
        order = np.random.default_rng((self.seed, draw)).permutation(len(self.support))
        allowed = order[self.allowed[number][order]]
        if len(allowed) < count:
            return prompts.at_random(np.random.default_rng(0), self.allowed[number], count)
        return allowed[:count].tolist()

    def written(self, made: Sequence[prompts.Prompt], decoding: generation.Decoding) -> list[str]:
        """What the model writes to each prompt, up to the end of the chunk."""
        room = self.config.lm.length - decoding.max_new_tokens
        rows = [self.encoder.prompt(prompt, room) for prompt in made]
        texts = []
        tokenizer = self.subject.tokenizer
        for first, batch in self._batches(rows, room, "answers"):
            found = self.subject.compiled.generate(
                self.subject.variables,
                batch,
                decoding,
                end_id=self.config.chunk_end_id,
                pad_id=tokenizer.pad_id,
                key=jax.random.key(self.seed),
            )
            for row in np.asarray(found.tokens)[: len(rows) - first]:
                ends = np.flatnonzero(row == self.config.chunk_end_id)
                kept = row[: ends[0]] if len(ends) else row
                texts.append(tokenizer.decode([int(i) for i in kept if i < tokenizer.vocab_size]).strip())
        return texts

    def likelihoods(self, made: Sequence[prompts.Prompt], candidates: Sequence[str]) -> np.ndarray:
        """float64[n, c]: log p of each candidate, with the end of its chunk, after each prompt."""
        rows, targets = [], []
        for prompt in made:
            fields = self.queries[self._number(prompt)].fields
            for candidate in candidates:
                answer = self.encoder.answer(self.template, fields, candidate)
                rows.append(self.encoder.prompt(prompt, self.config.lm.length, answer))
                targets.append(len(answer))
        values = np.zeros(len(rows))
        for first, batch in self._batches(rows, self.config.lm.length, "candidates", targets):
            found = self.subject.compiled.log_likelihood(self.subject.variables, batch)
            values[first : first + self.subject.batch_size] = np.asarray(found, np.float64)[: len(rows) - first]
        return values.reshape(len(made), len(candidates))

    def _number(self, prompt: prompts.Prompt) -> int:
        assert prompt.query.image is not None, "a query shows its image"
        return prompt.query.image - len(self.support)

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
