"""The formulas of retrieval against reference numbers and against plain definitions."""

import itertools
import json

import numpy as np
import pytest

from vlm_jax.evaluation import metrics, ranking


def best_ranks(queries, candidates, pairs, weights=None):
    return ranking.best(ranking.ranks(queries, candidates, pairs, weights).optimistic, pairs[:, 0], len(queries))


def both_ranks(similarities, owner):
    """Ranks out of a matrix of similarities: its rows as queries, the unit vectors as candidates, and transposed."""
    images, texts = similarities, np.eye(similarities.shape[1])
    captions = np.arange(len(owner))
    to_text = best_ranks(images, texts, np.stack([owner, captions], 1))
    return to_text, best_ranks(texts, images, np.stack([captions, owner], 1))


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 2**26])
def test_ranks_and_recalls_equal_the_retrieval_oracle_in_chunks_of_any_size(oracles, monkeypatch, chunk_bytes):
    monkeypatch.setattr(metrics, "CHUNK_BYTES", chunk_bytes)
    oracle = json.loads((oracles / "retrieval.json").read_text())
    owner = np.repeat(np.arange(6), oracle["captions_per_image"])
    to_text, to_image = both_ranks(np.array(oracle["sim"]), owner)
    np.testing.assert_array_equal(to_text, oracle["i2t_rank"])
    np.testing.assert_array_equal(to_image, oracle["t2i_rank"])
    for k in (1, 5, 10):
        assert 100 * (to_text < k).mean() == pytest.approx(oracle["i2t"][f"R@{k}"], abs=1e-6)
        assert 100 * (to_image < k).mean() == pytest.approx(oracle["t2i"][f"R@{k}"], abs=1e-6)
    assert ranking.median_rank(to_text) == oracle["median_rank_i2t"]
    assert ranking.median_rank(to_image) == oracle["median_rank_t2i"]


def test_recalls_equal_the_clip_oracle(oracles):
    oracle = np.load(oracles / "retrieval_recall.npz")
    to_text, to_image = both_ranks(oracle["in_sim"], oracle["in_caption_owner"])
    for k in (1, 5, 10):
        assert (to_text < k).mean() == pytest.approx(float(oracle[f"out_i2t_r{k}"]), abs=1e-6)
        assert (to_image < k).mean() == pytest.approx(float(oracle[f"out_t2i_r{k}"]), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_ranks_of_pairs_equal_their_definition_with_ties_repeats_and_queries_of_any_number_of_pairs(seed, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_BYTES", 4 * 11 * 3)
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (7, 11)).astype(np.float64)
    texts = rng.integers(0, 11, 24)  # sentences, some of them the same text
    owner = rng.permutation(np.r_[np.arange(7), rng.integers(0, 7, 17)])
    weights = np.bincount(texts, minlength=11)
    pairs = np.stack([owner, texts], 1)
    found = ranking.ranks(scores, np.eye(11), pairs, weights)
    for i, (query, text) in enumerate(pairs):
        of_sentences, own = scores[query, texts], scores[query, text]
        others_level = (of_sentences == own) & (owner != query)
        assert found.optimistic[i] == (of_sentences > own).sum()
        assert found.pessimistic[i] == (of_sentences > own).sum() + others_level.sum()
    for k in (1, 3, 8):
        plain = [np.mean([found.optimistic[i] < k for i in np.flatnonzero(owner == q)]) for q in range(7)]
        np.testing.assert_allclose(ranking.recall(found.optimistic, owner, 7, k), plain)


def test_a_collapsed_model_has_the_first_rank_only_where_ties_count_for_it():
    same = np.ones((5, 3))
    pairs = np.stack([np.arange(5), np.arange(5)], 1)
    found = ranking.ranks(same, same, pairs)
    assert (found.optimistic == 0).all() and (found.pessimistic == 4).all()


def test_a_weight_counts_a_candidate_as_many_times():
    queries, candidates = np.array([[1.0, 0.5, 0.2]]), np.eye(3)
    pairs = np.array([[0, 2]])
    assert best_ranks(queries, candidates, pairs) == [2]
    assert best_ranks(queries, candidates, pairs, np.array([3, 2, 1])) == [5]


def test_a_score_that_is_not_a_number_is_never_a_hit():
    scores = np.full((2, 3), np.nan)
    found = ranking.ranks(scores, np.eye(3), np.array([[0, 0], [1, 1]]))
    assert (found.optimistic == 3).all() and (found.pessimistic == 3).all()


def test_chances_equal_enumeration_of_all_orders():
    own = np.array([1, 2, 2])
    orders = list(itertools.permutations(range(5)))
    for k in (1, 2, 5, 9):
        hits = [np.mean([min(order.index(c) for c in range(m)) < k for order in orders]) for m in own]
        assert ranking.chance_of_hit(own, 5, k) == pytest.approx(np.mean(hits))
    places = [np.mean([min(order.index(c) for c in range(m)) + 1 for order in orders]) for m in own]
    assert ranking.chance_of_mean_rank(own, 5) == pytest.approx(np.mean(places))
    assert ranking.chance_of_median_rank(np.array([1, 1]), 101) == 51
    assert ranking.chance_of_median_rank(np.array([5]), 5) == 1


@pytest.mark.parametrize("seed", range(5))
def test_medians_of_weighted_queries_equal_medians_of_repeated_ones(seed):
    rng = np.random.default_rng(seed)
    places, weights = rng.integers(0, 9, 10), rng.integers(0, 4, (6, 10))
    weights[:, 0] += 1
    plain = [np.median(np.repeat(places, row)) + 1 for row in weights]
    np.testing.assert_array_equal(ranking.medians(places, weights), plain)
