"""Zero-shot classification: the class whose prompts lie nearest to the image (Radford et al. 2021, section 3.1)."""

import dataclasses
from typing import ClassVar

import numpy as np

from vlm_jax.data import pipeline, sources
from vlm_jax.evaluation import base, predictions
from vlm_jax.evaluation import classes as classes_lib

CONFUSED_PAIRS = 6
"""Pairs of classes that are shown with images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot(base.Evaluator):
    """Top-1 and top-5 accuracy and mean recall over classes, with prompt ensembles and without training.

    Among equal scores the first class is the answer. Blind numbers are those of always answering with the most frequent classes
    of these very labels.
    """

    data: str = ""
    """Shards with images and labels."""
    classes: str = ""
    """Files with the names of the classes and their templates or prompts, see `data.classes`; empty: those that the data bring."""
    label: str = "label"
    """Field of a record with its class: an index into the names, or a name."""
    inner_norm: classes_lib.Inner = "normalize"
    """Whether the embedding of each prompt is normalised before the mean over a class, as in CLIP; GroupViT's code does not."""
    examples: int = 8
    """Hits and misses to show, of each so many; 0: no images at all."""

    task: ClassVar[str] = "zeroshot_classification"

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: a file is missing or malformed, there are no records, or a label is none of the classes.
        """
        source, count = base.open_records(self.data, self.limit)
        classes = classes_lib.read(self.classes, source)
        labels = classes_lib.Labels(classes, self.label, self.data, self.classes or self.data).one(source, count)
        weights = classes_lib.embed(subject, classes, self.inner_norm, "zero-shot prompts")
        images = subject.embed_records(source, count, "zero-shot images")
        found = predictions.Predictions.of(images, weights, labels)
        prompts = sum(map(len, classes.prompts()))
        return base.Result(
            metrics=found.metrics(),
            tables=found.tables(classes.titles),
            examples=examples(subject, source, found, classes.titles, self.examples),
            chance=found.chance(),
            intervals=found.intervals(),
            blind=found.blind(),
            figures=found.figures(classes.titles, subject.scale),
            note=f"{count:,} images, {len(weights):,} classes ({len(found.present):,} of them occur), {prompts:,} prompts. "
            f"{self.note}".strip(),
        )


def examples(
    subject: base.Subject,
    source: sources.Source,
    found: predictions.Predictions,
    titles: tuple[str, ...],
    count: int,
    prefix: str = "",
) -> list[base.Example]:
    """So many misses and hits, and the pairs of classes most often confused with images of both.

    Args:
      prefix: of the headings.
    """
    if not count:
        return []
    misses, hits = np.flatnonzero(found.ranks > 0), np.flatnonzero(found.ranks == 0)
    chosen = {"misses": base.spread(misses, count), "hits": base.spread(hits, count)}
    pairs = []
    for true, predicted, indices in found.confused(CONFUSED_PAIRS):
        right = np.flatnonzero((found.labels == predicted) & (found.predicted == predicted))
        pairs.append((true, predicted, len(indices), base.spread(indices, 3), base.spread(right, 3)))
    wanted = sorted({*chosen["misses"], *chosen["hits"], *(i for *_, wrong, right in pairs for i in (*wrong, *right))})
    pictures = {i: base.thumbnail(image) for i, _, image in pipeline.read(source, subject.transform, indices=wanted)}

    shown = []
    for group, indices in chosen.items():
        for i in indices:
            label = found.labels[i]
            answers = tuple(
                base.Entry(titles[c], score=score, verdict="right" if c == label else "wrong")
                for c, score in found.top(i)
            )
            query, expected = base.Entry(image=pictures[i]), base.Entry(titles[label])
            shown.append(base.Example(prefix + group, query, answers, expected))
    sizes = np.bincount(found.labels, minlength=found.num_classes)
    for true, predicted, number, wrong, right in pairs:
        told = f"{titles[true]} taken for {titles[predicted]}: {number:,} of {sizes[true]:,}"
        answers = [base.Entry(titles[true], pictures[i], found.score(i, predicted), "wrong") for i in wrong]
        answers += [base.Entry(titles[predicted], pictures[i], found.score(i, predicted), "right") for i in right]
        shown.append(base.Example(f"{prefix}most confused pairs", base.Entry(told), tuple(answers)))
    return shown
