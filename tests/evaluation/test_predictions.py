"""Predictions in blocks, and what is drawn of many classes."""

import numpy as np
import pytest

from vlm_jax.evaluation import metrics, predictions


def made(classes: int, count: int, seed: int = 0) -> predictions.Predictions:
    rng = np.random.default_rng(seed)
    weights = metrics.normalize(rng.normal(size=(classes, 8)))
    labels = np.minimum(rng.integers(0, classes, count), rng.integers(0, classes, count))
    images = metrics.normalize(weights[labels] + 0.5 * rng.normal(size=(count, 8)))
    return predictions.Predictions.of(images, weights, labels)


def test_blocks_change_nothing(monkeypatch):
    whole = made(20, 150)
    monkeypatch.setattr(metrics, "CHUNK_BYTES", 4 * 20 * 7)
    parts = made(20, 150)
    np.testing.assert_array_equal(whole.ranks, parts.ranks)
    np.testing.assert_array_equal(whole.predicted, parts.predicted)
    assert 0 < whole.metrics()["acc1"] < whole.metrics()["acc5"] < 1


def test_the_calibration_of_many_images_is_that_of_as_many_as_one_block_holds(monkeypatch):
    found = made(20, 150)
    titles = [str(i) for i in range(20)]
    assert found.figures(titles, 10.0)["calibration"].counts.sum() == 150
    monkeypatch.setattr(metrics, "CHUNK_BYTES", 4 * 20 * 30)
    assert found.figures(titles, 10.0)["calibration"].counts.sum() == 30
    assert "calibration" not in found.figures(titles, None)


def test_the_map_shows_the_most_frequent_classes_and_says_so():
    found = made(20, 150)
    drawn = found.figures([f"class {i}" for i in range(20)], None)["embedding_map"]
    counts = np.bincount(found.labels, minlength=20)
    shown = {int(name.removeprefix("class ")) for name in drawn.groups}
    assert len(shown) == 10 and min(counts[c] for c in shown) >= max(counts[c] for c in range(20) if c not in shown)
    assert drawn.method.endswith(f"; the 10 most frequent of {len(found.present)} classes")


def test_too_many_classes_have_no_matrix_but_their_confused_pairs(monkeypatch):
    found = made(20, 150)
    counts = found.tables([str(i) for i in range(20)])["confusion"].values
    monkeypatch.setattr(predictions, "TABLE_CLASSES", 19)
    assert found.tables([str(i) for i in range(20)]) == {}
    pairs = found.confused(3)
    wrong = metrics.confusion(found.labels, found.predicted, 20)
    np.fill_diagonal(wrong, 0)
    assert [len(images) for *_, images in pairs] == sorted(wrong.ravel(), reverse=True)[:3]
    for true, predicted, images in pairs:
        assert (found.labels[images] == true).all() and (found.predicted[images] == predicted).all()
    assert counts.sum() == 150


def test_intervals_and_blind_numbers_have_the_names_of_the_metrics():
    for classes in (5, 20):
        found = made(classes, 100)
        names = {"acc1", "mean_per_class_recall"} | ({"acc5"} if classes > 5 else set())
        assert (
            found.metrics().keys() == found.chance().keys() == found.blind().keys() == found.intervals().keys() == names
        )
        assert found.blind()["acc1"] == pytest.approx(np.bincount(found.labels).max() / 100)
