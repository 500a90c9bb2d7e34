"""Formulas of zero-shot classification, in numpy, on embeddings that are already there; those of retrieval are in `ranking`."""

import dataclasses
from typing import Literal

import numpy as np

CHUNK_BYTES = 64 * 2**20
"""Size of a block of similarities; the whole matrix never exists."""


def normalize(x: np.ndarray) -> np.ndarray:
    """Divides by the L2 norm over the last axis; a zero row stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(x.dtype).tiny)


def class_weights(prompts: np.ndarray, inner: Literal["normalize", "none"] = "normalize") -> np.ndarray:
    """One unit vector for a class out of the embeddings of its prompts.

    CLIP (Radford et al. 2021, section 3.1.4): every prompt is normalised, then their mean is.

    Args:
      prompts: [..., m, e] embeddings of the m prompts.
      inner: "none" leaves the prompts as they are before the mean, as GroupViT's code does.

    Returns:
      [..., e], in the dtype of `prompts`; the mean is taken in float64.
    """
    prompts64 = prompts.astype(np.float64)
    prompts64 = normalize(prompts64) if inner == "normalize" else prompts64
    return normalize(prompts64.mean(-2)).astype(prompts.dtype)


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Place of the right class, 0 is best, with ties decided for the first index: rank 0 is what argmax finds.

    A score that is not a number counts as higher, so that a broken model cannot look good.

    Args:
      scores: [n, c].
      labels: int [n].
    """
    own = np.take_along_axis(scores, labels[:, None], 1)
    ahead = ~(scores <= own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, None]))
    return ahead.sum(1)


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts [true class, predicted class]."""
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def mean_per_class_recall(counts: np.ndarray) -> float:
    """Unweighted mean of the recalls of the classes that occur; `counts` as from `confusion`."""
    present = counts.sum(1) > 0
    return float((np.diag(counts)[present] / counts.sum(1)[present]).mean())


def majority(labels: np.ndarray, num_classes: int, k: int = 1) -> float:
    """The share of `labels` that are among the k most frequent classes: what is right without looking at an image."""
    return float(np.sort(np.bincount(labels, minlength=num_classes))[::-1][:k].sum() / len(labels))


def any_correct(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """bool [n]: whether the best-scored class of [n, c] is one of those in truth [n, c]; the first of equal ones."""
    return np.take_along_axis(truth, scores.argmax(1)[:, None], 1)[:, 0].astype(bool)


def auroc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """P(s+ > s-) + P(s+ = s-) / 2, the area under the ROC curve (Hanley & McNeil 1982), as a rank sum.

    A score that is not a number counts as the worst for its example: lowest where it is positive, highest where not.

    Args:
      scores: [n], higher where more probably positive.
      truth: bool [n].
      weights: [..., n], how often each example counts, such as in resamples. None: once.

    Returns:
      [...]; nan where there is no positive or no negative.
    """
    scores = np.where(np.isnan(scores), np.where(truth, -np.inf, np.inf), scores)
    order = np.argsort(scores, kind="stable")
    starts = _starts(scores[order])
    weights = np.ones(len(scores)) if weights is None else weights
    weights = weights[..., order]
    positive = np.add.reduceat(weights * truth[order], starts, axis=-1, dtype=np.float64)
    negative = np.add.reduceat(weights * ~truth[order], starts, axis=-1, dtype=np.float64)
    below = negative.cumsum(-1) - negative / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positive * below).sum(-1) / (positive.sum(-1) * negative.sum(-1))


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """A curve of precision over recall, from the highest score down, at the scores that positive examples have.

    Examples with the same score come in together, so that their order in the data changes nothing.
    """

    hits: np.ndarray
    """[..., g]: positive examples so far."""
    drawn: np.ndarray
    """[..., g]: examples so far."""

    def average(self) -> np.ndarray:
        """[...]: the area under the curve, sum of (recall step) * precision: average precision over all points."""
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(self.drawn > 0, self.hits / self.drawn, 0)
            return (np.diff(self.hits, axis=-1, prepend=0) * precision).sum(-1) / self.hits[..., -1]

    def eleven_points(self) -> np.ndarray:
        """[...]: the mean over recalls 0, .1, ..., 1 of the best precision at that recall or more.

        The average precision of the VOC2007 challenge (Everingham et al. 2010, equation 1).
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(self.drawn > 0, self.hits / self.drawn, 0)
        best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
        total = self.hits[..., -1:]
        found = [
            np.take_along_axis(best, (10 * self.hits < t * total).sum(-1)[..., None], -1)[..., 0] for t in range(11)
        ]
        return np.where(total[..., 0] > 0, np.mean(found, axis=0), np.nan)


def precision_recall(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> PrecisionRecall:
    """The curve of one class.

    Args:
      scores: [n]; one that is not a number counts as the worst for its example.
      truth: bool [n], at least one of them true.
      weights: [..., n], how often each example counts. None: once.
    """
    scores = np.where(np.isnan(scores), np.where(truth, -np.inf, np.inf), scores)
    order = np.argsort(-scores, kind="stable")
    starts = _starts(scores[order])
    ends = np.append(starts[1:], len(scores)) - 1
    ends = ends[np.add.reduceat(truth[order], starts, dtype=np.int64) > 0]
    starts = np.r_[0, ends[:-1] + 1]
    weights = (np.ones(len(scores)) if weights is None else weights)[..., order[: ends[-1] + 1]]
    own = np.add.reduceat(weights * truth[order[: ends[-1] + 1]], starts, axis=-1, dtype=np.float64)
    drawn = np.add.reduceat(weights, starts, axis=-1, dtype=np.float64)
    return PrecisionRecall(own.cumsum(-1), drawn.cumsum(-1))


def chance_of_average_precision(positives: int, examples: int) -> float:
    """The mean average precision, over all points, of a random order (Bestgen 2015)."""
    if positives == examples:
        return 1.0
    harmonic = float((1 / np.arange(1, examples + 1)).sum())
    rest = examples - positives
    return (positives - 1) / (examples - 1) + rest * harmonic / (examples * (examples - 1))


def chance_of_eleven_points(positives: int, examples: int, orders: int = 64) -> float:
    """The mean eleven-point average precision of random orders; so many are tried, always the same ones."""
    rng = np.random.default_rng(0)
    truth = np.arange(examples) < positives
    tried = [precision_recall(rng.permutation(examples).astype(float), truth).eleven_points() for _ in range(orders)]
    return float(np.mean(tried))


def _starts(ordered: np.ndarray) -> np.ndarray:
    """Where runs of equal values begin."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
