"""The numbers of retrieval out of the ranks that were found: over folds, with chance, intervals, and ties counted both ways."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vlm_jax.evaluation import base, intervals, ranking

RECALLS = (1, 5, 10)
_MEDIAN_DRAWS = 20_000_000


@dataclasses.dataclass(frozen=True)
class Fold:
    """What n queries found among the candidates of one fold."""

    best: np.ndarray
    """int [n]: rank of the best own candidate of each query, ties for the model; 0 is best."""
    pessimistic: np.ndarray
    """int [n]: the same with ties against the model."""
    recalls: dict[int, np.ndarray]
    """For each k of `RECALLS` [n]: the share of each query's own candidates among the first k."""
    own: np.ndarray
    """int [n]: how many own candidates each query has."""
    images: np.ndarray
    """int [n]: the image, over all folds, that each query belongs to."""
    candidates: int

    @classmethod
    def of(cls, ranks: ranking.Ranks, queries: np.ndarray, images: np.ndarray, candidates: int) -> "Fold":
        """Out of the ranks of pairs, int [p], whose queries are `queries`, int [p] in 0..n - 1."""
        n = len(images)
        return cls(
            ranking.best(ranks.optimistic, queries, n),
            ranking.best(ranks.pessimistic, queries, n),
            {k: ranking.recall(ranks.optimistic, queries, n, k) for k in RECALLS},
            np.bincount(queries, minlength=n),
            images,
            candidates,
        )


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Values, what a random order would reach, and intervals over other images, by the names of metrics."""

    values: dict[str, float]
    chance: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    ties: dict[str, base.Table]
    """One table of the recalls that would change if ties were counted against the model; none where nothing would."""


def numbers(directions: Mapping[str, Sequence[Fold]], images: int) -> Numbers:
    """Means over folds for each direction.

    Args:
      directions: the folds by name, such as `image_retrieval`; those of one direction weigh the same.
      images: how many images there are; they are what is drawn anew for the intervals, with all of their captions.
    """
    values: dict[str, float] = {}
    chance: dict[str, float] = {}
    spans: dict[str, tuple[float, float]] = {}
    against: dict[str, tuple[float, float]] = {}
    columns = {name: _columns(folds) for name, folds in directions.items()}
    resampled = _resampled(columns, directions, images)
    for name, folds in directions.items():
        for metric, parts in columns[name].items():
            full = f"{name}_{metric}"
            values[full] = _mean([part.mean() for part in parts])
            chance[full] = _mean([_chance(metric, fold) for fold in folds])
            span = intervals.of_estimates(resampled[full])
            spans[full] = span if metric == "mean_rank" else intervals.bounded(span, np.concatenate(parts), images)
        values[f"{name}_median_rank"] = _mean([ranking.median_rank(fold.best) for fold in folds])
        chance[f"{name}_median_rank"] = _mean([ranking.chance_of_median_rank(f.own, f.candidates) for f in folds])
        spans[f"{name}_median_rank"] = _span_of_median(folds, images)
        for k in RECALLS:
            with_ties = _mean([(fold.best < k).mean() for fold in folds])
            without = _mean([(fold.pessimistic < k).mean() for fold in folds])
            if with_ties != without:
                against[f"{name}_recall@{k}"] = with_ties, without
    hits = [f"{name}_recall@{k}" for name in directions for k in RECALLS]
    values["rsum"] = 100 * sum(values[name] for name in hits)
    chance["rsum"] = 100 * sum(chance[name] for name in hits)
    spans["rsum"] = intervals.of_estimates(100 * np.sum([resampled[name] for name in hits], axis=0))
    forms = ("ties for the model", "ties against it")
    table = base.Table("metric", "ties", tuple(against), forms, np.array(list(against.values())))
    return Numbers(values, chance, spans, {"ties": table} if against else {})


def _mean(parts: Sequence[float]) -> float:
    return float(np.mean(parts))


def _columns(folds: Sequence[Fold]) -> dict[str, list[np.ndarray]]:
    """By metric the values of the queries of each fold, of which it is the mean."""
    found = {f"recall@{k}": [(fold.best < k).astype(np.float64) for fold in folds] for k in RECALLS}
    if any((fold.own > 1).any() for fold in folds):
        found |= {f"true_recall@{k}": [fold.recalls[k] for fold in folds] for k in RECALLS}
    return found | {"mean_rank": [fold.best + 1.0 for fold in folds]}


def _chance(metric: str, fold: Fold) -> float:
    kind, _, k = metric.partition("@")
    if kind == "recall":
        return ranking.chance_of_hit(fold.own, fold.candidates, int(k))
    if kind == "true_recall":
        return min(int(k), fold.candidates) / fold.candidates
    return ranking.chance_of_mean_rank(fold.own, fold.candidates)


def _resampled(
    columns: Mapping[str, Mapping[str, Sequence[np.ndarray]]], directions: Mapping[str, Sequence[Fold]], images: int
) -> dict[str, np.ndarray]:
    """[r] by full name: the means over resamples of the images, the same resamples for all."""
    names, rows, weights = [], [], {}
    for name, folds in directions.items():
        owners = np.concatenate([fold.images for fold in folds])
        weight = np.concatenate([np.full(len(fold.images), 1 / len(fold.images)) for fold in folds])
        weights[name] = len(rows)
        rows.append(np.bincount(owners, weight, images))
        names.append((name, name))
        for metric, parts in columns[name].items():
            names.append((f"{name}_{metric}", name))
            rows.append(np.bincount(owners, weight * np.concatenate(parts), images))
    drawn = intervals.sums(np.stack(rows, 1))
    return {full: drawn[:, i] / drawn[:, weights[name]] for i, (full, name) in enumerate(names)}


def _span_of_median(folds: Sequence[Fold], images: int) -> tuple[float, float]:
    queries = sum(len(fold.best) for fold in folds)
    resamples = int(np.clip(_MEDIAN_DRAWS / queries, 200, intervals.RESAMPLES))
    return intervals.of_statistic(
        images,
        lambda counts: np.mean([ranking.medians(fold.best, counts[:, fold.images]) for fold in folds], axis=0),
        resamples=resamples,
    )
