"""What a classifier of unit vectors answers, exactly and in blocks, and the numbers, tables and figures of that."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlm_jax.evaluation import base, figures, intervals, metrics

TABLE_CLASSES = 2048
"""A confusion matrix of more classes is not made."""
MAP_CLASSES = 10
"""The map shows the most frequent classes, at most so many."""


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The answers for n images among c classes."""

    images: np.ndarray
    """[n, e], L2-normalised."""
    weights: np.ndarray
    """[c, e], L2-normalised."""
    labels: np.ndarray
    """int [n]."""
    ranks: np.ndarray
    """int [n]: the place of the right class, 0 is best; see `metrics.label_ranks`."""
    predicted: np.ndarray
    """int [n]."""

    @classmethod
    def of(cls, images: np.ndarray, weights: np.ndarray, labels: np.ndarray) -> "Predictions":
        """Compares every image with every class, in blocks of `metrics.CHUNK_BYTES`."""
        chunk = max(1, metrics.CHUNK_BYTES // (4 * len(weights)))
        ranks, predicted = np.empty((2, len(labels)), np.int64)
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            scores = images[part] @ weights.T
            ranks[part] = metrics.label_ranks(scores, labels[part])
            predicted[part] = scores.argmax(1)
        return cls(images, weights, labels, ranks, predicted)

    @property
    def num_classes(self) -> int:
        return len(self.weights)

    @property
    def present(self) -> np.ndarray:
        """int [p]: the classes that occur."""
        return np.unique(self.labels)

    def metrics(self) -> dict[str, float]:
        """Top-1 and, among more than five classes, top-5 accuracy, and the mean of the recalls of the classes that occur."""
        hits, counts = self._by_class()
        recall = float((hits[counts > 0] / counts[counts > 0]).mean())
        found = {"acc1": float((self.ranks < 1).mean()), "mean_per_class_recall": recall}
        return found | ({"acc5": float((self.ranks < 5).mean())} if self.num_classes > 5 else {})

    def chance(self) -> dict[str, float]:
        """What guessing reaches."""
        found = {"acc1": 1 / self.num_classes, "mean_per_class_recall": 1 / self.num_classes}
        return found | ({"acc5": 5 / self.num_classes} if self.num_classes > 5 else {})

    def blind(self) -> dict[str, float]:
        """What is reached by always answering with the most frequent of these very labels, best first."""
        found = {
            "acc1": metrics.majority(self.labels, self.num_classes),
            "mean_per_class_recall": 1 / len(self.present),
        }
        top5 = {"acc5": metrics.majority(self.labels, self.num_classes, 5)}
        return found | (top5 if self.num_classes > 5 else {})

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Over other images; those of the mean recall over other images of the same classes."""
        found = {
            "acc1": intervals.of_mean((self.ranks < 1).astype(np.float64)),
            "mean_per_class_recall": intervals.of_mean_recall(*self._by_class()),
        }
        top5 = {"acc5": intervals.of_mean((self.ranks < 5).astype(np.float64))} if self.num_classes > 5 else {}
        return found | top5

    def _by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """int [c] each: right answers and examples."""
        counts = np.bincount(self.labels, minlength=self.num_classes)
        return np.bincount(self.labels[self.predicted == self.labels], minlength=self.num_classes), counts

    def tables(self, titles: Sequence[str]) -> dict[str, base.Table]:
        """The confusion matrix of the classes that occur; none where it would be too large to look at."""
        if self.num_classes > TABLE_CLASSES:
            return {}
        counts = metrics.confusion(self.labels, self.predicted, self.num_classes)[self.present]
        rows = tuple(titles[int(i)] for i in self.present)
        return {"confusion": base.Table("true class", "predicted class", rows, tuple(titles), counts)}

    def figures(self, titles: Sequence[str], scale: float | None) -> dict[str, base.Figure]:
        """Cosines of right and wrong classes, a map of the images, and, for a model with a scale, its calibration.

        The calibration is that of as many images, evenly drawn, as have their cosines in one block; all of them up to 16 million cosines.
        """
        n = len(self.labels)
        pairs = np.stack([np.arange(n), self.labels], 1)
        found: dict[str, base.Figure] = {"similarities": figures.similarities(self.images, self.weights, pairs)}
        if scale is not None:
            most = max(1, metrics.CHUNK_BYTES // (4 * self.num_classes))
            some = np.array(base.spread(np.arange(n), most))
            cosines = self.images[some] @ self.weights.T
            found["calibration"] = figures.calibration(cosines, self.labels[some], scale)
        counts = np.bincount(self.labels, minlength=self.num_classes)
        shown = np.sort(np.argsort(-counts, kind="stable")[:MAP_CLASSES])
        members = {str(titles[int(c)]): np.flatnonzero(self.labels == c) for c in shown if counts[c]}
        drawn = figures.embedding_map(
            {name: self.images[own] for name, own in members.items()},
            {name: [self._told(int(i), titles) for i in own] for name, own in members.items()},
        )
        if len(members) < len(self.present):
            kept = f"{drawn.method}; the {len(members)} most frequent of {len(self.present):,} classes"
            drawn = dataclasses.replace(drawn, method=kept)
        return found | {"embedding_map": drawn}

    def _told(self, i: int, titles: Sequence[str]) -> str:
        true, predicted = titles[int(self.labels[i])], titles[int(self.predicted[i])]
        return true if true == predicted else f"{true}, taken for {predicted}"

    def top(self, i: int, k: int = 5) -> list[tuple[int, float]]:
        """The k best classes of image i with their cosines."""
        scores = self.images[i] @ self.weights.T
        order = [c for c in np.argsort(-scores, kind="stable").tolist() if c != self.predicted[i]]
        return [(c, float(scores[c])) for c in [int(self.predicted[i]), *order][:k]]

    def score(self, i: int, c: int) -> float:
        """The cosine of image i and class c."""
        return float(self.images[i] @ self.weights[c])

    def confused(self, count: int) -> list[tuple[int, int, np.ndarray]]:
        """The (true, predicted) pairs of classes most often confused, each with its images, int [m]."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        codes = self.labels[wrong] * self.num_classes + self.predicted[wrong]
        pairs, counts = np.unique(codes, return_counts=True)
        most = pairs[np.argsort(-counts, kind="stable")[:count]]
        return [(int(c // self.num_classes), int(c % self.num_classes), wrong[codes == c]) for c in most]
