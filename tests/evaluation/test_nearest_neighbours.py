"""Nearest neighbours of a tiny model: exact search on any mesh, votes, numbers, examples."""

import dataclasses

import jax
import numpy as np
import pytest

from vlm_jax.data import records
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, metrics, nearest_neighbours
from vlm_jax.training import sharding

from .conftest import NAMES, example


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> str:
    prefix = str(tmp_path_factory.mktemp("train") / "train")
    return "::".join(records.write(prefix, map(example, range(100, 170)), 1))


@pytest.fixture(scope="module")
def probe(data, train, classes) -> nearest_neighbours.NearestNeighbours:
    return nearest_neighbours.NearestNeighbours(data=data, train=train, neighbours=6, classes=classes, examples=2, note="Said beside.")


@pytest.fixture(scope="module")
def result(make_subject, probe) -> base.Result:
    return probe(make_subject())


@pytest.mark.parametrize(("devices", "axes"), [(1, {}), (8, {}), (8, {"data": 2, "fsdp": 2, "model": 2})])
@pytest.mark.parametrize("chunk", [100, 2**20])
def test_the_search_is_exact_on_any_mesh_and_in_blocks(monkeypatch, devices, axes, chunk):
    monkeypatch.setattr(metrics, "CHUNK_BYTES", chunk)
    rng = np.random.default_rng(0)
    known, queries = (metrics.normalize(rng.normal(size=(n, 5)).astype(np.float32)) for n in (37, 11))
    known[20] = known[3]  # equal ones: the first comes first
    queries[0] = known[3]
    cosines, nearest = nearest_neighbours.search(
        known, queries, 9, sharding.Mesh(**axes).make(jax.devices()[:devices])
    )
    expected = queries @ known.T
    order = np.argsort(-np.round(expected, 6), axis=1, kind="stable")[:, :9]
    np.testing.assert_array_equal(nearest, order)
    np.testing.assert_allclose(cosines, np.take_along_axis(expected, order, 1), atol=1e-6)


def test_as_many_neighbours_as_there_are_may_be_asked_for_though_a_device_has_fewer():
    known = np.eye(10, dtype=np.float32)
    _, nearest = nearest_neighbours.search(known, known[:3], 10, sharding.Mesh().make(jax.devices()[:8]))
    assert np.sort(nearest, axis=1).tolist() == [list(range(10))] * 3


def test_votes_weigh_by_the_exponential_of_the_cosine():
    cosines, labels = np.array([[0.9, 0.8, 0.7]]), np.array([[2, 0, 0]])
    found = nearest_neighbours.votes(cosines, labels, 4, 0.1)[0]
    expected = np.exp(np.array([0.8, 0.9]) / 0.1) + np.array([np.exp(0.7 / 0.1), 0])
    np.testing.assert_allclose(found[[0, 2]] / found.sum(), expected / expected.sum())
    assert found[1] == found[3] == 0
    assert nearest_neighbours.votes(cosines, labels, 4, 10.0)[0].argmax() == 0
    assert np.isfinite(nearest_neighbours.votes(cosines, labels, 4, 1e-4)).all()


def test_the_numbers_are_those_of_a_plain_computation(result, make_subject):
    subject = make_subject()
    order = sorted(range(27), key=lambda i: (i % 2, i))
    known, tested = (
        metrics.normalize(subject.embed_images([subject.transform(example(i)["image"]) for i in of], method="image_features"))
        for of in (range(100, 170), order)
    )
    right = []
    for i, feature in zip(order, tested, strict=True):
        nearest = sorted(range(70), key=lambda j: -float(feature @ known[j]))[:6]
        tally = dict.fromkeys(range(7), 0.0)
        for j in nearest:
            tally[(100 + j) % 7] += np.exp(float(feature @ known[j]) / 0.07)
        right.append(max(tally, key=lambda c: tally[c]) == i % 7)
    assert result.metrics["acc1"] == pytest.approx(np.mean(right))
    assert result.metrics["acc1"] > 0.5
    assert result.metrics.keys() == result.chance.keys() == result.blind.keys() == result.intervals.keys()


def test_examples_show_the_nearest_images_with_their_cosines(result):
    assert {e.group for e in result.examples} == {"misses", "hits"}
    for e in result.examples:
        assert e.query.image and len(e.answers) == 5 and e.expected.text in NAMES
        scores = [a.score for a in e.answers]
        assert all(a.image.startswith(b"\xff\xd8\xff") for a in e.answers) and scores == sorted(scores, reverse=True)
        assert all((a.verdict == "right") == (a.text == e.expected.text) for a in e.answers)


def test_the_note_tells_features_and_votes(result):
    assert result.note == (
        "Features before the projection, 6 values, compared by cosine. 27 images of 7 classes, by the votes of 6 of 70 at "
        "temperature 0.07. Said beside."
    )


def test_devices_change_no_number_and_the_kind_of_features_does(result, make_subject, probe):
    assert probe(make_subject(8, 16)).metrics == result.metrics
    other = dataclasses.replace(probe, features="projected", neighbours=500)(make_subject())
    assert other.note.startswith("L2-normalised embeddings, 4 values") and "votes of 70 of 70" in other.note


@pytest.mark.parametrize("fields", [{"neighbours": 0}, {"temperature": 0.0}])
def test_numbers_out_of_range_are_refused(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        nearest_neighbours.NearestNeighbours(**fields)
