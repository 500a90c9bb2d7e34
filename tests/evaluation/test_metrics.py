"""The formulas against reference numbers and against plain definitions."""

import itertools
import json

import numpy as np
import pytest

from vlm_jax.evaluation import metrics


def test_class_weights_and_accuracy_equal_the_clip_oracle(oracles):
    oracle = np.load(oracles / "clip_zeroshot.npz")
    weights = metrics.class_weights(oracle["in_prompt_emb"])
    np.testing.assert_allclose(weights, oracle["out_class_weights"], atol=1e-12)
    scores = 100 * metrics.normalize(oracle["in_img_emb"]) @ weights.T
    np.testing.assert_allclose(scores, oracle["out_logits"], atol=1e-10)
    np.testing.assert_array_equal(scores.argmax(1), oracle["out_pred"])
    ranks = metrics.label_ranks(scores, oracle["in_labels"])
    assert (ranks < 1).mean() == pytest.approx(float(oracle["out_top1"]))
    assert (ranks < 2).mean() == pytest.approx(float(oracle["out_top2"]))


def test_zero_shot_with_and_without_inner_normalisation_equals_the_evaluation_oracle(oracles):
    oracle = json.loads((oracles / "zeroshot.json").read_text())
    prompts = np.array(oracle["text_embeds"])
    weights = metrics.class_weights(prompts)
    np.testing.assert_allclose(weights, oracle["class_weights_clip"], atol=1e-12)
    plain = metrics.class_weights(prompts, inner="none")
    np.testing.assert_allclose(plain, oracle["class_weights_no_inner_norm"], atol=1e-12)
    scores = 100 * metrics.normalize(np.array(oracle["image_embeds"])) @ weights.T
    np.testing.assert_allclose(scores, oracle["logits_scale100"], atol=1e-10)
    labels = np.array(oracle["labels"])
    assert (metrics.label_ranks(scores, labels) == 0).mean() == pytest.approx(oracle["top1"])
    counts = metrics.confusion(labels, scores.argmax(1), scores.shape[1])
    assert metrics.mean_per_class_recall(counts) == pytest.approx(oracle["mean_per_class"])


def test_class_weights_keep_float32_within_1e_6_of_the_oracle(oracles):
    oracle = np.load(oracles / "clip_zeroshot.npz")
    weights = metrics.class_weights(oracle["in_prompt_emb"].astype(np.float32))
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, oracle["out_class_weights"], atol=1e-6)


def test_a_tie_goes_to_the_first_index():
    scores = np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.1]])
    np.testing.assert_array_equal(metrics.label_ranks(scores, np.array([0, 1])), [0, 1])


def test_classes_without_examples_are_left_out_of_the_mean_recall():
    counts = metrics.confusion(np.array([0, 0, 2]), np.array([0, 1, 2]), 4)
    assert metrics.mean_per_class_recall(counts) == pytest.approx(0.75)


def both_ranks(similarities, owner):
    """Ranks out of a matrix of similarities: its rows as queries, the unit vectors as candidates, and transposed."""
    images, texts = similarities, np.eye(similarities.shape[1])
    captions = np.arange(len(owner))
    to_text = metrics.best_ranks(images, texts, np.stack([owner, captions], 1))
    return to_text, metrics.best_ranks(texts, images, np.stack([captions, owner], 1))


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
    assert metrics.median_rank(to_text) == oracle["median_rank_i2t"]
    assert metrics.median_rank(to_image) == oracle["median_rank_t2i"]


def test_recalls_equal_the_clip_oracle(oracles):
    oracle = np.load(oracles / "retrieval_recall.npz")
    to_text, to_image = both_ranks(oracle["in_sim"], oracle["in_caption_owner"])
    for k in (1, 5, 10):
        assert (to_text < k).mean() == pytest.approx(float(oracle[f"out_i2t_r{k}"]), abs=1e-6)
        assert (to_image < k).mean() == pytest.approx(float(oracle[f"out_t2i_r{k}"]), abs=1e-6)


def test_a_weight_counts_a_candidate_as_many_times():
    queries, candidates = np.array([[1.0, 0.5, 0.2]]), np.eye(3)
    pairs = np.array([[0, 2]])
    assert metrics.best_ranks(queries, candidates, pairs) == [2]
    assert metrics.best_ranks(queries, candidates, pairs, np.array([3, 2, 1])) == [5]


def test_a_score_that_is_not_a_number_is_never_a_hit():
    scores = np.full((2, 3), np.nan)
    assert (metrics.label_ranks(scores, np.array([0, 1])) > 0).all()
    assert (metrics.best_ranks(scores, np.eye(3), np.array([[0, 0], [1, 1]])) > 0).all()
    one_bad = np.array([[0.1, np.nan, 0.3]])
    assert metrics.label_ranks(one_bad, np.array([2])) == [1]


def test_chances_equal_enumeration_of_all_orders():
    own = np.array([1, 2, 2])
    orders = list(itertools.permutations(range(5)))
    for k in (1, 2, 5, 9):
        hits = [np.mean([min(order.index(c) for c in range(m)) < k for order in orders]) for m in own]
        assert metrics.chance_of_hit(own, 5, k) == pytest.approx(np.mean(hits))
    assert metrics.chance_of_median_rank(np.array([1, 1]), 101) == 51
    assert metrics.chance_of_median_rank(np.array([5]), 5) == 1
