"""The formulas of classification against reference numbers, scikit-learn and plain definitions."""

import itertools
import json

import numpy as np
import pytest
import sklearn.metrics

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


def test_a_score_that_is_not_a_number_is_never_a_hit():
    scores = np.full((2, 3), np.nan)
    assert (metrics.label_ranks(scores, np.array([0, 1])) > 0).all()
    one_bad = np.array([[0.1, np.nan, 0.3]])
    assert metrics.label_ranks(one_bad, np.array([2])) == [1]


def test_auroc_and_accuracy_equal_the_oracle(oracles):
    oracle = json.loads((oracles / "auroc.json").read_text())
    scores, truth = np.array(oracle["scores"]), np.array(oracle["labels"]) == 1
    assert metrics.auroc(scores, truth) == pytest.approx(oracle["auroc"], abs=1e-12)
    assert ((scores > 0.5) == truth).mean() == oracle["accuracy_at_0_5"]


def weighted_cases():
    """Scores with ties, truth, and how often each example counts in three resamples."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        truth = rng.random(40) < 0.3
        truth[:2] = True, False
        weights = rng.multinomial(40, np.full(40, 1 / 40), 3)
        weights[:, :2] += 1
        yield rng.integers(0, 12, 40) / 8 + 0.3 * truth, truth, weights


@pytest.mark.parametrize("case", weighted_cases())
def test_auroc_and_average_precision_equal_scikit_learn_on_plain_and_repeated_examples(case):
    scores, truth, weights = case
    curve, resampled = metrics.precision_recall(scores, truth), metrics.precision_recall(scores, truth, weights)
    assert metrics.auroc(scores, truth) == pytest.approx(sklearn.metrics.roc_auc_score(truth, scores))
    assert curve.average() == pytest.approx(sklearn.metrics.average_precision_score(truth, scores))
    for i, row in enumerate(weights):
        repeated = np.repeat(truth, row), np.repeat(scores, row)
        assert metrics.auroc(scores, truth, weights)[i] == pytest.approx(sklearn.metrics.roc_auc_score(*repeated))
        plain = sklearn.metrics.average_precision_score(*repeated)
        assert resampled.average()[i] == pytest.approx(plain)
        assert resampled.eleven_points()[i] == pytest.approx(eleven_points(*repeated))
    assert curve.eleven_points() == pytest.approx(eleven_points(truth, scores))


def eleven_points(truth, scores):
    """By its definition, over all scores as thresholds."""
    total, precisions = truth.sum(), []
    for t in range(11):
        taken = [scores >= threshold for threshold in np.unique(scores)]
        precisions.append(max((truth & s).sum() / s.sum() for s in taken if 10 * (truth & s).sum() >= t * total))
    return np.mean(precisions)


def test_examples_of_no_number_are_the_worst_of_their_kind():
    scores, truth = np.array([0.1, np.nan, 0.9, np.nan]), np.array([False, False, True, True])
    assert metrics.auroc(scores, truth) == 0.25
    assert metrics.precision_recall(scores, truth).average() == pytest.approx((1 / 2 + 2 / 4) / 2)
    broken = np.full(4, np.nan)
    assert metrics.auroc(broken, truth) == 0


def test_chances_of_average_precision_equal_enumeration_and_simulation():
    for positives in (1, 3, 5):
        truths = [np.isin(np.arange(5), chosen) for chosen in itertools.combinations(range(5), positives)]
        found = [metrics.precision_recall(-np.arange(5.0), truth) for truth in truths]
        assert metrics.chance_of_average_precision(positives, 5) == pytest.approx(np.mean([c.average() for c in found]))
        eleven = np.mean([c.eleven_points() for c in found])
        assert metrics.chance_of_eleven_points(positives, 5, 3000) == pytest.approx(eleven, abs=0.02)


def test_the_majority_is_the_share_of_the_most_frequent_classes():
    labels = np.array([0, 0, 0, 2, 2, 5])
    assert metrics.majority(labels, 6) == 0.5
    assert metrics.majority(labels, 6, 2) == pytest.approx(5 / 6)


def test_any_correct_asks_whether_the_best_class_is_one_of_the_own():
    scores = np.array([[0.1, 0.9, 0.3], [0.5, 0.5, 0.1], [0.2, 0.1, 0.7]])
    truth = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(metrics.any_correct(scores, truth), [True, False, False])
