"""Captioning: what a model writes of images, by the metrics of COCO and, for the shapes world, by whether it is true."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from vlm_jax.data import pipeline
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, caption_scores, intervals, shapes_grammar
from vlm_jax.models import generation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioning(base.Evaluator):
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D of the model's captions against those of the data, on words as COCO counts them.

    With grammar "shapes" also how many captions are right in shape and colour, by `shapes_grammar.check`. Blind numbers are those of one
    caption for all images, the one that the data have most often. CIDEr-D is 0 to 10 and the other metrics 0 to 1; papers write 100
    times as much.
    """

    data: str = ""
    """Shards with images and captions."""
    decoding: generation.Decoding = generation.Decoding()
    """How captions are drawn from the model's probabilities; they end where a row of the tokenizer would."""
    prompt: str = ""
    """What every caption begins with, such as `a photo of`; it counts as part of the caption."""
    grammar: Literal["none", "shapes"] = "none"
    """Whether captions are also checked by a parser of the shapes world's language; records then need the field "scene"."""
    examples: int = 12
    """Images to show with their captions; of those whose caption is checked, half are wrong."""

    task: ClassVar[str] = "captioning"

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: shards are missing, a record has no caption or no scene, or the model writes no text.
        """
        source, count = base.open_records(self.data, self.limit)
        references, scenes = [], []
        for record in (source[i] for i in range(count)):
            references.append(_references(self.data, record))
            scenes += [_scene(self.data, record)] if self.grammar == "shapes" else []
        captions = write(subject, source, count, self.decoding, self.prompt)
        often = collections.Counter(text for own in references for text in own).most_common(1)[0][0]
        found = caption_scores.score(captions, references)
        blind = caption_scores.score([often] * count, references)
        main = "cider_d"  # what a report shows first, unless it is known what is right
        metrics, blind_values, spread, right = {main: found.values[main]} | found.values, dict(blind.values), dict(found.intervals), None
        if self.grammar == "shapes":
            checked = shapes_grammar.check(captions, scenes)
            guessed = shapes_grammar.check([often] * count, scenes)
            metrics = {name: float(values.mean()) for name, values in checked.items()} | metrics
            spread |= {name: intervals.of_mean(values.astype(float)) for name, values in checked.items()}
            blind_values |= {name: float(values.mean()) for name, values in guessed.items()}
            right = checked["objects_accuracy"]
        result = base.Result(
            metrics=metrics,
            intervals=spread,
            blind=blind_values,
            note=f"{count:,} images, {sum(map(len, references)):,} captions to compare with; blind: {often!r} of every image. "
            f"{self.note}".strip(),
        )
        result.examples.extend(self._examples(subject, source, captions, references, found.images["cider_d"], right))
        return result

    def _examples(
        self,
        subject: base.Subject,
        source: Any,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        scores: np.ndarray,
        right: np.ndarray | None,
    ) -> list[base.Example]:
        """Images beside their caption and one of the data, with its CIDEr-D where it is not known to be right or wrong."""
        if right is None:
            chosen = {"captions": base.spread(np.arange(len(captions)), self.examples)}
        else:
            wrong = base.spread(np.flatnonzero(~right), self.examples // 2)
            chosen = {"wrong captions": wrong, "right captions": base.spread(np.flatnonzero(right), self.examples - len(wrong))}
        wanted = sorted(i for indices in chosen.values() for i in indices)
        pictures = {i: base.thumbnail(image) for i, _, image in pipeline.read(source, subject.transform, indices=wanted)}
        shown = []
        for group, indices in chosen.items():
            for i in indices:
                verdict = "none" if right is None else "right" if right[i] else "wrong"
                answer = base.Entry(captions[i] or "(nothing)", score=float(scores[i]) if right is None else None, verdict=verdict)
                shown.append(base.Example(group, base.Entry(image=pictures[i]), (answer,), base.Entry(references[i][0])))
        return shown


def write(
    subject: base.Subject, source: Any, count: int, decoding: generation.Decoding, prompt: str = "", label: str = "captions"
) -> list[str]:
    """Captions of the first `count` records of a source, `prompt` included.

    Raises:
      InputError: the model writes no text, or the tokenizer has no begin token or no room after the prompt.
    """
    tokens, decoding = opening(subject, decoding, prompt)

    def read(own: list[int]) -> Iterable[base.Prompt]:
        return (base.Prompt(image[None], tokens) for _, _, image in pipeline.read(source, subject.transform, indices=own))

    texts = subject.generate(read, count, decoding, length=len(tokens), label=label)
    return [f"{prompt} {text}".strip() if prompt else text for text in texts]


def opening(subject: base.Subject, decoding: generation.Decoding, prompt: str = "") -> tuple[list[int], generation.Decoding]:
    """The tokens that a caption begins with, and the decoding with no more tokens after them than a row of the tokenizer has.

    Raises:
      InputError: the tokenizer has no begin token, or there is no room after the prompt.
    """
    tokenizer = subject.tokenizer
    if tokenizer.bos_id is None:
        raise InputError("data.tokenizer.begin: the tokenizer has no begin token, with which captions begin")
    tokens = [tokenizer.bos_id, *tokenizer.encode(prompt)] if prompt else [tokenizer.bos_id]
    room = tokenizer.length - len(tokens)
    if room < 1:
        raise InputError(f"prompt {prompt!r}: its {len(tokens)} tokens leave no room in the tokenizer's {tokenizer.length}")
    return tokens, dataclasses.replace(decoding, max_new_tokens=min(decoding.max_new_tokens, room))


def _references(data: str, record: Any) -> list[str]:
    own = record["captions"]
    if not own:
        raise InputError(f"data {data!r}: record {record['key']!r} has no caption; captioning compares with at least one")
    return list(own)


def _scene(data: str, record: Any) -> Any:
    if "scene" not in record:
        raise InputError(f"data {data!r}: record {record['key']!r} has no scene; set grammar to 'none'")
    return record["scene"]
