"""Multi-label classification with a tiny model: numbers as scikit-learn's, per class, and what is refused."""

import numpy as np
import pytest
import sklearn.metrics

from vlm_jax.data import records, sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, metrics, multi_label
from vlm_jax.evaluation import classes as classes_lib

from .conftest import NAMES, example

COUNT = 40


def labels(i: int) -> list:
    """The colour, sometimes with its neighbour, by index or by name; nothing for one image in ten."""
    own = i % len(NAMES)
    return [] if i % 10 == 9 else [NAMES[own], (own + 1) % len(NAMES)] if i % 3 else [own]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    some = (example(i) | {"labels": labels(i)} for i in range(COUNT))
    return "::".join(records.write(str(tmp_path_factory.mktemp("multi") / "val"), some, 1))


@pytest.fixture(scope="module")
def result(make_subject, data, classes) -> base.Result:
    return multi_label.MultiLabel(data=data, classes=classes)(make_subject())


def test_the_numbers_are_those_of_scikit_learn(result, make_subject, data, classes):
    subject, source = make_subject(), sources.open_source(data)
    scores = subject.embed_records(source, COUNT) @ classes_lib.embed(subject, classes_lib.read(classes)).T
    truth = np.zeros((COUNT, 7), bool)
    for i in range(COUNT):
        truth[i, [NAMES.index(x) if isinstance(x, str) else x for x in labels(i)]] = True
    plain = [sklearn.metrics.average_precision_score(truth[:, c], scores[:, c]) for c in range(7)]
    assert result.metrics["mean_average_precision"] == pytest.approx(np.mean(plain), abs=1e-6)
    assert result.tables["average_precision"].values[:, 0] == pytest.approx(plain, abs=1e-6)
    best = truth[np.arange(COUNT), scores.argmax(1)]
    assert result.metrics["any_correct_acc1"] == pytest.approx(best[truth.any(1)].mean(), abs=1e-6)
    assert 0.2 < result.metrics["any_correct_acc1"] < 1, "a useful test has hits and misses"
    assert result.metrics["mean_average_precision_11"] != result.metrics["mean_average_precision"]


def test_every_number_has_its_chance_and_its_interval(result):
    assert result.chance.keys() == result.metrics.keys() == result.intervals.keys()
    for name, (low, high) in result.intervals.items():
        assert low < result.metrics[name] < high
        assert result.chance[name] < result.metrics[name]
    own = [len(labels(i)) for i in range(COUNT)]
    assert result.chance["any_correct_acc1"] == pytest.approx(sum(own) / 7 / sum(map(bool, own)))
    sizes = result.tables["average_precision"].values[:, -1].astype(int)
    of_all = [metrics.chance_of_average_precision(int(size), COUNT) for size in sizes]
    of_eleven = [metrics.chance_of_eleven_points(int(size), COUNT) for size in sizes]
    assert result.chance["mean_average_precision"] == pytest.approx(np.mean(of_all))
    assert result.chance["mean_average_precision_11"] == pytest.approx(np.mean(of_eleven))


def test_examples_mark_all_classes_of_an_image(result):
    assert {e.group for e in result.examples} == {"hits", "misses"}
    for shown in result.examples:
        right = {a.text for a in shown.answers if a.verdict == "right"}
        assert right <= set(shown.expected.text.split(", "))
        assert (shown.answers[0].verdict == "right") == (shown.group == "hits")


def test_devices_change_no_number(result, make_subject, data, classes):
    other = multi_label.MultiLabel(data=data, classes=classes)(make_subject(8, 16))
    assert other.metrics == result.metrics and other.intervals == result.intervals


def test_records_without_any_class_are_refused(make_subject, classes, tmp_path):
    empty = "::".join(records.write(str(tmp_path / "some"), [example(0) | {"labels": []}], 1))
    with pytest.raises(InputError, match="no record has a class"):
        multi_label.MultiLabel(data=empty, classes=classes)(make_subject())
