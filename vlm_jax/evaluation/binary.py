"""Two-class zero-shot classification by a score: AUROC, as for HatefulMemes (Kiela et al. 2020)."""

import dataclasses
from typing import ClassVar

import numpy as np

from vlm_jax.data import pipeline, sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, intervals, metrics
from vlm_jax.evaluation import classes as classes_lib

_DRAWS = 20_000_000
"""Resamples times images, at most, between 200 and 1,000 resamples."""
_BINS = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binary(base.Evaluator):
    """How well the difference of two cosines tells positive from negative images.

    The score of an image is its cosine with the positive prompts less that with the negative ones (several prompts are an ensemble,
    as of a class); it orders images as the softmax over the two does, at any scale.

    - `auroc`: P(s+ > s-) + P(s+ = s-) / 2.
    - `acc1`: accuracy with a threshold of 0.5 on that softmax, which is 0 on the score; a score of exactly 0 is negative.
      Secondary: it depends on where the prompts happen to put the threshold. Blind, the more frequent class is always answered.
    """

    data: str = ""
    """Shards with images and labels."""
    negative: tuple[str, ...] = ()
    """Prompts for label 0, such as `a meme`."""
    positive: tuple[str, ...] = ()
    """Prompts for label 1, such as `a hateful meme`."""
    label: str = "label"
    """Field of a record with 0 or 1."""
    examples: int = 6
    """Images to show with the highest and with the lowest scores, of each so many."""

    task: ClassVar[str] = "zeroshot_binary_classification"

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: a side has no prompt, there are no records, a label is neither 0 nor 1, or all labels are the same.
        """
        for name, prompts in (("negative", self.negative), ("positive", self.positive)):
            if not prompts or not all(isinstance(text, str) and text.strip() for text in prompts):
                raise InputError(f"{name} {prompts!r}: give at least one prompt, and no empty one")
        classes = classes_lib.Classes((("negative",), ("positive",)), sentences=(self.negative, self.positive))
        source, count = base.open_records(self.data, self.limit)
        truth = self._truth(source, count)
        negative, positive = classes_lib.embed(subject, classes, label="prompts of two classes")
        images = subject.embed_records(source, count, "images of two classes")
        scores = images @ positive - images @ negative
        right = (scores > 0) == truth
        resamples = int(np.clip(_DRAWS / count, 200, intervals.RESAMPLES))
        share = float(truth.mean())
        return base.Result(
            metrics={"auroc": float(metrics.auroc(scores, truth)), "acc1": float(right.mean())},
            chance={"auroc": 0.5, "acc1": 0.5},
            intervals={
                "auroc": intervals.of_statistic(
                    count, lambda counts: metrics.auroc(scores, truth, counts), resamples=resamples
                ),
                "acc1": intervals.of_mean(right.astype(np.float64)),
            },
            blind={"auroc": 0.5, "acc1": max(share, 1 - share)},
            figures={"scores": _histogram(scores, truth), "roc": _roc(scores, truth)},
            examples=self._examples(subject, source, scores, truth),
            note=f"{count:,} images, {truth.sum():,} of them positive. {self.note}".strip(),
        )

    def _truth(self, source: sources.Source, count: int) -> np.ndarray:
        truth = np.zeros(count, bool)
        for i in range(count):
            example = source[i]
            value = example.get(self.label)
            if isinstance(value, str) or value not in (0, 1):
                name = f"record {example.get('key', '')!r} of {self.data}"
                raise InputError(f"{self.label} {value!r:.80} of {name}: must be 0 (negative) or 1 (positive)")
            truth[i] = bool(value)
        if truth.all() or not truth.any():
            raise InputError(f"{self.label} of {self.data}: all {count:,} labels are {int(truth[0])}; AUROC needs both")
        return truth

    def _examples(
        self, subject: base.Subject, source: sources.Source, scores: np.ndarray, truth: np.ndarray
    ) -> list[base.Example]:
        order = np.argsort(-scores, kind="stable").tolist()
        names = {False: "negative", True: "positive"}
        shown = []
        for group, chosen in (
            ("highest scores", order[: self.examples]),
            ("lowest scores", order[::-1][: self.examples]),
        ):
            pictures = {i: image for i, _, image in pipeline.read(source, subject.transform, indices=sorted(chosen))}
            for i in chosen:
                answer = bool(scores[i] > 0)
                verdict = "right" if answer == truth[i] else "wrong"
                entry = base.Entry(names[answer], score=float(scores[i]), verdict=verdict)
                query, expected = base.Entry(image=base.thumbnail(pictures[i])), base.Entry(names[bool(truth[i])])
                shown.append(base.Example(group, query, (entry,), expected))
        return shown


def _histogram(scores: np.ndarray, truth: np.ndarray) -> base.Histogram:
    kept = np.isfinite(scores)
    edges = np.histogram_bin_edges(scores[kept], _BINS)
    groups = {"negative": kept & ~truth, "positive": kept & truth}
    counts = {name: np.histogram(scores[group], edges)[0] for name, group in groups.items()}
    return base.Histogram("cosine with positive less cosine with negative prompts", edges, counts)


def _roc(scores: np.ndarray, truth: np.ndarray) -> base.Lines:
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(scores[order][1:] != scores[order][:-1], True))
    false, true = (np.cumsum(own[order])[ends] / own.sum() for own in (~truth, truth))
    points = [(0.0, 0.0), *zip(false.tolist(), true.tolist(), strict=True)]
    drawn = [points[i] for i in base.spread(np.arange(len(points)), 200)]
    return base.Lines("false positive rate", "true positive rate", {"model": drawn, "chance": [(0.0, 0.0), (1.0, 1.0)]})
