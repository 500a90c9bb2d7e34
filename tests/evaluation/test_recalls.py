"""The numbers of retrieval: means over folds, true recall, chance, and intervals over images."""

import numpy as np
import pytest

from vlm_jax.evaluation import ranking, recalls


def fold(seed: int, own: np.ndarray, first: int, worst: int) -> recalls.Fold:
    """Images with so many captions each, searched among the captions of the fold, at random."""
    rng = np.random.default_rng(seed)
    queries = np.repeat(np.arange(len(own)), own)
    places = rng.integers(0, worst, len(queries))
    ranks = ranking.Ranks(places, places + rng.integers(0, 2, len(queries)))
    return recalls.Fold.of(ranks, queries, np.arange(first, first + len(own)), len(queries))


FOLDS = [fold(0, np.array([1, 5] * 5), 0, 14), fold(1, np.array([4, 1] * 20), 10, 60)]
IMAGES = 50


@pytest.fixture(scope="module")
def found() -> recalls.Numbers:
    return recalls.numbers({"text_retrieval": FOLDS}, IMAGES)


def test_numbers_are_means_over_folds_of_means_over_queries(found):
    for k in recalls.RECALLS:
        hits = np.mean([(part.best < k).mean() for part in FOLDS])
        share = np.mean([part.recalls[k].mean() for part in FOLDS])
        assert found.values[f"text_retrieval_recall@{k}"] == pytest.approx(hits)
        assert found.values[f"text_retrieval_true_recall@{k}"] == pytest.approx(share)
        assert share < hits, "a hit needs one caption, recall all of them"
    assert found.values["text_retrieval_mean_rank"] == np.mean([part.best.mean() + 1 for part in FOLDS])
    assert found.values["rsum"] == pytest.approx(
        100 * sum(found.values[f"text_retrieval_recall@{k}"] for k in recalls.RECALLS)
    )


def test_chance_of_true_recall_is_the_share_of_candidates_that_k_are(found):
    sizes = [part.candidates for part in FOLDS]
    assert found.chance["text_retrieval_true_recall@5"] == pytest.approx(np.mean([5 / n for n in sizes]))
    assert found.chance["text_retrieval_recall@5"] > found.chance["text_retrieval_true_recall@5"]


def test_intervals_are_those_of_drawing_images_and_weighing_folds_alike(found):
    rng = np.random.default_rng(9)
    values = [(part.recalls[5], part.best) for part in FOLDS]
    drawn = []
    for _ in range(4000):
        picked = rng.integers(0, IMAGES, IMAGES)
        own = [picked[picked < 10], picked[picked >= 10] - 10]
        weights = [np.full(len(part), 1 / len(recall)) for part, (recall, _) in zip(own, values, strict=True)]
        shares = np.concatenate([recall[part] for part, (recall, _) in zip(own, values, strict=True)])
        drawn.append(np.average(shares, weights=np.concatenate(weights)))
    low, high = np.quantile(drawn, (0.025, 0.975))
    width = high - low
    assert found.intervals["text_retrieval_true_recall@5"] == pytest.approx((low, high), abs=0.08 * width)
    for name, (low, high) in found.intervals.items():
        assert low <= found.values[name] <= high


def test_ties_are_told_where_they_change_a_recall(found):
    table = found.ties["ties"]
    assert set(table.rows) <= {f"text_retrieval_recall@{k}" for k in recalls.RECALLS}
    for row, (optimistic, pessimistic) in zip(table.rows, table.values, strict=True):
        assert optimistic == found.values[row] > pessimistic
    without = [recalls.Fold(f.best, f.best, f.recalls, f.own, f.images, f.candidates) for f in FOLDS]
    assert recalls.numbers({"text_retrieval": without}, IMAGES).ties == {}
