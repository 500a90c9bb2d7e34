"""The linear probe of a tiny model: numbers, reproducibility, what is told, what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn import linear_model

from vlm_jax.data import records
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, linear_probe

from .conftest import NAMES, example


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> str:
    """Shards with 70 other images of the seven colours, in order."""
    prefix = str(tmp_path_factory.mktemp("train") / "train")
    return "::".join(records.write(prefix, map(example, range(100, 170)), 1))


@pytest.fixture(scope="module")
def probe(data, train, classes) -> linear_probe.LinearProbe:
    return linear_probe.LinearProbe(data=data, train=train, classes=classes, examples=2, note="Said beside.")


@pytest.fixture(scope="module")
def result(make_subject, probe) -> base.Result:
    return probe(make_subject())


def write(folder, examples) -> str:
    return "::".join(records.write(str(folder / "some"), examples, 1))


def test_the_numbers_are_those_of_scikit_learn_at_the_same_penalty(result, make_subject, data, train):
    subject = make_subject()
    order = sorted(range(27), key=lambda i: (i % 2, i))
    known, tested = (
        subject.embed_images([subject.transform(example(i)["image"]) for i in of], method="image_features").astype(float)
        for of in (range(100, 170), order)
    )
    labels, truth = (np.array([example(i)["label"] for i in of]) for of in (range(100, 170), order))
    penalty = result.figures["penalty"].chosen
    peer = linear_model.LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=20_000).fit(known, labels)
    predicted = peer.predict(tested)
    assert result.metrics["acc1"] == pytest.approx((predicted == truth).mean())
    assert result.metrics["mean_per_class_recall"] == pytest.approx(
        np.mean([(predicted[truth == c] == c).mean() for c in range(7)])
    )
    assert 1 / 7 < result.metrics["acc1"]


def test_chance_blind_numbers_and_intervals_stand_beside_the_numbers(result):
    assert result.metrics.keys() == result.chance.keys() == result.blind.keys() == result.intervals.keys()
    assert result.chance["acc1"] == pytest.approx(1 / 7) and result.chance["acc5"] == pytest.approx(5 / 7)
    assert result.blind["acc1"] == pytest.approx(4 / 27)  # the first of equally frequent classes
    for name, (low, high) in result.intervals.items():
        assert low <= result.metrics[name] <= high


def test_the_figure_shows_every_penalty_and_the_one_taken(result):
    figure = result.figures["penalty"]
    tried = dict(figure.lines["validation"])
    assert {1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6} <= tried.keys() and len(tried) <= 15
    assert figure.scale == "log" and tried[figure.chosen] == max(tried.values())
    assert list(tried) == sorted(tried) == [x for x, _ in figure.lines["train"]]


def test_the_note_tells_features_data_penalty_and_convergence(result):
    assert result.note.startswith("Features before the projection, 6 values. 27 images of 7 classes, 70 to learn from. lambda ")
    assert "on 14 validation images drawn from those. L-BFGS converged after " in result.note
    assert result.note.endswith(" iterations. Said beside.")


def test_the_confusion_matrix_and_the_examples_have_the_names(result):
    assert result.tables["confusion"].columns == tuple(NAMES) and result.tables["confusion"].values.sum() == 27
    hits = [e for e in result.examples if e.group == "hits"]
    assert hits and all(e.answers[0].text == e.expected.text and e.answers[0].score is None for e in hits)


def test_a_second_run_has_the_same_bits(result, make_subject, probe):
    again = probe(make_subject())
    assert again.metrics == result.metrics and again.note == result.note
    assert again.figures == result.figures and again.intervals == result.intervals


@pytest.mark.parametrize("batch_size", [8, 64])
def test_devices_and_batch_size_change_no_number(result, make_subject, probe, batch_size):
    other = probe(make_subject(8, batch_size))
    assert other.metrics == result.metrics and other.figures == result.figures


def test_projected_features_scaling_and_float32_are_taken_and_told(result, make_subject, probe):
    projected = dataclasses.replace(probe, features="projected", scaling="standardize")(make_subject())
    assert projected.note.startswith("L2-normalised embeddings, 4 values, standardised.")
    assert projected.figures != result.figures
    single = dataclasses.replace(probe, precision="float32")(make_subject())
    assert single.metrics == result.metrics
    assert single.figures["penalty"].chosen == pytest.approx(result.figures["penalty"].chosen, rel=0.4)


def test_given_validation_data_choose_the_penalty_and_are_learned_from_at_the_end(make_subject, probe, tmp_path):
    given = write(tmp_path, map(example, range(200, 235)))
    found = dataclasses.replace(probe, validation=given)(make_subject())
    assert "105 to learn from." in found.note and "on 35 validation images." in found.note


def test_the_seed_draws_other_validation_images(result, make_subject, probe):
    other = dataclasses.replace(probe, seed=5)(make_subject())
    assert other.figures["penalty"].lines != result.figures["penalty"].lines


def test_classes_without_a_file_are_the_labels_of_the_training_data(result, make_subject, probe):
    indices = dataclasses.replace(probe, classes="")(make_subject())
    assert indices.metrics == result.metrics and indices.tables["confusion"].columns == tuple("0123456")
    names = dataclasses.replace(probe, classes="", label="name")(make_subject())
    assert names.tables["confusion"].columns == tuple(sorted(NAMES))
    assert names.metrics["acc1"] > 0.5, "other classes are held out of each name, so the numbers may differ a little"


def test_the_limit_of_iterations_is_told(make_subject, probe):
    found = dataclasses.replace(probe, max_iterations=1)(make_subject())
    assert "L-BFGS stopped at its limit after 1 iterations; " in found.note


def test_the_limit_takes_the_first_records_of_each(make_subject, probe):
    found = dataclasses.replace(probe, limit=21)(make_subject())
    assert "21 images of 7 classes, 21 to learn from." in found.note


def test_what_cannot_be_learned_from_is_refused(make_subject, probe, tmp_path, data):
    subject = make_subject()
    with pytest.raises(InputError, match="train '': name shards"):
        dataclasses.replace(probe, train="")(subject)
    (tmp_path / "single").mkdir()
    single = write(tmp_path / "single", [example(i) for i in range(7)])
    with pytest.raises(InputError, match="one image of each class, so none is left"):
        dataclasses.replace(probe, train=single)(subject)
    same = write(tmp_path, [example(7 * i) for i in range(4)])
    with pytest.raises(InputError, match="all of its 4 records are of one class"):
        dataclasses.replace(probe, train=same)(subject)
    with pytest.raises(InputError, match=r"label 4 of record .* has 3 classes"):
        few = write(tmp_path, [example(i) for i in (0, 1, 2, 7, 8, 9)])
        dataclasses.replace(probe, train=few, classes="")(subject)
    assert subject.compiled.compilations == 0


@pytest.mark.parametrize("fields", [{"validation_share": 0.0}, {"validation_share": 1.0}, {"max_iterations": 0}])
def test_numbers_out_of_range_are_refused(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        linear_probe.LinearProbe(**fields)


def test_the_configuration_survives_json(probe):
    from vlm_jax import config

    assert config.from_json(json.loads(json.dumps(config.to_json(probe)))) == probe
