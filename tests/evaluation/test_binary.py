"""AUROC with a tiny model: numbers as scikit-learn's, figures, and what is refused."""

import numpy as np
import pytest
import sklearn.metrics

from vlm_jax.data import records, sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, binary

from .conftest import example

COUNT = 30
PROMPTS = {"negative": ("a photo of a green", "picture of cyan"), "positive": ("a photo of a red", "yellow")}


def truth(i: int) -> int:
    """Reds and yellows, and now and then something else."""
    return int(i % 7 in (0, 3) or i % 11 == 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    some = (example(i) | {"label": truth(i)} for i in range(COUNT))
    return "::".join(records.write(str(tmp_path_factory.mktemp("binary") / "val"), some, 1))


@pytest.fixture(scope="module")
def result(make_subject, data) -> base.Result:
    return binary.Binary(data=data, **PROMPTS)(make_subject())


def test_the_numbers_are_those_of_scikit_learn(result, make_subject, data):
    subject = make_subject()
    images = subject.embed_records(sources.open_source(data), COUNT)
    negative, positive = (subject.embed_texts(PROMPTS[side]).mean(0) for side in ("negative", "positive"))
    scores = images @ (positive / np.linalg.norm(positive)) - images @ (negative / np.linalg.norm(negative))
    labels = np.array([truth(i) for i in range(COUNT)])
    assert result.metrics["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores), abs=1e-6)
    assert result.metrics["acc1"] == pytest.approx(((scores > 0) == labels).mean(), abs=1e-6)
    assert 0.5 < result.metrics["auroc"] < 1
    points = np.array(result.figures["roc"].lines["model"])
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(result.metrics["auroc"])


def test_chance_blind_and_intervals_stand_beside(result):
    share = np.mean([truth(i) for i in range(COUNT)])
    assert result.chance == {"auroc": 0.5, "acc1": 0.5}
    assert result.blind == {"auroc": 0.5, "acc1": pytest.approx(1 - share)}
    for name, (low, high) in result.intervals.items():
        assert low < result.metrics[name] < high


def test_figures_count_both_kinds(result):
    counts = result.figures["scores"].counts
    positive = sum(map(truth, range(COUNT)))
    assert counts["positive"].sum() == positive and counts["negative"].sum() == COUNT - positive


def test_examples_go_from_the_highest_and_from_the_lowest_score(result):
    scores = [e.answers[0].score for e in result.examples if e.group == "highest scores"]
    assert scores == sorted(scores, reverse=True) and len(scores) == 6
    lowest = [e.answers[0].score for e in result.examples if e.group == "lowest scores"]
    assert lowest == sorted(lowest) and max(lowest) < min(scores)
    for shown in result.examples:
        assert (shown.answers[0].verdict == "right") == (shown.answers[0].text == shown.expected.text)


def test_devices_change_no_number(result, make_subject, data):
    assert binary.Binary(data=data, **PROMPTS)(make_subject(8, 16)).metrics == result.metrics


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("1", "label '1' of record 'k0' .*must be 0"),
        (2, "label 2 of"),
        (None, "label None of"),
        (0, "all 1 labels are 0"),
    ],
)
def test_labels_that_are_not_two_classes_are_refused(make_subject, tmp_path, label, message):
    one = "::".join(records.write(str(tmp_path / "some"), [example(0) | {"label": label}], 1))
    with pytest.raises(InputError, match=message):
        binary.Binary(data=one, **PROMPTS)(make_subject())


@pytest.mark.parametrize("prompts", [{"negative": ("a",)}, {"negative": ("a",), "positive": (" ",)}])
def test_a_side_without_a_prompt_is_refused(make_subject, data, prompts):
    with pytest.raises(InputError, match=r"positive .*give at least one prompt"):
        binary.Binary(data=data, **prompts)(make_subject())
