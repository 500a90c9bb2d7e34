"""Confidence intervals by the bootstrap: how far a number would move over other examples of the same kind.

Percentile intervals of 95 % (Efron & Tibshirani 1993, chapter 13) over resamples that are the same for the same seed. Where every
example agrees, a resample is never anything else and a bootstrap has nothing to say; shares then have the exact binomial bound
(Clopper & Pearson 1934), `0.025 ** (1 / n)` for n right answers of n.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

RESAMPLES = 1000
TAIL = 0.025
"""On either side of the interval."""
_BLOCK = 2_000_000
"""Draws at a time; resamples of more examples than that are drawn one by one."""
_FEW = 256
"""Up to so many distinct examples are resampled as counts of each, which costs nothing however often they occur."""


def of_estimates(estimates: np.ndarray) -> tuple[float, float]:
    """The interval [r] resampled estimates span; estimates that are not a number are left out."""
    kept = estimates[np.isfinite(estimates)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = np.quantile(kept, (TAIL, 1 - TAIL))
    return float(low), float(high)


def of_mean(
    values: np.ndarray, groups: np.ndarray | None = None, *, kind: Literal["share", "number"] = "share", seed: int = 0
) -> tuple[float, float]:
    """The interval of a mean.

    Args:
      values: [n].
      groups: int [n], what is drawn as a whole, such as the image that a caption belongs to; None: each value by itself.
      kind: "share" for values in 0..1, which have an interval even where all are 0 or all are 1.
    """
    numbers = np.arange(len(values)) if groups is None else groups
    rows = np.stack([np.bincount(numbers, values), np.bincount(numbers)], 1).astype(np.float64)
    rows = rows[rows[:, 1] > 0]
    total, weight = sums(rows, seed).T
    return bounded(of_estimates(total / weight), values, len(rows)) if kind == "share" else of_estimates(total / weight)


def bounded(interval: tuple[float, float], values: np.ndarray, independent: int) -> tuple[float, float]:
    """The interval of a share, or the binomial bound where all `values` are 0 or all are 1 over so many independent draws."""
    edge = TAIL ** (1 / max(independent, 1))
    if (values == 1).all():
        return edge, 1.0
    return (0.0, 1 - edge) if (values == 0).all() else interval


def of_mean_recall(hits: np.ndarray, counts: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The interval of the unweighted mean of recalls over classes; examples are drawn anew within each class.

    Args:
      hits: int [c], right answers in each class.
      counts: int [c], examples of each; classes without one are left out.
    """
    hits, counts = hits[counts > 0], counts[counts > 0]
    drawn = np.random.default_rng(seed).binomial(counts, hits / counts, (RESAMPLES, len(counts)))
    # with recalls p, all right has the probability prod p^n <= mean(p)^(classes * smallest n)
    return bounded(of_estimates((drawn / counts).mean(1)), hits / counts, len(counts) * int(counts.min()))


def of_statistic(
    examples: int, statistic: Callable[[np.ndarray], np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The interval of any statistic of how often each example was drawn.

    Args:
      examples: n of them.
      statistic: from counts, float32 [r, n], to the values [r] of r resamples; called with some of them at a time.
    """
    return of_estimates(np.concatenate([statistic(counts) for counts in draws(examples, resamples, seed)]))


def sums(rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """Sums [r, d] over resamples of rows [n, d], in float64: means and ratios of all kinds from one resampling."""
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    if len(distinct) <= _FEW:
        rng = np.random.default_rng(seed)
        return rng.multinomial(len(rows), counts / len(rows), RESAMPLES) @ distinct
    return np.concatenate([counts @ rows for counts in draws(len(rows), RESAMPLES, seed)])


def draws(examples: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each example occurs in resamples of as many: float32 [b, n] until there were `resamples` of them."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // examples)
    for done in range(0, resamples, block):
        size = min(block, resamples - done)
        drawn = rng.integers(0, examples, (size, examples), np.uint32)
        counts = [np.bincount(row, minlength=examples) for row in drawn]
        yield np.stack(counts).astype(np.float32)
