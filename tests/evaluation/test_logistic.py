"""The solver: reference weights, scikit-learn, bad scales, separable classes, any number of devices."""

import json

import jax
import numpy as np
import pytest
from sklearn import linear_model

from vlm_jax.errors import InputError
from vlm_jax.evaluation import logistic, metrics
from vlm_jax.training import sharding


def mesh(devices=1, **axes):
    return sharding.Mesh(**axes).make(jax.devices()[:devices])


def noisy(count=300, width=6, classes=4):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(count, width))
    scores = features @ rng.normal(size=(width, classes)) + 2 * rng.normal(size=(count, classes))
    return features, scores.argmax(1)


def separable(count=200, width=20, classes=5):
    rng = np.random.default_rng(1)
    labels = np.arange(count) % classes
    return 2 * rng.normal(size=(classes, width))[labels] + 0.2 * rng.normal(size=(count, width)), labels


def slope(features, labels, solution, penalty):
    """Of the objective, for the weights and for the bias, as a share of its summands."""
    scores = features @ solution.weights + solution.bias
    rest = np.exp(scores - np.logaddexp.reduce(scores, 1, keepdims=True))
    rest[np.arange(len(labels)), labels] -= 1
    found = features.T @ rest + penalty * solution.weights
    size = np.abs(features).T @ np.abs(rest) + penalty * np.abs(solution.weights)
    return np.abs(found / size).max(), np.abs(rest.sum(0) / np.abs(rest).sum(0)).max()


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-6), ("float32", 1e-3)])
def test_weights_and_bias_are_those_of_the_reference(oracles, precision, tolerance):
    oracle = json.loads((oracles / "linear_probe.json").read_text())
    features, labels = np.array(oracle["X"]), np.array(oracle["y"])
    for devices in (1, 8):
        problem = logistic.Problem(features, labels, 3, mesh(devices), precision)
        for c, expected in oracle["solutions"].items():
            found = problem.solve(1 / float(c))
            np.testing.assert_allclose(found.weights, expected["W"], atol=tolerance)
            np.testing.assert_allclose(found.bias, expected["b_centred"], atol=tolerance)
            right = (features @ found.weights + found.bias).argmax(1) == labels
            assert right.mean() == expected["train_acc"]
            assert found.stopped != "limit"


@pytest.mark.parametrize("penalty", [1e-2, 1.0, 1e3])
def test_the_classifier_is_that_of_scikit_learn(penalty):
    features, labels = noisy()
    peer = linear_model.LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=5000).fit(features, labels)
    found = logistic.Problem(features, labels, 4, mesh()).solve(penalty)
    np.testing.assert_allclose(found.weights, peer.coef_.T, atol=1e-5)
    np.testing.assert_allclose(found.bias, peer.intercept_ - peer.intercept_.mean(), atol=1e-5)


def test_features_of_very_different_scale_converge_as_fast():
    features, labels = noisy()
    plain = logistic.Problem(features, labels, 4, mesh()).solve(1e-6)
    scale, shift = np.logspace(-4, 4, 6), np.logspace(-3, 5, 6)
    scaled = logistic.Problem(features * scale + shift, labels, 4, mesh()).solve(1e-6)
    assert plain.stopped != "limit" and scaled.stopped != "limit"
    assert scaled.iterations <= 2 * plain.iterations
    for solution, seen in ((plain, features), (scaled, features * scale + shift)):
        np.testing.assert_allclose(slope(seen, labels, solution, 1e-6), 0, atol=1e-6)


# The smallest penalty in optimised code only: far out, where the loss is flat, the sums of the other are 1.2e-4 off in float32.
@pytest.mark.parametrize("penalty", [pytest.param(1e-6, marks=pytest.mark.slow), 1e-3, 1.0])
def test_separable_classes_have_a_minimum_that_is_found(penalty):
    """Without the penalty weights would grow for ever; with it they end where it balances what is left of the loss."""
    features, labels = separable()
    found = logistic.Problem(features, labels, 5, mesh()).solve(penalty)
    assert found.stopped != "limit"
    assert ((features @ found.weights + found.bias).argmax(1) == labels).all()
    np.testing.assert_allclose(slope(features, labels, found, penalty), 0, atol=1e-4)


def test_features_that_depend_on_one_another_or_say_nothing_are_no_trouble():
    features, labels = noisy()
    more = np.concatenate([features, features, np.full((300, 1), 7.0), np.zeros((300, 2))], 1)
    found = logistic.Problem(more, labels, 4, mesh()).solve(1.0)
    np.testing.assert_allclose(found.weights[:6], found.weights[6:12], atol=1e-6)
    np.testing.assert_allclose(found.weights[12:], 0, atol=1e-6)
    half = logistic.Problem(features * np.sqrt(2), labels, 4, mesh()).solve(1.0)  # two equal columns share the penalty
    np.testing.assert_allclose(found.weights[:6] * np.sqrt(2), half.weights, atol=1e-6)


def test_the_limit_of_iterations_is_told():
    features, labels = noisy()
    found = logistic.Problem(features, labels, 4, mesh()).solve(1.0, max_iterations=2)
    assert (found.stopped, found.iterations) == ("limit", 2)


def test_a_start_near_the_solution_ends_at_the_same_minimum_sooner():
    features, labels = noisy()
    problem = logistic.Problem(features + 5, labels, 4, mesh())
    near, cold = problem.solve(2.0), problem.solve(1.0)
    warm = problem.solve(1.0, start=near)
    assert warm.iterations < cold.iterations
    np.testing.assert_allclose(warm.weights, cold.weights, atol=1e-6)
    np.testing.assert_allclose(warm.bias, cold.bias, atol=1e-6)


@pytest.mark.parametrize("axes", [{}, {"data": 2, "fsdp": 2, "model": 2}])
def test_devices_and_chunks_change_nothing(monkeypatch, axes):
    features, labels = noisy(301)
    expected = logistic.Problem(features, labels, 4, mesh()).solve(0.1)
    monkeypatch.setattr(metrics, "CHUNK_BYTES", 8 * 4 * 10)
    found = logistic.Problem(features, labels, 4, mesh(8, **axes)).solve(0.1)
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-7)
    np.testing.assert_allclose(found.bias, expected.bias, atol=1e-7)


def test_features_that_are_not_finite_are_refused():
    features, labels = noisy()
    features[7, 2] = np.nan
    with pytest.raises(InputError, match="1 of 300 images are not finite"):
        logistic.Problem(features, labels, 4, mesh())
