"""Learning in context: a model answers after having been shown how others were done, without being trained on it.

What is asked and what is right differ between tasks, which are in modules of their own; that examples are drawn, prompts made, images
encoded once and answers written or weighed is here.
"""

import abc
import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from vlm_jax.data import sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, few_shot_queries, intervals, prompted
from vlm_jax.evaluation import few_shot_prompts as prompts
from vlm_jax.evaluation.few_shot_queries import Item, Queries


@dataclasses.dataclass(frozen=True, kw_only=True)
class InContext(base.Evaluator, abc.ABC):
    """Answers to queries after k examples, for several k. The images of a query and of its examples are never the same."""

    train: str = ""
    """Shards that examples are drawn from."""
    support: int = 512
    """Records of `train` that may become examples, from the start; 0: all."""
    prompt: str
    """What is said of an image, with fields in braces; ends with {answer}."""
    shots: tuple[int, ...] = (0, 4, 8)
    """Examples that are shown; with 0 the texts of two, without their images."""
    choice: few_shot_queries.Choice = "random"
    """Which: any, or those with the most similar images by the model's frozen image tower (RICES)."""
    drawn: few_shot_queries.Drawn = "once"
    """With choice random: the same examples for all queries, or others for each."""
    draws: int = 1
    """With choice random: draws over which is averaged."""
    seed: int = 0
    """Of the draws."""
    examples: int = 4
    """Prompts with answers to show for each k."""

    numbers: ClassVar[tuple[str, ...]] = ()
    """Metrics that go beyond 1."""

    def __post_init__(self):
        if not self.shots or min(self.shots) < 0 or list(self.shots) != sorted(set(self.shots)):
            raise InputError(f"shots {self.shots}: must be ascending numbers of examples, 0 or more")
        if self.draws < 1 or (self.choice == "similar" and self.draws > 1):
            raise InputError(f"draws {self.draws}: at least 1, and 1 with choice 'similar', which draws nothing")
        prompts.query(self.prompt, _Any())

    @abc.abstractmethod
    def items(self, data: str, source: sources.Source, count: int) -> list[Item]:
        """What is asked of the records of a source.

        Raises:
          InputError: a record does not have what is needed.
        """

    @abc.abstractmethod
    def answer(self, asked: Queries, encoded: list[prompts.Prompt]) -> list[str]:
        """The model's answer to each prompt."""

    @abc.abstractmethod
    def score(self, answers: Sequence[str], items: Sequence[Item]) -> dict[str, np.ndarray]:
        """Values of each answer by metric, the most important metric first; a value of 1 is right."""

    def chance(self, items: Sequence[Item]) -> dict[str, float]:
        """What a guess reaches, by metric; nothing where that is no number of its own."""
        return {}

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: data are missing or malformed, there are too few examples, or the model does not take prompts with images.
        """
        opened = {"support": ("train", self.train, self.support), "queries": ("data", self.data, self.limit)}
        sets = {}
        for name, (field, data, limit) in opened.items():
            if not data:
                raise InputError(f"{field} '': name shards; examples come from train, and what is asked from data")
            found = base.open_records(data, limit)
            sets[name] = (*found, self.items(data, *found))
        asked = Queries.of(subject, sets, template=self.prompt, choice=self.choice, drawn=self.drawn, seed=self.seed)
        values: dict[str, np.ndarray] = {}
        shown = []
        for shots in self.shots:
            several: dict[str, list[np.ndarray]] = {}
            for draw in range(self.draws):
                made = asked.made(shots, draw)
                answers = self.answer(asked, made)
                found = self.score(answers, asked.queries)
                for name, of_queries in found.items():
                    several.setdefault(name, []).append(of_queries)
                if draw == 0:
                    right = next(iter(found.values())) == 1
                    done = prompted.Answered(f"{shots} shots", made, answers, right.tolist(), [item.answers[0] for item in asked.queries])
                    shown += done.examples(asked.model, self.examples)
            values |= {f"{name}@{shots}_shots": np.stack(of) for name, of in several.items()}
        return self._result(asked, values, shown)

    def _result(self, asked: Queries, values: Mapping[str, np.ndarray], shown: list[base.Example]) -> base.Result:
        """From values [draws, queries] by metric."""
        means = {name: float(of.mean()) for name, of in values.items()}
        first = next(iter(values)).partition("@")[0]
        spread = {f"{name}_deviation": float(np.std(of.mean(1), ddof=1)) for name, of in values.items() if len(of) > 1}
        how = "those with the most similar images, the most similar one last"
        if self.choice == "random":
            drawn = "the same ones for all queries" if self.drawn == "once" else "others for each query"
            how = f"{drawn}, {self.draws} draw{'' if self.draws == 1 else 's'}"
        often = collections.Counter(item.answers[0] for item in asked.support).most_common(1)[0][0]
        blind = self.score([often] * len(asked.queries), asked.queries)
        chance = self.chance([*asked.support, *asked.queries])
        lines = {first: [(float(k), means[f"{first}@{k}_shots"]) for k in self.shots]}
        for name, known in (("chance", chance.get(first)), ("blind", float(blind[first].mean()))):
            if known is not None:
                lines[name] = [(float(k), known) for k in self.shots]
        told = [
            f"{len(asked.queries):,} queries; examples out of {len(asked.support):,}: {how}; seed {self.seed}. Blind: {often!r} to all.",
            asked.model.told,
            self.note,
        ]
        return base.Result(
            metrics=means | spread,
            chance={name: chance[name.partition("@")[0]] for name in values if name.partition("@")[0] in chance},
            blind={name: float(blind[name.partition("@")[0]].mean()) for name in values},
            intervals={
                name: intervals.of_mean(of.mean(0), kind="number" if name.partition("@")[0] in self.numbers else "share")
                for name, of in values.items()
            },
            examples=shown,
            figures={"shots": base.Lines("examples shown", first, lines)},
            note=" ".join(filter(None, told)),
        )


class _Any(dict):
    """Has every field, to look at a template."""

    def __missing__(self, key: str) -> str:
        return ""
