"""The search for a penalty, the split that it needs, and classes that were never seen."""

import math

import jax
import numpy as np
import pytest
from sklearn import linear_model

from vlm_jax.evaluation import classifier
from vlm_jax.training import sharding


def learner(features, labels, num_classes, scaling="none"):
    mesh = sharding.Mesh().make(jax.devices()[:1])
    return classifier.Learner(
        features, labels, num_classes, mesh, scaling=scaling, precision="float64", max_iterations=1000
    )


def swept(peak):
    """The exponents that a sweep asks for, in order, where accuracy falls off on both sides of a peak; and the one it takes."""
    asked = []

    def accuracy(penalty):
        asked.append(round(math.log10(penalty), 6))
        return -abs(asked[-1] - peak)

    return asked, round(math.log10(classifier.sweep(accuracy)), 6)


def test_a_sweep_is_coarse_first_and_then_halves_its_steps():
    asked, found = swept(-2.6)
    assert asked[:7] == [6, 4, 2, 0, -2, -4, -6]
    assert asked[7:] == [-1, -3, -2.5, -3.5, -2.25, -2.75, -2.375, -2.625]
    assert found == -2.625


@pytest.mark.parametrize("peak", [-6, 6, 0, 1.3, -4.99])
def test_a_sweep_ends_within_a_sixteenth_of_a_decade_and_inside_its_bounds(peak):
    asked, found = swept(peak)
    assert abs(found - peak) <= 1 / 16
    assert len(asked) == len(set(asked)) <= 15 and max(map(abs, asked)) == 6


def test_of_equally_good_penalties_the_strongest_is_taken():
    assert math.log10(classifier.sweep(lambda penalty: float(penalty <= 2))) == pytest.approx(0.25)
    assert classifier.sweep(lambda _: 0.5) == 1e6


def test_a_share_of_every_class_is_held_out_but_never_all_of_one():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    drawn = classifier.held_out(labels, 0.2, 0)
    assert np.bincount(labels[drawn], minlength=4).tolist() == [10, 2, 1, 0]
    assert (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, classifier.held_out(labels, 0.2, 0))
    assert (drawn != classifier.held_out(labels, 0.2, 1)).any()
    assert np.bincount(labels[classifier.held_out(labels, 0.99, 0)], minlength=4).tolist() == [49, 9, 1, 0]


def test_a_class_that_was_never_seen_is_never_answered():
    rng = np.random.default_rng(0)
    labels = np.array([0, 3, 4] * 20)
    features = rng.normal(size=(5, 4))[labels] + 0.1 * rng.normal(size=(60, 4))
    found = learner(features, labels, 6).predictions(1.0, features, np.where(labels == 3, 1, labels))
    assert set(found.predicted) == {0, 3, 4}
    np.testing.assert_array_equal(found.ranks[labels == 3], 3)
    np.testing.assert_array_equal(found.ranks[labels != 3], 0)


def test_standardised_features_give_the_classifier_of_a_pipeline_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = rng.normal(size=(3, 5))[labels] + rng.normal(size=(90, 5))
    features = (features * [1, 10, 100, 1e-3, 0] + [5, 6, 7, 8, 9]).astype(np.float32)
    scaled = (features - features.mean(0, dtype=np.float64)) / np.where(features.std(0) > 0, features.std(0, dtype=np.float64), 1)
    peer = linear_model.LogisticRegression(C=0.1, tol=1e-10, max_iter=5000).fit(scaled, labels)
    found = learner(features, labels, 3, "standardize").predictions(10.0, features, labels)
    scores = peer.decision_function(scaled)
    np.testing.assert_allclose(found.images @ found.weights.T, scores - peer.intercept_.mean(), atol=1e-5)


def test_a_penalty_is_solved_once_and_from_the_nearest_one():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = rng.normal(size=(3, 5))[labels] + rng.normal(size=(90, 5))
    warm, cold = learner(features, labels, 3), learner(features, labels, 3)
    warm.solve(1000.0)
    warm.solve(0.11)
    assert warm.solve(0.1) is warm.solve(0.1)
    assert warm.solve(0.1).iterations < cold.solve(0.1).iterations
    np.testing.assert_allclose(warm.solve(0.1).weights, cold.solve(0.1).weights, atol=1e-6)
