"""Robustness with a tiny model: each data set's numbers are those of zero-shot classification alone."""

import numpy as np
import pytest

from vlm_jax.data import records
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, robustness, zero_shot

from .conftest import example


@pytest.fixture(scope="module")
def shifted(tmp_path_factory) -> dict[str, str]:
    """Other images; and images whose labels are mostly wrong."""
    folder = tmp_path_factory.mktemp("shifted")
    other = records.write(str(folder / "other"), map(example, range(30, 60)), 1)
    wrong = [example(i) | {"label": (i + i % 3) % 7} for i in range(60, 80)]
    return {"other": "::".join(other), "wrong": "::".join(records.write(str(folder / "wrong"), wrong, 1))}


@pytest.fixture(scope="module")
def result(make_subject, data, shifted, classes) -> base.Result:
    return robustness.Robustness(data=data, shifted=shifted, classes=classes)(make_subject())


def test_accuracies_are_those_of_zero_shot_and_drops_are_their_differences(
    result, make_subject, data, shifted, classes
):
    subject = make_subject()
    alone = {name: zero_shot.ZeroShot(data=of, classes=classes)(subject) for name, of in {"reference": data, **shifted}.items()}
    acc1 = {name: found.metrics["acc1"] for name, found in alone.items()}
    mean = (acc1["other"] + acc1["wrong"]) / 2
    assert result.metrics == pytest.approx(
        {f"acc1_{name}": value for name, value in acc1.items()}
        | {"acc1_shifted": mean, "acc1_drop": acc1["reference"] - mean}
        | {f"acc1_drop_{name}": acc1["reference"] - acc1[name] for name in shifted}
    )
    assert result.metrics["acc1_drop_wrong"] > 0.3
    table = result.tables["data_sets"]
    assert table.rows == ("reference", "other", "wrong") and table.values[:, -1].tolist() == [27, 30, 20]
    assert table.values[1, :3] == pytest.approx([alone["other"].metrics[column] for column in table.columns[:3]])
    for name in alone:
        assert result.blind[f"acc1_{name}"] == alone[name].blind["acc1"]


def test_every_number_has_its_chance_and_an_interval_and_a_drop_the_spread_of_both(result):
    assert result.chance.keys() == result.metrics.keys() == result.intervals.keys() == result.blind.keys()
    assert result.chance["acc1_drop"] == 0 and result.chance["acc1_shifted"] == pytest.approx(1 / 7)
    for name, (low, high) in result.intervals.items():
        assert low < result.metrics[name] < high
    width = {name: high - low for name, (low, high) in result.intervals.items()}
    both = np.hypot(width["acc1_reference"], width["acc1_wrong"])
    assert width["acc1_drop_wrong"] == pytest.approx(both, rel=0.2)


def test_examples_are_told_apart_by_data_set(result):
    groups = {example.group for example in result.examples}
    assert {"reference: hits", "other: misses", "wrong: misses", "wrong: most confused pairs"} <= groups


def test_devices_change_no_number(result, make_subject, data, shifted, classes):
    other = robustness.Robustness(data=data, shifted=shifted, classes=classes)(make_subject(8, 16))
    assert other.metrics == result.metrics and other.intervals == result.intervals


@pytest.mark.parametrize("names", [{}, {"reference": "x"}])
def test_there_is_another_data_set_and_its_name_is_its_own(make_subject, data, classes, names):
    with pytest.raises(InputError, match="name at least one more data set"):
        robustness.Robustness(data=data, shifted=names, classes=classes)(make_subject())
