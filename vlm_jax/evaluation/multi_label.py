"""Zero-shot classification of images that show several classes: is the best answer one of them, and mean average precision."""

import dataclasses
from typing import ClassVar

import numpy as np

from vlm_jax.data import pipeline, sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, figures, intervals, metrics
from vlm_jax.evaluation import classes as classes_lib

_DRAWS = 200_000_000
"""Resamples times images times classes, at most, between 100 and 1,000 resamples."""
_ORDERS = 2_000_000
"""Images in random orders, at most, between 4 and 64 orders for each number of positive images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabel(base.Evaluator):
    """Whether the best class is any of an image's own, and how well each class ranks the images that show it.

    - `any_correct_acc1`: the share of images whose best class is one of their own; of images with at least one.
    - `mean_average_precision`: the mean over classes that occur of the area under precision over recall, over all points.
    - `mean_average_precision_11`: the same of VOC2007's eleven points, which is a different and mostly higher number.

    The blind answer is the most frequent class. Chances are those of random orders, for eleven points by trying some.
    """

    data: str = ""
    """Shards with images and labels."""
    classes: str = ""
    """Files with the names of the classes and their templates or prompts, see `data.classes`; empty: those that the data bring."""
    labels: str = "labels"
    """Field of a record with a list of its classes: indices into the names, or names."""
    inner_norm: classes_lib.Inner = "normalize"
    """Whether the embedding of each prompt is normalised before the mean over a class, as in CLIP; GroupViT's code does not."""
    examples: int = 8
    """Hits and misses to show, of each so many."""

    task: ClassVar[str] = "zeroshot_multi_label_classification"

    def __call__(self, subject: base.Subject) -> base.Result:
        """Evaluates; every process of a run calls this and gets the same result.

        Raises:
          InputError: a file is missing or malformed, there are no records or labels, or a label is none of the classes.
        """
        source, count = base.open_records(self.data, self.limit)
        classes = classes_lib.read(self.classes, source)
        truth = classes_lib.Labels(classes, self.labels, self.data, self.classes or self.data).several(source, count)
        if not truth.any():
            raise InputError(f"{self.labels} of {self.data}: no record has a class; name the field with the classes")
        weights = classes_lib.embed(subject, classes, self.inner_norm, "multi-label prompts")
        images = subject.embed_records(source, count, "multi-label images")

        labelled = np.flatnonzero(truth.any(1))
        correct = _any_correct(images[labelled], weights, truth[labelled])
        present = np.flatnonzero(truth.any(0))
        curves = [metrics.precision_recall(images @ weights[c], truth[:, c]) for c in present]
        average = np.array([curve.average() for curve in curves])
        eleven = np.array([curve.eleven_points() for curve in curves])
        sizes = truth[:, present].sum(0)
        distinct, repeats = np.unique(sizes, return_counts=True)
        orders = int(np.clip(_ORDERS / (count * len(distinct)), 4, 64))
        chances = [(metrics.chance_of_average_precision(int(p), count), metrics.chance_of_eleven_points(int(p), count, orders))
                   for p in distinct]  # fmt: skip
        of_all, of_eleven = repeats @ np.array(chances) / len(present)
        per_class = np.stack([average, eleven, sizes], 1)
        titles = tuple(classes.titles[int(c)] for c in present)
        columns = ("average precision", "at eleven points", "images")
        return base.Result(
            metrics={
                "any_correct_acc1": float(correct.mean()),
                "mean_average_precision": float(average.mean()),
                "mean_average_precision_11": float(eleven.mean()),
            },
            chance={
                "any_correct_acc1": float(truth[labelled].mean()),
                "mean_average_precision": float(of_all),
                "mean_average_precision_11": float(of_eleven),
            },
            intervals={"any_correct_acc1": intervals.of_mean(correct.astype(np.float64))}
            | _intervals(images, weights[present], truth[:, present]),
            blind={"any_correct_acc1": float(truth[labelled].mean(0).max())},
            tables={"average_precision": base.Table("class", "measure", titles, columns, per_class)},
            figures={"similarities": figures.similarities(images, weights, np.argwhere(truth))},
            examples=self._examples(subject, source, images, weights, truth, labelled, correct, classes.titles),
            note=f"{count:,} images, {len(labelled):,} of them with {truth.sum():,} labels, {len(weights):,} classes "
            f"({len(present):,} of them occur). {self.note}".strip(),
        )

    def _examples(
        self,
        subject: base.Subject,
        source: sources.Source,
        images: np.ndarray,
        weights: np.ndarray,
        truth: np.ndarray,
        labelled: np.ndarray,
        correct: np.ndarray,
        titles: tuple[str, ...],
    ) -> list[base.Example]:
        shown = []
        for group, indices in (("misses", labelled[~correct]), ("hits", labelled[correct])):
            chosen = base.spread(indices, self.examples)
            for i, _, image in pipeline.read(source, subject.transform, indices=chosen):
                scores = images[i] @ weights.T
                answers = tuple(
                    base.Entry(titles[c], score=float(scores[c]), verdict="right" if truth[i, c] else "wrong")
                    for c in np.argsort(-scores, kind="stable")[:5].tolist()
                )
                own = ", ".join(titles[c] for c in np.flatnonzero(truth[i]).tolist())
                query = base.Entry(image=base.thumbnail(image))
                shown.append(base.Example(group, query, answers, base.Entry(own)))
        return shown


def _any_correct(images: np.ndarray, weights: np.ndarray, truth: np.ndarray) -> np.ndarray:
    chunk = max(1, metrics.CHUNK_BYTES // (4 * len(weights)))
    parts = [slice(k, k + chunk) for k in range(0, len(images), chunk)]
    return np.concatenate([metrics.any_correct(images[part] @ weights.T, truth[part]) for part in parts])


def _intervals(images: np.ndarray, weights: np.ndarray, truth: np.ndarray) -> dict[str, tuple[float, float]]:
    """Over other images; in a resample without an image of a class, the mean is over the other classes."""
    resamples = int(np.clip(_DRAWS / truth.size, 100, intervals.RESAMPLES))
    estimates = []
    for counts in intervals.draws(len(images), resamples):
        curves = [metrics.precision_recall(images @ weights[c], truth[:, c], counts) for c in range(len(weights))]
        both = [[curve.average() for curve in curves], [curve.eleven_points() for curve in curves]]
        estimates.append(np.nanmean(both, axis=1))
    average, eleven = np.concatenate(estimates, axis=1)
    return {
        "mean_average_precision": intervals.of_estimates(average),
        "mean_average_precision_11": intervals.of_estimates(eleven),
    }
