"""Figures are counted exactly, against formulas written out, and are the same every time."""

import numpy as np
import pytest

from vlm_jax.evaluation import figures, metrics

RNG = np.random.default_rng(0)


def unit(*shape, seed=0):
    return metrics.normalize(np.random.default_rng(seed).normal(size=shape))


def test_every_pair_is_counted_once_whatever_the_blocks(monkeypatch):
    images, texts = unit(41, 5), unit(67, 5, seed=1)
    pairs = np.array([[i, t] for i in range(41) for t in range(67) if (i + t) % 9 == 0][::-1] * 2)
    whole = figures.similarities(images, texts, pairs)
    monkeypatch.setattr(metrics, "CHUNK_BYTES", 4 * 67 * 3)
    blocks = figures.similarities(images, texts, pairs)
    cosines = images @ texts.T
    matching = np.zeros((41, 67), bool)
    matching[tuple(pairs.T)] = True
    for histogram in (whole, blocks):
        expected = {"matching pairs": cosines[matching], "other pairs": cosines[~matching]}
        for group, values in expected.items():
            assert histogram.counts[group].tolist() == np.histogram(values, histogram.edges)[0].tolist()
    assert 20 < len(whole.edges) <= 49 and sum(map(sum, whole.counts.values())) == 41 * 67


def test_cosines_beyond_one_by_rounding_and_alike_ones_have_a_bin_and_broken_ones_none():
    images = np.array([[1.0000001, 0], [-1.0000001, 0], [np.nan, 0]])
    histogram = figures.similarities(images, images[:1], np.array([[0, 0]]))
    assert histogram.counts["matching pairs"].sum() == 1 and histogram.counts["other pairs"].sum() == 1
    same = figures.similarities(images[:1], images[:1], np.array([[0, 0]]))
    assert len(same.edges) == 2 and same.counts["other pairs"].sum() == 0
    assert figures.similarities(images[2:], images[:1], np.zeros((0, 2))).counts["other pairs"].sum() == 0


def test_calibration_is_the_formula_of_the_paper(monkeypatch):
    cosines, labels = RNG.uniform(-1, 1, (300, 7)), RNG.integers(0, 7, 300)
    monkeypatch.setattr(metrics, "CHUNK_BYTES", 8 * 7 * 32)
    found = figures.calibration(cosines, labels, 3.0)
    probabilities = np.exp(3 * cosines) / np.exp(3 * cosines).sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        assert found.counts[k] == inside.sum()
        if inside.any():
            assert found.confidence[k] == pytest.approx(confidence[inside].mean())
            assert found.accuracy[k] == pytest.approx(right[inside].mean())
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        else:
            assert np.isnan(found.accuracy[k])
    assert found.error == pytest.approx(error, abs=1e-12) and found.scale == 3.0


@pytest.mark.parametrize("start", [0.5, 12.0, 900.0])
def test_the_best_scale_is_the_one_that_made_the_labels(start):
    cosines = RNG.uniform(-1, 1, (40_000, 5))
    labels = (12 * cosines + RNG.gumbel(size=cosines.shape)).argmax(1)
    found = figures.calibration(cosines, labels, start)
    assert found.best_scale == pytest.approx(12, rel=0.03)
    assert figures.calibration(cosines, labels, found.best_scale).error < 0.01

    def cross_entropy(scale):
        logits = scale * cosines
        return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels])

    assert cross_entropy(found.best_scale) < min(cross_entropy(found.best_scale * f) for f in (0.99, 1.01))


def test_the_best_scale_ends_at_a_bound_where_there_is_none_and_broken_rows_are_left_out():
    right = np.array([[0.5, 0.1], [0.2, 0.4]])
    assert figures.calibration(right, np.array([0, 1]), 10.0).best_scale == pytest.approx(figures.SCALES[1], rel=1e-3)
    assert figures.calibration(right, np.array([1, 0]), 10.0).best_scale == pytest.approx(figures.SCALES[0], rel=1e-3)
    broken = np.array([[0.5, 0.1], [np.nan, 0.4]])
    assert figures.calibration(broken, np.array([0, 1]), 10.0).counts.sum() == 1
    assert np.isnan(figures.calibration(broken[1:], np.array([1]), 10.0).error)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_keeps_groups_apart_and_is_the_same_every_time(method):
    parts = {"images": unit(60, 16) + 4, "texts": unit(30, 16, seed=1) - 4}
    titles = {"images": [f"image {i}" for i in range(60)], "texts": [f"text {i}" for i in range(30)]}
    found = figures.embedding_map(parts, titles, method=method)
    again = figures.embedding_map(parts, titles, method=method)
    np.testing.assert_array_equal(found.points, again.points)
    assert found.groups == ("images",) * 60 + ("texts",) * 30
    assert found.titles[0] == "image 0" and found.titles[-1] == "text 29"
    first, second = found.points[:60], found.points[60:]
    apart = np.linalg.norm(first.mean(0) - second.mean(0))
    assert apart > 1.5 * max(np.linalg.norm(p - p.mean(0), axis=1).mean() for p in (first, second))
    assert found.method.startswith({"pca": "PCA, ", "tsne": "t-SNE"}[method])


def test_pca_places_points_at_their_first_two_components():
    points = RNG.normal(size=(50, 6)) * [9, 5, 1, 1, 1, 1]
    found = figures.embedding_map({"a": points}, None)
    centred = points - points.mean(0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.points), np.abs(centred @ directions[:2].T), atol=1e-9)
    assert f"{100 * (values[:2] ** 2).sum() / (values**2).sum():.0f}" in found.method
    assert found.titles == ()


def test_large_groups_are_thinned_and_small_ones_stay_whole():
    parts = {"images": unit(500, 4), "texts": unit(10, 4), "broken": np.full((3, 4), np.nan)}
    titles = {name: [str(i) for i in range(len(part))] for name, part in parts.items()}
    found = figures.embedding_map(parts, titles, limit=50)
    assert found.groups == ("images",) * 40 + ("texts",) * 10
    assert found.titles[0] == "0" and found.titles[39] == "499"
    alike = figures.embedding_map({"images": unit(40, 4), "texts": unit(40, 4)}, None, limit=50)
    assert alike.groups == ("images",) * 25 + ("texts",) * 25


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 4), (5, 1), (12, 1), (6, 4)])
@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_few_points_have_places_too(shape, method):
    found = figures.embedding_map({"a": unit(*shape)}, {"a": ["x"] * shape[0]}, method=method)
    assert found.points.shape == (shape[0], 2) and np.isfinite(found.points).all()
    assert np.isfinite(figures.embedding_map({"a": np.ones(shape)}, None).points).all()


def test_titles_must_be_as_many_as_points():
    with pytest.raises(ValueError, match="titles of 'a': 1, but 2 points"):
        figures.embedding_map({"a": unit(2, 3)}, {"a": ["x"]})
