"""Captions after k captioned examples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from vlm_jax.data import sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import caption_scores, few_shot_queries, in_context, shapes_grammar
from vlm_jax.evaluation import few_shot_prompts as prompts
from vlm_jax.models import generation


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotCaptioning(in_context.InContext):
    """CIDEr-D of what the model writes after k examples (0 to 10; papers write 100 times as much), and of the shapes world's captions also
    how many are right."""

    prompt: str = "Output: {answer}"
    """What is said of an image; ends with {answer}."""
    decoding: generation.Decoding = generation.Decoding(strategy="beam", max_new_tokens=24)
    """How captions are drawn from the model's probabilities; they end with their chunk."""
    grammar: Literal["none", "shapes"] = "none"
    """Whether captions are also checked by a parser of the shapes world's language; records then need the field "scene"."""

    task: ClassVar[str] = "few_shot_captioning"
    numbers: ClassVar[tuple[str, ...]] = ("cider_d",)

    def items(self, data: str, source: sources.Source, count: int) -> list[few_shot_queries.Item]:
        records = [source[i] for i in range(count)]
        for record in records:
            if not record["captions"]:
                raise InputError(f"data {data!r}: record {record['key']!r} has no caption")
            if self.grammar == "shapes" and "scene" not in record:
                raise InputError(f"data {data!r}: record {record['key']!r} has no scene; set grammar to 'none'")
        return [Captioned({}, tuple(record["captions"]), record.get("scene", {})) for record in records]

    def answer(self, asked: few_shot_queries.Queries, encoded: list[prompts.Prompt]) -> list[str]:
        return asked.written(encoded, self.decoding)

    def score(self, answers: Sequence[str], items: Sequence[few_shot_queries.Item]) -> dict[str, np.ndarray]:
        found = caption_scores.score(answers, [item.answers for item in items]).images
        values = {"cider_d": found["cider_d"], "rouge_l": found["rouge_l"]}
        if self.grammar == "none":
            return values
        scenes = [item.scene for item in items if isinstance(item, Captioned)]
        return {name: of.astype(float) for name, of in shapes_grammar.check(answers, scenes).items()} | values


@dataclasses.dataclass(frozen=True)
class Captioned(few_shot_queries.Item):
    """An image with captions."""

    scene: Mapping[str, Any]
    """What is to be seen in it; empty where that is not known."""
