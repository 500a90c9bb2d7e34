"""Queries with examples before them: which examples a query sees, and the model's answers to the prompts that come of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vlm_jax.data import sources
from vlm_jax.evaluation import base, prompted
from vlm_jax.evaluation import few_shot_prompts as prompts
from vlm_jax.models import generation

Choice = Literal["random", "similar"]
Drawn = Literal["once", "for_each"]


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
    model: prompted.Prompted
    """With the images of the support, then those of the queries."""
    support: list[Item]
    queries: list[Item]
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
        model = prompted.Prompted.of(subject, {name: (source, count) for name, (source, count, _) in sets.items()})
        prints = [[prompts.fingerprint(source[i]["image"]) for i in range(count)] for source, count, _ in sets.values()]
        embed: Any = subject.embed_records
        similar = sets.items() if choice == "similar" else ()
        return cls(
            template=template,
            choice=choice,
            drawn=drawn,
            seed=seed,
            model=model,
            support=sets["support"][2],
            queries=sets["queries"][2],
            allowed=np.array([[own != other for other in prints[0]] for own in prints[1]]),
            vectors=tuple(embed(source, count, f"images of {name}") for name, (source, count, _) in similar),
        )

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
        """What the model writes to the prompt of each query."""
        return self.model.written(made, decoding, self.seed)

    def likelihoods(self, made: Sequence[prompts.Prompt], candidates: Sequence[str]) -> np.ndarray:
        """float64[n, c]: log p of each candidate, with the end of its chunk, after the prompt of each query."""
        encoder = self.model.encoder
        answers = [[encoder.answer(self.template, query.fields, name) for name in candidates] for query in self.queries]
        return self.model.likelihoods(made, answers)
