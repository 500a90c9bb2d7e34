"""Captions against hard negatives with a tiny model: by category, in pairs, without images, and what is refused."""

import numpy as np
import pytest

from vlm_jax.data import records, sources
from vlm_jax.errors import InputError
from vlm_jax.evaluation import base, compositional

from .conftest import NAMES, example

COUNT = 28


def hard(i: int) -> dict:
    """A colour's caption against that of one or two other colours; some with the answer in the number of words."""
    own, other, third = (NAMES[(i + k) % 7] for k in (0, 1, 3))
    if i % 2:
        return {"captions": [f"photo of {own}"], "negatives": f"photo of {other}", "category": "replace"}
    return {"captions": [own], "negatives": [f"a {other}", f"a {third}"], "category": "add"}


def write(folder, examples) -> str:
    return "::".join(records.write(str(folder / "some"), examples, 1))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("hard"), [example(i) | hard(i) for i in range(COUNT)])


@pytest.fixture(scope="module")
def result(make_subject, data) -> base.Result:
    return compositional.Compositional(data=data)(make_subject())


def embedded(subject, data):
    images = subject.embed_records(sources.open_source(data), COUNT)
    choices = []
    for i in range(COUNT):
        wrong = hard(i)["negatives"]
        choices.append(subject.embed_texts(hard(i)["captions"] + ([wrong] if isinstance(wrong, str) else wrong)))
    return images, choices


def test_the_numbers_are_those_of_a_plain_computation_by_category(result, make_subject, data):
    images, choices = embedded(make_subject(), data)
    right = np.array([(own @ image).argmax() == 0 for own, image in zip(choices, images, strict=True)])
    assert result.metrics == pytest.approx(
        {"acc": right.mean(), "acc_add": right[::2].mean(), "acc_replace": right[1::2].mean()}, abs=1e-6
    )
    assert result.chance == pytest.approx({"acc": (1 / 3 + 1 / 2) / 2, "acc_add": 1 / 3, "acc_replace": 1 / 2})
    assert 0 < result.metrics["acc"] < 1, "a useful test has hits and misses"
    assert all(low < result.metrics[name] < high for name, (low, high) in result.intervals.items())


def test_the_blind_answer_is_the_caption_nearest_to_the_mean_of_the_other_images(result, make_subject, data):
    images, choices = embedded(make_subject(), data)
    right = [(own @ np.delete(images, i, 0).mean(0)).argmax() == 0 for i, own in enumerate(choices)]
    assert result.blind["acc"] == pytest.approx(np.mean(right), abs=1e-6)
    assert result.blind.keys() == result.metrics.keys()


def test_the_table_tells_what_the_length_of_captions_gives_away(result):
    table = result.tables["by_category"]
    assert table.rows == ("all", "add", "replace") and table.values[:, -1].tolist() == [28, 14, 14]
    longer, shorter = (table.values[:, table.columns.index(f"{rule} caption")] for rule in ("longer", "shorter"))
    assert shorter[1] > 0.6 > longer[1], "in this category the right caption is short"
    assert table.values[:, 0] == pytest.approx([result.metrics[k] for k in ("acc", "acc_add", "acc_replace")])


def test_devices_change_no_number(result, make_subject, data):
    assert compositional.Compositional(data=data)(make_subject(8, 16)).metrics == result.metrics


def test_equal_scores_are_wrong_answers(make_subject, tmp_path):
    unknown = [example(i) | {"captions": ["unknown"], "negatives": ["nonsense"]} for i in range(3)]
    found = compositional.Compositional(data=write(tmp_path, unknown))(make_subject())
    assert found.metrics == {"acc": 0.0}
    assert found.tables["by_category"].values[0, :2].tolist() == [0, 0.5]


def test_pairs_are_scored_both_ways_and_as_a_group(make_subject, tmp_path):
    pairs = [example(i) | {"captions": [NAMES[i % 7]], "set": i // 2} for i in range(COUNT)]
    data, subject = write(tmp_path, pairs), make_subject()
    found = compositional.Compositional(data=data, pair="set")(subject)
    images = subject.embed_records(sources.open_source(data), COUNT)
    texts = subject.embed_texts([NAMES[i % 7] for i in range(COUNT)])
    text, image = [], []
    for i in range(0, COUNT, 2):
        s = images[i : i + 2] @ texts[i : i + 2].T
        text.append(s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0])
        image.append(s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1])
    both = np.array(text) & np.array(image)
    assert found.metrics == pytest.approx({"acc": both.mean(), "text_acc": np.mean(text), "image_acc": np.mean(image)})
    assert 0 < found.metrics["acc"] < found.metrics["image_acc"] or found.metrics["acc"] < found.metrics["text_acc"]
    assert found.chance == {"acc": 1 / 6, "text_acc": 1 / 4, "image_acc": 1 / 4}


@pytest.mark.parametrize(
    ("fields", "choice", "message"),
    [
        ({"captions": []}, {}, "record 'k0' has no caption"),
        ({"negatives": []}, {}, "'negatives' must hold a wrong caption"),
        ({}, {"negatives": "wrong"}, "'wrong' must hold .*not None; it has"),
        ({"negatives": ["red", "blue"]}, {}, "'red' is its caption and one of its negatives"),
        ({}, {"pair": "set"}, "has no field 'set'"),
        ({"set": 3}, {"pair": "set"}, "set '3' of .*: 1 records have it, a pair is two"),
    ],
)
def test_records_without_a_choice_are_refused(make_subject, tmp_path, fields, choice, message):
    data = write(tmp_path, [example(0) | {"captions": ["red"], "negatives": "blue"} | fields])
    with pytest.raises(InputError, match=message):
        compositional.Compositional(data=data, **choice)(make_subject())
