"""Classes of images by the likelihood of their names after k examples."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from vlm_jax.data import sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import classes as classes_lib
from vlm_jax.evaluation import few_shot_prompts as prompts
from vlm_jax.evaluation import few_shot_queries, in_context


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotClassification(in_context.InContext):
    """Accuracy of the name that the model finds likeliest after k examples, with the end of its chunk."""

    prompt: str = "Output: {answer}"
    """What is said of an image; ends with {answer}."""
    classes: str = ""
    """Files with the names of the classes, see `data.classes`; empty: those that the data bring."""
    label: str = "label"
    """Field of a record with its class: an index into the names, or a name."""
    orders: int = 1
    """Orders of the same examples, whose log likelihoods are averaged; the paper has 6."""

    task: ClassVar[str] = "few_shot_classification"

    def __post_init__(self):
        super().__post_init__()
        if self.orders < 1:
            raise InputError(f"orders {self.orders}: must be at least 1")

    def items(self, data: str, source: sources.Source, count: int) -> list[few_shot_queries.Item]:
        found = classes_lib.read(self.classes, source)
        labels = classes_lib.Labels(found, self.label, data, self.classes or data).one(source, count)
        return [few_shot_queries.Item({}, (found.titles[label],)) for label in labels]

    def answer(self, asked: few_shot_queries.Queries, encoded: list[prompts.Prompt]) -> list[str]:
        names = list(dict.fromkeys(item.answers[0] for item in (*asked.support, *asked.queries)))
        rng = np.random.default_rng(self.seed)
        several = [encoded]
        for _ in range(self.orders - 1):
            several.append([prompts.Prompt(tuple(p.examples[i] for i in rng.permutation(len(p.examples))), p.query) for p in encoded])
        weighed = prompts.ensemble(np.stack([asked.likelihoods(made, names) for made in several]))
        return [names[i] for i in weighed.argmax(-1)]

    def chance(self, items: Sequence[few_shot_queries.Item]) -> dict[str, float]:
        return {"acc1": 1 / len({item.answers[0] for item in items})}

    def score(self, answers: Sequence[str], items: Sequence[few_shot_queries.Item]) -> dict[str, np.ndarray]:
        right = [answer == item.answers[0] for answer, item in zip(answers, items, strict=True)]
        return {"acc1": np.array(right, float)}
