"""Questions about images, answered in words after k examples."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from vlm_jax.data import sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import few_shot_prompts as prompts
from vlm_jax.evaluation import few_shot_queries, in_context, vqa_accuracy
from vlm_jax.models import generation

_STOPS = ("\n", "Question", "Answer")
"""An answer ends before these, whatever comes after."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vqa(in_context.InContext):
    """Accuracy by the rule of the VQA challenge; where a question has one right answer, whether the answer is it, both normalised.

    A record has `question` and `answers` (or `answer`), or `questions`, of which the record's number chooses one.
    """

    prompt: str = "Question: {question} Answer: {answer}"
    """What is said of an image; ends with {answer}."""
    decoding: generation.Decoding = generation.Decoding(strategy="beam", max_new_tokens=8)
    """How answers are drawn from the model's probabilities; they end with their chunk."""
    normalization: vqa_accuracy.Normalization = "official"
    """How answers are compared; see `evaluation.vqa_accuracy`."""

    task: ClassVar[str] = "few_shot_vqa"

    def items(self, data: str, source: sources.Source, count: int) -> list[few_shot_queries.Item]:
        return [_item(data, source[i], i) for i in range(count)]

    def answer(self, asked: few_shot_queries.Queries, encoded: list[prompts.Prompt]) -> list[str]:
        return [cut(text) for text in asked.written(encoded, self.decoding)]

    def score(self, answers: Sequence[str], items: Sequence[few_shot_queries.Item]) -> dict[str, np.ndarray]:
        values = []
        for answer, item in zip(answers, items, strict=True):
            first, *others = item.answers
            if others:
                values.append(vqa_accuracy.accuracy(answer, item.answers, self.normalization))
            else:
                values.append(float(vqa_accuracy.normalize(answer) == vqa_accuracy.normalize(first)))
        return {"accuracy": np.array(values)}


def cut(text: str) -> str:
    """An answer without what a model says after it."""
    for stop in _STOPS:
        text = text.partition(stop)[0]
    return text.strip()


def _item(data: str, record: sources.Example, number: int) -> few_shot_queries.Item:
    if record.get("questions"):
        asked = record["questions"][number % len(record["questions"])]
        return few_shot_queries.Item({"question": asked["question"]}, (asked["answer"],))
    given: Sequence[Any] = record.get("answers") or [record.get("answer")]
    answers = [answer for answer in given if isinstance(answer, str)]
    if not isinstance(record.get("question"), str) or len(answers) < len(given):
        raise InputError(f"data {data!r}: record {record['key']!r} has no question with answers; give it `question` and `answers`")
    return few_shot_queries.Item({"question": record["question"]}, tuple(answers))
