"""Formulas of retrieval, in numpy, on embeddings that are already there: ranks, and what a random order would reach."""

import dataclasses

import numpy as np

from vlm_jax.evaluation import metrics


@dataclasses.dataclass(frozen=True)
class Ranks:
    """For pairs of a query and a candidate that belong together, the place of the candidate; 0 is best."""

    optimistic: np.ndarray
    """int [p]: how many candidates score strictly higher, so that ties count for the model. What the field reports."""
    pessimistic: np.ndarray
    """int [p]: so many and those of others that score the same, so that ties count against it."""


def ranks(queries: np.ndarray, candidates: np.ndarray, pairs: np.ndarray, weights: np.ndarray | None = None) -> Ranks:
    """The ranks of pairs among all candidates.

    Exact: the score of a pair is taken out of the block that it is compared with, and blocks are no larger than
    `metrics.CHUNK_BYTES`. A score that is not a number counts as higher than any, and has the last rank itself.

    Args:
      queries: [n, e].
      candidates: [m, e].
      pairs: int [p, 2], (query, candidate).
      weights: int [m], for how many candidates each one stands; a pair then stands there once for each that is right. None: one.
    """
    weights = np.ones(len(candidates), np.int64) if weights is None else weights
    several = np.flatnonzero(weights != 1)
    order = np.argsort(pairs[:, 0], kind="stable")
    place = _place_in_group(pairs[order, 0])
    chunk = max(1, metrics.CHUNK_BYTES // (4 * len(candidates)))
    bounds = np.searchsorted(pairs[order, 0], np.arange(0, len(queries) + chunk, chunk))
    optimistic, pessimistic = np.empty((2, len(pairs)), np.int64)

    def count(mask):
        return np.count_nonzero(mask, axis=1) + mask[:, several] @ (weights[several] - 1)

    for i, start in enumerate(range(0, len(queries), chunk)):
        own = slice(bounds[i], bounds[i + 1])
        if own.start == own.stop:
            continue
        scores = queries[start : start + chunk] @ candidates.T
        rows, columns = (pairs[order[own]] - (start, 0)).T
        right = scores[rows, columns]
        higher, level = np.empty((2, len(rows)), np.int64)
        for k in range(place[own].max() + 1):
            chosen = place[own] == k
            block = scores if np.array_equal(rows[chosen], np.arange(len(scores))) else scores[rows[chosen]]
            bar = right[chosen][:, None]
            higher[chosen], level[chosen] = count(~(block <= bar)), count(block == bar)
        _, inverse, equal = np.unique(np.stack([rows, right], 1), axis=0, return_inverse=True, return_counts=True)
        optimistic[order[own]] = higher
        pessimistic[order[own]] = higher + np.maximum(level - equal[inverse.ravel()], 0)
    return Ranks(optimistic, pessimistic)


def _place_in_group(numbers: np.ndarray) -> np.ndarray:
    """For each of ascending numbers, how many equal ones stand before it."""
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
    return np.arange(len(numbers)) - np.repeat(starts, np.diff(starts, append=len(numbers)))


def best(places: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """int [n]: for each of `count` queries the best of the ranks [p] of its own candidates; every query has one."""
    found = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(found, queries, places)
    return found


def recall(places: np.ndarray, queries: np.ndarray, count: int, k: int) -> np.ndarray:
    """[n]: for each of `count` queries the share of its own candidates that are among the first k."""
    return np.bincount(queries, places < k, count) / np.bincount(queries, minlength=count)


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


def medians(ranks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[r]: the median rank, from 1, of queries of which each occurs so often; `weights` is [r, n]."""
    order = np.argsort(ranks, kind="stable")
    ascending = ranks[order].astype(np.float64) + 1
    filled = weights[:, order].astype(np.float64).cumsum(1)
    half = filled[:, -1:] / 2
    low = (filled < half).sum(1).clip(max=len(ranks) - 1)
    high = (filled <= half).sum(1).clip(max=len(ranks) - 1)
    return (ascending[low] + ascending[high]) / 2


def chance_of_median_rank(own: np.ndarray, candidates: int) -> float:
    """The median rank, from 1, of a random order: the first k with a chance of a hit of one half."""
    low, high = 1, candidates
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if chance_of_hit(own, candidates, middle) >= 0.5 else (middle + 1, high)
    return float(low)


def chance_of_mean_rank(own: np.ndarray, candidates: int) -> float:
    """The mean rank, from 1, of the first right candidate in a random order: (candidates + 1) / (own + 1)."""
    return float(((candidates + 1) / (own + 1)).mean())
