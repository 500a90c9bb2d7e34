"""Formulas of zero-shot classification and retrieval, in numpy, on embeddings that are already there."""

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


def best_ranks(
    queries: np.ndarray, candidates: np.ndarray, pairs: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """For every query the rank of its best right candidate: how many candidates score strictly higher.

    So 0 is best, and ties are counted in favour of the model; a score that is not a number counts as higher. Exact: the
    score of a right candidate is taken out of the block that it is compared with, and blocks are no larger than
    `CHUNK_BYTES`.

    Args:
      queries: [n, e].
      candidates: [m, e].
      pairs: int [p, 2], (query, candidate) that belong together; every query occurs.
      weights: int [m], for how many candidates each one stands. None: one.
    """
    chunk = max(1, CHUNK_BYTES // (4 * len(candidates)))
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    bounds = np.searchsorted(pairs[:, 0], np.arange(0, len(queries) + chunk, chunk))
    ranks = np.empty(len(queries), np.int64)
    for i, start in enumerate(range(0, len(queries), chunk)):
        scores = queries[start : start + chunk] @ candidates.T
        rows, columns = (pairs[bounds[i] : bounds[i + 1]] - (start, 0)).T
        best = np.full(len(scores), -np.inf, scores.dtype)
        with np.errstate(invalid="ignore"):
            np.maximum.at(best, rows, scores[rows, columns])
        higher = ~(scores <= best[:, None])
        ranks[start : start + chunk] = higher.sum(1) if weights is None else higher @ weights
    return ranks


def chance_of_hit(own: np.ndarray, candidates: int, k: int) -> float:
    """Mean probability that a random order of `candidates` has one of a query's own among its first k.

    Args:
      own: int [n], right candidates of each query.
    """
    drawn = np.arange(min(k, candidates))
    sizes, counts = np.unique(own, return_counts=True)
    missed = np.clip((candidates - drawn - sizes[:, None]) / (candidates - drawn), 0, 1).prod(1)
    return float(1 - missed @ counts / counts.sum())


def median_rank(ranks: np.ndarray) -> float:
    """Median, counted from 1."""
    return float(np.median(ranks)) + 1


def chance_of_median_rank(own: np.ndarray, candidates: int) -> float:
    """The median rank, from 1, of a random order: the first k with a chance of a hit of one half."""
    low, high = 1, candidates
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if chance_of_hit(own, candidates, middle) >= 0.5 else (middle + 1, high)
    return float(low)
