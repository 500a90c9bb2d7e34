"""Confidence intervals: they cover the truth as often as they say, are the same every time, and cost little."""

import time

import numpy as np
import pytest

from vlm_jax.evaluation import intervals, metrics


def plain(values, seed=1):
    """A bootstrap of the mean by its definition."""
    rng = np.random.default_rng(seed)
    means = [rng.choice(values, len(values)).mean() for _ in range(4000)]
    return np.quantile(means, (0.025, 0.975))


def test_shares_are_covered_about_95_times_in_100():
    rng = np.random.default_rng(0)
    spans = [intervals.of_mean(rng.random(150) < 0.3) for _ in range(400)]
    covered = np.mean([low <= 0.3 <= high for low, high in spans])
    assert 0.92 <= covered <= 0.975


@pytest.mark.parametrize("values", [np.arange(90) % 3 == 0, np.random.default_rng(2).gamma(2, 3, 400)])
def test_intervals_of_means_are_those_of_a_plain_bootstrap(values):
    low, high = intervals.of_mean(values.astype(float), kind="number")
    expected = plain(values)
    assert (low, high) == pytest.approx(expected, abs=0.08 * (expected[1] - expected[0]))


def test_a_group_is_drawn_as_a_whole():
    same = np.repeat(np.arange(100) % 2, 5).astype(float)
    alone, together = intervals.of_mean(same), intervals.of_mean(same, np.repeat(np.arange(100), 5))
    assert np.ptp(together) == pytest.approx(np.ptp(alone) * 5**0.5, rel=0.15)
    assert together == pytest.approx(intervals.of_mean((np.arange(100) % 2).astype(float)), abs=0.02)


def test_where_all_agree_shares_have_the_binomial_bound_and_numbers_a_point():
    assert intervals.of_mean(np.ones(20)) == (pytest.approx(0.8316, abs=1e-4), 1.0)
    assert intervals.of_mean(np.zeros(20)) == (0.0, pytest.approx(0.1684, abs=1e-4))
    assert intervals.of_mean(np.ones(20), kind="number") == (1.0, 1.0)


def test_mean_recall_draws_within_classes():
    rng = np.random.default_rng(3)
    counts, truth = np.array([200, 40, 0, 30]), np.array([0.9, 0.5, 0, 0.4])
    covered = []
    for _ in range(300):
        low, high = intervals.of_mean_recall(rng.binomial(counts, truth), counts)
        covered.append(low <= 0.6 <= high)
    assert 0.9 <= np.mean(covered) <= 0.98
    assert intervals.of_mean_recall(counts, counts) == (pytest.approx(0.025 ** (1 / 90)), 1.0)


def test_a_statistic_of_counts_is_that_of_repeated_examples():
    values = np.random.default_rng(4).normal(size=60)
    by_counts = intervals.of_statistic(60, lambda counts: counts @ values / counts.sum(1))
    assert by_counts == pytest.approx(plain(values), abs=0.05)
    sizes = [counts.sum(1) for counts in intervals.draws(60, 7)]
    assert np.concatenate(sizes).tolist() == [60] * 7


def test_the_seed_decides_and_nothing_else_does(monkeypatch):
    values = np.random.default_rng(5).normal(size=700)
    first = intervals.of_mean(values, kind="number")
    assert intervals.of_mean(values, kind="number") == first
    monkeypatch.setattr(intervals, "_BLOCK", 9000)
    assert intervals.of_mean(values, kind="number") == pytest.approx(first)
    assert intervals.of_mean(values, kind="number", seed=1) != first


def test_fifty_thousand_examples_take_about_a_second():
    hits = np.random.default_rng(6).random(50_000) < 0.7
    start = time.process_time()
    intervals.of_mean(hits)
    intervals.of_mean_recall(np.full(1000, 30), np.full(1000, 50))
    intervals.of_statistic(50_000, lambda c: metrics.auroc(hits + 0.5, hits, c), resamples=50)
    assert time.process_time() - start < 5, "with room for a slow machine"
