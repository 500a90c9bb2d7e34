"""Few-shot probes of a tiny model: what is drawn, what is averaged, what is refused."""

import dataclasses

import numpy as np
import pytest

from vlm_jax.data import records
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, classifier, few_shot

from .conftest import example


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> str:
    prefix = str(tmp_path_factory.mktemp("train") / "train")
    return "::".join(records.write(prefix, map(example, range(100, 170)), 1))


@pytest.fixture(scope="module")
def probe(data, train, classes) -> few_shot.FewShotProbe:
    return few_shot.FewShotProbe(data=data, train=train, shots=(1, 4), draws=2, classes=classes, note="Said beside.")


@pytest.fixture(scope="module")
def result(make_subject, probe) -> base.Result:
    return probe(make_subject())


@pytest.fixture
def seen(monkeypatch) -> list[np.ndarray]:
    """The labels that each classifier learned from."""
    learned = []

    class Learner(classifier.Learner):
        def __init__(self, features, labels, *arguments, **keywords):
            learned.append((features, labels))
            super().__init__(features, labels, *arguments, **keywords)

    monkeypatch.setattr(classifier, "Learner", Learner)
    return learned


def test_numbers_are_means_over_draws_with_their_deviation(result):
    table = result.tables["draws"]
    assert table.rows == ("1", "4") and table.columns[-2:] == ("acc1", "acc1_deviation")
    for row, name in zip(table.values, ("1_shot", "4_shots"), strict=True):
        assert result.metrics[f"acc1@{name}"] == pytest.approx(row[:2].mean()) == pytest.approx(row[2])
        assert result.metrics[f"acc1_deviation@{name}"] == pytest.approx(row[:2].std(ddof=1)) == pytest.approx(row[3])
        low, high = result.intervals[f"acc1@{name}"]
        assert low <= row[2] <= high and result.chance[f"acc1@{name}"] == 1 / 7
    assert result.metrics["acc1@4_shots"] > 0.5
    assert result.blind["acc1@1_shot"] == pytest.approx(4 / 27)


def test_the_figure_shows_mean_worst_and_best_over_shots(result):
    lines = result.figures["shots"].lines
    assert [x for x, _ in lines["mean"]] == [1, 4]
    for (_, worst), (_, mean), (_, best) in zip(*(lines[n] for n in ("worst draw", "mean", "best draw")), strict=True):
        assert worst <= mean <= best


def test_each_draw_has_k_images_of_each_class_and_those_of_smaller_k_among_them(make_subject, probe, seen):
    probe(make_subject())
    assert [np.bincount(labels).tolist() for _, labels in seen] == [[1] * 7] * 2 + [[4] * 7] * 2
    for draw in (0, 1):
        one, four = (seen[i][0] for i in (draw, 2 + draw))
        assert {row.tobytes() for row in one} <= {row.tobytes() for row in four}
    assert not np.array_equal(seen[0][0], seen[1][0])
    dataclasses.replace(probe, shots=(1,), draws=1, seed=3)(make_subject())
    assert not np.array_equal(seen[0][0], seen[-1][0])


@pytest.mark.slow
def test_a_second_run_and_other_devices_change_no_number(result, make_subject, probe):
    assert probe(make_subject(8)).metrics == result.metrics


def test_the_note_tells_what_was_done(result):
    assert result.note == (
        "Features before the projection, 6 values. 27 images of 7 classes; mean over 2 draws of the images to learn from. lambda "
        "is chosen for each draw on min(k, 4) other images of each class. Said beside."
    )


def test_a_class_with_too_few_images_is_refused_before_anything_is_embedded(make_subject, probe):
    subject = make_subject()
    with pytest.raises(InputError, match=r"shots 8: class 'red' has 10 images in train .* 12 are needed, 4 of them"):
        dataclasses.replace(probe, shots=(1, 8))(subject)
    assert subject.compiled.compilations == 0


@pytest.mark.parametrize("fields", [{"shots": ()}, {"shots": (2, 1)}, {"shots": (0, 1)}, {"draws": 0}])
def test_numbers_out_of_range_are_refused(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        few_shot.FewShotProbe(**fields)
